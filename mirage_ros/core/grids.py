"""How many cells a model's latents and its readouts have.

Latents have one cell for each `stride` pixels. A model may ask for a finer readout, with
`readout_cells` cells to a side of each latent cell, where one token a cell would be too little.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from mirage_ros.core.pictures import cell_share
from mirage_ros.core.types import Readout, WorldModel

MOSTLY = 0.5
"""Share of a latent's readout cells from which memory is said to show it."""


def readout_cells(model: WorldModel) -> int:
    """Cells of a readout to a side of each latent cell; 1 where the model asks for no more."""
    return int(getattr(model, "readout_cells", 1))


def latent_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of the model's latents."""
    height, width = model.size
    return height // model.stride, width // model.stride


def readout_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of what memory shows to the model."""
    height, width = latent_size(model)
    return height * readout_cells(model), width * readout_cells(model)


def readout_side(model: WorldModel) -> int:
    """Pixels to a side of each cell of a readout."""
    return model.stride // readout_cells(model)


def from_memory(model: WorldModel, readout: Readout) -> Bool[np.ndarray, "f lh lw"]:
    """The latent cells that the model takes from memory; it imagines the others.

    The model itself says which, by its method of this name. One without takes the cells of which
    memory shows at least half.
    """
    if hasattr(model, "from_memory"):
        return model.from_memory(readout)
    return cell_share(readout.visible, readout_cells(model)) >= MOSTLY

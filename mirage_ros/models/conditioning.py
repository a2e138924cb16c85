"""What the side branch is told: the readout and the geometry that memory knows exactly.

A readout may be taken on a finer grid than the latents, `cells` to a side of each latent cell.
What is told stays in the units of the latent cell, about its centre, whatever the grid.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirage_ros.core.types import Readout

#: Visibility, inverse depth (1/m), du, dv (cells), log scale: behind the latent channels.
GEOMETRY_CHANNELS = 5
#: Inverse depth is capped here (1/m), so that a surface at the lens does not swamp the rest.
MAX_INVERSE_DEPTH = 4.0
#: Offsets and log scales beyond these say nothing more.
MAX_OFFSET_CELLS = 2.0
MAX_LOG_SCALE = 2.0


def condition_from_readout(readout: Readout, cells: int = 1) -> Float[Tensor, "told f h w"]:
    """Latents, visibility, inverse depth (1/m), du, dv (cells), log scale; zero where unseen.

    (du, dv) is where a token of that scale would have to be centred, from the latent cell's
    centre, to show in the readout cell's centre what the winning one shows there.

    Args:
        cells: of the readout to a side of each latent cell.
    """
    visible = torch.from_numpy(readout.visible)
    depth = torch.from_numpy(readout.depth_m).float()
    scale = torch.from_numpy(readout.log_scale).float() - math.log(cells)
    scale = scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    centre = torch.from_numpy(_centres(readout.visible.shape[1:], cells))
    offset = centre - torch.from_numpy(readout.place).float() * scale.exp()[:, None]
    offset = offset.clamp(-MAX_OFFSET_CELLS, MAX_OFFSET_CELLS)
    geometry = torch.stack(
        [
            visible.float(),
            (1 / depth).clamp(0, MAX_INVERSE_DEPTH),
            offset[:, 0],
            offset[:, 1],
            scale,
        ]
    )
    seen = torch.cat([readout.latents.float().transpose(0, 1), geometry])
    return torch.where(visible, seen, torch.zeros(()))


def condition_from_context(
    latents: Float[Tensor, "c f h w"], cells: int = 1
) -> Float[Tensor, "told f hc wc"]:
    """A context frame sees itself: its own latents, all visible, no offset."""
    geometry = torch.zeros(GEOMETRY_CHANNELS, *latents.shape[1:], dtype=latents.dtype)
    geometry[0] = 1
    told = torch.cat([latents, geometry])
    return told.repeat_interleave(cells, -2).repeat_interleave(cells, -1)


def told_per_latent(
    condition: Float[Tensor, "b told f hc wc"], cells: int
) -> Float[Tensor, "b told f h w"]:
    """Of the finer cells in each latent cell the one whose token lies nearest to its centre.

    Its visibility becomes the share of the finer cells that are visible.
    """
    if cells == 1:
        return condition
    split = condition.unflatten(-1, (-1, cells)).unflatten(-3, (-1, cells))
    split = split.permute(0, 1, 2, 3, 5, 4, 6).flatten(-2)
    channels = condition.shape[1] - GEOMETRY_CHANNELS
    visible, du, dv = (split[:, channels + i] for i in (0, 2, 3))
    far = du.square() + dv.square() + (visible < 0.5) * 1e3
    nearest = far.argmin(-1)[:, None, ..., None]
    told = split.gather(-1, nearest.expand(-1, split.shape[1], -1, -1, -1, -1))[..., 0]
    share = visible.mean(-1)[:, None]
    return torch.cat([told[:, :channels], share, told[:, channels + 1 :]], 1)


def _centres(size: tuple[int, int], cells: int) -> Float[np.ndarray, "2 h w"]:
    """(du, dv) of every readout cell's centre from its latent cell's centre, in latent cells."""
    rows, columns = (((np.arange(n) % cells) + 0.5) / cells - 0.5 for n in size)
    return np.stack(np.broadcast_arrays(columns[None], rows[:, None])).astype(np.float32)

"""What the side branch is told: the readout and the geometry that memory knows exactly."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mirage_ros.core.types import Readout

#: Inverse depth is capped here (1/m), so that a surface at the lens does not swamp the rest.
MAX_INVERSE_DEPTH = 4.0
#: Offsets and log scales beyond these say nothing more.
MAX_OFFSET_CELLS = 2.0
MAX_LOG_SCALE = 2.0


def condition_from_readout(readout: Readout) -> Float[Tensor, "told f h w"]:
    """Latents, visibility, inverse depth (1/m), du, dv (cells), log scale; zero where unseen."""
    visible = torch.from_numpy(readout.visible)
    depth = torch.from_numpy(readout.depth_m).float()
    offset = torch.from_numpy(readout.offset).float().clamp(-MAX_OFFSET_CELLS, MAX_OFFSET_CELLS)
    scale = torch.from_numpy(readout.log_scale).float().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
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


def condition_from_context(latents: Float[Tensor, "c f h w"]) -> Float[Tensor, "told f h w"]:
    """A context frame sees itself: its own latents, all visible, no offset."""
    geometry = torch.zeros(5, *latents.shape[1:], dtype=latents.dtype)
    geometry[0] = 1
    return torch.cat([latents, geometry])

"""What the transformer imagined, once more by convolutions.

A transformer token stands for 2 x 2 latents, and each writes its own without a look at the next
one's: left alone, what it imagines shows their grid. So a few convolutions at latent resolution
see the whole, with what memory shows beside it, and correct it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mirage_ros.models.conditioning import GEOMETRY_CHANNELS
from mirage_ros.models.layers import residual_stage


class Finisher(nn.Module):
    """Starts as nothing: its last layer is zero."""

    def __init__(self, latent_channels: int, blocks: int, width: int = 96):
        super().__init__()
        self.first = nn.Conv2d(2 * latent_channels + GEOMETRY_CHANNELS, width, 3, padding=1)
        self.stage = residual_stage(width, blocks)
        self.last = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        imagined: Float[Tensor, "b c f h w"],
        aligned: Float[Tensor, "b c f h w"],
        told: Float[Tensor, "b told f h w"],
    ) -> Float[Tensor, "b c f h w"]:
        """The imagined correction of the aligned readout, corrected, frame by frame."""
        frames = torch.cat([imagined, aligned, told[:, -GEOMETRY_CHANNELS:]], 1).transpose(1, 2)
        x = self.stage(self.first(frames.flatten(0, 1)))
        added = self.last(nn.functional.silu(x)).unflatten(0, frames.shape[:2])
        return imagined + added.transpose(1, 2)

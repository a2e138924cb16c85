"""Setting right what the warp left askew: tokens that do not sit in their cells' centres.

A latent of stride 8 codes where in its cell things are. Moved by a third of a cell it is as far
from the true latent as that is from zero (measured: docs/log.md), so a readout as it is decodes
to blocks. But memory knows the offset of every token exactly, and for one offset moving a code
is nearly linear. So the convolutions here read each latent multiplied by low harmonics of its
own offset: a bank of shifts to choose from, instead of a product to be learned.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mirage_ros.models.layers import residual_stage

#: Frequencies of the harmonics in (du, dv), in half turns per cell.
HARMONICS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))
GEOMETRY_CHANNELS = 5


class Aligner(nn.Module):
    """Readout and geometry to the latents that a camera in that place would have seen.

    Starts as the identity on the latents: its last layer is zero.
    """

    def __init__(self, latent_channels: int, width: int = 128, blocks: int = 2):
        super().__init__()
        self.latent_channels = latent_channels
        banks = 2 + 2 * len(HARMONICS)
        inputs = latent_channels * banks + GEOMETRY_CHANNELS
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.stage = residual_stage(width, blocks)
        self.last = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        frequencies = math.pi * torch.tensor(HARMONICS, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, condition: Float[Tensor, "b told h w"]) -> Float[Tensor, "b c h w"]:
        """Aligned latents of single frames; see conditioning.py for the channels."""
        latents, geometry = condition.tensor_split([self.latent_channels], 1)
        phase = torch.einsum("kd,bdhw->bkhw", self.frequencies, geometry[:, 2:4])
        scale = geometry[:, 4:5]
        bank = torch.cat([torch.ones_like(scale), scale, phase.cos(), phase.sin()], 1)
        shifted = (latents[:, :, None] * bank[:, None]).flatten(1, 2)
        x = self.stage(self.first(torch.cat([shifted, geometry], 1)))
        return latents + self.last(nn.functional.silu(x))

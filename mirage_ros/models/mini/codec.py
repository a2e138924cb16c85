"""The mini codec: one picture <-> one latent of stride 8, and the layers that it shares with the perceiver.

Its skeleton is linear: a block of 8 x 8 pixels to its principal components, and back. The
convolutions beside it start at zero and add what a linear code cannot hold. Trained without the
skeleton the same convolutions stayed below plain principal components (docs/log.md); and a linear
code can be moved by less than a cell, which memory needs of every latent.

Pictures are cut into sub-pixel channels before the first convolution and after the last, so that
no convolution runs at full resolution: that makes it fast on a CPU. Memory warps and quantises
tokens before they are decoded, so training adds noise to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions on a scaled residual; no norm, so that any crop decodes alike."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.second(F.silu(self.first(F.silu(x))))


def residual_stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


STRIDE = 8


class MiniCodec(ModelMixin, ConfigMixin):
    """A deterministic autoencoder of single pictures; latents have about unit variance."""

    stride = STRIDE

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        widths: Sequence[int] = (32, 64, 128),
        encoder_blocks: Sequence[int] = (2, 3),
        decoder_blocks: Sequence[int] = (1, 3, 4),
    ):
        super().__init__()
        half, quarter, eighth = widths
        self.blocks_in = nn.Conv2d(3, latent_channels, STRIDE, stride=STRIDE)
        self.blocks_out = nn.Conv2d(latent_channels, 3 * STRIDE**2, 1)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            residual_stage(quarter, encoder_blocks[0]),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * quarter, eighth, 1),
            residual_stage(eighth, encoder_blocks[1]),
            nn.SiLU(),
            nn.Conv2d(eighth, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            residual_stage(eighth, decoder_blocks[2]),
            nn.Conv2d(eighth, 4 * quarter, 1),
            nn.PixelShuffle(2),
            residual_stage(quarter, decoder_blocks[1]),
            nn.Conv2d(quarter, 4 * half, 1),
            nn.PixelShuffle(2),
            residual_stage(half, decoder_blocks[0]),
            nn.SiLU(),
            nn.Conv2d(half, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        for last in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def encode(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Latents of pictures in [-1, 1] whose sides are multiples of 8."""
        return self.blocks_in(picture) + self.encoder(picture)

    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in about [-1, 1]; clamp before showing them."""
        blocks = nn.functional.pixel_shuffle(self.blocks_out(latents), STRIDE)
        return blocks + self.decoder(latents)

    def forward(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.decode(self.encode(picture))

    @torch.no_grad()
    def fit_blocks(self, pictures: Float[Tensor, "n 3 h w"]) -> None:
        """Sets the skeleton to the principal components of the pictures' blocks, of unit variance."""
        blocks = nn.functional.pixel_unshuffle(pictures, STRIDE).transpose(0, 1).flatten(1).double()
        mean = blocks.mean(1)
        variance, basis = torch.linalg.eigh(torch.cov(blocks))
        count = self.blocks_in.out_channels
        spread = variance.flip(0)[:count].clamp(min=1e-8).sqrt()
        basis = basis.flip(1)[:, :count]
        into = (basis / spread).T
        self.blocks_in.weight.copy_(into.reshape(self.blocks_in.weight.shape))
        self.blocks_in.bias.copy_(-into @ mean)
        self.blocks_out.weight.copy_((basis * spread)[..., None, None])
        self.blocks_out.bias.copy_(mean)

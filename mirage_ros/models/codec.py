"""The mini codec: one picture <-> one latent of stride 8 and 16 channels.

Pictures are cut into sub-pixel channels before the first convolution and after the last, so
that no convolution runs at full resolution: that is what makes it fast on a CPU. Tokens are
warped and quantised by the memory before they are decoded, so training adds noise to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from mirage_ros.models.layers import residual_stage


class MiniCodec(ModelMixin, ConfigMixin):
    """A deterministic autoencoder of single pictures.

    `encode` and `decode` speak normalised latents (zero mean, unit variance per channel over the
    training pictures); `latents_mean` and `latents_std` stand in the config as in diffusers'
    video VAEs.
    """

    stride = 8

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        widths: Sequence[int] = (32, 64, 128),
        encoder_blocks: Sequence[int] = (2, 3),
        decoder_blocks: Sequence[int] = (1, 3, 4),
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        half, quarter, eighth = widths
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
        mean = torch.tensor(latents_mean or [0.0] * latent_channels)
        std = torch.tensor(latents_std or [1.0] * latent_channels)
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)

    def encode(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Latents of pictures in [-1, 1] whose sides are multiples of 8."""
        return (self.encoder(picture) - self.mean) / self.std

    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in about [-1, 1]; clamp before showing them."""
        return self.decoder(latents * self.std + self.mean)

    def forward(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.decode(self.encode(picture))

"""Inputs of small Wan networks, for tests."""

from __future__ import annotations

import torch

from mirage_ros.models.mini.codec import GEOMETRY_CHANNELS
from mirage_ros.models.wan.config import TINY_VAE

CHANNELS = TINY_VAE["z_dim"]
TOLD = CHANNELS + GEOMETRY_CHANNELS


def denoiser_inputs(config, frames=3, height=4, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = config["in_channels"]
    latents = torch.randn(1, channels, frames, height, width, generator=generator)
    inputs = channels + GEOMETRY_CHANNELS
    condition = torch.randn(1, inputs, frames, height, width, generator=generator)
    timestep = torch.tensor([[0.0, *[700.0] * (frames - 1)]])
    text = torch.randn(1, 5, config["text_dim"], generator=generator)
    return latents, timestep, condition, text

"""Flow matching: noisy = (1 - sigma) * clean + sigma * noise, from sigma 1 to 0.

Schedules and the Euler rule follow the rectified-flow formulation that Wan and diffusers'
FlowMatchEulerDiscreteScheduler use; the timestep shown to the network is 1000 * sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mirage_ros.core.progress import report

TIMESTEPS = 1000.0


@dataclass(frozen=True)
class SamplerConfig:
    """Attributes:
    steps: network calls per chunk.
    shift: > 1 spends more steps at high noise.
    prediction: what the network returns, the clean sample or the velocity (noise - clean).
    noise: standard deviation of the noise at the start; below 1 samples are nearer to each other.
    """

    steps: int = 4
    shift: float = 3.0
    prediction: Literal["sample", "velocity"] = "sample"
    noise: float = 1.0


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """The timestep shift of rectified-flow models (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(config: SamplerConfig) -> Float[Tensor, "levels"]:
    """Noise levels from 1 to 0."""
    return shifted(torch.linspace(1, 0, config.steps + 1), config.shift)


def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    config: SamplerConfig,
    until: int | None = None,
) -> Tensor:
    """Integrates from noise to a clean sample.

    Args:
        network: (noisy, sigma scalar) -> prediction of the kind that the config names.
        noise: standard normal, any shape.
        until: steps to take; all of them where it is None.
    """
    levels = sigmas(config)[: None if until is None else until + 1]
    x = noise
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        report()
        predicted = network(x, now)
        clean = predicted if config.prediction == "sample" else x - now * predicted
        x = clean + (x - clean) * (after / now)
    return x

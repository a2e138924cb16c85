"""Last stage of the denoiser: few steps that imagine, where memory sees nothing.

A network that is scored against one truth learns the mean of all that might be there, which is
fog. Here it makes two samples from two noises, and both are scored as one forecast, by the
continuous ranked probability score in its fair form: their mean distance to the truth, less half
their distance to each other. That is least when the samples are spread as the truth is (Gneiting
and Raftery 2007; networks that sample in one step were trained so by Shen and Meinshausen 2024,
and by Alet et al. 2025 for weather). No second network judges, so nothing has to be balanced.

What is scored are not pixels alone but answers of random filters, drawn anew in each step: of
several sizes, over two frames of the decoded pictures at once. So textures, edges and their
motion have to be spread as those of true rooms are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mirage_ros.models.conditioning import GEOMETRY_CHANNELS
from mirage_ros.models.denoiser import MOSTLY
from mirage_ros.models.sampler import SamplerConfig, sample, sigmas
from mirage_ros.training.denoiser import DenoiserLoss, noise_like, predict, told_targets
from mirage_ros.training.pictures import sheet


@dataclass(frozen=True)
class ImaginationLossConfig:
    """Attributes:
    filters: per scale and step.
    side: of each filter, in pixels of its scale.
    scales: pictures are shrunk by these before they are filtered.
    latent_weight: of the latents' own score beside that of the filters.
    """

    filters: int = 32
    side: int = 5
    scales: tuple[int, ...] = (1, 2, 4, 8)
    latent_weight: float = 1.0


class ImaginationLoss(DenoiserLoss):
    """Scores pairs of samples where memory sees nothing; draws what DenoiserLoss draws."""

    def __init__(
        self, *arguments, sampler: SamplerConfig, imagination: ImaginationLossConfig, **ahead
    ):
        super().__init__(*arguments, **ahead)
        self.sampler, self.imagination = sampler, imagination

    def __call__(self, network, generator: torch.Generator) -> dict[str, Tensor]:
        clean, context, condition = self._draw(network, generator)
        unseen = told_targets(network, condition, context)[:, -GEOMETRY_CHANNELS:][:, :1] < MOSTLY
        first, second = self._samples(network, generator, clean, context, condition)
        weights = self.weights.to(clean.device).sqrt()
        latent = (weights * fair_score(first, second, clean)).mean(1, keepdim=True)
        at = int(torch.randint(clean.shape[2] - 1, (), generator=generator))
        pair = slice(at, at + 2)
        pictures = self.codec.decode(
            _frames(torch.cat([first[:, :, pair], second[:, :, pair], clean[:, :, pair]]))
        )
        pictures = pictures.unflatten(0, (3, len(clean), 2)).flatten(2, 3)
        where = unseen[:, 0, pair].float()
        filtered = self._filtered_score(pictures, where, generator)
        value = _mean_where(latent, unseen)
        report = {
            "latent": value,
            "filters": filtered,
            "gradients": _energy(pictures[0], where) / _energy(pictures[2], where).clamp(min=1e-6),
        }
        loss = filtered + self.imagination.latent_weight * value
        return {"loss": loss} | {k: v.detach() for k, v in report.items() if v.isfinite()}

    def picture(self, network, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: true latents decoded, the readout decoded, two samples."""
        clean, context, condition = self._draw(network, generator)
        samples = self._samples(network, generator, clean, context, condition)
        readout = told_targets(network, condition, context)[:, : clean.shape[1]]
        columns = (_frames(part)[:8] for part in (clean, readout, *samples))
        return sheet([self.codec.decode(column) for column in columns])

    def _samples(self, network, generator, clean, context, condition) -> tuple[Tensor, Tensor]:
        """Two samples of each chunk; only the last step is trained."""
        context, condition = (torch.cat([part, part]) for part in (context, condition))
        noise = noise_like(clean.expand(2, *clean.shape).flatten(0, 1), generator)
        with torch.no_grad():
            shortcut = network.branch.aligned(condition)

        def step(x: Tensor, sigma: Tensor) -> Tensor:
            return predict(network, x, sigma.to(x), context, condition, shortcut)

        levels = sigmas(self.sampler)
        with torch.no_grad():
            before = sample(step, noise, self.sampler, until=len(levels) - 2)
        return step(before, levels[-2]).chunk(2)

    def _filtered_score(
        self,
        pictures: Float[Tensor, "3 b 6 H W"],
        unseen: Float[Tensor, "b 2 h w"],
        generator: torch.Generator,
    ) -> Tensor:
        """The samples' score over filters of every scale, each in units of its usual answer."""
        score, config = pictures.new_zeros(()), self.imagination
        unseen = F.interpolate(unseen, pictures.shape[-2:])
        for scale in config.scales:
            kernels = _kernels(config.filters, config.side, generator).to(pictures)
            small = F.avg_pool2d(pictures.flatten(0, 1), scale)
            answers = F.conv2d(small, kernels, padding=config.side // 2)
            first, second, true = answers.unflatten(0, pictures.shape[:2])
            where = F.avg_pool2d(unseen, scale).amin(1, keepdim=True) > 0.5
            usual = true.square().mean((0, 2, 3), keepdim=True).sqrt().clamp(min=1e-4)
            score = score + _mean_where((fair_score(first, second, true) / usual).mean(1, True), where)
        return score / len(config.scales)


def fair_score(first: Tensor, second: Tensor, true: Tensor) -> Tensor:
    """The fair continuous ranked probability score of two samples, elementwise."""
    near = (first - true).abs() + (second - true).abs()
    return (near - (first - second).abs()) / 2


def _kernels(count: int, side: int, generator: torch.Generator) -> Float[Tensor, "k 6 s s"]:
    """Random filters of unit length over two frames; of every four, two see no mean, two one frame."""
    kernels = torch.randn(count, 6, side, side, generator=generator)
    kernels[0::2] -= kernels[0::2].mean((2, 3), keepdim=True)
    kernels[0::4, 3:], kernels[1::4, :3] = 0, 0
    return kernels / kernels.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _mean_where(value: Tensor, where: Bool[Tensor, "..."]) -> Tensor:
    where = where.expand_as(value).to(value)
    return (value * where).sum() / where.sum().clamp(min=1)


def _frames(chunks: Float[Tensor, "b c f h w"]) -> Float[Tensor, "n c h w"]:
    return chunks.transpose(1, 2).flatten(0, 1)


def _energy(pictures: Float[Tensor, "b 6 H W"], unseen: Float[Tensor, "b 2 h w"]) -> Tensor:
    """Mean squared difference of neighbouring pixels that memory does not see."""
    unseen = F.interpolate(unseen, pictures.shape[-2:]).repeat_interleave(3, 1)
    pair = (unseen[..., 1:] * unseen[..., :-1]).bool()
    return pictures.detach().diff(dim=-1)[pair].square().mean()

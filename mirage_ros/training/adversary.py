"""Last stage of the denoiser: few steps that imagine sharply.

A network that scores the mean of what might be there learns fog where memory sees nothing. So the
last sampling step is trained against a discriminator (hinge loss; the idea of adversarial
diffusion distillation is that of Sauer et al. 2024), and only where memory sees nothing: there the
sample stands in the true latents around it, as in inpainting, and the discriminator has to tell
it from the truth in its place. It judges decoded pictures, because latents that are spread as the
true ones are can still decode to mud, and each frame together with the next one, so that what is
imagined has to move as things do. Elsewhere the loss stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mirage_ros.models.denoiser import MemoryDenoiser
from mirage_ros.models.sampler import SamplerConfig, sample, sigmas
from mirage_ros.training.denoiser import DenoiserLoss, predict
from mirage_ros.training.pictures import sheet

#: Of the codec whose pictures are judged.
STRIDE = 8
#: Chunks drawn at most in search of one with enough to imagine.
DRAWS = 8


@dataclass(frozen=True)
class SharpenLossConfig:
    """Attributes:
    first_share: of the draws score the first step's own error as well, which keeps the mean right.
    unseen_weight: of the last step's error where memory sees nothing.
    adversary_weight: of the discriminator's verdict there.
    penalty_weight: of the discriminator's squared slope on true latents (Mescheder et al. 2018).
    least_unseen: share of a chunk's cells; chunks with less to imagine are drawn anew.
    """

    first_share: float = 0.25
    unseen_weight: float = 0.1
    adversary_weight: float = 0.1
    penalty_weight: float = 0.005
    least_unseen: float = 0.1


class Discriminator(nn.Module):
    """Tells two frames of true pictures from imagined ones; is told where memory sees in both."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.first = nn.Sequential(
            nn.PixelUnshuffle(STRIDE // 2),
            nn.Conv2d(6 * (STRIDE // 2) ** 2, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
        )
        self.told = nn.Conv2d(2, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 1),
            )
            for dilation in (1, 2, 3)
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(
        self, pictures: Float[Tensor, "b 6 H W"], seen: Float[Tensor, "b 2 h w"]
    ) -> Float[Tensor, "b 1 h w"]:
        x = self.first(pictures) + self.told(seen)
        for block in self.blocks:
            x = x + block(x)
        return self.last(F.leaky_relu(x, 0.2))


class Contest(nn.Module):
    """Denoiser and discriminator as one network to train: each has its part of one loss."""

    def __init__(self, denoiser: MemoryDenoiser):
        super().__init__()
        self.denoiser, self.discriminator = denoiser, Discriminator()
        #: The discriminator starts from nothing and must stay ahead of a trained denoiser.
        self.learning_rates = {"discriminator.": 3.0}

    def frozen(self, pictures: Tensor, seen: Tensor) -> Tensor:
        """The discriminator's verdict without a gradient to its own weights."""
        weights = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (pictures, seen))


class SharpenLoss(DenoiserLoss):
    """Two-sided loss of the sampler's last step; draws what DenoiserLoss draws."""

    def __init__(self, *arguments, sampler: SamplerConfig, sharpen: SharpenLossConfig):
        super().__init__(*arguments)
        self.sampler, self.sharpen = sampler, sharpen

    def __call__(self, network: Contest, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.sharpen
        clean, context, condition = self._draw(network, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        seen = condition[:, -5:-4, context.shape[2] :] > 0.5
        score_first = float(torch.rand((), generator=generator)) < config.first_share
        first, last = self._steps(network.denoiser, noise, context, condition, score_first)
        first_error, last_error = (self._error(each, clean) for each in (first, last))
        where = torch.where(seen, 1.0, config.unseen_weight)
        value = (where * last_error).mean() + score_first * first_error.mean()
        at = int(torch.randint(clean.shape[2] - 1, (), generator=generator))
        made, true, mask = (
            part[:, :, at : at + 2] for part in (torch.where(seen, clean, last), clean, seen)
        )
        mask = mask.float().squeeze(1)
        unseen = 1 - mask.amin(1, keepdim=True)
        unseen = unseen / unseen.mean().clamp(min=0.02)
        made, true = self._decoded(made), self._decoded(true)
        fooled = -(network.frozen(made, mask) * unseen).mean()
        told = self._verdict(network.discriminator, made.detach(), true, mask, unseen)
        loss = value + config.adversary_weight * fooled + told
        report = {"value": value, "fooled": fooled, "told": told}
        report["mse_seen"] = last_error[seen.expand_as(last_error)].mean()
        report["gradients"] = _energy(made, mask) / _energy(true, mask).clamp(min=1e-6)
        return {"loss": loss} | {k: v.detach() for k, v in report.items() if v.isfinite()}

    def picture(self, network: Contest, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: true latents decoded, the bare readout decoded, a sample."""
        clean, context, condition = self._draw(network, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        sampled = sample(
            lambda x, sigma: predict(network.denoiser, x, sigma.to(x), context, condition),
            noise,
            self.sampler,
        )
        readout = condition[:, : clean.shape[1], context.shape[2] :]
        columns = (_frames(part)[:8] for part in (clean, readout, sampled))
        return sheet([self.codec.decode(column) for column in columns])

    def _row(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk in which there is something to imagine, if one comes up soon."""
        for _ in range(DRAWS):
            row = super()._row(generator)
            if (row[2][-5, -row[0].shape[1] :] < 0.5).float().mean() >= self.sharpen.least_unseen:
                break
        return row

    def _steps(self, denoiser, noise, context, condition, train_first) -> tuple[Tensor, Tensor]:
        """The first step's prediction and the last one's; steps between are not trained."""
        levels = sigmas(self.sampler).to(noise)
        if len(levels) == 2:
            only = predict(denoiser, noise, levels[0], context, condition)
            return only, only
        with torch.set_grad_enabled(train_first and torch.is_grad_enabled()):
            first = predict(denoiser, noise, levels[0], context, condition)
        with torch.no_grad():
            x = first + (noise - first) * (levels[1] / levels[0])
            for now, after in zip(levels[1:-2], levels[2:-1], strict=True):
                clean = predict(denoiser, x, now, context, condition)
                x = clean + (x - clean) * (after / now)
        return first, predict(denoiser, x, levels[-2], context, condition)

    def _decoded(self, pair: Float[Tensor, "b c 2 h w"]) -> Float[Tensor, "b 6 H W"]:
        return self.codec.decode(_frames(pair)).unflatten(0, (len(pair), 2)).flatten(1, 2)

    def _error(self, predicted: Tensor, clean: Tensor) -> Tensor:
        return self.weights.to(clean.device) * (predicted - clean).square()

    def _verdict(self, judge: Discriminator, made, true, mask, unseen) -> Tensor:
        """Hinge loss of the discriminator where memory sees nothing, and its slope's penalty."""
        true = true.detach().requires_grad_(torch.is_grad_enabled())
        verdict = judge(true, mask)
        value = ((F.relu(1 - verdict) + F.relu(1 + judge(made, mask))) * unseen).mean()
        if not true.requires_grad:
            return value
        (slope,) = torch.autograd.grad((verdict * (unseen > 0)).sum(), true, create_graph=True)
        return value + self.sharpen.penalty_weight * slope.square().sum() / verdict.numel()


def _frames(chunks: Float[Tensor, "b c f h w"]) -> Float[Tensor, "n c h w"]:
    return chunks.transpose(1, 2).flatten(0, 1)


def _energy(pictures: Float[Tensor, "b 6 H W"], seen: Float[Tensor, "b 2 h w"]) -> Tensor:
    """Mean squared difference of neighbouring pixels that memory does not see."""
    unseen = F.interpolate(1 - seen, pictures.shape[-2:]).repeat_interleave(3, 1)
    pair = (unseen[..., 1:] * unseen[..., :-1]).bool()
    return pictures.detach().diff(dim=-1)[pair].square().mean()

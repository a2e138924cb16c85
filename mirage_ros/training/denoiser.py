"""Stage three of the recipe: the aligner on real readouts, then backbone and branch, at once or in the paper's stages.

The paper (arXiv 2606.09828) adapts a backbone that already makes video: stage one trains the
side branch alone, stage two the branch and LoRA adapters on the backbone's self-attention. The
small model has no such backbone, so a stage zero makes one: the transformer trained without memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor, nn

from mirage_ros.models.mini.codec import (
    GEOMETRY_CHANNELS,
    Aligner,
    MiniCodec,
    condition_per_latent,
)
from mirage_ros.models.mini.denoiser import (
    TIMESTEPS,
    MemoryDenoiser,
    SamplerConfig,
    SideBranch,
    sample,
    shifted,
)
from mirage_ros.models.parts import add_lora
from mirage_ros.training import Loop, LoopConfig, checkpoint_path, sheet
from mirage_ros.training.chunks import Chunks, Prefetcher, encode_clips, pixel_weights
from mirage_ros.training.codec import block_pictures


@dataclass(frozen=True)
class DenoiserLossConfig:
    """Attributes:
    batch: chunks per step.
    first_step_share: samples at pure noise, where few-step sampling starts.
    shift: of the noise levels drawn (models/mini/denoiser.py).
    min_sigma: floor of the velocity weight 1 / sigma^2 (the sample is predicted, the velocity
        is scored: Li and He 2025, "Back to Basics").
    least_unseen: share of a chunk's cells that memory must leave open; other chunks teach little
        where the correction is added to open cells alone.
    """

    batch: int = 4
    first_step_share: float = 0.25
    shift: float = 3.0
    min_sigma: float = 0.3
    least_unseen: float = 0.0


@dataclass(frozen=True)
class AlignerLossConfig:
    """Attributes:
    batch: chunks per step.
    pixel_weight: of the squared error of one frame per chunk once decoded (pixels -1 ... 1).
    """

    batch: int = 6
    pixel_weight: float = 20.0


#: Cells that memory does not see count this much of a seen one.
UNSEEN_WEIGHT = 0.2
#: Chunks drawn at most in search of one that memory leaves open enough.
DRAWS = 8


class _ChunkLoss:
    """Draws batches of chunks and weighs latents by how much they move the picture.

    Args:
        workers, stride: of the batches drawn ahead (`Prefetcher`).
    """

    def __init__(self, chunks: Chunks, codec: nn.Module, weights: Tensor, config, **prefetch):
        self.chunks, self.codec, self.config = chunks, codec, config
        self.weights = weights.view(-1, 1, 1, 1)
        self._batches = Prefetcher(self._batch, **prefetch)

    def _draw(self, network, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean targets, context and condition of a batch, on the network's device."""
        device = next(network.parameters()).device
        parts = self._batches(generator.initial_seed())
        return tuple(part.to(device, non_blocking=True).float() for part in parts)

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """In half precision, as latents are stored: batches are large."""
        rows = [self._row(generator) for _ in range(self.config.batch)]
        return tuple(torch.stack(part).half() for part in zip(*rows, strict=True))

    def _row(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return self.chunks.draw(generator)


class AlignerLoss(_ChunkLoss):
    """Scores what the aligner makes of the readout, as latents and as pictures."""

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        clean, condition, aligned = self._aligned(network, generator)
        weights = self.weights.to(clean.device)
        error = weights * (aligned - clean).square()
        bare = weights * (condition[: len(clean)] - clean).square()
        seen = condition[len(clean)] > 0.5
        report = {
            "seen": error[:, seen].mean(),
            "seen_bare": bare[:, seen].mean(),
            "unseen": error[:, ~seen].mean(),
        }
        value = (error * torch.where(seen, 1.0, UNSEEN_WEIGHT)).mean()
        pixels = self._pixel_error(clean, aligned, seen, generator)
        report["pixels"] = pixels
        loss = value + self.config.pixel_weight * pixels
        return {"loss": loss} | {k: v.detach() for k, v in report.items() if v.isfinite()}

    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: true latents decoded, the bare readout decoded, the aligned one."""
        clean, condition, aligned = self._aligned(network, generator)
        columns = (clean, condition[: len(clean)], aligned)
        return sheet([self.codec.decode(column.transpose(0, 1)[:6]) for column in columns])

    def _pixel_error(self, clean, aligned, seen, generator: torch.Generator) -> Tensor:
        """Of one frame per chunk, against what the codec makes of the true latents."""
        length = clean.shape[1] // self.config.batch
        one = torch.randint(length, (self.config.batch,), generator=generator)
        chosen = torch.arange(self.config.batch) * length + one
        with torch.no_grad():
            true = self.codec.decode(clean[:, chosen].transpose(0, 1))
        made = self.codec.decode(aligned[:, chosen].transpose(0, 1))
        weight = torch.where(seen[chosen], 1.0, UNSEEN_WEIGHT)[:, None]
        return ((made - true).square() * nn.functional.interpolate(weight, true.shape[-2:])).mean()

    def _aligned(self, network, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, the condition of each cell and aligned latents, (channels, frames, h, w)."""
        clean, context, condition = self._draw(network, generator)
        condition = condition[:, :, context.shape[2] :]
        per_latent = condition_per_latent(condition, network.cells)
        aligned = network(condition.transpose(1, 2).flatten(0, 1)).transpose(0, 1)
        return *(part.transpose(0, 1).flatten(1, 2) for part in (clean, per_latent)), aligned


class DenoiserLoss(_ChunkLoss):
    """Scores the predicted clean latents of chunks."""

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        clean, context, condition = self._draw(network, generator)
        sigma = self._sigma(generator).view(-1, 1, 1, 1, 1).to(clean.device)
        noise = noise_like(clean, generator)
        noisy = (1 - sigma) * clean + sigma * noise
        predicted = predict(network, noisy, sigma, context, condition)
        error = self.weights.to(clean.device) * (predicted - clean).square()
        loss = (error / sigma.clamp(min=config.min_sigma).square()).mean()
        geometry = target_condition(network, condition, context)[:, -GEOMETRY_CHANNELS:]
        return {"loss": loss, **self._report(error.detach(), geometry, sigma)}

    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: true latents decoded, the bare readout decoded, a sample of two steps."""
        clean, context, condition = self._draw(network, generator)
        noise = noise_like(clean, generator)
        sampled = sample(
            lambda x, sigma: predict(network, x, sigma.to(x), context, condition),
            noise,
            SamplerConfig(steps=2, shift=self.config.shift),
        )
        readout = target_condition(network, condition, context)[:, : clean.shape[1]]
        columns = (part.transpose(1, 2).flatten(0, 1)[:8] for part in (clean, readout, sampled))
        return sheet([self.codec.decode(column) for column in columns])

    def _row(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk that memory leaves open enough, if one comes up soon."""
        for _ in range(DRAWS):
            row = self.chunks.draw(generator)
            if (row[2][-GEOMETRY_CHANNELS] < 0.5).float().mean() >= self.config.least_unseen:
                break
        return row

    def _sigma(self, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(self.config.batch, generator=generator)
        first = torch.rand(self.config.batch, generator=generator) < self.config.first_step_share
        return torch.where(first, 1.0, shifted(uniform, self.config.shift)).clamp(min=0.02)

    @staticmethod
    def _report(error: Tensor, geometry: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        """Mean squared error at high noise, where memory sees and where it does not."""
        high = (sigma > 0.85).expand_as(error[:, :1])
        seen = geometry[:, :1] > 0.5
        error = error.mean(1, keepdim=True)
        report = {}
        for name, where in (("mse_seen", high & seen), ("mse_unseen", high & ~seen)):
            if where.any():
                report[name] = error[where].mean()
        return report


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal, drawn on the latents' device by what a CPU generator says."""
    if latents.device != generator.device:
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(latents.device).manual_seed(seed)
    return torch.randn(latents.shape, generator=generator, device=latents.device)


def target_condition(network, condition: Tensor, context: Tensor) -> Tensor:
    """The condition of the target frames, one token for each latent."""
    return condition_per_latent(condition[:, :, context.shape[2] :], network.branch.cells)


def predict(
    network, noisy: Tensor, sigma: Tensor, context: Tensor, condition: Tensor, shortcut=None
) -> Tensor:
    """The clean targets as the network sees them.

    Args:
        sigma: a scalar or one per sample.
        shortcut: what the branch makes of the condition, where that is known.
    """
    frames = context.shape[2]
    timestep = (sigma * TIMESTEPS).reshape(-1, 1).expand(len(noisy), noisy.shape[2])
    timestep = torch.cat([timestep.new_zeros(len(noisy), frames), timestep], 1)
    text = noisy.new_zeros(len(noisy), 1, network.transformer.config.text_dim)
    latents = torch.cat([context, noisy], 2)
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=noisy.is_cuda):
        if shortcut is None:
            output = network(latents, timestep, condition, text)
        else:
            output = network(latents, timestep, condition, text, shortcut)
    return output[:, :, frames:].float()


class _Data:
    """Encoded clips and held-out clips, and the losses on them."""

    def __init__(self, recipe, codec: MiniCodec, align: Aligner, clips, held_out):
        self.recipe, self.codec = recipe, codec.requires_grad_(False)
        pictures = block_pictures([clip.rgb for clip in clips]).to(codec.device)
        align.fit(codec.encode(pictures), pictures)
        self.encoded = [encode_clips(codec, part) for part in (clips, held_out)]
        self.weights = pixel_weights(codec, self.encoded[0])

    def aligner(self) -> list[AlignerLoss]:
        return self._losses(AlignerLoss, self.recipe.aligner_loss)

    def denoiser(self) -> list[DenoiserLoss]:
        return self._losses(DenoiserLoss, self.recipe.denoiser_loss)

    def _losses(self, kind: type, config) -> list:
        """Of the training chunks, which workers draw ahead, and of the held-out ones."""
        prefetch = {"workers": self.recipe.chunk_workers, "stride": Accelerator().num_processes}
        return [
            kind(chunks, self.codec, self.weights, config, **more)
            for chunks, more in zip(self._chunks(), (prefetch, {}), strict=True)
        ]

    def _chunks(self) -> list[Chunks]:
        config = replace(self.recipe.chunks, cells=self.recipe.branch.aligner_cells)
        return [Chunks(part, config) for part in self.encoded]


def train_single(recipe, codec, network: MemoryDenoiser, clips, held_out) -> MemoryDenoiser:
    """The aligner alone on real readouts, then backbone and branch together.

    The aligner stays as it is then: it was judged by pictures, they are judged by latents.
    """
    run, data = Path(recipe.run), _Data(recipe, codec, network.branch.align, clips, held_out)
    if not checkpoint_path(run / "denoiser").exists():
        _stage(network.branch.align, run / "aligner", recipe.aligner, data.aligner())
    network.branch.align.requires_grad_(False)
    return _stage(network, run / "denoiser", recipe.denoiser, data.denoiser())


def train_paper(recipe, codec, network: MemoryDenoiser, clips, held_out) -> MemoryDenoiser:
    """Backbone without memory; aligner; branch; branch and LoRA, merged at the end."""
    run, data = Path(recipe.run), _Data(recipe, codec, network.branch.align, clips, held_out)
    _train_only(network, network.transformer)
    _stage(WithoutMemory(network), run / "base", recipe.base, data.denoiser())
    align = network.branch.align.state_dict()
    settings = asdict(recipe.branch)
    branch = SideBranch.from_transformer(network.transformer, shortcut=True, **settings)
    branch.align.load_state_dict(align)
    network = MemoryDenoiser(network.transformer, branch)
    _train_only(network, branch.align)
    _stage(branch.align, run / "aligner", recipe.aligner, data.aligner())
    _train_only(network, branch)
    _stage(network, run / "denoiser", recipe.denoiser, data.denoiser())
    adapted = add_lora(network.transformer, recipe.lora_rank)
    _stage(network, run / "lora", recipe.lora, data.denoiser())
    return MemoryDenoiser(adapted.merge_and_unload(safe_merge=True), branch).eval()


class WithoutMemory(nn.Module):
    """The denoiser that is shown an empty memory, context frames aside."""

    def __init__(self, network: MemoryDenoiser):
        super().__init__()
        self.network = network

    @property
    def transformer(self) -> nn.Module:
        return self.network.transformer

    @property
    def branch(self) -> SideBranch:
        return self.network.branch

    def forward(self, latents, timestep, condition, text):
        blank = condition * (timestep == 0).to(condition).view(len(timestep), 1, -1, 1, 1)
        return self.network(latents, timestep, blank, text)


def _train_only(network: nn.Module, part: nn.Module) -> None:
    network.requires_grad_(False)
    part.requires_grad_(True)


def _stage(network: nn.Module, folder: Path, config: LoopConfig, losses) -> nn.Module:
    """Trains to the stage's end and leaves the network with its averaged weights."""
    loop = Loop(network, folder, config)
    loop.run(*losses)
    return loop.averaged().eval()


#: name: (recipe, codec, denoiser, clips, held-out clips) -> trained denoiser
REGIMES: dict[str, Callable] = {"single": train_single, "paper": train_paper}

"""Stage three of the recipe: the denoiser, on readouts of memories that grew as they will grow.

Train as you run: every sample builds a LatentMemory from frames of its own clip with the rules
of the cycle (only cells that memory does not show yet are written), from depth with errors,
and reads it at the target cameras. The paper trains on a cache from one frame only while
inference reads a grown one; that gap is what this avoids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mirage_ros.core.camera import Camera
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.memory import LatentMemory, MemoryConfig
from mirage_ros.core.world import WorldConfig
from mirage_ros.models.conditioning import condition_from_context, condition_from_readout
from mirage_ros.models.sampler import TIMESTEPS, shifted
from mirage_ros.training.shards import StoredClip


@dataclass(frozen=True)
class DenoiserLossConfig:
    """Attributes:
    batch: chunks per step.
    chunk_frames: target frames per chunk.
    blank_share: chunks without any memory.
    return_share: chunks whose memory also holds later frames, as on the way back.
    first_step_share: samples at pure noise, where few-step sampling starts.
    latent_noise: largest standard deviation of the error of remembered latents.
    depth_noise: standard deviation of the log depth error per frame; a third of it per cell.
    min_sigma: floor of the velocity weight 1 / sigma^2 (the sample is predicted, the velocity
        is scored: Li and He 2025, "Back to Basics").
    """

    batch: int = 4
    chunk_frames: int = 4
    blank_share: float = 0.1
    return_share: float = 0.3
    first_step_share: float = 0.25
    latent_noise: float = 0.15
    depth_noise: float = 0.02
    shift: float = 3.0
    min_sigma: float = 0.3


@dataclass(frozen=True)
class LatentClip:
    """A clip after the codec: latents (f, c, h, w), depth and static per cell, cell cameras."""

    latents: Tensor
    depth_m: np.ndarray
    static: np.ndarray
    cameras: Camera


@torch.no_grad()
def encode_clips(codec: nn.Module, clips: list[StoredClip]) -> list[LatentClip]:
    """Runs the codec once over every clip."""
    encoded = []
    for clip in clips:
        picture = torch.from_numpy(clip.rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = codec.encode(picture)
        depth = cell_depth(clip.depth_m.astype(np.float32), codec.stride)
        moving = torch.from_numpy(clip.moving).float()[:, None]
        touched = nn.functional.max_pool2d(moving, codec.stride)[:, 0].bool().numpy()
        cameras = clip.cameras.resized(latents.shape[-2:])
        encoded.append(LatentClip(latents.half(), depth, ~touched, cameras))
    return encoded


@torch.no_grad()
def pixel_weights(codec: nn.Module, clips: list[LatentClip], step: float = 0.1) -> Tensor:
    """How much each latent channel moves the picture, as weights (c,) of mean 1.

    Latents have unit variance in every channel, but not every channel matters as much; weighted
    by the decoder's mean squared response the latent error approximates the pixel error.
    """
    latents = torch.stack([clip.latents[0].float() for clip in clips[:32]])
    picture = codec.decode(latents)
    response = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += step * torch.randn(moved[:, channel].shape)
        response.append((codec.decode(moved) - picture).square().mean())
    weights = torch.stack(response)
    return weights / weights.mean()


class Chunks:
    """Draws chunks with the grown memories that a run would have."""

    def __init__(self, clips: list[LatentClip], config: DenoiserLossConfig):
        self.clips, self.config = clips, config

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean targets (c, f, h, w), context latents (c, p, h, w), condition (c+5, p+f, h, w)."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        clip = self.clips[rng.integers(len(self.clips))]
        count = self.config.chunk_frames
        start = int(rng.integers(1, len(clip.latents) - count + 1))
        target = np.arange(start, start + count)
        sources = self._sources(rng, start, len(clip.latents))
        memory = self._grow(rng, clip, sources)
        readout = memory.read(clip.cameras[target], target.astype(np.int64))
        chosen = memory.references(readout, len(sources))
        reference = next((i for i in chosen if i != start - 1), int(sources[0]))
        context = clip.latents[[reference, start - 1]].float().transpose(0, 1)
        context = context + float(rng.uniform(0, 0.1)) * torch.randn(
            context.shape, generator=generator
        )
        condition = torch.cat([condition_from_context(context), condition_from_readout(readout)], 1)
        return clip.latents[target].float().transpose(0, 1), context, condition

    def _sources(self, rng: np.random.Generator, start: int, length: int) -> np.ndarray:
        """Frames that have been written: always the first, then as in a run or a return."""
        before = np.arange(1, start)
        share = rng.choice([0.0, 0.3, 1.0])
        chosen = before[rng.random(len(before)) < share]
        if rng.random() < self.config.return_share:
            after = np.arange(start + self.config.chunk_frames, length)
            chosen = np.concatenate([chosen, after[rng.random(len(after)) < 0.3]])
        return np.concatenate([[0], chosen])

    def _grow(self, rng, clip: LatentClip, sources: np.ndarray) -> LatentMemory:
        memory = LatentMemory(MemoryConfig(channels=clip.latents.shape[1]))
        if rng.random() < self.config.blank_share:
            return memory
        # The cycle writes chunk by chunk, so whole chunks are lifted at a time here as well.
        for part in np.array_split(sources, -(-len(sources) // self.config.chunk_frames)):
            static, stamps = clip.static[part], part.astype(np.int64)
            log_error = rng.normal(0, self.config.depth_noise, (len(part), 1, 1))
            cell_error = rng.normal(0, self.config.depth_noise / 3, static.shape)
            depth = clip.depth_m[part] * np.exp(log_error + cell_error).astype(np.float32)
            latents = clip.latents[part].float()
            spread = float(rng.uniform(0, self.config.latent_noise))
            latents = latents + spread * torch.from_numpy(
                rng.standard_normal(latents.shape, dtype=np.float32)
            )
            grey = np.full((*static.shape, 3), 128, np.uint8)
            finer = WorldConfig.rewrite_log_scale
            memory.write_new(latents, clip.cameras[part], depth, static, stamps, grey, part, finer)
        return memory


class AlignerLoss:
    """Scores what the aligner makes of the readout; unseen cells count, but little."""

    def __init__(self, chunks: Chunks, weights: Tensor, batch: int):
        self.chunks, self.weights, self.batch = chunks, weights.view(-1, 1, 1, 1), batch

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        rows = [self.chunks.draw(generator) for _ in range(self.batch)]
        clean = torch.cat([row[0] for row in rows], 1)
        condition = torch.cat([row[2][:, -row[0].shape[1] :] for row in rows], 1)
        error = self.weights * (network(condition.transpose(0, 1)).transpose(0, 1) - clean).square()
        bare = self.weights * (condition[: len(clean)] - clean).square()
        seen = condition[len(clean)] > 0.5
        report = {
            "seen": error[:, seen].mean(),
            "seen_bare": bare[:, seen].mean(),
            "unseen": error[:, ~seen].mean(),
        }
        loss = (error * torch.where(seen, 1.0, 0.2)).mean()
        return {"loss": loss} | {k: v.detach() for k, v in report.items() if v.isfinite()}


class DenoiserLoss:
    """Scores the predicted clean latents of chunks."""

    def __init__(self, chunks: Chunks, weights: Tensor, config: DenoiserLossConfig):
        self.chunks, self.config = chunks, config
        self.weights = weights.view(-1, 1, 1, 1)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        rows = [self.chunks.draw(generator) for _ in range(config.batch)]
        clean, context, condition = (torch.stack(part) for part in zip(*rows, strict=True))
        sigma = self._sigma(generator).view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = (1 - sigma) * clean + sigma * noise
        frames = context.shape[2]
        timestep = (sigma * TIMESTEPS).view(-1, 1).expand(-1, clean.shape[2])
        timestep = torch.cat([torch.zeros(len(clean), frames), timestep], 1)
        text = torch.zeros(len(clean), 1, network.transformer.config.text_dim)
        predicted = network(torch.cat([context, noisy], 2), timestep, condition, text)
        error = self.weights * (predicted[:, :, frames:] - clean).square()
        loss = (error / sigma.clamp(min=config.min_sigma).square()).mean()
        return {"loss": loss, **self._report(error.detach(), condition[:, -5:, frames:], sigma)}

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

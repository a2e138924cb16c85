"""Chunks to train on, with readouts of memories that grew as they grow in a run, and their prefetching.

Every sample builds a LatentMemory from frames of its own clip with the rules of the cycle (only cells
that memory does not show yet are written), from depth with errors, and reads it at the target
cameras. The paper trains on a cache from one frame only while inference reads a grown one; this
closes that gap.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.models.mini.codec import condition_from_context, condition_from_readout
from mirage_ros.models.parts import picture_from_rgb
from mirage_ros.training.clips import StoredClip
from mirage_ros.world.state import REWRITE_LOG_SCALE

Batch = tuple[Tensor, ...]

#: Keeps what a batch is drawn with apart from the noise that is drawn with the same step's seed.
BATCH_SEED = 2**41


class Prefetcher:
    """Batches by the seed of a step's generator, which says all about them.

    With workers the batches of the next steps are being made while one is trained on. A jump to
    another seed than the next starts the workers anew.

    Args:
        draw: makes a batch of a generator.
        workers: processes; with 0 batches are drawn when they are asked for.
        stride: between the seeds of successive steps: the number of processes that train.
    """

    def __init__(self, draw: Callable[[torch.Generator], Batch], workers: int = 0, stride: int = 1):
        self.draws, self.workers, self.stride = _BySeed(draw), workers, stride
        self._batches: Iterator[Batch] = iter(())
        self._expected: int | None = None

    def __call__(self, seed: int) -> Batch:
        if not self.workers:
            return self.draws[seed]
        if seed != self._expected:
            self._batches = self._started(seed)
        self._expected = seed + self.stride
        return next(self._batches)

    def _started(self, seed: int) -> Iterator[Batch]:
        # Forked, for the clips in memory are many gigabytes that workers only read.
        loader = DataLoader(
            self.draws,
            batch_size=None,
            sampler=itertools.count(seed, self.stride),
            num_workers=self.workers,
            multiprocessing_context="fork",
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class _BySeed(Dataset):
    def __init__(self, draw: Callable[[torch.Generator], Batch]):
        self.draw = draw

    def __getitem__(self, seed: int) -> Batch:
        return self.draw(torch.Generator().manual_seed(BATCH_SEED + seed))


@dataclass(frozen=True)
class ChunksConfig:
    """Attributes:
    chunk_frames: target frames per chunk.
    blank_share: chunks without any memory.
    return_share: chunks whose memory also holds later frames, as on the way back.
    latent_noise: largest standard deviation of the error of remembered latents.
    depth_noise: standard deviation of the log depth error per frame; a third of it per cell.
    references: context frames at most that memory shows most, before the preceding one; how
        many is drawn for each batch.
    cells: of the readout to a side of each latent cell.
    """

    chunk_frames: int = 4
    blank_share: float = 0.1
    return_share: float = 0.3
    latent_noise: float = 0.15
    depth_noise: float = 0.02
    references: int = 0
    cells: int = 1


@dataclass(frozen=True)
class LatentClip:
    """A clip after the codec: latents (f, c, h, w), depth and static per cell, cell cameras.

    `seed_depth_m` (H, W) is that of the first frame's pixels, as a seed's is measured; None
    where memory need not split cells by it.
    """

    latents: Tensor
    depth_m: np.ndarray
    static: np.ndarray
    cameras: Camera
    seed_depth_m: np.ndarray | None = None


@torch.no_grad()
def encode_clips(codec: nn.Module, clips: list[StoredClip]) -> list[LatentClip]:
    """Runs the codec once over every clip."""
    stride = codec.stride
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        depths = pool.map(lambda clip: cell_depth(clip.depth_m.astype(np.float32), stride), clips)
        return [_encoded(codec, clip, depth) for clip, depth in zip(clips, depths, strict=True)]


def _encoded(codec: nn.Module, clip: StoredClip, depth_m: np.ndarray) -> LatentClip:
    picture = picture_from_rgb(torch.from_numpy(clip.rgb).to(codec.device))
    latents = codec.encode(picture).half().cpu()
    moving = torch.from_numpy(clip.moving).to(codec.device).float()[:, None]
    touched = nn.functional.max_pool2d(moving, codec.stride)[:, 0].bool().cpu().numpy()
    cameras = clip.cameras.resized(latents.shape[-2:])
    seed_depth = clip.depth_m[0].astype(np.float32)
    return LatentClip(latents, depth_m, ~touched, cameras, seed_depth)


@torch.no_grad()
def pixel_weights(codec: nn.Module, clips: list[LatentClip], step: float = 0.1) -> Tensor:
    """How much each latent channel moves the picture, as weights (c,) of mean 1.

    Latents have unit variance in every channel, but not every channel matters as much; weighted
    by the decoder's mean squared response the latent error approximates the pixel error.
    """
    latents = torch.stack([clip.latents[0].float() for clip in clips[:32]]).to(codec.device)
    picture = codec.decode(latents)
    # A generator of its own, so that a resumed run weighs as the whole one does.
    generator, response = torch.Generator().manual_seed(0), []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        noise = torch.randn(moved[:, channel].shape, generator=generator)
        moved[:, channel] += step * noise.to(moved)
        response.append((codec.decode(moved) - picture).square().mean())
    weights = torch.stack(response)
    return weights / weights.mean()


class Chunks:
    """Draws chunks with the grown memories that a run would have."""

    def __init__(self, clips: Sequence[LatentClip], config: ChunksConfig):
        self.clips, self.config = clips, config

    def draw_batch(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chunks stacked, all with as many references as the one that has the fewest."""
        most = 0
        if self.config.references:
            most = int(torch.randint(self.config.references + 1, (), generator=generator))
        rows = [self.draw(generator, most) for _ in range(count)]
        # What follows the references is of one length: the preceding frame and the targets.
        shared = min(context.shape[1] for _, context, _ in rows) - 1
        clean = torch.stack([clean for clean, _, _ in rows])
        context = torch.stack([_few(context, shared, 1) for _, context, _ in rows])
        rest = 1 + self.config.chunk_frames
        condition = torch.stack([_few(condition, shared, rest) for _, _, condition in rows])
        return clean, context, condition

    def draw(
        self, generator: torch.Generator, references: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clean targets (c, f, h, w), context latents (c, p, h, w), condition (c+5, p+f, hc, wc).

        Context is [references | preceding]: as in a run, references are the frames that memory
        shows most at the target cameras, and there are fewer of them where it shows few.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        clip = self.clips[int(rng.integers(len(self.clips)))]
        count = self.config.chunk_frames
        start = int(rng.integers(1, len(clip.latents) - count + 1))
        target = np.arange(start, start + count)
        sources = self._sources(rng, start, len(clip.latents))
        memory = self._grow(rng, clip, sources)
        cells = self.config.cells
        size = tuple(side * cells for side in clip.cameras.size)
        readout = memory.read(clip.cameras[target].resized(size))
        far = [i for i in memory.references(readout, references + 1) if i != start - 1]
        context = clip.latents[[*far[:references], start - 1]].float().transpose(0, 1)
        context = context + float(rng.uniform(0, 0.1)) * torch.randn(
            context.shape, generator=generator
        )
        parts = [condition_from_context(context, cells), condition_from_readout(readout, cells)]
        condition = torch.cat(parts, 1)
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
        # The cycle writes the seed and then chunk by chunk, so that is done here as well.
        later = sources[1:]
        chunks = np.array_split(later, -(-len(later) // self.config.chunk_frames) or 1)
        for part in (sources[:1], *chunks):
            static, stamps = clip.static[part], part.astype(np.int64)
            latents = clip.latents[part].float()
            spread = float(rng.uniform(0, self.config.latent_noise))
            latents = latents + spread * torch.from_numpy(
                rng.standard_normal(latents.shape, dtype=np.float32)
            )
            depth_m = self._depth(rng, clip, part)
            grey = np.full((*static.shape, 3), 128, np.uint8)
            memory.write_new(
                latents, clip.cameras[part], depth_m, static, stamps, grey, part, REWRITE_LOG_SCALE
            )
        return memory

    def _depth(self, rng, clip: LatentClip, part: np.ndarray) -> np.ndarray:
        """Of a seed as it was measured, of other frames as it is guessed."""
        noise = self.config.depth_noise
        log_error = rng.normal(0, noise, (len(part), 1, 1)).astype(np.float32)
        if clip.seed_depth_m is not None and part.tolist() == [0]:
            return clip.seed_depth_m[None] * np.exp(log_error)
        cell_error = rng.normal(0, noise / 3, clip.static[part].shape).astype(np.float32)
        return clip.depth_m[part] * np.exp(log_error + cell_error)


def _few(frames: Tensor, references: int, rest: int) -> Tensor:
    """Of (c, references + rest, h, w) the first references and all of the rest."""
    return torch.cat([frames[:, :references], frames[:, frames.shape[1] - rest :]], 1)

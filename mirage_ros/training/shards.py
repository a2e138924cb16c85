"""Training clips on disk: one safetensors file per scene seed, made once, resumed freely."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError


@dataclass(frozen=True)
class ShardConfig:
    """Attributes:
    seeds: first and last+1 scene seed.
    frames: per clip.
    size: (height, width).
    period_s: between frames; longer than a camera's, so that a short clip goes somewhere.
    workers: rendering processes.
    with_decoys: bright things that stand still are added (scenes/decoys.py).
    """

    seeds: tuple[int, int] = (0, 700)
    frames: int = 24
    size: tuple[int, int] = (128, 160)
    period_s: float = 0.2
    workers: int = 2
    with_decoys: bool = False


@dataclass(frozen=True)
class StoredClip:
    """rgb (f, h, w, 3) uint8, depth_m (f, h, w) float16 with +inf sky, masks (f, h, w) bool."""

    rgb: np.ndarray
    depth_m: np.ndarray
    moving: np.ndarray
    sky: np.ndarray
    cameras: Camera


def make_shards(folder: Path, config: ShardConfig) -> None:
    """Renders every clip of the range that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in range(*config.seeds) if not _path(folder, seed).exists()]
    if not missing:
        return
    # A fork of a process with threads (torch's, numba's) may hang, so each starts anew.
    with ProcessPoolExecutor(config.workers, get_context("spawn")) as pool:
        jobs = pool.map(_make, missing, [folder] * len(missing), [config] * len(missing))
        for _ in tqdm(jobs, total=len(missing), desc="clips", unit="clip"):
            pass


def load_shards(folder: Path, seeds: tuple[int, int]) -> list[StoredClip]:
    """Every stored clip of a seed range."""
    return [clip for _, clip in each_shard(folder, seeds)]


def each_shard(folder: Path, seeds: tuple[int, int]) -> Iterator[tuple[int, StoredClip]]:
    """Seed and clip of every one that is stored, one at a time: larger sets do not fit in memory."""
    there = [seed for seed in range(*seeds) if _path(folder, seed).exists()]
    if not there:
        raise MirageError(f"No clips of seeds {seeds} in {folder}; run the data stage first.")
    for seed in tqdm(there, desc="load", unit="clip", leave=False):
        yield seed, _load(_path(folder, seed))


def _path(folder: Path, seed: int) -> Path:
    return folder / f"clip_{seed:07d}.safetensors"


def _make(seed: int, folder: Path, config: ShardConfig) -> None:
    from mirage_ros.scenes import make_clip  # MuJoCo picks its renderer at import, per process

    period_s, with_decoys = config.period_s, config.with_decoys
    clip = make_clip(seed, config.frames, config.size, period_s=period_s, with_decoys=with_decoys)
    tensors = {
        "rgb": clip.rgb,
        "depth_m": clip.depth_m.astype(np.float16),
        "masks": np.stack([clip.moving, clip.sky]).astype(np.uint8),
        "intrinsics": np.ascontiguousarray(clip.cameras.intrinsics),
        "world_from_camera": np.ascontiguousarray(clip.cameras.world_from_camera),
    }
    temporary = _path(folder, seed).with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, _path(folder, seed))


def _load(path: Path) -> StoredClip:
    data = load_file(path)
    moving, sky = data["masks"].astype(bool)
    size = data["rgb"].shape[1:3]
    cameras = Camera(data["intrinsics"], data["world_from_camera"], size)
    return StoredClip(data["rgb"], data["depth_m"], moving, sky, cameras)

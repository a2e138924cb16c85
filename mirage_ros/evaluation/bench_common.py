"""What the benchmarks share: timing, the machine in words, a walk through a scene, and random views of any number.

The walk is through a MuJoCo scene with true depth. Random depth is the hard case: every token has its own
position, none is hidden by a smooth wall, and all of them lie in the view of one camera.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from numba import njit

from mirage_ros.evaluation.point_cloud import BARE_POINT_BYTES, CloudConfig
from mirage_ros.evaluation.rgb_cache import RgbMemory
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_colours
from mirage_ros.geometry.rigid import exp_rotation
from mirage_ros.machine import processor_name
from mirage_ros.memory import LatentMemory, MemoryConfig


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one thing."""

    median_s: float
    fastest_s: float
    slowest_s: float
    repeats: int


def measure(work: Callable[[], object], repeats: int, warm_up: int = 1) -> Timing:
    """Runs the work some times unmeasured, then `repeats` times with a clock."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that may be used, threads of torch, Python and torch."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
    }


def streaming_bytes_per_s(size_bytes: int = 2**28, repeats: int = 5) -> float:
    """Bytes a second at which all cores together read an array from memory, in order."""
    cores = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(size_bytes // 8), cores)

    with ThreadPoolExecutor(cores) as pool:
        timing = measure(lambda: list(pool.map(_add_up, parts)), repeats)
    return size_bytes / timing.median_s


@njit(cache=True, nogil=True, fastmath=True)
def _add_up(values):
    total = 0.0
    for value in values:
        total += value
    return total


HFOV_DEG = 70.0
NEAREST_M, FARTHEST_M = 1.5, 12.0
REGION_PITCH_M = 60.0
BATCH = 16
LOOK_ALONG_Y = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def empty_memory(channels: int, tokens: int, **options) -> LatentMemory:
    """A memory with room for so many tokens, and other options of MemoryConfig."""
    cap = max(2**24, tokens * (4 * channels + 400))
    return LatentMemory(MemoryConfig(channels, cap, **options))


def view(region: int, size: tuple[int, int], count: int = 1) -> Camera:
    """`count` cameras at latent size that look at one region from a few centimetres apart."""
    poses = np.repeat(LOOK_ALONG_Y[None], count, 0)
    poses[:, 0, 3] = REGION_PITCH_M * region + 0.03 * (np.arange(count) - (count - 1) / 2)
    return Camera.from_hfov(HFOV_DEG, size, poses)


def fill_region(memory: LatentMemory, region: int, tokens: int, size: tuple[int, int]) -> None:
    """Writes random cells until the region holds about `tokens` more."""
    rng, goal = np.random.default_rng(region), memory.tokens + tokens
    values = rng.standard_normal((BATCH, memory.config.channels, *size), np.float32)
    latents, colours = torch.from_numpy(values), np.zeros((BATCH, *size, 3), np.uint8)
    while (missing := goal - memory.tokens) > 0:
        cameras = _jittered(view(region, size, BATCH), rng)
        shape = (BATCH, *size)
        share = min(1.0, missing / np.prod(shape))
        depth = rng.uniform(NEAREST_M, FARTHEST_M, shape)
        memory.write(
            latents,
            cameras,
            depth,
            rng.random(shape) < share,
            np.zeros(BATCH, np.int64),
            colours,
            np.arange(BATCH),
        )


def _jittered(cameras: Camera, rng: np.random.Generator) -> Camera:
    """Turned by up to about half a degree and moved by up to 5 cm each."""
    poses = cameras.world_from_camera.copy()
    for pose in poses:
        pose[:3, :3] = pose[:3, :3] @ exp_rotation(rng.uniform(-0.01, 0.01, 3))
        pose[:3, 3] += rng.uniform(-0.05, 0.05, 3)
    return Camera(cameras.intrinsics, poses, cameras.size)


REWRITE_LOG_SCALE = 0.35
SHAKE_M, SHAKE_RAD = 0.01, 0.005
PERIOD_S = 0.4


@dataclass(frozen=True)
class Grid:
    """A codec as the memory sees it: picture size, stride, channels, what encodes, and whether cells
    that show two surfaces are kept by parts."""

    name: str
    size: tuple[int, int]
    stride: int
    channels: int
    encode: Callable[[UInt8[np.ndarray, "f h w 3"]], torch.Tensor]
    by_parts: bool = False

    @property
    def cells(self) -> tuple[int, int]:
        return self.size[0] // self.stride, self.size[1] // self.stride


@dataclass(frozen=True)
class Walk:
    """Rendered frames of a path: pictures, true depth, cameras of picture size."""

    rgb: np.ndarray
    depth_m: np.ndarray
    cameras: Camera

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: slice) -> Walk:
        return Walk(self.rgb[index], self.depth_m[index], self.cameras[index])


def linear_patches(channels: int, stride: int):
    """An encoder that projects each patch by one fixed orthogonal matrix: the cheapest there is."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(3 * stride * stride, channels, generator=generator)
    basis = torch.linalg.qr(square)[0].T.reshape(channels, 3, stride, stride).contiguous()

    @torch.inference_mode()
    def encode(rgb: UInt8[np.ndarray, "f h w 3"]) -> torch.Tensor:
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float()
        return torch.nn.functional.conv2d(picture / 127.5 - 1, basis, stride=stride)

    return encode


def render_walk(seed: int, frames: int, size: tuple[int, int], shaken_by: int = 0) -> Walk:
    """`frames` still-world frames of a seeded path; a number above 0 shakes the camera by about
    a centimetre and a third of a degree, differently for each number."""
    from mirage_ros.scenes import Renderer, camera_path

    scene = _still_room(seed)
    cameras = camera_path(
        scene, seed, frames, size=size, motion="robot", hfov_deg=75.0, period_s=PERIOD_S
    )
    if shaken_by:
        rng, poses = np.random.default_rng(shaken_by), cameras.world_from_camera.copy()
        poses[:, :3, 3] += rng.normal(0, SHAKE_M, (frames, 3))
        angle = rng.normal(0, SHAKE_RAD, frames)
        turn = np.zeros((frames, 3, 3))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 1, 0], turn[:, 0, 1], turn[:, 2, 2] = np.sin(angle), -np.sin(angle), 1
        poses[:, :3, :3] = turn @ poses[:, :3, :3]
        cameras = Camera(cameras.intrinsics, poses, size)
    with Renderer(scene, size) as renderer:
        clip = renderer.render(cameras)
    return Walk(clip.rgb, clip.depth_m, cameras)


@lru_cache(maxsize=1)
def _still_room(seed: int):
    from mirage_ros.scenes import make_scene

    return make_scene(seed, "room", moving=False)


def remember_latents(memory: LatentMemory, walk: Walk, grid: Grid, latents: torch.Tensor) -> None:
    """Writes what memory does not show yet, as the cycle does, frame by frame."""
    depth = walk.depth_m if grid.by_parts else cell_depth(walk.depth_m, grid.stride)
    count = len(walk)
    memory.write_new(
        latents,
        walk.cameras.resized(grid.cells),
        depth,
        np.ones((count, *grid.cells), bool),
        np.arange(count, dtype=np.int64),
        cell_colours(walk.rgb, grid.stride),
        np.arange(count),
        REWRITE_LOG_SCALE,
    )


def remember_pixels(memory: RgbMemory, walk: Walk, only_new: bool) -> None:
    """Writes every pixel, or those that the cloud does not show yet."""
    for i in range(len(walk)):
        one, ids = walk[i : i + 1], np.array([i])
        static = np.isfinite(one.depth_m)
        if only_new:
            memory.write_new(one.rgb, one.cameras, one.depth_m, static, ids, REWRITE_LOG_SCALE)
        else:
            memory.cloud.write(one.rgb, one.cameras, one.depth_m, static, ids)


CLOUDS = {
    "points merged in 1 cm voxels": (CloudConfig(voxel_m=0.01), False),
    "points, all kept": (CloudConfig(voxel_m=None), False),
    "points, only new ones, all kept": (CloudConfig(voxel_m=None), True),
}


OTHER_TYPES = ("float16", "int8", "int4")
"""What else than the default latents can be kept as."""


def compare(walk: Walk, grid: Grid, views: int, repeats: int) -> list[dict]:
    """Every second frame is remembered, `views` of the others are read; one row per cache."""
    kept, unseen = walk[::2], walk[1::2].cameras[:views].resized(grid.cells)
    latents = torch.cat([grid.encode(kept.rgb[i : i + 1]) for i in range(len(kept))])
    rows = [_compare_latents("latent tokens", {}, kept, grid, latents, unseen, repeats)]
    for name, (config, only_new) in CLOUDS.items():
        rows.append(_compare_cloud(name, config, only_new, kept, grid, unseen, repeats))
    for dtype in OTHER_TYPES:
        name, options = f"latent tokens, {dtype}", {"dtype": dtype}
        rows.append(_compare_latents(name, options, kept, grid, latents, unseen, repeats))
    for row in rows:
        row |= {"codec": grid.name, "size": grid.size, "cells": grid.cells}
        row |= {"frames": len(kept), "views": len(unseen)}
        row["times_slower"] = row["read_ms"] / rows[0]["read_ms"]
        row["times_bytes"] = row["bytes"] / rows[0]["bytes"]
        row["times_bare_bytes"] = row["bare_bytes"] / rows[0]["bytes"]
    return rows


def _compare_latents(name, options, kept: Walk, grid: Grid, latents, unseen, repeats) -> dict:
    memory = empty_memory(grid.channels, kept.depth_m.size // grid.stride**2, **options)
    remember_latents(memory, kept, grid, latents)
    read = measure(lambda: memory.read(unseen), repeats, warm_up=2)
    return {
        "cache": name,
        "things": memory.tokens,
        "bytes": memory.nbytes,
        "bare_bytes": memory.nbytes,
        "read_ms": 1e3 * read.median_s,
        "draw_ms": 0.0,
        "visible": float(memory.read(unseen).visible.mean()),
    }


def _compare_cloud(name, config, only_new, kept: Walk, grid: Grid, unseen, repeats) -> dict:
    memory = RgbMemory(grid.encode, grid.stride, config)
    remember_pixels(memory, kept, only_new)
    readouts = []
    memory.draw(unseen[:1])  # compiles, where that has not been done
    draw = measure(lambda: memory.draw(unseen), 1, warm_up=0)
    read = measure(lambda: readouts.append(memory.read(unseen)), repeats, warm_up=0)
    return {
        "cache": name,
        "things": memory.tokens,
        "bytes": memory.nbytes,
        "bare_bytes": memory.tokens * BARE_POINT_BYTES,
        "read_ms": 1e3 * read.median_s,
        "draw_ms": 1e3 * draw.median_s,
        "visible": float(readouts[-1].visible.mean()),
    }


def grow(seed: int, frames: int, grid: Grid, rounds: int, shaken: bool) -> list[dict]:
    """Rounds of one closed walk (there and back): what each leaves in the memories."""
    walk = render_walk(seed, frames, grid.size)
    back = slice(None, None, -1)
    memory = empty_memory(grid.channels, walk.depth_m.size // grid.stride**2)
    merged = RgbMemory(grid.encode, grid.stride, CloudConfig())
    cells = walk.cameras.resized(grid.cells)
    rows, kept = [], 0
    for number in range(rounds):
        if shaken and number:
            walk = render_walk(seed, frames, grid.size, shaken_by=number)
        latents = grid.encode(walk.rgb)
        remember_latents(memory, walk, grid, latents)
        remember_latents(memory, walk[back], grid, latents.flip(0))
        remember_pixels(merged, walk, only_new=False)
        kept += int(np.isfinite(walk.depth_m).sum()) * BARE_POINT_BYTES * 2
        rows.append(
            {
                "round": number + 1,
                "shaken": shaken,
                "tokens": memory.tokens,
                "bytes": memory.nbytes,
                "visible": float(memory.read(cells).visible.mean()),
                "merged_points": merged.tokens,
                "merged_bytes": merged.nbytes,
                "all_bytes": kept,
            }
        )
    return rows

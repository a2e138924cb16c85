"""Posed clips to train on: rendered ones, a safetensors file per scene seed, and RealEstate10K tracks with frames.

Clips are rendered once; whoever asks again resumes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from mirage_ros.data.seeds import read_picture
from mirage_ros.data.tracks import Track, pictures_of, read_track
from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import fit_seed
from mirage_ros.geometry.rigid import inverse

if TYPE_CHECKING:
    from mirage_ros.scenes.catalogue import Catalogue


@dataclass(frozen=True)
class ShardConfig:
    """Attributes:
    seeds: first and last+1 scene seed.
    frames: per clip.
    size: (height, width).
    period_s: between frames; longer than a camera's, so that a short clip goes somewhere.
    workers: rendering processes; 1 is this one.
    with_decoys: bright things that stand still are added (scenes/worlds.py).
    furniture: a cache of `mirage data furniture`; with one, half of the clips show furnished homes.
    """

    seeds: tuple[int, int] = (0, 700)
    frames: int = 24
    size: tuple[int, int] = (128, 160)
    period_s: float = 0.2
    workers: int = 2
    with_decoys: bool = False
    furniture: str = ""


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
    _catalogue(config.furniture)  # one that cannot be read is named before anything is rendered
    with contextlib.ExitStack() as stack:
        run = map
        if config.workers > 1:
            # A fork of a process with threads (torch's, numba's) may hang, so each starts anew.
            run = stack.enter_context(ProcessPoolExecutor(config.workers, get_context("spawn"))).map
        jobs = run(_make, missing, [folder] * len(missing), [config] * len(missing))
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
    from mirage_ros.scenes import make_clip

    clip = make_clip(
        seed, config.frames, config.size, period_s=config.period_s, with_decoys=config.with_decoys,
        furniture=_catalogue(config.furniture),
    )  # fmt: skip
    tensors = {
        "rgb": clip.rgb,
        "depth_m": clip.depth_m.astype(np.float16),
        "masks": np.stack([clip.moving, clip.sky]).astype(np.uint8),
        "intrinsics": np.ascontiguousarray(clip.cameras.intrinsics),
        "world_from_camera": np.ascontiguousarray(clip.cameras.world_from_camera),
    }
    with atomic_path(_path(folder, seed)) as new:
        save_file(tensors, new)


@cache
def _catalogue(furniture: str) -> Catalogue | None:
    from mirage_ros.scenes.catalogue import Catalogue

    return Catalogue.load(furniture) if furniture else None


def _load(path: Path) -> StoredClip:
    data = load_file(path)
    moving, sky = data["masks"].astype(bool)
    size = data["rgb"].shape[1:3]
    cameras = Camera(data["intrinsics"], data["world_from_camera"], size)
    return StoredClip(data["rgb"], data["depth_m"], moving, sky, cameras)


@dataclass(frozen=True)
class PosedVideo:
    """A clip with its cameras; depth and masks where they are known.

    Attributes:
        depth_m: along z; None where somebody has to perceive it, and then the cameras' scale is
            unknown as well.
    """

    rgb: UInt8[np.ndarray, "f h w 3"]
    cameras: Camera
    depth_m: Float[np.ndarray, "f h w"] | None = None
    dynamic: Bool[np.ndarray, "f h w"] | None = None


@dataclass(frozen=True)
class LazyVideo:
    """A clip that is not read before somebody needs its pictures.

    Attributes:
        name: unique in its data set, fit for a file name.
    """

    name: str
    read: Callable[[], PosedVideo]


def read_re10k(
    tracks: Path, frames: Path, size: tuple[int, int], length: int
) -> Iterator[LazyVideo]:
    """Clips of `length` frames out of `tracks/NAME.txt` and `frames/NAME/MICROSECONDS.png`.

    Pictures are cropped about their middle to the aspect of `size` and resized, the cameras
    follow. Frames that were not fetched are left out; a track with too few of them gives no clip.
    """
    paths = sorted(tracks.glob("*.txt"))
    if not paths:
        raise MirageError(f"{tracks} holds no .txt camera files; give the folder that does.")
    for path in paths:
        track = read_track(path)
        files = pictures_of(track, frames / track.name)
        rows = list(files)
        for part, start in enumerate(range(0, len(rows) - length + 1, length)):
            chosen = rows[start : start + length]
            pictures = [files[i] for i in chosen]
            yield LazyVideo(
                f"{track.name}_{part:03d}", partial(_read_part, track, chosen, pictures, size)
            )


def read_shards(folder: Path, seeds: tuple[int, int], length: int) -> Iterator[LazyVideo]:
    """The project's rendered clips, with their true depth and masks."""
    stored = {int(path.stem.rpartition("_")[2]) for path in folder.glob("clip_*.safetensors")}
    for seed in sorted(stored & set(range(*seeds))):
        yield LazyVideo(f"seed_{seed:07d}", partial(_read_shard, folder, seed, length))


def _read_part(
    track: Track, chosen: list[int], paths: list[Path], size: tuple[int, int]
) -> PosedVideo:
    pictures = [read_picture(path) for path in paths]
    cameras = track.cameras(pictures[0].shape[:2])[chosen]
    return _fitted(pictures, cameras, size)


def _read_shard(folder: Path, seed: int, length: int) -> PosedVideo:
    (clip,) = load_shards(folder, (seed, seed + 1))
    if len(clip.rgb) < length:
        raise MirageError(
            f"The clip of seed {seed} in {folder} has {len(clip.rgb)} frames and {length} are "
            "asked for; render longer ones or ask for less."
        )
    part = slice(0, length)
    depth = clip.depth_m[part].astype(np.float32)
    return PosedVideo(clip.rgb[part], clip.cameras[part], depth, clip.moving[part])


def _fitted(pictures: Sequence[np.ndarray], cameras: Camera, size: tuple[int, int]) -> PosedVideo:
    fitted = [
        fit_seed(rgb, camera, None, size)[:2] for rgb, camera in zip(pictures, cameras, strict=True)
    ]
    rgb = np.stack([picture for picture, _ in fitted])
    return PosedVideo(rgb, Camera.stack([camera for _, camera in fitted]))


#: Shown is what lies at most this far behind the other view's surface: share of the depth, metres.
AGREE_SHARE, AGREE_M = 0.08, 0.05
#: Where sky is taken to lie, metres, when it is looked for in another view.
FAR_M = 60.0


def shown_cells(depth_m, intrinsics, world_from_camera, stride: int) -> Bool[np.ndarray, "n n h w"]:
    """(source, target): which cells of each view each other one shows, by true depth; sky shows sky."""
    count, height, width = depth_m.shape
    step = stride // 2
    v, u = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    far = depth_m[:, v, u].astype(np.float32)
    sky = ~np.isfinite(far)
    far = np.where(sky, FAR_M, far)
    back = inverse(world_from_camera)
    shown = np.zeros((count, count, height // stride, width // stride), bool)
    for j in range(count):
        k = intrinsics[j]
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], -1)
        world = (rays * far[j][..., None]) @ world_from_camera[j][:3, :3].T
        world += world_from_camera[j][:3, 3]
        for i in range(count):
            k = intrinsics[i]
            p = world @ back[i][:3, :3].T + back[i][:3, 3]
            z = np.maximum(p[..., 2], 1e-3)
            x, y = p[..., 0] / z * k[0, 0] + k[0, 2], p[..., 1] / z * k[1, 1] + k[1, 2]
            inside = (
                (p[..., 2] > 0.1) & (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
            )
            at = np.clip(np.rint(y), 0, height - 1), np.clip(np.rint(x), 0, width - 1)
            there = depth_m[i].astype(np.float32)[at[0].astype(int), at[1].astype(int)]
            near = np.abs(np.where(np.isfinite(there), there, 1e9) - z) < AGREE_SHARE * z + AGREE_M
            seen = inside & np.where(sky[j], ~np.isfinite(there), near)
            shown[i, j] = seen.reshape(height // stride, 2, -1, 2).mean((1, 3)) >= 0.5
    return shown


def shrunk(clip: StoredClip, size: tuple[int, int]) -> StoredClip:
    """Frames cropped to the size's aspect around their middle and resized; depths are never mixed."""
    height, width = clip.rgb.shape[1:3]
    if (height, width) == size:
        return clip
    scale = max(size[0] / height, size[1] / width)
    crop = round(size[0] / scale), round(size[1] / scale)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    rgb = clip.rgb[:, top : top + crop[0], left : left + crop[1]]
    rgb = np.stack([cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in rgb])
    y = top + ((np.arange(size[0]) + 0.5) * crop[0] / size[0]).astype(int)
    x = left + ((np.arange(size[1]) + 0.5) * crop[1] / size[1]).astype(int)
    maps = [a[:, y[:, None], x] for a in (clip.depth_m, clip.moving, clip.sky)]
    return StoredClip(rgb, *maps, clip.cameras.cropped(top, left, crop).resized(size))

"""Posed video as the denoiser takes it, made once: latents, depth and static cells per latent.

A camera track from structure from motion has an arbitrary scale. With metric depth of every picture
that one number is searched for, first on a coarse grid of logarithms and then on a fine one: the
right scale is the one with which pictures, warped by their depth into later cameras, look most like
the pictures there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share
from mirage_ros.models.resizing import picture_from_rgb
from mirage_ros.models.wan.codec import WanCodec
from mirage_ros.models.wan.model import Perceiver
from mirage_ros.training.chunks import LatentClip
from mirage_ros.training.clips import LazyVideo, PosedVideo
from mirage_ros.world.chunking import anchor_frames, any_in_group
from mirage_ros.world.world import WorldConfig

#: Metres per unit of the track that are tried, and the width of the pictures compared.
RANGE = (0.02, 50.0)
WIDTH = 96
PAIRS = 6


def pose_scale(
    rgb: UInt8[np.ndarray, "f h w 3"],
    depth_m: Float[np.ndarray, "f h w"],
    cameras: Camera,
) -> float:
    """Metres per unit of the cameras' positions; 1.0 where the camera hardly moves."""
    size = (round(WIDTH * rgb.shape[1] / rgb.shape[2]), WIDTH)
    small = cameras.resized(size)
    first = np.linspace(0, len(rgb) - 1, PAIRS + 1).round().astype(int).tolist()
    pairs = [(i, j) for i, j in zip(first[:-1], first[1:], strict=True) if i != j]
    grey = {i: _grey(rgb[i], size) for i in first}
    depth = {i: cv2.resize(depth_m[i], size[::-1], interpolation=cv2.INTER_NEAREST) for i in first}
    if not pairs or np.ptp(cameras.position_world, 0).max() < 1e-6:
        return 1.0

    def error(scale: float) -> float:
        return float(np.mean([_error(grey, depth, small, i, j, scale) for i, j in pairs]))

    coarse = np.geomspace(*RANGE, 48).tolist()
    best = min(coarse, key=error)
    step = coarse[1] / coarse[0]
    return min(np.geomspace(best / step, best * step, 33).tolist(), key=error)


def scaled(cameras: Camera, scale: float) -> Camera:
    """The cameras with positions in metres."""
    pose = cameras.world_from_camera.copy()
    pose[:, :3, 3] *= scale
    return Camera(cameras.intrinsics, pose, cameras.size)


def _error(grey: dict, depth: dict, cameras: Camera, i: int, j: int, scale: float) -> float:
    """Mean difference between frame j and frame i drawn at its pixels; outside costs as much."""
    both = scaled(cameras[np.array([i, j])], scale)
    valid = np.isfinite(depth[i]) & (depth[i] > 0)
    points = both[0].lift(np.where(valid, depth[i], 1.0)).reshape(-1, 3)
    pixels, z = both[1].project(points)
    maps = pixels.astype(np.float32).reshape(*depth[i].shape, 2)
    seen = cv2.remap(grey[j], maps[..., 0], maps[..., 1], cv2.INTER_LINEAR, borderValue=-1)
    inside = valid & (seen >= 0) & (z.reshape(valid.shape) > 0)
    if not inside.any():
        return 1.0
    gap = np.abs(seen - grey[i])
    return float((gap[inside].sum() + 0.25 * (valid & ~inside).sum()) / max(valid.sum(), 1))


def _grey(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def build_cache(
    videos: Iterable[LazyVideo],
    load_networks: Callable[[], tuple[WanCodec, Perceiver]],
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Writes one file per clip that the folder lacks; returns how many clips there are.

    Depth and masks that a clip lacks are perceived, and its cameras brought to the scale of
    that depth. Networks are loaded, and pictures read, only for clips that are missing.

    Args:
        share: (i, n) every n-th clip from the i-th on, for n processes that share the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    videos = list(videos)
    if not videos:
        raise MirageError("The data set holds no clip that is long enough; look at its folders.")
    # Shared out by the index in the whole set, which is the same for all processes.
    ours = [(_path(folder, video), video) for video in videos[share[0] :: share[1]]]
    missing = [(path, video) for path, video in ours if not path.exists()]
    networks = load_networks() if missing else None
    for path, video in tqdm(missing, desc="latents", unit="clip", disable=share[0] > 0):
        with atomic_path(path) as new:
            save_file(_tensors(video.read(), *networks), new)
    return len(videos)


class LatentCache(Sequence[LatentClip]):
    """The clips of a cache folder, each read when it is asked for.

    Raises MirageError when there is none.
    """

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.safetensors"))
        if not self.paths:
            raise MirageError(f"{folder} holds no cached clips; build the cache first.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LatentClip:
        return _clip(load_file(self.paths[index]))


def _path(folder: Path, video: LazyVideo) -> Path:
    return folder / f"{video.name}.safetensors"


@torch.no_grad()
def _tensors(video: PosedVideo, codec: WanCodec, perceiver: Perceiver) -> dict[str, torch.Tensor]:
    frames = 1 + (len(video.rgb) - 1) // codec.frames_per_latent * codec.frames_per_latent
    rgb, cameras = video.rgb[:frames], video.cameras[:frames]
    picture = picture_from_rgb(torch.from_numpy(np.ascontiguousarray(rgb)))
    latents = codec.encode(picture.transpose(0, 1)[None])[0].transpose(0, 1)
    depth, dynamic, cameras = _geometry(video, rgb, cameras, perceiver)
    at = _anchors(frames, codec.frames_per_latent)
    size = latents.shape[-2:]
    anchored = cameras[at].resized((int(size[0]), int(size[1])))
    touched = np.concatenate([dynamic[:1], any_in_group(dynamic[1:], codec.frames_per_latent)])
    static = cell_share(touched, codec.stride) <= WorldConfig.max_dynamic_share
    arrays = {
        "depth_m": cell_depth(depth[at], codec.stride),
        "static": static,
        "intrinsics": anchored.intrinsics,
        "world_from_camera": anchored.world_from_camera,
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return tensors | {"latents": latents.half().cpu().contiguous()}


def _geometry(video: PosedVideo, rgb, cameras: Camera, perceiver: Perceiver):
    """Depth in metres, moving pixels, cameras in metres."""
    if video.depth_m is not None:
        depth = video.depth_m[: len(rgb)]
        dynamic = np.zeros(depth.shape, bool) if video.dynamic is None else video.dynamic
        return depth, dynamic[: len(rgb)], cameras
    found = perceiver(rgb, cameras, None)
    return found.depth_m, found.dynamic, scaled(cameras, pose_scale(rgb, found.depth_m, cameras))


def _anchors(frames: int, per_latent: int) -> np.ndarray:
    """Of a whole video: its first frame is a latent of its own."""
    return np.concatenate([[0], 1 + anchor_frames(frames - 1, per_latent)]).astype(int)


def _clip(tensors: dict[str, torch.Tensor]) -> LatentClip:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "latents"}
    latents = tensors["latents"]
    size = (int(latents.shape[-2]), int(latents.shape[-1]))
    cameras = Camera(arrays["intrinsics"], arrays["world_from_camera"], size)
    return LatentClip(latents, arrays["depth_m"], arrays["static"].astype(bool), cameras)

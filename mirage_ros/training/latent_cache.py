"""Posed video as the denoiser sees it, made once: latents, depth and static cells per latent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mirage_ros.core.camera import Camera
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.errors import MirageError
from mirage_ros.core.pictures import cell_share
from mirage_ros.core.video import anchor_frames, any_in_group
from mirage_ros.core.world import WorldConfig
from mirage_ros.models.pixels import picture_from_rgb
from mirage_ros.models.wan import Perceiver
from mirage_ros.models.wan_codec import WanCodec
from mirage_ros.training.chunks import LatentClip
from mirage_ros.training.pose_scale import pose_scale, scaled
from mirage_ros.training.posed_video import LazyVideo, PosedVideo


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
    # Shared out by place in the whole set, which is the same for all who ask.
    ours = [(_path(folder, video), video) for video in videos[share[0] :: share[1]]]
    missing = [(path, video) for path, video in ours if not path.exists()]
    networks = load_networks() if missing else None
    for path, video in tqdm(missing, desc="latents", unit="clip", disable=share[0] > 0):
        save_file(_tensors(video.read(), *networks), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
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
    told = perceiver(rgb, cameras, None)
    return told.depth_m, told.dynamic, scaled(cameras, pose_scale(rgb, told.depth_m, cameras))


def _anchors(frames: int, per_latent: int) -> np.ndarray:
    """Of a whole video: its first frame is a latent of its own."""
    return np.concatenate([[0], 1 + anchor_frames(frames - 1, per_latent)]).astype(int)


def _clip(tensors: dict[str, torch.Tensor]) -> LatentClip:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "latents"}
    latents = tensors["latents"]
    size = (int(latents.shape[-2]), int(latents.shape[-1]))
    cameras = Camera(arrays["intrinsics"], arrays["world_from_camera"], size)
    return LatentClip(latents, arrays["depth_m"], arrays["static"].astype(bool), cameras)

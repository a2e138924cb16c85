"""Posed video as the denoiser sees it, made once: latents, depth and static cells per latent."""

from __future__ import annotations

import os
from collections.abc import Iterable
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
from mirage_ros.models.wan import WanModel
from mirage_ros.training.chunks import LatentClip
from mirage_ros.training.pose_scale import pose_scale, scaled
from mirage_ros.training.posed_video import PosedVideo


def build_cache(videos: Iterable[PosedVideo], model: WanModel, folder: Path) -> int:
    """Writes one file per clip that the folder lacks; returns how many clips there are.

    Depth and masks that a clip lacks are perceived by the model's perceiver, and its cameras
    brought to the scale of that depth.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for video in tqdm(videos, desc="latents", unit="clip"):
        path, count = folder / f"{video.name}.safetensors", count + 1
        if not path.exists():
            save_file(_tensors(video, model), path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    if not count:
        raise MirageError("The data set holds no clip that is long enough; look at its folders.")
    return count


def load_cache(folder: Path) -> list[LatentClip]:
    """Every clip of a cache folder; MirageError when there is none."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise MirageError(f"{folder} holds no cached clips; build the cache first.")
    return [_clip(load_file(path)) for path in paths]


@torch.no_grad()
def _tensors(video: PosedVideo, model: WanModel) -> dict[str, torch.Tensor]:
    frames = 1 + (len(video.rgb) - 1) // model.frames_per_latent * model.frames_per_latent
    rgb, cameras = video.rgb[:frames], video.cameras[:frames]
    latents = model.codec.encode(model.video_from_rgb(rgb))[0].transpose(0, 1)
    depth, dynamic, cameras = _geometry(video, rgb, cameras, model)
    at = _anchors(frames, model.frames_per_latent)
    size = latents.shape[-2:]
    anchored = cameras[at].resized((int(size[0]), int(size[1])))
    touched = np.concatenate([dynamic[:1], any_in_group(dynamic[1:], model.frames_per_latent)])
    static = cell_share(touched, model.stride) <= WorldConfig.max_dynamic_share
    arrays = {
        "depth_m": cell_depth(depth[at], model.stride),
        "static": static,
        "intrinsics": anchored.intrinsics,
        "world_from_camera": anchored.world_from_camera,
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return tensors | {"latents": latents.half().cpu().contiguous()}


def _geometry(video: PosedVideo, rgb, cameras: Camera, model: WanModel):
    """Depth in metres, moving pixels, cameras in metres."""
    if video.depth_m is not None:
        depth = video.depth_m[: len(rgb)]
        dynamic = np.zeros(depth.shape, bool) if video.dynamic is None else video.dynamic
        return depth, dynamic[: len(rgb)], cameras
    told = model.perceive(rgb, cameras, None)
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

"""The metres of a camera track that came from structure from motion, whose scale is anybody's.

With metric depth of every picture one number is missing. The right one is that with which
pictures, warped by their depth into later cameras, look like what is there; so it is searched
for, first on a coarse grid of logarithms and then on a fine one.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.core.camera import Camera

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

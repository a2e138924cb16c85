"""From latent cells with depth to surfels: position, footprint, normal, direction of view."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.core.camera import Camera

EDGE_FOOTPRINTS = 6.0
"""Neighbours farther apart along z than this many footprints lie on different surfaces."""


def lift_surfels(
    cameras: Camera, depth_m: Float[np.ndarray, "f h w"], chosen: Bool[np.ndarray, "f h w"]
) -> dict[str, np.ndarray]:
    """Rows (n, ...) of the chosen cells in raster order, frame after frame.

    positions_world float32, footprints_m float32 (a cell's width at that depth), normals and
    views int8 (unit vectors times 127), confidence uint8 (255 times the cosine between both).
    """
    focal = 0.5 * (cameras.intrinsics[..., 0, 0] + cameras.intrinsics[..., 1, 1])
    valid = np.isfinite(depth_m) & (depth_m > 0)
    depth = np.where(valid, depth_m, 0.0)
    points = cameras.lift(depth)
    footprint = depth / focal[:, None, None]
    views = _unit(cameras.position_world[:, None, None] - points)
    normals = _normals(points, depth, valid, footprint, views)
    cosine = np.clip((normals * views).sum(-1), 0, 1)
    return {
        "positions_world": points[chosen].astype(np.float32),
        "footprints_m": footprint[chosen].astype(np.float32),
        "normals": np.rint(normals[chosen] * 127).astype(np.int8),
        "views": np.rint(views[chosen] * 127).astype(np.int8),
        "confidence": np.rint(cosine[chosen] * 255).astype(np.uint8),
    }


def _normals(points, depth, valid, footprint, views):
    """Unit normals (f, h, w, 3) towards the camera; the view's direction where neighbours fail."""
    across, has_across = _tangent(points, depth, valid, footprint, axis=2)
    along, has_along = _tangent(points, depth, valid, footprint, axis=1)
    normals = _unit(np.cross(along, across))
    sound = has_across & has_along & (np.abs(normals).sum(-1) > 0.5)
    normals = np.where(sound[..., None], normals, views)
    return np.where((normals * views).sum(-1, keepdims=True) < 0, -normals, normals)


def _tangent(points, depth, valid, footprint, axis):
    """The step to the neighbour that is closer in depth, and whether it is the same surface."""
    size = depth.shape[axis]
    best = np.zeros_like(points)
    best_gap = np.full(depth.shape, np.inf)
    here = [slice(None)] * 3
    there = [slice(None)] * 3
    for step in (1, -1):
        here[axis] = slice(0, size - 1) if step > 0 else slice(1, size)
        there[axis] = slice(1, size) if step > 0 else slice(0, size - 1)
        a, b = tuple(here), tuple(there)
        gap = np.where(valid[a] & valid[b], np.abs(depth[b] - depth[a]), np.inf)
        closer = gap < best_gap[a]
        best_gap[a] = np.where(closer, gap, best_gap[a])
        best[a] = np.where(closer[..., None], step * (points[b] - points[a]), best[a])
    return best, best_gap <= EDGE_FOOTPRINTS * footprint


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)

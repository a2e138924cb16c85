"""From latent cells with depth to surfels: position, footprint, normal, front."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.core.camera import Camera

EDGE_FOOTPRINTS = 6.0
"""Neighbours farther apart along z than this many footprints lie on different surfaces."""

AGREEING_COSINE = 0.9
"""Normals from the neighbours before and after a cell agree from this cosine on."""

GRAZING_COSINE = 0.2
"""A surface seen under a smaller cosine is too slanted to be sure which way it faces."""


def lift_surfels(
    cameras: Camera, depth_m: Float[np.ndarray, "f h w"], chosen: Bool[np.ndarray, "f h w"]
) -> dict[str, np.ndarray]:
    """Rows (n, ...) of the chosen cells in raster order, frame after frame.

    positions_world float32, footprints_m float32 (a cell's width at that depth), normals and
    fronts int8 (unit vectors times 127), confidence uint8 (255 times the cosine between normal
    and view). The front is the direction that the token faces for sure: its normal where the
    neighbours on all sides agree on it, else the direction it was seen from.
    """
    focal = 0.5 * (cameras.intrinsics[..., 0, 0] + cameras.intrinsics[..., 1, 1])
    valid = np.isfinite(depth_m) & (depth_m > 0)
    depth = np.where(valid, depth_m, 0.0)
    points = cameras.lift(depth)
    footprint = depth / focal[:, None, None]
    views = _unit(cameras.position_world[:, None, None] - points)
    normals, sure = _normals(points, depth, valid, footprint, views)
    cosine = np.clip((normals * views).sum(-1), 0, 1)
    fronts = np.where((sure & (cosine >= GRAZING_COSINE))[..., None], normals, views)
    return {
        "positions_world": points[chosen].astype(np.float32),
        "footprints_m": footprint[chosen].astype(np.float32),
        "normals": np.rint(normals[chosen] * 127).astype(np.int8),
        "fronts": np.rint(fronts[chosen] * 127).astype(np.int8),
        "confidence": np.rint(cosine[chosen] * 255).astype(np.uint8),
    }


def _normals(points, depth, valid, footprint, views):
    """Unit normals (f, h, w, 3) towards the camera, and where neighbours on all sides agree.

    Of the two steps along each axis the one that is closer in depth counts; where none is on
    the same surface the normal is the direction of view.
    """
    right, left = _steps(points, depth, valid, axis=2)
    down, up = _steps(points, depth, valid, axis=1)
    across, along = _closer(right, left), _closer(down, up)
    sound = np.maximum(across[1], along[1]) <= EDGE_FOOTPRINTS * footprint
    normals = _unit(np.cross(along[0], across[0]))
    sound &= np.abs(normals).sum(-1) > 0.5
    normals = np.where(sound[..., None], normals, views)
    normals = np.where((normals * views).sum(-1, keepdims=True) < 0, -normals, normals)
    one, other = (_unit(np.cross(y[0], x[0])) for x, y in ((right, down), (left, up)))
    return normals, sound & ((one * other).sum(-1) >= AGREEING_COSINE)


def _steps(points, depth, valid, axis):
    """To the next and from the previous neighbour: the step and its gap in depth (inf: none)."""
    size = depth.shape[axis]
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(0, size - 1), slice(1, size)
    a, b = tuple(first), tuple(second)
    step = np.zeros_like(points), np.zeros_like(points)
    gap = np.full(depth.shape, np.inf), np.full(depth.shape, np.inf)
    step[0][a] = step[1][b] = points[b] - points[a]
    gap[0][a] = gap[1][b] = np.where(valid[a] & valid[b], np.abs(depth[b] - depth[a]), np.inf)
    return (step[0], gap[0]), (step[1], gap[1])


def _closer(one, other):
    nearer = other[1] < one[1]
    return np.where(nearer[..., None], other[0], one[0]), np.minimum(one[1], other[1])


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)

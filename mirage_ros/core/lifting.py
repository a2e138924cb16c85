"""From latent cells with depth to surfels: which cell, how deep, and which way it faces."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numba import njit

from mirage_ros.core.births import tiles_of
from mirage_ros.core.camera import Camera
from mirage_ros.core.surfels import VIEW_SIDE, octahedral, packed

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

    places (with the views' numbers in births.views_of) and normals are as in Surfels. A token is
    sure which way it faces where the neighbours on all sides agree on its normal.
    """
    depth = np.ascontiguousarray(depth_m, np.float32)
    chosen = np.ascontiguousarray(chosen, np.bool_)
    number = int(np.count_nonzero(chosen))
    rows = {"places": np.empty(number, np.int64), "normals": np.empty((number, 2), np.int8)}
    intrinsics = np.ascontiguousarray(cameras.intrinsics)
    poses = np.ascontiguousarray(cameras.world_from_camera)
    _lift(intrinsics, poses, depth, chosen, tiles_of(cameras.size), tuple(rows.values()))
    return rows


@njit(cache=True, nogil=True)
def _lift(intrinsics, poses, depth, chosen, tiles, out):
    places, normals = out
    frames, height, width = depth.shape
    points, row = np.empty((height, width, 3)), 0
    for f in range(frames):
        k, pose, eye = intrinsics[f], poses[f], poses[f, :3, 3]
        for r in range(height):
            for c in range(width):
                z = float(depth[f, r, c]) if _valid(depth[f, r, c]) else 0.0
                x, y = (c - k[0, 2]) / k[0, 0] * z, (r - k[1, 2]) / k[1, 1] * z
                for i in range(3):
                    points[r, c, i] = pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] * z + eye[i]
        focal = 0.5 * (k[0, 0] + k[1, 1])
        for r in range(height):
            for c in range(width):
                if not chosen[f, r, c]:
                    continue
                direction, sure = _direction(points, depth[f], r, c, eye, focal)
                tile = r // VIEW_SIDE * tiles[1] + c // VIEW_SIDE
                view = f * tiles[0] * tiles[1] + tile
                cell = r % VIEW_SIDE, c % VIEW_SIDE
                places[row] = packed(view, cell[0], cell[1], depth[f, r, c], sure)
                normals[row, 0], normals[row, 1] = octahedral(direction)
                row += 1


@njit(cache=True, nogil=True)
def _direction(points, depth, r, c, eye, focal):
    """Which way a cell faces, and whether that is sure."""
    view = _unit(_minus(eye, points[r, c]))
    direction, sure = _normal(points, depth, r, c, depth[r, c] / focal, view)
    return direction, sure and _dot(direction, view) >= GRAZING_COSINE


@njit(cache=True, nogil=True)
def _normal(points, depth, r, c, footprint, view):
    """The unit normal towards the camera, and whether neighbours on all sides agree on it.

    Of the two steps along each axis the one that is closer in depth counts; where none is on
    the same surface the normal is the direction of view.
    """
    right, right_gap = _step(points, depth, r, c, r, c + 1)
    left, left_gap = _step(points, depth, r, c - 1, r, c)
    down, down_gap = _step(points, depth, r, c, r + 1, c)
    up, up_gap = _step(points, depth, r - 1, c, r, c)
    across = left if left_gap < right_gap else right
    along = up if up_gap < down_gap else down
    normal = _unit(_cross(along, across))
    gap = max(min(left_gap, right_gap), min(up_gap, down_gap))
    if gap > EDGE_FOOTPRINTS * footprint or _dot(normal, normal) < 0.25:
        return view, False
    if _dot(normal, view) < 0:
        normal = (-normal[0], -normal[1], -normal[2])
    # The border of the picture is no edge of the surface: go on as on the other side.
    height, width = depth.shape
    right, left = left if c + 1 == width else right, right if c == 0 else left
    down, up = up if r + 1 == height else down, down if r == 0 else up
    agreement = _dot(_unit(_cross(down, right)), _unit(_cross(up, left)))
    return normal, agreement >= AGREEING_COSINE


@njit(cache=True, nogil=True, inline="always")
def _step(points, depth, r0, c0, r1, c1):
    """From one cell to the next: the step and its gap in depth (zeros and inf: none)."""
    inside = r0 >= 0 and c0 >= 0 and r1 < depth.shape[0] and c1 < depth.shape[1]
    if not inside or not _valid(depth[r0, c0]) or not _valid(depth[r1, c1]):
        return (0.0, 0.0, 0.0), np.inf
    return _minus(points[r1, c1], points[r0, c0]), abs(depth[r1, c1] - depth[r0, c0])


@njit(cache=True, nogil=True, inline="always")
def _valid(depth):
    return np.isfinite(depth) and depth > 0


@njit(cache=True, nogil=True, inline="always")
def _minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@njit(cache=True, nogil=True, inline="always")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True, inline="always")
def _cross(a, b):
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


@njit(cache=True, nogil=True, inline="always")
def _unit(vector):
    length = np.sqrt(_dot(vector, vector))
    scale = 1 / length if length > 0 else 1.0
    return vector[0] * scale, vector[1] * scale, vector[2] * scale

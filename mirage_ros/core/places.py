"""Where in its winning token's own cell does a cell's centre lie?

A token is the latent of a small surface, seen from the view that it was born in. A cell's ray
meets the token's plane in a point, and that view saw the point somewhere in the token's cell or
near it. So the map from one picture to the other is that of a plane, exact at every cell's
centre, where an offset and one scale alone would be wrong for all that is seen at a slant.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from numba import njit

from mirage_ros.core.camera import Camera
from mirage_ros.core.surfels import Surfels, column_of, normal, position, row_of, view_of
from mirage_ros.core.zbuffer import Winners

REACH = 0.5
"""Cells of the token by which plane and projected centre may disagree; beyond, normals lie."""


def places_in_tokens(
    surfels: Surfels, cameras: Camera, winners: Winners
) -> Float32[np.ndarray, "f 2 h w"]:
    """(du, dv) of each cell's centre from its token's centre, in cells of the token's birth.

    Zero where nothing won. Where a plane is not to be trusted, it is the projected centre's
    offset over the scale.
    """
    places = np.zeros_like(winners.offset)
    poses = np.ascontiguousarray(cameras.world_from_camera)
    intrinsics = np.ascontiguousarray(cameras.intrinsics)
    _fill(tuple(surfels), poses, intrinsics, tuple(winners), places)
    return places.astype(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(surfels, poses, intrinsics, winners, places):
    index, _, offset, ratio = winners
    frames, height, width = index.shape
    for f in range(frames):
        for r in range(height):
            for c in range(width):
                i = index[f, r, c]
                if i < 0:
                    continue
                du = -offset[f, 0, r, c] / ratio[f, r, c]
                dv = -offset[f, 1, r, c] / ratio[f, r, c]
                column, row = _seen_from_birth(surfels, i, poses[f], intrinsics[f], r, c)
                if abs(column - du) < REACH and abs(row - dv) < REACH:
                    du, dv = column, row
                places[f, 0, r, c], places[f, 1, r, c] = du, dv


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _seen_from_birth(surfels, i, pose, k, r, c):
    """(du, dv) of where cell (r, c) meets token i's plane; infinite where it does not."""
    x, y = (c - k[0, 2]) / k[0, 0], (r - k[1, 2]) / k[1, 1]
    a, b, n = normal(surfels[1][i])
    px, py, pz = position(surfels, i)
    ray = (
        pose[0, 0] * x + pose[0, 1] * y + pose[0, 2],
        pose[1, 0] * x + pose[1, 1] * y + pose[1, 2],
        pose[2, 0] * x + pose[2, 1] * y + pose[2, 2],
    )
    along = a * ray[0] + b * ray[1] + n * ray[2]
    away = a * (px - pose[0, 3]) + b * (py - pose[1, 3]) + n * (pz - pose[2, 3])
    far = away / along
    if not 0 < far < np.inf:
        return np.inf, np.inf
    place = surfels[0][i]
    rays = surfels[2][view_of(place)]
    met = (
        pose[0, 3] + far * ray[0] - rays[3, 0],
        pose[1, 3] + far * ray[1] - rays[3, 1],
        pose[2, 3] + far * ray[2] - rays[3, 2],
    )
    column, row = _triple(met, rays[1], rays[2]), _triple(met, rays[2], rays[0])
    depth = _triple(met, rays[0], rays[1])
    return column / depth - column_of(place), row / depth - row_of(place)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _triple(a, b, c):
    """a . (b x c); divided by one another they solve three equations (Cramer's rule)."""
    bx, by, bz = float(b[0]), float(b[1]), float(b[2])
    cx, cy, cz = float(c[0]), float(c[1]), float(c[2])
    return (
        a[0] * (by * cz - bz * cy) + a[1] * (bz * cx - bx * cz) + a[2] * (bx * cy - by * cx)
    )

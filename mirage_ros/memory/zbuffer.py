"""The exact z-buffer: which token does each latent cell of a camera see?

One meaning, whatever the kernel (and whatever the machine, every run, the same bits):

1. A token projects to (u, v, z) in cells and metres, in float64. It is skipped when z is below
   `near_m`, or when it is seen from its back: its normal points away from the camera (cosine
   below -0.03) and it is sure of it, or the direction that it was first seen from points away
   as well (see surfels.py).
2. It covers the cells whose centres lie in the square around (u, v) that is
   `splat * footprint * focal / z` cells wide, and always the cell that (u, v) falls in.
   So zooming in leaves no holes.
3. In each cell the nearest covering token (smallest z, then lowest index) is the surface.
   Candidates are the covering tokens at most `tolerance` away behind it along z, or, for surfaces
   seen at a slant, at most that far from its tangent plane (and within 8 times along z): a slanted
   floor's near rows do not eat the far ones. The tolerance counts in the surface token's
   footprint or the cell's width there, whichever is larger. What lies behind never wins.
4. Among the candidates the winner is the one nearest to the cell's centre: squared distance
   in cells plus `scale_weight * (ratio - 1)^2`, where ratio >= 1 tells by how much footprint and
   cell width differ. Tokens of one scale are thus ranked by distance alone; a token seen from
   afar or from close up yields to one of the right scale. A candidate of a real picture wins over
   all that were imagined. Ties go to the lower index.

Where in its winning token's own cell does a cell's centre lie?

A token is the latent of a small surface, seen from the view that it was born in. A cell's ray
meets the token's plane in a point, and that view saw the point somewhere in the token's cell or
near it. So the map from one picture to the other is that of a plane, exact at every cell's
centre, where an offset and one scale alone would be wrong for all that is seen at a slant.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.blocks import Blocks, SplatRule
from mirage_ros.memory.surfels import Surfels, column_of, normal, position, row_of, view_of
from mirage_ros.memory.zbuffer_cpu import winners_cpu
from mirage_ros.memory.zbuffer_cuda import winners_torch


class Winners(NamedTuple):
    """Per camera and cell: token index (-1 none), z in metres, offset in cells, scale ratio.

    Where there is no winner z, offset and ratio (footprint over cell width) are 0.
    """

    index: np.ndarray
    depth_m: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray


def zbuffer(
    surfels: Surfels,
    cameras: Camera,
    rule: SplatRule,
    blocks: Blocks | None = None,
    threads: int | None = None,
) -> Winners:
    """The winners in every cell of a batch of f cameras whose size is the latent grid's.

    Returns arrays index int32 (f, h, w), depth float64 (f, h, w), offset float64 (f, 2, h, w),
    ratio float64 (f, h, w). Surfels in numpy are read by CPU threads (as many as there are
    cores, unless given), surfels in torch tensors by torch on their device: the same bits either
    way. `blocks` bound the surfels' rows; without them they are worked out first.
    """
    on_device = torch.is_tensor(surfels.places)
    if blocks is None:
        blocks = Blocks.of(Surfels(*(x.cpu().numpy() for x in surfels)) if on_device else surfels)
    maps, eyes = cameras.camera_from_world, cameras.position_world
    views = tuple(np.ascontiguousarray(x) for x in (maps, eyes, _pinholes(cameras)))
    if on_device:
        return Winners(*winners_torch(surfels, blocks, views, rule.numbers(), cameras.size))
    found = winners_cpu(tuple(surfels), blocks, views, rule.numbers(), cameras.size, threads)
    return Winners(*found)


def _pinholes(cameras: Camera) -> np.ndarray:
    k = cameras.intrinsics
    return np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)


REACH = 0.5
"""Cells of the token by which plane and projected centre may disagree; beyond, normals lie."""


def places_in_tokens(
    surfels: Surfels, cameras: Camera, winners: Winners
) -> Float32[np.ndarray, "f 2 h w"]:
    """(du, dv) of each cell's centre from its token's centre, in cells of the view that the token comes from.

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
                column, row = _seen_from_source(surfels, i, poses[f], intrinsics[f], r, c)
                if abs(column - du) < REACH and abs(row - dv) < REACH:
                    du, dv = column, row
                places[f, 0, r, c], places[f, 1, r, c] = du, dv


NEAR_TOKEN = 1.0
"""Cells of the token within which its plane is taken for the surface; farther off its centre's depth is."""


def depths_on_planes(surfels: Surfels, cameras: Camera, winners: Winners) -> Float32[np.ndarray, "f h w"]:
    """Depth along z at which each cell's ray meets its winning token's plane; NaN where nothing won.

    The depth of the token's centre, which the z-buffer gives, is the same for all cells that it covers.
    """
    depths = np.full(winners.index.shape, np.nan, np.float32)
    poses = np.ascontiguousarray(cameras.world_from_camera)
    intrinsics = np.ascontiguousarray(cameras.intrinsics)
    _fill_depths(tuple(surfels), poses, intrinsics, tuple(winners), depths)
    return depths


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_depths(surfels, poses, intrinsics, winners, depths):
    index, centre_depth = winners[0], winners[1]
    frames, height, width = index.shape
    for f in range(frames):
        for r in range(height):
            for c in range(width):
                i = index[f, r, c]
                if i < 0:
                    continue
                depths[f, r, c] = centre_depth[f, r, c]
                column, row = _seen_from_source(surfels, i, poses[f], intrinsics[f], r, c)
                if abs(column) < NEAR_TOKEN and abs(row) < NEAR_TOKEN:
                    depths[f, r, c] = _meets_plane(surfels, i, poses[f], intrinsics[f], r, c)[0]


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _seen_from_source(surfels, i, pose, k, r, c):
    """(du, dv) of where cell (r, c) meets token i's plane; infinite where it does not."""
    far, ray = _meets_plane(surfels, i, pose, k, r, c)
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
def _meets_plane(surfels, i, pose, k, r, c):
    """Depth along z at which cell (r, c) meets token i's plane, and the cell's ray in the world, z = 1."""
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
    return away / along, ray


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _triple(a, b, c):
    """a . (b x c); divided by one another they solve three equations (Cramer's rule)."""
    bx, by, bz = float(b[0]), float(b[1]), float(b[2])
    cx, cy, cz = float(c[0]), float(c[1]), float(c[2])
    return a[0] * (by * cz - bz * cy) + a[1] * (bz * cx - bx * cz) + a[2] * (bx * cy - by * cx)

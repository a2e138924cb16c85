"""The exact z-buffer: which token does each latent cell of a camera see?

One meaning, whatever the kernel (and whatever the machine, every run, the same bits):

1. A token projects to (u, v, z) in cells and metres, in float64. It is skipped when z is below
   `near_m`, or when it is seen from its back: its normal points away from the camera (cosine
   below -0.1), and so does its front, the direction that it faces for sure (see lifting.py).
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
   afar or from close up yields to one of the right scale. Ties go to the lower index.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8
from numba import njit

from mirage_ros.core.camera import Camera

SLANT_REACH = 8.0
"""How many tolerances a slanted surface may reach along z within one cell."""

BACK_COSINE_SQUARED = 0.01
"""Square of the cosine (-0.1) beyond which a normal points away."""

_THREADS_FROM = 200_000
"""Token projections in one call from which threads pay."""


@dataclass(frozen=True)
class SplatRule:
    """The numbers in the rule of this module's docstring (dimensionless but for `near_m`).

    A splat of 1.25 halves the holes that rolled and slanted views have at 1.1, and widens
    silhouettes by less than a percent of the picture.
    """

    splat: float = 1.25
    tolerance: float = 1.0
    scale_weight: float = 0.25
    near_m: float = 0.02

    def numbers(self) -> tuple[float, float, float, float]:
        return (self.splat, self.tolerance, self.scale_weight, self.near_m)


class Surfels(NamedTuple):
    """What the z-buffer knows of n tokens.

    positions_world in metres, footprints in metres; normals and fronts are unit vectors in the
    world times 127.
    """

    positions_world: Float32[np.ndarray, "n 3"]
    footprints_m: Float32[np.ndarray, "n"]
    normals: Int8[np.ndarray, "n 3"]
    fronts: Int8[np.ndarray, "n 3"]


class Winners(NamedTuple):
    """Per camera and cell: token index (-1 none), z in metres, offset in cells, scale ratio.

    Where there is no winner z, offset and ratio (footprint over cell width) are 0.
    """

    index: np.ndarray
    depth_m: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray


def zbuffer(surfels: Surfels, cameras: Camera, rule: SplatRule) -> Winners:
    """The winners in every cell of a batch of f cameras whose size is the latent grid's.

    Returns arrays index int32 (f, h, w), depth float64 (f, h, w), offset float64 (f, 2, h, w),
    ratio float64 (f, h, w). Cameras run in threads when the work is worth it.
    """
    count, (height, width) = len(cameras), cameras.size
    winners = Winners(
        np.full((count, height, width), -1, np.int32),
        np.zeros((count, height, width)),
        np.zeros((count, 2, height, width)),
        np.zeros((count, height, width)),
    )
    maps, rays = np.ascontiguousarray(cameras.camera_from_world), _pinholes(cameras)
    positions = np.ascontiguousarray(cameras.position_world)

    def one(i: int) -> None:
        out = (winners.index[i], winners.depth_m[i], winners.offset[i], winners.ratio[i])
        _zbuffer_one(surfels, maps[i], positions[i], rays[i], rule.numbers(), *out)

    if count * len(surfels.footprints_m) >= _THREADS_FROM and count > 1:
        with ThreadPoolExecutor() as pool:
            list(pool.map(one, range(count)))
    else:
        for i in range(count):
            one(i)
    return winners


def _pinholes(cameras: Camera) -> Float[np.ndarray, "f 4"]:
    k = cameras.intrinsics
    return np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)


@njit(cache=True, nogil=True, inline="always")
def _from_back(position, normal, front, eye):
    """Is the token seen from its back by a camera at `eye`?"""
    dx, dy, dz = eye[0] - position[0], eye[1] - position[1], eye[2] - position[2]
    facing = normal[0] * dx + normal[1] * dy + normal[2] * dz
    if facing >= 0:
        return False
    length = normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]
    length = length * (dx * dx + dy * dy + dz * dz)
    if facing * facing <= BACK_COSINE_SQUARED * length:
        return False
    return front[0] * dx + front[1] * dy + front[2] * dz < 0


@njit(cache=True, nogil=True, inline="always")
def _project(position, m, pinhole):
    """(u, v, z) of a token; u and v mean nothing where z <= 0."""
    x, y, z = float(position[0]), float(position[1]), float(position[2])
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    if depth <= 0:
        return 0.0, 0.0, depth
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth * pinhole[0] + pinhole[2]
    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth * pinhole[1] + pinhole[3]
    return u, v, depth


@njit(cache=True, nogil=True, inline="always")
def _span(centre, half, size):
    """First and last cell (clipped to the grid; empty when last < first) that a splat covers."""
    if centre + half < -1 or centre - half > size:
        return 0, -1
    home = math.floor(centre + 0.5)
    first = max(min(math.ceil(centre - half), home), 0)
    last = min(max(math.floor(centre + half), home), size - 1)
    return int(first), int(last)


@njit(cache=True, nogil=True)
def _nearest(surfels, m, eye, pinhole, rule, surface, surface_z):
    """Pass 1: the nearest token per cell; returns the rows that cover any cell."""
    height, width = surface.shape
    splat, near = rule[0], rule[3]
    positions, footprints = surfels.positions_world, surfels.footprints_m
    seen = np.empty(footprints.shape[0], np.int32)
    count = 0
    for i in range(footprints.shape[0]):
        u, v, z = _project(positions[i], m, pinhole)
        if z < near:
            continue
        half = 0.5 * splat * footprints[i] / z
        c0, c1 = _span(u, half * pinhole[0], width)
        r0, r1 = _span(v, half * pinhole[1], height)
        if c1 < c0 or r1 < r0:
            continue
        if _from_back(positions[i], surfels.normals[i], surfels.fronts[i], eye):
            continue
        seen[count] = i
        count += 1
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                if surface[r, c] < 0 or z < surface_z[r, c]:
                    surface[r, c] = i
                    surface_z[r, c] = z
    return seen[:count]


@njit(cache=True, nogil=True, inline="always")
def _on_surface(surfels, i, z, first, first_z, focal, tolerance):
    """Does token i lie on the surface whose nearest token is `first`?"""
    reach = tolerance * max(float(surfels.footprints_m[first]), first_z / focal)
    gap = z - first_z
    if gap <= reach:
        return True
    if gap > SLANT_REACH * reach:
        return False
    p, q, n = surfels.positions_world[i], surfels.positions_world[first], surfels.normals[first]
    away = n[0] * (float(p[0]) - q[0]) + n[1] * (float(p[1]) - q[1]) + n[2] * (float(p[2]) - q[2])
    return abs(away) <= 127.0 * reach


@njit(cache=True, nogil=True)
def _zbuffer_one(surfels, m, eye, pinhole, rule, index, depth, offset, ratios):
    """Pass 2 on top of pass 1: the best centred candidate per cell, written to the outputs."""
    height, width = index.shape
    splat, tolerance, weight, near = rule
    surface = np.full((height, width), -1, np.int32)
    surface_z = np.zeros((height, width))
    cost = np.zeros((height, width))
    seen = _nearest(surfels, m, eye, pinhole, rule, surface, surface_z)
    focal = 0.5 * (pinhole[0] + pinhole[1])
    for i in seen:
        u, v, z = _project(surfels.positions_world[i], m, pinhole)
        half = 0.5 * splat * surfels.footprints_m[i] / z
        c0, c1 = _span(u, half * pinhole[0], width)
        r0, r1 = _span(v, half * pinhole[1], height)
        ratio = surfels.footprints_m[i] * focal / z
        misfit = (ratio if ratio >= 1 else 1 / ratio) - 1
        penalty = weight * (misfit * misfit)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                badness = (u - c) * (u - c) + (v - r) * (v - r) + penalty
                if index[r, c] >= 0 and badness >= cost[r, c]:
                    continue
                first, first_z = surface[r, c], surface_z[r, c]
                if _on_surface(surfels, i, z, first, first_z, focal, tolerance):
                    cost[r, c] = badness
                    index[r, c] = i
                    depth[r, c] = z
                    offset[0, r, c] = u - c
                    offset[1, r, c] = v - r
                    ratios[r, c] = ratio

"""The compiled loops of the point cloud: merge in voxels, draw with an exact z-buffer."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mirage_ros.core.table import (
    EMPTY,
    following,
    is_full,
    mixed,
    row_in,
    slot_of,
    tagged,
    unlike,
)

RUN = 4096
"""Points are skipped in runs of so many that share one bounding box."""


@njit(cache=True, nogil=True, inline="always")
def _voxel(point, edge):
    x, y, z = math.floor(point[0] / edge), math.floor(point[1] / edge), math.floor(point[2] / edge)
    return np.int64(x), np.int64(y), np.int64(z)


@njit(cache=True, nogil=True, inline="always")
def _find(table, xyz, point, edge):
    """The hash of a point's voxel, and the slot that holds it or the empty one where it belongs."""
    x, y, z = _voxel(point, edge)
    hashed = mixed((x << 32) ^ (y & 0xFFFFFFFF), z)
    slot = slot_of(hashed, table)
    while table[slot] != EMPTY:
        if not unlike(table[slot], hashed, table):
            a, b, c = _voxel(xyz[row_in(table[slot], table)], edge)
            if a == x and b == y and c == z:
                break
        slot = following(slot, table)
    return hashed, slot


@njit(cache=True, nogil=True)
def fill_table(table, xyz, edge):
    """Enters every point into an empty table."""
    for row in range(len(xyz)):
        hashed, slot = _find(table, xyz, xyz[row], edge)
        table[slot] = tagged(hashed, row, table)


@njit(cache=True, nogil=True)
def add_points(old, count, table, new, start, edge, bounds):
    """Puts new points from `start` on in order into arrays with room for all of them, until the
    table is full; returns the new count and how far it got.

    With an edge above 0 points of one voxel merge: the finer footprint wins, else the newer.
    Footprints come as the bits of float16, which order like the positive numbers they are.
    """
    xyz, rgb, footprints, frames = old
    new_xyz, new_rgb, new_footprints, new_frames = new
    for i in range(start, len(new_frames)):
        row = count
        if edge > 0:
            hashed, slot = _find(table, xyz, new_xyz[i], edge)
            if table[slot] == EMPTY:
                if is_full(table, count):
                    return count, i
                table[slot] = tagged(hashed, row, table)
            else:
                row = row_in(table[slot], table)
                if footprints[row] < new_footprints[i]:
                    continue
        if row == count:
            count += 1
        xyz[row], rgb[row] = new_xyz[i], new_rgb[i]
        footprints[row], frames[row] = new_footprints[i], new_frames[i]
        box = bounds[row // RUN]
        for axis in range(3):
            box[0, axis] = min(box[0, axis], new_xyz[i, axis])
            box[1, axis] = max(box[1, axis], new_xyz[i, axis])
    return count, len(new_frames)


@njit(cache=True, nogil=True)
def _outside(box, m, pinhole, height, width, near):
    """Do all corners of the box lie beyond one side of the view? (Half a metre is kept around,
    because splats are wider than their centres.)"""
    beyond = np.zeros(5, np.int64)
    for corner in range(8):
        x = box[corner & 1, 0] + (0.5 if corner & 1 else -0.5)
        y = box[(corner >> 1) & 1, 1] + (0.5 if corner & 2 else -0.5)
        z = box[(corner >> 2) & 1, 2] + (0.5 if corner & 4 else -0.5)
        depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) * pinhole[0]
        v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) * pinhole[1]
        beyond[0] += depth < near
        beyond[1] += u < (-0.5 - pinhole[2]) * depth
        beyond[2] += u > (width - 0.5 - pinhole[2]) * depth
        beyond[3] += v < (-0.5 - pinhole[3]) * depth
        beyond[4] += v > (height - 0.5 - pinhole[3]) * depth
    return beyond.max() == 8


@njit(cache=True, nogil=True, inline="always")
def _span(centre, half, size):
    """First and last pixel that a splat covers: those with their centres in it, and its home."""
    if centre + half < -1 or centre - half > size:
        return 0, -1
    home = math.floor(centre + 0.5)
    first = max(min(math.ceil(centre - half), home), 0)
    last = min(max(math.floor(centre + half), home), size - 1)
    return int(first), int(last)


@njit(cache=True, nogil=True, inline="always")
def _project(point, m, pinhole):
    x, y, z = float(point[0]), float(point[1]), float(point[2])
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    if depth <= 0:
        return 0.0, 0.0, depth
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth * pinhole[0] + pinhole[2]
    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth * pinhole[1] + pinhole[3]
    return u, v, depth


@njit(cache=True, nogil=True)
def _nearest(points, m, pinhole, rule, surface_z, surface_footprint):
    """The nearest depth in every pixel, and what can win there: rows and (u, v, z, half)."""
    xyz, footprints, bounds = points
    height, width = surface_z.shape
    splat, _, near = rule
    rows, places, count = np.empty(len(xyz), np.int32), np.empty((len(xyz), 4), np.float32), 0
    for run in range((len(xyz) + RUN - 1) // RUN):
        if _outside(bounds[run], m, pinhole, height, width, near):
            continue
        for i in range(run * RUN, min((run + 1) * RUN, len(xyz))):
            u, v, z = _project(xyz[i], m, pinhole)
            if z < near:
                continue
            half = 0.5 * splat * footprints[i] / z
            c0, c1 = _span(u, half * pinhole[0], width)
            r0, r1 = _span(v, half * pinhole[1], height)
            if c1 < c0 or r1 < r0:
                continue
            rows[count] = i
            places[count, 0], places[count, 1] = u, v
            places[count, 2], places[count, 3] = z, half
            count += 1
            for r in range(r0, r1 + 1):
                for c in range(c0, c1 + 1):
                    if z < surface_z[r, c]:
                        surface_z[r, c] = z
                        surface_footprint[r, c] = footprints[i]
    return rows[:count], places[:count]


@njit(cache=True, nogil=True)
def draw_points(points, m, pinhole, rule, index, depth, log_scale):
    """One camera's winners, written to (h, w) outputs that hold -1, NaN and 0."""
    height, width = index.shape
    surface_z = np.full((height, width), np.inf, np.float32)
    surface_footprint = np.zeros((height, width), np.float32)
    cost = np.full((height, width), np.inf, np.float32)
    rows, places = _nearest(points, m, pinhole, rule, surface_z, surface_footprint)
    focal = 0.5 * (pinhole[0] + pinhole[1])
    for n in range(len(rows)):
        u, v, z, half = places[n]
        c0, c1 = _span(u, half * pinhole[0], width)
        r0, r1 = _span(v, half * pinhole[1], height)
        ratio = points[1][rows[n]] * focal / z
        misfit = (ratio if ratio >= 1 else 1 / ratio) - 1
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                reach = rule[1] * max(surface_footprint[r, c], surface_z[r, c] / focal)
                if z - surface_z[r, c] > reach:
                    continue
                badness = (u - c) * (u - c) + (v - r) * (v - r) + 0.25 * misfit * misfit
                if badness < cost[r, c]:
                    cost[r, c] = badness
                    index[r, c], depth[r, c] = rows[n], z
                    log_scale[r, c] = math.log(ratio)

"""The z-buffer of zbuffer.py on CPU threads.

Blocks in view are walked from front to back, twice. Pass 1 finds the nearest token per cell,
pass 2 the best centred one of its surface. A block is passed over when every cell that it could
reach already shows something nearer (pass 1) or ends before it (pass 2). Threads take every
t-th block into buffers of their own, which are merged by the total orders (z, index) and
(badness, index): neither their number nor their pace can change a bit of the result.

The rows of a block are projected together in loops without branches, which compile to vector
instructions; the float64 arithmetic is the same as for one row alone.

What one camera sees of tokens: where they project to, which cells they cover, whether from
their back, and how far a surface reaches. Loops and tests of zbuffer_cpu.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numba import njit

from mirage_ros.memory.blocks import (
    BACK_COSINE_SQUARED,
    BLOCK_ROWS,
    IMAGINED,
    ROUNDING,
    SLANT_REACH,
    blocks_in_view,
    hidden,
)
from mirage_ros.memory.surfels import (
    footprint,
    is_real,
    is_sure,
    normal,
    position,
    position_block,
    view_of,
)


@njit(cache=True, nogil=True, error_model="numpy")
def room():
    """What the rows of a block are projected into: position, footprint, u, v, z; their cells."""
    f, i = np.empty((7, BLOCK_ROWS)), np.empty((4, BLOCK_ROWS), np.int32)
    return (f[0], f[1], f[2], f[3], f[4], f[5], f[6]), (i[0], i[1], i[2], i[3])


@njit(cache=True, nogil=True, error_model="numpy")
def project_block(surfels, start, count, m, pinhole, rule, size, into):
    """Fills what `room` made for consecutive rows; a row that shows nowhere has c1 < c0."""
    (x, y, z, width, u, v, depth), (c0, c1, r0, r1) = into
    position_block(surfels, start, count, x, y, z, width)
    near = rule[3]
    m00, m01, m02, m03 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    m10, m11, m12, m13 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    m20, m21, m22, m23 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    fx, fy, cx, cy = pinhole[0], pinhole[1], pinhole[2], pinhole[3]
    for j in range(count):
        px, py, pz = x[j], y[j], z[j]
        d = m20 * px + m21 * py + m22 * pz + m23
        safe = d if d >= near else 1.0
        u[j] = (m00 * px + m01 * py + m02 * pz + m03) / safe * fx + cx
        v[j] = (m10 * px + m11 * py + m12 * pz + m13) / safe * fy + cy
        depth[j] = d
    _spans(u, depth, width, count, rule, fx, float(size[1]), c0, c1)
    _spans(v, depth, width, count, rule, fy, float(size[0]), r0, r1)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _spans(centre, z, width, count, rule, focal, size, first, last):
    """First and last cell along one axis that each row of a block covers."""
    splat, near = rule[0], rule[3]
    for j in range(count):
        half = 0.5 * splat * width[j] / (z[j] if z[j] >= near else 1.0) * focal
        first[j] = np.int32(_first(centre[j], half, size))
        last[j] = np.int32(_last(centre[j], half, size) if z[j] >= near else -1.0)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _first(centre, half, size):
    """First cell that a splat covers, as a float, at most `size`; 0 for NaN."""
    # What comes first in min and max stays when the other is NaN.
    return min(max(0.0, min(np.ceil(centre - half), np.floor(centre + 0.5))), size)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _last(centre, half, size):
    """Last cell that a splat covers, as a float, at least -1; before the first, or NaN: none."""
    return min(max(-1.0, max(np.floor(centre + half), np.floor(centre + 0.5))), size - 1)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def project(surfels, i, m, pinhole, near):
    """(u, v, z) of a token; u and v mean nothing where z < near."""
    x, y, z = position(surfels, i)
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    safe = depth if depth >= near else 1.0
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / safe * pinhole[0] + pinhole[2]
    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / safe * pinhole[1] + pinhole[3]
    return u, v, depth


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def from_back(surfels, i, x, y, z, eye):
    """Is token i, which lies at (x, y, z), seen from its back by a camera at `eye`?"""
    a, b, c = normal(surfels[1][i])
    dx, dy, dz = eye[0] - x, eye[1] - y, eye[2] - z
    facing = a * dx + b * dy + c * dz
    if facing >= 0:
        return False
    length = (a * a + b * b + c * c) * (dx * dx + dy * dy + dz * dz)
    if facing * facing <= BACK_COSINE_SQUARED * length:
        return False
    place = surfels[0][i]
    if is_sure(place):
        return True
    source = surfels[2][view_of(place), 3]
    return (source[0] - x) * dx + (source[1] - y) * dy + (source[2] - z) * dz < 0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def penalties(surfels, start, width, count, z, focal, weight, penalty):
    """How ill the scale of each row of a block fits its cells, and whether it was imagined."""
    for j in range(count):
        ratio = width[j] * focal / (z[j] if z[j] > 0 else 1.0)
        misfit = (ratio if ratio >= 1 else 1 / ratio) - 1
        imagined = 0.0 if is_real(surfels, start + j) else IMAGINED
        penalty[j] = weight * (misfit * misfit) + imagined


@njit(cache=True, nogil=True, error_model="numpy")
def surfaces(surfels, view, nearest, nearest_z, limit, planes):
    """What belongs to the surface of each cell's nearest token: fills in the z behind which
    nothing does, and the token's position, its normal, how far the surface reaches along z,
    and at a slant from its plane (squared, times the normal's square)."""
    pinhole, rule = view[5], view[6]
    for r in range(nearest.shape[0]):
        for c in range(nearest.shape[1]):
            i, z, plane = nearest[r, c], nearest_z[r, c], planes[r, c]
            limit[r, c] = -1.0
            if i < 0:
                continue
            plane[0], plane[1], plane[2] = position(surfels, i)
            plane[3], plane[4], plane[5] = normal(surfels[1][i])
            length = plane[3] * plane[3] + plane[4] * plane[4] + plane[5] * plane[5]
            focal = 0.5 * (pinhole[0] + pinhole[1])
            reach = rule[1] * max(footprint(surfels, i), z / focal)
            plane[6], plane[7] = reach, reach * reach * length
            limit[r, c] = (z + SLANT_REACH * reach) * (1 + ROUNDING)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def on_surface(plane, x, y, z, gap):
    """Does a token at (x, y, z), so far behind a cell's nearest along z, lie on its surface?"""
    if gap <= plane[6]:
        return True
    if gap > SLANT_REACH * plane[6]:
        return False
    away = plane[3] * (x - plane[0]) + plane[4] * (y - plane[1]) + plane[5] * (z - plane[2])
    return away * away <= plane[7]


_THREADS_FROM = 60_000
"""Tokens in view of all cameras together from which threads pay."""


def winners_cpu(surfels, blocks, cameras, rule, size, threads=None):
    """Index int32 (f, h, w), depth (f, h, w), offset (f, 2, h, w) and ratio (f, h, w) float64.

    `surfels` and `blocks` are numpy, `cameras` the triple (maps, eyes, pinholes) of f cameras,
    `rule` the numbers of a SplatRule. As many threads as there are cores, unless given.
    """
    count, rows = len(cameras[0]), len(surfels[0])
    views = []
    for m, eye, pinhole in zip(*cameras, strict=True):
        seen = blocks_in_view(blocks.bounds, blocks.groups, rows, m, pinhole, rule, size)
        views.append((*seen, m, eye, pinhole, rule))
    work = BLOCK_ROWS * sum(len(view[0]) for view in views)
    threads = threads or (_cores() if work >= _THREADS_FROM else 1)
    nearest, index = (np.full((threads, count, *size), -1, np.int32) for _ in range(2))
    nearest_z, cost = (np.full((threads, count, *size), np.inf) for _ in range(2))
    limit, planes = np.empty((count, *size)), np.empty((count, *size, 8))

    def first(t: int) -> None:
        for f, view in enumerate(views):
            _pass_one(surfels, view, t, threads, nearest[t, f], nearest_z[t, f])

    def second(t: int) -> None:
        for f, view in enumerate(views):
            surface = (nearest_z[0, f], limit[f], planes[f])
            _pass_two(surfels, view, t, threads, surface, index[t, f], cost[t, f])

    with _threads(threads) as run:
        run(first)
        for f, view in enumerate(views):
            _merge(nearest[:, f], nearest_z[:, f])
            surfaces(surfels, view, nearest[0, f], nearest_z[0, f], limit[f], planes[f])
        run(second)
    depth, offset, ratio = (np.zeros((count, *s, *size)) for s in ((), (2,), ()))
    for f, view in enumerate(views):
        _merge(index[:, f], cost[:, f])
        _details(surfels, view, index[0, f], depth[f], offset[f], ratio[f])
    return index[0], depth, offset, ratio


@contextmanager
def _threads(count: int) -> Iterator[Callable[[Callable[[int], None]], None]]:
    """A function that runs work(0), ..., work(count - 1) at once, the first right here."""
    if count == 1:
        yield lambda work: work(0)
        return
    with ThreadPoolExecutor(count - 1) as pool:

        def run(work: Callable[[int], None]) -> None:
            others = [pool.submit(work, t) for t in range(1, count)]
            work(0)
            for other in others:
                other.result()

        yield run


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), 16)


@njit(cache=True, nogil=True, error_model="numpy")
def _pass_one(surfels, view, share, shares, nearest, nearest_z):
    """The nearest token per cell among every `shares`-th block in view."""
    order, least, rects, m, eye, pinhole, rule = view
    into = room()
    (x, y, z, _, _, _, depth), (c0, c1, r0, r1) = into
    for k in range(share, len(order), shares):
        if hidden(least[k], rects[k], nearest_z):
            continue
        start = order[k] * BLOCK_ROWS
        count = min(BLOCK_ROWS, len(surfels[0]) - start)
        project_block(surfels, start, count, m, pinhole, rule, nearest.shape, into)
        for j in range(count):
            zj, i, facing = depth[j], np.int32(start + j), False
            for r in range(r0[j], r1[j] + 1):
                for c in range(c0[j], c1[j] + 1):
                    best = nearest_z[r, c]
                    if zj > best or (zj == best and i > nearest[r, c]):
                        continue
                    if not facing and from_back(surfels, i, x[j], y[j], z[j], eye):
                        break
                    facing = True
                    nearest[r, c] = i
                    nearest_z[r, c] = zj


@njit(cache=True, nogil=True, error_model="numpy")
def _merge(index, value):
    """Into index[0], value[0]: per cell the least value of all threads, then the lower index."""
    threads, height, width = index.shape
    for t in range(1, threads):
        for r in range(height):
            for c in range(width):
                i, x = index[t, r, c], value[t, r, c]
                best = value[0, r, c]
                if i >= 0 and (x < best or (x == best and i < index[0, r, c])):
                    index[0, r, c] = i
                    value[0, r, c] = x


@njit(cache=True, nogil=True, error_model="numpy")
def _pass_two(surfels, view, share, shares, surface, index, cost):
    """The best centred token of each cell's surface among every `shares`-th block in view."""
    order, least, rects, m, eye, pinhole, rule = view
    nearest_z, limit, planes = surface
    focal, penalty, into = 0.5 * (pinhole[0] + pinhole[1]), np.empty(BLOCK_ROWS), room()
    (x, y, z, width, u, v, depth), (c0, c1, r0, r1) = into
    for k in range(share, len(order), shares):
        if hidden(least[k], rects[k], limit):
            continue
        start = order[k] * BLOCK_ROWS
        count = min(BLOCK_ROWS, len(surfels[0]) - start)
        project_block(surfels, start, count, m, pinhole, rule, index.shape, into)
        penalties(surfels, start, width, count, depth, focal, rule[2], penalty)
        for j in range(count):
            uj, vj, zj, i, facing = u[j], v[j], depth[j], np.int32(start + j), False
            for r in range(r0[j], r1[j] + 1):
                for c in range(c0[j], c1[j] + 1):
                    if zj > limit[r, c]:
                        continue
                    badness = (uj - c) * (uj - c) + (vj - r) * (vj - r) + penalty[j]
                    best = cost[r, c]
                    if badness > best or (badness == best and i > index[r, c]):
                        continue
                    if not on_surface(planes[r, c], x[j], y[j], z[j], zj - nearest_z[r, c]):
                        continue
                    if not facing and from_back(surfels, i, x[j], y[j], z[j], eye):
                        break
                    facing = True
                    index[r, c] = i
                    cost[r, c] = badness


@njit(cache=True, nogil=True, error_model="numpy")
def _details(surfels, view, index, depth, offset, ratio):
    """Depth, offset and scale ratio of the winners."""
    _, _, _, m, _, pinhole, rule = view
    focal = 0.5 * (pinhole[0] + pinhole[1])
    for r in range(index.shape[0]):
        for c in range(index.shape[1]):
            i = index[r, c]
            if i >= 0:
                u, v, z = project(surfels, i, m, pinhole, rule[3])
                depth[r, c], ratio[r, c] = z, footprint(surfels, i) * focal / z
                offset[0, r, c], offset[1, r, c] = u - c, v - r

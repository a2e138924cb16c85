"""The z-buffer of zbuffer.py on CPU threads.

Blocks in view are walked from front to back, twice. Pass 1 finds the nearest token per cell,
pass 2 the best centred one of its surface. A block is passed over when every cell that it could
reach already shows something nearer (pass 1) or ends before it (pass 2). Threads take every
t-th block into buffers of their own, which are merged by the total orders (z, index) and
(badness, index): neither their number nor their pace can change a bit of the result.

The rows of a block are projected together in loops without branches, which compile to vector
instructions; the float64 arithmetic is the same as for one row alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numba import njit

from mirage_ros.core.blocks import BLOCK_ROWS
from mirage_ros.core.culling import blocks_in_view, hidden
from mirage_ros.core.splats import (
    from_back,
    on_surface,
    penalties,
    project,
    project_block,
    room,
    surfaces,
)
from mirage_ros.core.surfels import footprint

_THREADS_FROM = 60_000
"""Tokens in view of all cameras together from which threads pay."""


def winners_cpu(surfels, blocks, cameras, rule, size, threads=None):
    """Index int32 (f, h, w), depth (f, h, w), offset (f, 2, h, w) and ratio (f, h, w) float64.

    `surfels` and `blocks` are numpy, `cameras` the triple (maps, eyes, pinholes) of f cameras,
    `rule` the numbers of a SplatRule. As many threads as there are cores, unless told.
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

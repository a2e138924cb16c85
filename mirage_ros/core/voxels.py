"""Which voxel a token falls into, and where the token in a voxel is found.

A voxel is named by its level (edge = EDGE_PER_FOOTPRINT * 2^level metres, level =
floor(log2(footprint))) and its three cell numbers, packed into two int64. A row's name follows
from its position and footprint, so no names are stored (table.py holds 4 bytes of each).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mirage_ros.core.blocks import BLOCK_ROWS, widen
from mirage_ros.core.surfels import Surfels, footprint, is_real, position, view_of
from mirage_ros.core.table import EMPTY, following, is_full, mixed, row_in, slot_of, tagged, unlike

EDGE_PER_FOOTPRINT = 0.5
"""Voxel edge over 2^level. Neighbouring cells of one frame lie at least about a footprint
apart, a voxel's diagonal is at most 0.87 footprints: a frame never loses a token to itself."""

_LAST_CELL = 2.0**31 - 1


def by_place(surfels: Surfels, first: int) -> np.ndarray:
    """Row numbers along a space-filling curve (Morton's), rows of one voxel in their order.

    Of rows that will share a block, if they are stored from row `first` on, those of one view
    follow each other. Takes 16 bytes a row while it works.
    """
    order = np.argsort(_curve(tuple(surfels)), kind="stable")
    _by_view(order, surfels.places, first % BLOCK_ROWS)
    return order


@njit(cache=True, nogil=True, error_model="numpy")
def _by_view(order, places, offset):
    """Sorts the rows of each block by view, by insertion (a block is short)."""
    start = 0
    while start < len(order):
        stop = min(start + BLOCK_ROWS - offset, len(order))
        offset = 0
        for k in range(start + 1, stop):
            row, j = order[k], k
            view = view_of(places[row])
            while j > start and view_of(places[order[j - 1]]) > view:
                order[j] = order[j - 1]
                j -= 1
            order[j] = row
        start = stop


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _edge(width):
    """Level and edge of the voxel of a footprint."""
    level = math.frexp(width)[1] - 1
    return level, math.ldexp(EDGE_PER_FOOTPRINT, level)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cell(coordinate, edge):
    # Bounded while it is a float; NaN, which no bound would stop, counts as the first.
    return np.int64(min(max(-_LAST_CELL - 1, np.floor(coordinate / edge)), _LAST_CELL))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _name(surfels, row):
    level, edge = _edge(footprint(surfels, row))
    px, py, pz = position(surfels, row)
    low = np.int64(0xFFFFFFFF)
    x, y, z = _cell(px, edge), _cell(py, edge), _cell(pz, edge)
    return (x << 32) | (y & low), (z << 32) | (np.int64(level) & low)


@njit(cache=True, nogil=True, error_model="numpy")
def fill_table(table, surfels):
    """Enters rows 0..n-1, whose voxels all differ, into an empty table."""
    for row in range(len(surfels[0])):
        first, second = _name(surfels, row)
        hashed = mixed(first, second)
        slot = slot_of(hashed, table)
        while table[slot] != EMPTY:
            slot = following(slot, table)
        table[slot] = tagged(hashed, row, table)


@njit(cache=True, nogil=True, error_model="numpy")
def place_rows(old, count, table, bounds, new, order, start, rows):
    """Finds a row for the new tokens order[start], ... until the store or its table is full.

    Sets the places of the rows taken, widens their bounds and tells the row of each in `rows`
    (-1: a finer token was there, or a real one). Returns the count of rows, how far it got and how
    many were stored.
    """
    stored = 0
    for k in range(start, len(order)):
        i = order[k]
        first, second = _name(new, i)
        hashed = mixed(first, second)
        slot = slot_of(hashed, table)
        while table[slot] != EMPTY:
            if not unlike(table[slot], hashed, table):
                one, other = _name(old, row_in(table[slot], table))
                if one == first and other == second:
                    break
            slot = following(slot, table)
        if table[slot] == EMPTY:
            if count == len(old[0]) or is_full(table, count):
                return count, k, stored
            row = count
            count += 1
            table[slot] = tagged(hashed, row, table)
        else:
            row = row_in(table[slot], table)
            was, now = is_real(old, row), is_real(new, i)
            if was != now:
                stays = was
            else:
                stays = footprint(old, row) < footprint(new, i)
            if stays:
                rows[k] = -1
                continue
        old[0][row] = new[0][i]
        widen(bounds[0], bounds[1], old, row)
        rows[k] = row
        stored += 1
    return count, len(order), stored


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _spread(x):
    """Ten bits, two zeros between them."""
    x = (x | (x << np.uint32(16))) & np.uint32(0x030000FF)
    x = (x | (x << np.uint32(8))) & np.uint32(0x0300F00F)
    x = (x | (x << np.uint32(4))) & np.uint32(0x030C30C3)
    return (x | (x << np.uint32(2))) & np.uint32(0x09249249)


@njit(cache=True, nogil=True, error_model="numpy")
def _curve(surfels):
    """Morton codes of the corners of the rows' voxels, relative to the box of all."""
    count, low, high = len(surfels[0]), np.full(3, np.inf), np.full(3, -np.inf)
    for i in range(count):
        for axis, value in enumerate(position(surfels, i)):
            low[axis] = min(low[axis], value)
            high[axis] = max(high[axis], value)
    scale = 1023.0 / max((high - low).max(), 1e-9) if count else 1.0
    codes = np.empty(count, np.uint32)
    for i in range(count):
        _, edge = _edge(footprint(surfels, i))
        code = np.uint32(0)
        for axis, value in enumerate(position(surfels, i)):
            corner = np.floor(value / edge) * edge
            step = np.uint32(min(max(0.0, (corner - low[axis]) * scale), 1023.0))
            code |= _spread(step) << np.uint32(axis)
        codes[i] = code
    return codes

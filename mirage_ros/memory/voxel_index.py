"""Which voxel a token falls into, and where the token in a voxel is found.

A voxel is named by its level (edge = EDGE_PER_FOOTPRINT * 2^level metres, level =
floor(log2(footprint))) and its three cell numbers, packed into two int64. A row's name follows
from its position and footprint, so no names are stored (new_table holds 4 bytes of each).

A hash table of row numbers at 4 bytes a slot, filled to seven eighths before it grows.

Open addressing with linear probing. Row numbers leave some of a slot's 32 bits free: those
hold as much of the hash, so that nearly every slot of another key is passed by without a look
at its row. Keys are not kept; who asks finds a row's key in the row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mirage_ros.memory.blocks import BLOCK_ROWS, widen
from mirage_ros.memory.surfels import Surfels, footprint, is_real, position, view_of

EMPTY = np.uint32(0xFFFFFFFF)

BYTES_PER_ROW = 6
"""At most, of a table that new_table has made for the rows it holds (4 * 9 / 7, and rounding)."""


def new_table(rows: int) -> np.ndarray:
    """An empty table that so many rows do not fill: the smallest of a series of lengths, each an
    eighth longer than the one before."""
    length = 16
    while 8 * rows >= 7 * length:
        length += length // 8
    return np.full(length, EMPTY, np.uint32)


@njit(cache=True, nogil=True, inline="always")
def is_full(table, rows):
    """Is a table of so many rows in need of a larger one?"""
    return 8 * rows >= 7 * len(table)


@njit(cache=True, nogil=True, inline="always")
def mixed(first, second):
    """A 64-bit hash of two int64."""
    x = np.uint64(first) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(second) + (x >> np.uint64(29))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(32))


@njit(cache=True, nogil=True, inline="always")
def slot_of(hashed, table):
    """Where probing starts: the upper half of the hash as a share of the table."""
    return np.int64((hashed >> np.uint64(32)) * np.uint64(len(table)) >> np.uint64(32))


@njit(cache=True, nogil=True, inline="always")
def following(slot, table):
    return slot + 1 if slot + 1 < len(table) else 0


@njit(cache=True, nogil=True, inline="always")
def tagged(hashed, row, table):
    """What a slot holds: the row number in as many low bits as the table's length has, and of
    the hash's lower half what else there is room for. Never EMPTY: no row is that high."""
    rows = _row_bits(table)
    return np.uint32(hashed) & ~rows | np.uint32(row)


@njit(cache=True, nogil=True, inline="always")
def unlike(held, hashed, table):
    """Does a slot hold a row of another hash for sure?"""
    return (held ^ np.uint32(hashed)) & ~_row_bits(table) != 0


@njit(cache=True, nogil=True, inline="always")
def row_in(held, table):
    return np.int64(held & _row_bits(table))


@njit(cache=True, nogil=True, inline="always")
def _row_bits(table):
    """The least 2^n - 1 that is not below the table's length."""
    bits = np.uint32(len(table))
    bits |= bits >> np.uint32(1)
    bits |= bits >> np.uint32(2)
    bits |= bits >> np.uint32(4)
    bits |= bits >> np.uint32(8)
    return bits | (bits >> np.uint32(16))


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

"""Which voxel a token falls into, and the hash table that finds the token in it.

A voxel is named by its level (edge = EDGE_PER_FOOTPRINT * 2^level metres, level =
floor(log2(footprint))) and its three cell numbers, packed into two int64. The table is open
addressing with linear probing over row numbers; a row's name follows from its position and
footprint, so no names are stored.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from mirage_ros.core.blocks import widen

EDGE_PER_FOOTPRINT = 0.5
"""Voxel edge over 2^level. Neighbouring cells of one frame lie at least about a footprint
apart, a voxel's diagonal is at most 0.87 footprints: a frame never loses a token to itself."""

_LAST_CELL = 2.0**31 - 1


def table_size(rows: int) -> int:
    """The power of two between 2 and 4 times the rows, at least 16."""
    return max(16, 1 << (2 * rows).bit_length())


def by_place(positions: np.ndarray, footprints: np.ndarray) -> np.ndarray:
    """Row numbers along a space-filling curve (Morton's), rows of one voxel in their order.

    Takes 16 bytes a row while it works.
    """
    return np.argsort(_curve(positions, footprints), kind="stable")


@njit(cache=True, nogil=True, inline="always")
def _edge(footprint):
    """Level and edge of the voxel of a footprint."""
    level = math.frexp(float(footprint))[1] - 1
    return level, math.ldexp(EDGE_PER_FOOTPRINT, level)


@njit(cache=True, nogil=True, inline="always")
def _cell(coordinate, edge):
    return np.int64(min(max(math.floor(coordinate / edge), -_LAST_CELL - 1), _LAST_CELL))


@njit(cache=True, nogil=True, inline="always")
def _name(position, footprint):
    level, edge = _edge(footprint)
    low = np.int64(0xFFFFFFFF)
    x, y = _cell(float(position[0]), edge), _cell(float(position[1]), edge)
    z = _cell(float(position[2]), edge)
    return (x << 32) | (y & low), (z << 32) | (np.int64(level) & low)


@njit(cache=True, nogil=True, inline="always")
def _slot(first, second, mask):
    """Where probing for a name starts (a 64-bit mix of both halves)."""
    mixed = np.uint64(first) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(second) + (mixed >> np.uint64(29))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@njit(cache=True, nogil=True)
def fill_table(table, positions, footprints):
    """Enters rows 0..n-1, whose voxels all differ, into a table of -1."""
    mask = len(table) - 1
    for row in range(len(footprints)):
        first, second = _name(positions[row], footprints[row])
        slot = _slot(first, second, mask)
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = row


@njit(cache=True, nogil=True)
def place_rows(old, count, table, bounds, new, order, start, rows):
    """Finds a row for the new tokens order[start], ... until the store or its table is full.

    Sets positions and footprints of the rows taken, widens their bounds and tells the row of
    each in `rows` (-1: a finer token was there). Returns the count of rows, how far it got and
    how many were stored.
    """
    (positions, footprints), (new_positions, new_footprints) = old, new
    mask, stored = len(table) - 1, 0
    for k in range(start, len(order)):
        i = order[k]
        first, second = _name(new_positions[i], new_footprints[i])
        slot = _slot(first, second, mask)
        row = table[slot]
        while row >= 0:
            one, other = _name(positions[row], footprints[row])
            if one == first and other == second:
                break
            slot = (slot + 1) & mask
            row = table[slot]
        if row < 0:
            if count == len(footprints) or 2 * count >= len(table):
                return count, k, stored
            row = count
            count += 1
            table[slot] = row
        elif footprints[row] < new_footprints[i]:
            rows[k] = -1
            continue
        positions[row], footprints[row] = new_positions[i], new_footprints[i]
        widen(bounds[0], bounds[1], row, positions[row], footprints[row])
        rows[k] = row
        stored += 1
    return count, len(order), stored


@njit(cache=True, nogil=True)
def copy_rows(old, new, order, rows, start, stop):
    """Copies the bytes of new tokens order[k] to their rows[k], for k in start..stop-1."""
    for k in range(start, stop):
        if rows[k] >= 0:
            old[rows[k]] = new[order[k]]


@njit(cache=True, nogil=True)
def compact(rows, keep):
    """Moves the rows to keep to the front, in order."""
    to = 0
    for i in range(len(keep)):
        if keep[i]:
            if to != i:
                rows[to] = rows[i]
            to += 1


@njit(cache=True, nogil=True, inline="always")
def _spread(x):
    """Ten bits, two zeros between them."""
    x = (x | (x << np.uint32(16))) & np.uint32(0x030000FF)
    x = (x | (x << np.uint32(8))) & np.uint32(0x0300F00F)
    x = (x | (x << np.uint32(4))) & np.uint32(0x030C30C3)
    return (x | (x << np.uint32(2))) & np.uint32(0x09249249)


@njit(cache=True, nogil=True)
def _curve(positions, footprints):
    """Morton codes of the corners of the rows' voxels, relative to the box of all."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for i in range(len(footprints)):
        for axis in range(3):
            low[axis] = min(low[axis], positions[i, axis])
            high[axis] = max(high[axis], positions[i, axis])
    scale = 1023.0 / max((high - low).max(), 1e-9) if len(footprints) else 1.0
    codes = np.empty(len(footprints), np.uint32)
    for i in range(len(footprints)):
        _, edge = _edge(footprints[i])
        code = np.uint32(0)
        for axis in range(3):
            corner = math.floor(positions[i, axis] / edge) * edge
            step = np.uint32(min(max((corner - low[axis]) * scale, 0.0), 1023.0))
            code |= _spread(step) << np.uint32(axis)
        codes[i] = code
    return codes

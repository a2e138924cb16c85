"""A hash table of row numbers at 4 bytes a slot, filled to seven eighths before it grows.

Open addressing with linear probing. Row numbers leave some of a slot's 32 bits free: those
hold as much of the hash, so that nearly every slot of another key is passed by without a look
at its row. Keys are not kept; who asks finds a row's key in the row.
"""

from __future__ import annotations

import numpy as np
from numba import njit

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

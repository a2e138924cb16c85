"""Rows of any field as rows of bytes: moved in place, whatever they hold."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as (n, bytes of a row)."""
    width = array.dtype.itemsize * math.prod(array.shape[1:])
    return array.reshape(-1).view(np.uint8).reshape(len(array), width)


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

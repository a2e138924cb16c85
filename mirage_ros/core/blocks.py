"""Coarse blocks of consecutive rows with bounds, so that a read's cost follows what is in view.

Block i holds rows i * BLOCK_ROWS on, group j the blocks j * GROUP_BLOCKS on. Rows enter the
store sorted by place, so consecutive ones lie together. A bound is a box and the largest
footprint in it; it may be too wide (after a row was replaced), never too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from mirage_ros.core.surfels import Surfels, footprint, position

BLOCK_ROWS = 128
GROUP_BLOCKS = 32

BOUND_BYTES_PER_ROW = 1
"""At most: 28 bytes a block, and the groups' 1/32 of that."""


@dataclass
class Blocks:
    """Bounds (x, y, z low; x, y, z high; footprint) of blocks and groups, float32, metres."""

    bounds: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, surfels: Surfels) -> Blocks:
        """Tight bounds of n rows."""
        blocks = cls.empty(len(surfels.places))
        blocks.refit(surfels)
        return blocks

    @classmethod
    def empty(cls, rows: int) -> Blocks:
        """Bounds that hold nothing, with room for so many rows."""
        count = -(-rows // BLOCK_ROWS)
        return cls(_nothing(count), _nothing(-(-count // GROUP_BLOCKS)))

    @property
    def nbytes(self) -> int:
        return self.bounds.nbytes + self.groups.nbytes

    def refit(self, surfels: Surfels) -> None:
        """Makes the bounds tight around n rows, which are all there is."""
        for bounds in (self.bounds, self.groups):
            bounds[:, :3], bounds[:, 3:6], bounds[:, 6] = np.inf, -np.inf, 0
        _widen_all(self.bounds, self.groups, tuple(surfels))

    def grown(self, rows: int) -> Blocks:
        """A copy with room for more rows."""
        more = Blocks.empty(rows)
        more.bounds[: len(self.bounds)] = self.bounds
        more.groups[: len(self.groups)] = self.groups
        return more

    def copy(self) -> Blocks:
        return Blocks(self.bounds.copy(), self.groups.copy())


def _nothing(count: int) -> np.ndarray:
    bounds = np.empty((count, 7), np.float32)
    bounds[:, :3], bounds[:, 3:6], bounds[:, 6] = np.inf, -np.inf, 0
    return bounds


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _widen(bound, x, y, z, width):
    for axis, value in enumerate((x, y, z)):
        bound[axis] = min(bound[axis], value)
        bound[3 + axis] = max(bound[3 + axis], value)
    bound[6] = max(bound[6], width)


@njit(cache=True, nogil=True, error_model="numpy")
def widen(bounds, groups, surfels, row):
    """Takes one row's new place into the bounds of its block and group."""
    (x, y, z), width = position(surfels, row), footprint(surfels, row)
    block = row // BLOCK_ROWS
    _widen(bounds[block], x, y, z, width)
    _widen(groups[block // GROUP_BLOCKS], x, y, z, width)


@njit(cache=True, nogil=True, error_model="numpy")
def _widen_all(bounds, groups, surfels):
    """Takes rows 0..n-1 into the bounds."""
    rows = len(surfels[0])
    for block in range((rows + BLOCK_ROWS - 1) // BLOCK_ROWS):
        bound = bounds[block]
        for row in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)):
            (x, y, z), width = position(surfels, row), footprint(surfels, row)
            _widen(bound, x, y, z, width)
        group = groups[block // GROUP_BLOCKS]
        _widen(group, bound[0], bound[1], bound[2], bound[6])
        _widen(group, bound[3], bound[4], bound[5], bound[6])

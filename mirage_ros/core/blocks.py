"""Coarse blocks of consecutive rows with bounds, so that a read's cost follows what is in view.

Block i holds rows i * BLOCK_ROWS on, group j the blocks j * GROUP_BLOCKS on. Rows enter the
store sorted by place, so consecutive ones lie together. A bound is a box and the largest
footprint in it; it may be too wide (after a row was replaced), never too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

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
    def of(cls, positions_world: np.ndarray, footprints_m: np.ndarray) -> Blocks:
        """Tight bounds of n rows."""
        blocks = cls.empty(len(footprints_m))
        blocks.refit(positions_world, footprints_m)
        return blocks

    @classmethod
    def empty(cls, rows: int) -> Blocks:
        """Bounds that hold nothing, with room for so many rows."""
        count = -(-rows // BLOCK_ROWS)
        return cls(_nothing(count), _nothing(-(-count // GROUP_BLOCKS)))

    @property
    def nbytes(self) -> int:
        return self.bounds.nbytes + self.groups.nbytes

    def refit(self, positions_world: np.ndarray, footprints_m: np.ndarray) -> None:
        """Makes the bounds tight around n rows, which are all there is."""
        for bounds in (self.bounds, self.groups):
            bounds[:, :3], bounds[:, 3:6], bounds[:, 6] = np.inf, -np.inf, 0
        widen_all(self.bounds, self.groups, positions_world, footprints_m)

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


@njit(cache=True, nogil=True, inline="always")
def _widen(bound, position, footprint):
    for axis in range(3):
        bound[axis] = min(bound[axis], position[axis])
        bound[3 + axis] = max(bound[3 + axis], position[axis])
    bound[6] = max(bound[6], footprint)


@njit(cache=True, nogil=True)
def widen(bounds, groups, row, position, footprint):
    """Takes one row's new place into the bounds of its block and group."""
    block = row // BLOCK_ROWS
    _widen(bounds[block], position, footprint)
    _widen(groups[block // GROUP_BLOCKS], position, footprint)


@njit(cache=True, nogil=True)
def widen_all(bounds, groups, positions, footprints):
    """Takes rows 0..n-1 into the bounds."""
    for block in range((len(footprints) + BLOCK_ROWS - 1) // BLOCK_ROWS):
        bound = bounds[block]
        for row in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(footprints))):
            _widen(bound, positions[row], footprints[row])
        group = groups[block // GROUP_BLOCKS]
        _widen(group, bound[:3], bound[6])
        _widen(group, bound[3:6], bound[6])

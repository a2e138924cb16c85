"""Coarse blocks of consecutive rows with bounds, so that a read's cost follows what is in view.

Block i holds rows i * BLOCK_ROWS on, group j the blocks j * GROUP_BLOCKS on. Rows enter the
store sorted by place, so consecutive ones lie together. A bound is a box and the largest
footprint in it; it may be too wide (after a row was replaced), never too narrow.

From the bounds follow the blocks that a camera may see at all, from near to far, and the cells that
they can reach. Every bound has slack for the rounding of float64, so that nothing that could win is
passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from mirage_ros.memory.surfels import Surfels, footprint, position

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


@dataclass(frozen=True)
class SplatRule:
    """The numbers in the z-buffer's rule (zbuffer.py), dimensionless but for `near_m`.

    A splat of 1.25 halves the holes that rolled and slanted views have at 1.1, and widens
    silhouettes by less than a percent of the picture.
    """

    splat: float = 1.25
    tolerance: float = 1.0
    scale_weight: float = 0.25
    near_m: float = 0.02

    def numbers(self) -> tuple[float, float, float, float]:
        return (self.splat, self.tolerance, self.scale_weight, self.near_m)


SLANT_REACH = 8.0
"""How many tolerances a slanted surface may reach along z within one cell."""

IMAGINED = 1024.0
"""By how many cells (squared) worse than a real token an imagined one is: more than any other rule
tells two candidates of one cell apart, and little enough to keep the bits that tell those apart."""

BACK_COSINE_SQUARED = 0.0009
"""Square of the cosine (-0.03) beyond which a normal points away: normals are kept to 0.02."""

ROUNDING = 1e-11
"""Relative slack of bounds against float64 rounding."""

_BINS = 512
"""Of depth, 32 to a factor of two: blocks in one bin come in row order."""


@njit(cache=True, nogil=True, error_model="numpy")
def blocks_in_view(bounds, groups, rows, m, pinhole, rule, size):
    """Blocks that may show, from near to far: their numbers, least z, and (c0, c1, r0, r1).

    `m` is camera_from_world, `pinhole` (fx, fy, cx, cy), `rule` the numbers of a SplatRule.
    """
    planes, pads = _frustum(m, pinhole, rule, size)
    count = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    ids, found = np.empty(count, np.int32), 0
    for group in range((count + GROUP_BLOCKS - 1) // GROUP_BLOCKS):
        if not _in_view(groups[group], planes, pads):
            continue
        for block in range(group * GROUP_BLOCKS, min((group + 1) * GROUP_BLOCKS, count)):
            if _in_view(bounds[block], planes, pads):
                ids[found] = block
                found += 1
    return _near_to_far(ids[:found], bounds, m, pinhole, rule, size)


@njit(cache=True, nogil=True, error_model="numpy")
def _near_to_far(ids, bounds, m, pinhole, rule, size):
    least, rects = np.empty(len(ids)), np.empty((len(ids), 4), np.int32)
    bins, starts = np.empty(len(ids), np.int32), np.zeros(_BINS + 1, np.int32)
    for k in range(len(ids)):
        least[k] = _reachable(bounds[ids[k]], m, pinhole, rule, size, rects[k])
        bins[k] = int(_within(32 * math.log2(least[k] / rule[3]), 0.0, _BINS - 1.0))
        starts[bins[k] + 1] += 1
    for i in range(_BINS):
        starts[i + 1] += starts[i]
    order = np.empty(len(ids), np.int32)
    for k in range(len(ids)):
        order[starts[bins[k]]] = k
        starts[bins[k]] += 1
    return ids[order], least[order], rects[order]


@njit(cache=True, nogil=True, error_model="numpy")
def _frustum(m, pinhole, rule, size):
    """Five planes (near, left, right, top, bottom) and how much a footprint widens each."""
    planes, pads = np.zeros((5, 4)), np.zeros(5)
    planes[0] = m[2]
    planes[0, 3] -= rule[3]
    for axis in range(2):
        focal, centre, cells = pinhole[axis], pinhole[2 + axis], size[1 - axis]
        planes[1 + 2 * axis] = m[axis] * focal + m[2] * (centre + 1)
        planes[2 + 2 * axis] = m[2] * (cells - centre) - m[axis] * focal
        pads[1 + 2 * axis] = pads[2 + 2 * axis] = 0.5 * rule[0] * focal
    return planes, pads


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _reaches(bound, plane, pad):
    """May a row within the bound lie on the inner side of a plane, its splat counted?"""
    value, size = plane[3] + pad * bound[6], abs(plane[3])
    for axis in range(3):
        low, high = plane[axis] * bound[axis], plane[axis] * bound[3 + axis]
        value += max(low, high)
        size += max(abs(low), abs(high))
    return value + ROUNDING * size >= 0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _in_view(bound, planes, pads):
    if bound[0] > bound[3]:
        return False
    for i in range(5):
        if not _reaches(bound, planes[i], pads[i]):
            return False
    return True


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _reachable(bound, m, pinhole, rule, size, rect):
    """Least z of rows within a bound; fills in the cells that they can cover."""
    near, far = _range(bound, m[2])
    near = max(near, rule[3])
    far = max(near, far)
    half = 0.5 * rule[0] * bound[6] / near
    low, high = _range(bound, m[0])
    rect[0], rect[1] = _cells(low, high, near, far, half, pinhole[0], pinhole[2], size[1])
    low, high = _range(bound, m[1])
    rect[2], rect[3] = _cells(low, high, near, far, half, pinhole[1], pinhole[3], size[0])
    return near


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _range(bound, row):
    """Least and greatest value of row . (p, 1) over a box, slack included."""
    low, high, size = row[3], row[3], abs(row[3])
    for axis in range(3):
        a, b = row[axis] * bound[axis], row[axis] * bound[3 + axis]
        low += min(a, b)
        high += max(a, b)
        size += max(abs(a), abs(b))
    return low - ROUNDING * size, high + ROUNDING * size


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cells(low, high, near, far, half, focal, centre, size):
    """First and last cell that rows with x in low..high, z in near..far can cover."""
    first = (low / near if low < 0 else low / far) * focal + centre
    last = (high / near if high > 0 else high / far) * focal + centre
    reach = max(half * focal, 0.5) + 1e-6
    first, last = first - reach - 1e-9 * abs(first), last + reach + 1e-9 * abs(last)
    return int(_within(np.floor(first), 0.0, size)), int(_within(np.ceil(last), -1.0, size - 1.0))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _within(value, low, high):
    """The nearest number from low to high; low for NaN, which no bound would keep from an index."""
    return min(max(low, value), high)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def hidden(least, rect, limit):
    """Do all cells of the rectangle end nearer than z = least?"""
    for r in range(rect[2], rect[3] + 1):
        for c in range(rect[0], rect[1] + 1):
            if limit[r, c] >= least:
                return False
    return True

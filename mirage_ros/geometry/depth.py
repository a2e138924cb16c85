"""Depth of latent cells from depth pictures, without inventing depths; and holes completed from what lies around them.

Apart from images.py, because numba takes a second to load: processes that only plan or drive do without it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from numba import njit

from mirage_ros.errors import MirageError


def cell_depth(depth_m: Float[np.ndarray, "f H W"], stride: int) -> Float32[np.ndarray, "f h w"]:
    """The median depth of each stride x stride cell, float32 metres.

    Valid are finite depths above 0 and +inf (beyond range). A cell with fewer than half valid
    pixels is NaN, one whose valid pixels are mostly +inf is +inf; otherwise it takes the lower
    median of its finite depths, which is a depth that occurs: edges and holes never blend.
    """
    depth = np.ascontiguousarray(depth_m, np.float32)
    if depth.ndim != 3 or stride < 1 or depth.shape[1] % stride or depth.shape[2] % stride:
        raise MirageError(
            f"Depth of shape {depth.shape} cannot be split into cells of {stride} pixels; give "
            "(frames, height, width) with sides that are multiples of the stride."
        )
    frames, height, width = depth.shape
    cells = np.empty((frames, height // stride, width // stride), np.float32)
    _medians(depth, stride, cells)
    return cells


def finer_depth(depth_m: Float[np.ndarray, "f h w"], side: int) -> Float32[np.ndarray, "f H W"]:
    """Depth of each of side x side pixels of a cell.

    Inverse depth is linear on planes, so it is interpolated between cells; where that is far from the cell's own depth
    there is an edge, and the cell's own counts: no depth comes out that lies between two surfaces.
    """
    depth = np.ascontiguousarray(depth_m, np.float32)
    near = depth.repeat(side, 1).repeat(side, 2)
    known = np.isfinite(depth) & (depth > 0)
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0)
    smooth = _between_cells(_between_cells(inverse, side, 1), side, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        alike = np.abs(smooth * near - 1) < AGREEING
        return np.where(alike, 1 / smooth, near).astype(np.float32)


def _between_cells(values: Float[np.ndarray, "f h w"], side: int, axis: int) -> Float[np.ndarray, "f H W"]:
    """Linear between the cells' centres along one axis, as at the edge beyond them."""
    count = values.shape[axis]
    at = np.clip((np.arange(count * side) + 0.5) / side - 0.5, 0, count - 1)
    low = np.minimum(at.astype(int), max(count - 2, 0))
    weight = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
    return values.take(low, axis) * (1 - weight) + values.take(np.minimum(low + 1, count - 1), axis) * weight


AGREEING = 0.05
"""Share by which the inverse depths of what is measured around a hole may differ."""

ACROSS = 0.2
"""Share of the picture's longer side that a hole may be wide."""


def completed(depth_m: Float[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Depth whose holes (NaN) are filled from what was measured on both sides of them.

    Inverse depth is linear on planes, so it is interpolated along the row and along the column,
    where both ends are finite and agree; where row and column both speak they have to agree too.
    All other holes stay: an edge may lie in them, and no guess is better than what was not seen.
    """
    depth = np.ascontiguousarray(depth_m, np.float32)
    if not np.isnan(depth).any():
        return depth
    widest = int(ACROSS * max(depth.shape))
    along_rows = _between(depth, widest)
    along_columns = _between(np.ascontiguousarray(depth.T), widest).transpose(1, 0, 2)
    value, gap = np.stack([along_rows, along_columns]).transpose(3, 0, 1, 2)
    weight = np.where(gap > 0, 1 / np.where(gap > 0, gap, 1), 0)
    both = (gap > 0).all(0)
    apart = both & (np.ptp(value, 0) > AGREEING * value.max(0))
    total = weight.sum(0)
    filled = np.isnan(depth) & (total > 0) & ~apart
    inverse = (weight * value).sum(0) / np.where(filled, total, 1)
    return np.where(filled, 1 / np.where(filled, inverse, 1), depth).astype(np.float32)


@njit(cache=True, nogil=True)
def _between(depth, widest):
    """Of every hole in a row: the inverse depth between its two ends, and how wide it is; zeros
    where it is wider than `widest` or its ends are not finite or do not agree."""
    height, width = depth.shape
    out = np.zeros((height, width, 2))
    for r in range(height):
        c = 0
        while c < width:
            if not np.isnan(depth[r, c]):
                c += 1
                continue
            first = c
            while c < width and np.isnan(depth[r, c]):
                c += 1
            if first == 0 or c == width or c - first > widest:
                continue
            left, right = 1 / depth[r, first - 1], 1 / depth[r, c]
            if min(left, right) <= 0 or abs(left - right) > AGREEING * max(left, right):
                continue
            gap = c - first + 1
            for i in range(first, c):
                share = (i - first + 1) / gap
                out[r, i, 0], out[r, i, 1] = left + share * (right - left), gap
    return out


@njit(cache=True, nogil=True)
def _medians(depth, stride, cells):
    values = np.empty(stride * stride, np.float32)
    for f in range(cells.shape[0]):
        for r in range(cells.shape[1]):
            for c in range(cells.shape[2]):
                finite, beyond = 0, 0
                for y in range(r * stride, (r + 1) * stride):
                    for x in range(c * stride, (c + 1) * stride):
                        value = depth[f, y, x]
                        if value == np.inf:
                            beyond += 1
                        elif value > 0:
                            values[finite] = value
                            finite += 1
                if 2 * (finite + beyond) < stride * stride:
                    cells[f, r, c] = np.nan
                elif beyond > finite:
                    cells[f, r, c] = np.inf
                else:
                    cells[f, r, c] = np.sort(values[:finite])[(finite - 1) // 2]

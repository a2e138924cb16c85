"""Depth of latent cells from depth pictures, without inventing depths."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from numba import njit

from mirage_ros.core.errors import MirageError


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

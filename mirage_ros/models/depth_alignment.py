"""A depth model's answer made metric: scale and shift from what memory shows.

One picture leaves a scale, and many networks a shift, undetermined. Memory has metric depth for
part of the picture, with errors and with things before it that moved; so the fit is robust
(iterated weights after Beaton and Tukey 1974, from a start by medians) and scores relative
errors, because what is near matters as much as what is far.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.core.depth import cell_depth
from mirage_ros.core.errors import MirageError

#: A frame with fewer anchored cells than this takes the fit of its whole chunk.
MIN_ANCHORS = 32
#: Below this relative spread of depths a shift cannot be told from a scale.
MIN_SPREAD = 0.05
ROUNDS = 20
TUKEY = 4.685
#: Cells whose depth differs from memory's by more than this share show something else.
MAX_DISAGREEMENT = 0.25


def fit_line(
    x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], with_shift: bool = True
) -> tuple[float, float]:
    """(a, b) of y = a x + b, by relative error in y > 0; outliers up to about a third count little.

    a is above 0: where the points say otherwise the shift is given up.
    """
    a, b = _start(x, y, with_shift)
    for _ in range(ROUNDS):
        error = (a * x + b) / y - 1
        spread = 1.4826 * np.median(np.abs(error)) + 1e-6
        weight = np.clip(1 - (error / (TUKEY * spread)) ** 2, 0, None) ** 2 / y**2
        a, b = _weighted_line(x, y, weight, with_shift)
    if with_shift and not a > 0:
        return fit_line(x, y, with_shift=False)
    return float(a), float(b)


def align_depth(
    raw: Float[np.ndarray, "f h w"],
    anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    stride: int,
    inverse: bool = False,
    metric: bool = True,
) -> Float[np.ndarray, "f h w"]:
    """Metric depth of a depth model's answer.

    Args:
        raw: what the model says, larger is farther, or nearer where `inverse`.
        anchor_depth_m: the readout's depth per cell, NaN unseen; None before there is a memory.
        metric: without anchors the answer is taken as metres.

    Raises:
        MirageError: the model has no scale of its own and there is nothing to take one from.
    """
    lines = _lines(raw, anchor_depth_m, stride, inverse)
    if lines is None:
        if not metric:
            raise MirageError(
                "The depth model has no metric scale and the world's first picture no depth; give "
                "the seed's depth, or a metric depth model."
            )
        lines = np.tile([1.0, 0.0], (len(raw), 1))
    fitted = lines[:, 0, None, None] * raw + lines[:, 1, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = 1 / fitted if inverse else fitted
    return np.where(fitted > 0, depth, np.inf if inverse else np.nan).astype(np.float32)


def disagreeing(
    depth_m: Float[np.ndarray, "f h w"],
    anchor_depth_m: Float[np.ndarray, "f lh lw"],
    stride: int,
) -> Bool[np.ndarray, "f h w"]:
    """Cells, as pixels, where aligned depth and memory see surfaces at different depths."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(np.log(cell_depth(depth_m, stride) / anchor_depth_m))
    differs = np.isfinite(anchor_depth_m) & (gap > np.log1p(MAX_DISAGREEMENT))
    return differs.repeat(stride, 1).repeat(stride, 2)


def _lines(raw, anchor, stride, inverse) -> np.ndarray | None:
    """(f, 2) scales and shifts; None without anchors."""
    if anchor is None:
        return None
    cells = cell_depth(raw, stride).astype(np.float64)
    known = np.isfinite(anchor) & (anchor > 0) & np.isfinite(cells)
    if not known.any():
        return None
    target = 1 / anchor.astype(np.float64) if inverse else anchor.astype(np.float64)
    whole = _fit(cells[known], target[known])
    return np.array(
        [
            _fit(cells[i][row], target[i][row]) if row.sum() >= MIN_ANCHORS else whole
            for i, row in enumerate(known)
        ]
    )


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    middle = np.median(y)
    spread = np.percentile(y, 90) - np.percentile(y, 10)
    return fit_line(x, y, bool(len(x) >= MIN_ANCHORS and spread > MIN_SPREAD * middle))


def _start(x: np.ndarray, y: np.ndarray, with_shift: bool) -> tuple[float, float]:
    """Medians: of ratios, or of slopes between far pairs and what they leave (Theil and Sen)."""
    ratio = float(np.median(y / np.where(x > 0, x, np.nan))) if (x > 0).all() else 1.0
    if not with_shift:
        return ratio, 0.0
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    low, high = order[:half], order[-half:]
    gap = x[high] - x[low]
    slopes = (y[high] - y[low])[gap > 0] / gap[gap > 0]
    if not len(slopes):
        return ratio, 0.0
    slope = float(np.median(slopes))
    return slope, float(np.median(y - slope * x))


def _weighted_line(x, y, weight, with_shift: bool) -> tuple[float, float]:
    if not with_shift:
        return float((weight * x * y).sum() / max((weight * x * x).sum(), 1e-12)), 0.0
    total = max(weight.sum(), 1e-12)
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    spread = (weight * (x - mean_x) ** 2).sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / max(spread, 1e-12)
    return float(slope), float(mean_y - slope * mean_x)

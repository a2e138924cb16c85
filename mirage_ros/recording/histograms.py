"""Exact statistics of values that take few levels: 8-bit colours, 12-bit depth codes.

Counting levels keeps every quantile exact, and counts of many episodes simply add up.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64, Shaped

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
NAMES = tuple(f"q{round(100 * share):02d}" for share in QUANTILES)


def count_levels(
    pixels: Shaped[np.ndarray, "h w c"], levels: int
) -> Int64[np.ndarray, "c levels"]:
    """How often each level occurs in each channel of unsigned pixels."""
    channels = pixels.reshape(-1, pixels.shape[-1])
    counts = [np.bincount(channel, minlength=levels) for channel in channels.T]
    return np.stack(counts).astype(np.int64)


def counted_statistics(
    counts: Int64[np.ndarray, "c levels"], values: Float[np.ndarray, "levels"]
) -> dict[str, Float[np.ndarray, "c"]]:
    """min, max, mean, std and the quantiles of each channel; `values` rise with the level."""
    values = values.astype(np.float64)
    total = counts.sum(-1)
    mean = counts @ values / total
    spread = (counts * (values - mean[:, None]) ** 2).sum(-1) / total
    present = [np.flatnonzero(channel) for channel in counts]
    return {
        "min": values[[found[0] for found in present]],
        "max": values[[found[-1] for found in present]],
        "mean": mean,
        "std": np.sqrt(spread),
        **{
            name: np.array([_quantile(channel, values, share) for channel in counts])
            for name, share in zip(NAMES, QUANTILES, strict=True)
        },
    }


def vector_statistics(rows: Shaped[np.ndarray, "n d"]) -> dict[str, Float[np.ndarray, "d"]]:
    """The same of rows of numbers."""
    rows = rows.astype(np.float64)
    quantiles = np.quantile(rows, QUANTILES, axis=0)
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        **dict(zip(NAMES, quantiles, strict=True)),
    }


def _quantile(counts: np.ndarray, values: np.ndarray, share: float) -> float:
    """As numpy's linear method has it, from counts instead of samples."""
    below = np.cumsum(counts)
    place = (below[-1] - 1) * share
    low, high = int(np.floor(place)), int(np.ceil(place))
    first, second = values[np.searchsorted(below, [low, high], side="right")]
    return float(first + (second - first) * (place - low))

"""Latents in and out of rows of 16 bits: float16, or bfloat16's bits."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from mirage_ros.core.store import FEATURE_TYPES

_SHIFTS = {"float16": 10, "bfloat16": 7}
"""Where the exponent starts; a number is finite unless all of its exponent's bits are set."""


def rows_of_latents(latents, chosen: np.ndarray, dtype: str) -> np.ndarray | None:
    """The chosen cells (f, h, w) of latents (f, c, h, w) as rows; None if any is not finite."""
    bits = latents.detach().to("cpu", getattr(torch, dtype)).contiguous().view(torch.int16)
    rows = np.empty((int(np.count_nonzero(chosen)), latents.shape[1]), np.uint16)
    if not _take(bits.numpy().view(np.uint16), chosen, rows, _SHIFTS[dtype]):
        return None
    return rows.view(FEATURE_TYPES[dtype])


def latents_of_rows(features: np.ndarray, index: np.ndarray, dtype: str) -> torch.Tensor:
    """float32 latents (f, c, h, w) of the rows in index (f, h, w); zeros where it is -1."""
    frames, height, width = index.shape
    bits = np.empty((frames, features.shape[1], height, width), np.uint16)
    _give(features.view(np.uint16), index, bits)
    if dtype == "float16":
        return torch.from_numpy(bits.view(np.float16).astype(np.float32))
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))


@njit(cache=True, nogil=True)
def _take(latents, chosen, rows, shift):
    frames, channels, height, width = latents.shape
    row, exponent = 0, np.uint16(0x7FFF) >> shift
    for f in range(frames):
        for r in range(height):
            start = row
            for i in range(channels):
                row = start
                for c in range(width):
                    if chosen[f, r, c]:
                        bits = latents[f, i, r, c]
                        if (bits >> shift) & exponent == exponent:
                            return False
                        rows[row, i] = bits
                        row += 1
    return True


@njit(cache=True, nogil=True)
def _give(features, index, out):
    frames, channels, height, width = out.shape
    for f in range(frames):
        for r in range(height):
            for channel in range(channels):
                for c in range(width):
                    i = index[f, r, c]
                    out[f, channel, r, c] = features[i, channel] if i >= 0 else 0

"""What is kept of a token, and latents in and out of rows of bytes.

float16 and bfloat16 keep 16 bits a number. int8, int6 and int4 keep so many bits, as whole
steps of the token's own scale: its largest magnitude, rounded up to a byte of floating point.
A row is rounded once, when it is written; reading and saving never round it again.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

BITS = {"int8": 8, "int6": 6, "int4": 4}
FEATURE_TYPES = ("float16", "bfloat16", *BITS)

_SHIFTS = {"float16": 10, "bfloat16": 7}
"""Where the exponent starts; a number is finite unless all of its exponent's bits are set."""

_SCALES = (1 + np.arange(256) % 8 / 8).astype(np.float32) * np.float32(2) ** (
    np.arange(256) // 8 - 16
).astype(np.float32)
"""What a scale's byte stands for: 5 bits of exponent, 3 of mantissa, 2^-16 to 61,440."""

LARGEST = float(_SCALES[-1])
"""The largest magnitude that every type holds."""

Fields = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> numpy's dtype and row shape."""

SURFEL_FIELDS: Fields = {
    "places": ("int64", ()),
    "normals": ("int8", (2,)),
}
"""What the z-buffer reads of every token (see Surfels)."""

TOKEN_FIELDS: Fields = SURFEL_FIELDS | {"rgb": ("uint8", (3,)), "used": ("uint16", ())}
"""What every token has besides its latent."""


def token_fields(channels: int, dtype: str) -> Fields:
    """All that a token has."""
    return TOKEN_FIELDS | feature_fields(channels, dtype)


def feature_fields(channels: int, dtype: str) -> Fields:
    """Name -> numpy's dtype and row shape of what latents are kept in."""
    if dtype in BITS:
        width = -(-channels * BITS[dtype] // 8)
        return {"features": ("uint8", (width,)), "scales": ("uint8", ())}
    # numpy has no bfloat16, so that type's bits.
    return {"features": ("float16" if dtype == "float16" else "uint16", (channels,))}


def representable(latents: torch.Tensor) -> bool:
    """Whether every type can keep all of the numbers: none is NaN or beyond LARGEST."""
    return bool((latents.detach().abs() <= LARGEST).all())


def rows_of_latents(latents, chosen: np.ndarray, dtype: str) -> dict[str, np.ndarray] | None:
    """The chosen cells (f, h, w) of latents (f, c, h, w) as rows of the type's fields.

    None if any is not finite or beyond the type's range.
    """
    count, channels = int(np.count_nonzero(chosen)), latents.shape[1]
    if dtype in BITS:
        values = latents.detach().to("cpu", torch.float32).contiguous().numpy()
        rows = {name: np.zeros((count, *shape), kind)
                for name, (kind, shape) in feature_fields(channels, dtype).items()}  # fmt: skip
        packed = rows["features"], rows["scales"]
        return rows if _pack(values, chosen, *packed, _SCALES, BITS[dtype]) else None
    bits = latents.detach().to("cpu", getattr(torch, dtype)).contiguous().view(torch.int16)
    rows = np.empty((count, channels), np.uint16)
    if not _take(bits.numpy().view(np.uint16), chosen, rows, _SHIFTS[dtype]):
        return None
    return {"features": rows.view(feature_fields(channels, dtype)["features"][0])}


def latents_of_rows(
    rows: dict[str, np.ndarray], index: np.ndarray, channels: int, dtype: str
) -> torch.Tensor:
    """float32 latents (f, c, h, w) of the rows in index (f, h, w); zeros where it is -1."""
    shape = (len(index), channels, *index.shape[1:])
    if dtype in BITS:
        values = np.empty(shape, np.float32)
        _unpack(rows["features"], rows["scales"], index, values, _SCALES, BITS[dtype])
        return torch.from_numpy(values)
    bits = np.empty(shape, np.uint16)
    _give(rows["features"].view(np.uint16), index, bits)
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


@njit(cache=True, nogil=True)
def _pack(latents, chosen, features, codes, scales, bits):
    """Writes rows of steps, least significant bits first; False if a value does not fit."""
    frames, channels, height, width = latents.shape
    most, row = (1 << (bits - 1)) - 1, 0
    for f in range(frames):
        for r in range(height):
            for c in range(width):
                if not chosen[f, r, c]:
                    continue
                largest = np.float32(0)
                for i in range(channels):
                    value = abs(latents[f, i, r, c])
                    if not value <= scales[-1]:
                        return False
                    largest = max(largest, value)
                code = np.searchsorted(scales, largest)
                step, held, waiting, byte = scales[code] / np.float32(most), 0, 0, 0
                for i in range(channels):
                    steps = int(np.rint(latents[f, i, r, c] / step))
                    held |= (min(max(steps, -most), most) + most) << waiting
                    waiting += bits
                    while waiting >= 8:
                        features[row, byte] = held & 255
                        held, waiting, byte = held >> 8, waiting - 8, byte + 1
                if waiting:
                    features[row, byte] = held
                codes[row] = code
                row += 1
    return True


@njit(cache=True, nogil=True)
def _unpack(features, codes, index, out, scales, bits):
    frames, channels, height, width = out.shape
    most, mask = (1 << (bits - 1)) - 1, (1 << bits) - 1
    for f in range(frames):
        for r in range(height):
            for c in range(width):
                row, held, waiting, byte = index[f, r, c], 0, 0, 0
                if row < 0:
                    out[f, :, r, c] = 0
                    continue
                step = scales[codes[row]] / np.float32(most)
                for i in range(channels):
                    if waiting < bits:
                        held |= int(features[row, byte]) << waiting
                        waiting, byte = waiting + 8, byte + 1
                    out[f, i, r, c] = np.float32((held & mask) - most) * step
                    held, waiting = held >> bits, waiting - bits

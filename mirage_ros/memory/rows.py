"""What is kept of tokens and of the views that they were born in, as rows of arrays.

Latents: float16 and bfloat16 keep 16 bits a number. int8, int6 and int4 keep so many bits, as whole steps of the
token's own scale: its largest magnitude, rounded up to a byte of floating point. A row is rounded once, when it is
written; reading and saving never round it again.

Views: what all tokens of a frame share, kept once. Rows of any field are moved in place as rows of bytes, whatever
they hold.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Int
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.surfels import VIEW_SIDE

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


VIEW_FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "rays": ("float32", (4, 3)),
    "focals": ("float32", ()),
    "stamps_ns": ("int64", ()),
    "frame_ids": ("int32", ()),
    "parts": ("uint8", ()),
    "real": ("bool", ()),
}
"""Name -> dtype and row shape; see Surfels for rays and focals. Cells of a view of several parts
are so many to a side of each latent cell, and their tokens parts of one latent (lifting.py). A
view is real where a picture was given: nothing imagined takes the place of its tokens."""

FIRST_OBSERVED = 2**30
"""Ids of frames: 0 is the seed, those that are imagined follow, observed pictures begin here."""

VIEW_BYTES = sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in VIEW_FIELDS.values())


class ViewTable:
    """A growing list of views, numbered from 0, at most so many. `fields` have room for more."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.fields = {name: np.empty((0, *s), d) for name, (d, s) in VIEW_FIELDS.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name][: self.count]

    @property
    def capacity(self) -> int:
        return len(self.fields["focals"])

    @property
    def nbytes(self) -> int:
        return self.count * VIEW_BYTES

    def make_room(self, wanted: int) -> None:
        """Room for `wanted` more, and some to spare; no more than `most` in all.

        From an eighth of that on goes straight to it (pages that hold no view yet are not
        touched), so that the old copy of a field never adds more than an eighth.
        """
        if self.capacity < self.most and 4 * (self.count + wanted) > 3 * self.capacity:
            rows = max(self.count + wanted, 2 * self.capacity, 16)
            rows = self.most if 8 * rows > self.most else rows
            self.fields = self._of_rows(rows)

    def add(self, views: dict[str, np.ndarray]) -> int:
        """Appends views, for which there is room; returns the first's number."""
        first, self.count = self.count, self.count + len(views["focals"])
        for name, values in views.items():
            self[name][first:] = values
        return first

    def keep(self, mask: Bool[np.ndarray, "n"]) -> None:
        """Drops the views where the mask is False; the others are numbered anew in their order."""
        for field in self.fields.values():
            compact(as_bytes(field), mask)
        self.count = int(np.count_nonzero(mask))

    def copy(self) -> ViewTable:
        twin = object.__new__(ViewTable)
        twin.__dict__.update(self.__dict__, fields=self._of_rows(self.capacity))
        return twin

    def _of_rows(self, rows: int) -> dict[str, np.ndarray]:
        """The fields with room for so many views, those there are copied."""
        own = {name: np.empty((rows, *s), d) for name, (d, s) in VIEW_FIELDS.items()}
        for name, field in own.items():
            field[: self.count] = self[name]
        return own


def views_of(
    cameras: Camera,
    stamps_ns: Int[np.ndarray, "f"],
    frame_ids: Int[np.ndarray, "f"],
    parts: int = 1,
    real: bool = False,
) -> dict[str, np.ndarray]:
    """The views of f cameras at latent size, or `parts` times that, each frame's tiles (see
    tiles_of) in raster order."""
    height, width = tiles_of(cameras.size)
    k, pose = cameras.intrinsics, cameras.world_from_camera
    rays = np.empty((len(cameras), height, width, 4, 3))
    rays[..., 0, :] = (pose[:, :3, 0] / k[:, 0, 0, None])[:, None, None]
    rays[..., 1, :] = (pose[:, :3, 1] / k[:, 1, 1, None])[:, None, None]
    column = VIEW_SIDE * np.arange(width)[None, None] - k[:, 0, 2, None, None]
    row = VIEW_SIDE * np.arange(height)[None, :, None] - k[:, 1, 2, None, None]
    rays[..., 2, :] = pose[:, None, None, :3, 2]
    rays[..., 2, :] += rays[..., 0, :] * column[..., None] + rays[..., 1, :] * row[..., None]
    rays[..., 3, :] = pose[:, None, None, :3, 3]
    each = height * width
    return {
        "rays": rays.reshape(-1, 4, 3),
        "focals": np.repeat(0.5 * (k[:, 0, 0] + k[:, 1, 1]), each),
        "stamps_ns": np.repeat(np.asarray(stamps_ns, np.int64).reshape(-1), each),
        "frame_ids": np.repeat(np.asarray(frame_ids, np.int32).reshape(-1), each),
        "parts": np.full(len(cameras) * each, parts, np.uint8),
        "real": np.full(len(cameras) * each, real),
    }


def tiles_of(size: tuple[int, int]) -> tuple[int, int]:
    """How many views a frame takes down and across: one, unless a side exceeds VIEW_SIDE."""
    return -(-size[0] // VIEW_SIDE), -(-size[1] // VIEW_SIDE)

"""The views that tokens were born in: what all tokens of a frame share, kept once.

Rows of any field as rows of bytes: moved in place, whatever they hold.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.surfels import VIEW_SIDE


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

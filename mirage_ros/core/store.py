"""Where tokens live: a bounded structure of arrays with a voxel hash on top.

Rows 0..count-1 of every array are the tokens. A token's key names its voxel: the level
(edge = EDGE_PER_FOOTPRINT * 2^level metres, level = floor(log2(footprint))) and its three cell
numbers. The table is open addressing with linear probing over row numbers; removals compact the
rows in order and rebuild it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

EDGE_PER_FOOTPRINT = 0.5
"""Voxel edge over 2^level. Neighbouring cells of one frame lie at least about a footprint
apart, a voxel's diagonal is at most 0.87 footprints: a frame never loses a token to itself."""

FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "positions_world": ("float32", (3,)),
    "footprints_m": ("float32", ()),
    "normals": ("int8", (3,)),
    "fronts": ("int8", (3,)),
    "births_ns": ("int64", ()),
    "rgb": ("uint8", (3,)),
    "confidence": ("uint8", ()),
    "frame_ids": ("int32", ()),
    "used": ("int32", ()),
    "keys": ("int64", (2,)),
}
"""Name -> dtype and row shape; `features` (float16, channels) comes on top."""

TABLE_BYTES_PER_ROW = 16
"""At most: a table is between 2 and 4 times as long as the rows it serves, int32 each."""

SCRATCH_BYTES_PER_ROW = 17
"""Keep mask and two int64 columns while evicting."""


def row_bytes(channels: int) -> int:
    """Bytes one token takes, without its share of the table."""
    own = sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in FIELDS.values())
    return own + 2 * channels


class TokenStore:
    """Arrays of tokens whose allocation never exceeds `max_bytes`, growth and eviction included."""

    def __init__(self, channels: int, max_bytes: int) -> None:
        self.channels = channels
        per_row = row_bytes(channels) * 9 // 8 + TABLE_BYTES_PER_ROW + SCRATCH_BYTES_PER_ROW
        self.max_rows = min(max_bytes // per_row, 2**30)
        self.count = 0
        self.arrays = self._allocate(0)
        self.table = np.full(16, -1, np.int32)

    def __getitem__(self, name: str) -> np.ndarray:
        """The live rows of one field."""
        return self.arrays[name][: self.count]

    @property
    def capacity(self) -> int:
        return len(self.arrays["used"])

    @property
    def nbytes(self) -> int:
        return self.count * row_bytes(self.channels) + self.table.nbytes

    def insert(self, rows: dict[str, np.ndarray]) -> int:
        """Merges rows in order; in an occupied voxel the finer footprint wins, else the newer.

        `rows` has every field but `keys`. Returns how many rows were stored.
        """
        rows = dict(rows, keys=voxel_keys(rows["positions_world"], rows["footprints_m"]))
        rows = {name: np.ascontiguousarray(rows[name], self.arrays[name].dtype) for name in rows}
        total, stored, done = len(rows["used"]), 0, 0
        while done < total:
            self._make_room(total - done)
            old, new = (_columns(arrays) for arrays in (self.arrays, rows))
            self.count, done, merged = _merge(old, self.count, self.table, new, done)
            stored += merged
        return stored

    def keep(self, mask: np.ndarray) -> int:
        """Drops the rows where the mask is False, keeping order; returns how many went."""
        before = self.count
        for array in self.arrays.values():
            _compact(_as_bytes(array), mask)
        self.count = int(mask.sum())
        self._rebuild_table(self.table if self.count else np.empty(16, np.int32))
        return before - self.count

    def restore(self, rows: dict[str, np.ndarray]) -> None:
        """Takes over saved rows as they are (all fields but `keys`) in place of its own."""
        total = len(rows["used"])
        order = np.lexsort((rows["births_ns"], rows["used"]))
        chosen = np.sort(order[max(0, total - self.max_rows) :])
        self.count, self.arrays = 0, self._allocate(0)
        self._grow(len(chosen))
        self.count = len(chosen)
        for name in rows:
            self[name][:] = rows[name][chosen]
        self["keys"][:] = voxel_keys(self["positions_world"], self["footprints_m"])
        self._rebuild_table(np.empty(_table_size(self.count), np.int32))

    def copy(self) -> TokenStore:
        """An independent store with the same tokens."""
        twin = self.share()
        twin.arrays = self._allocate(self.capacity)
        for name in self.arrays:
            twin[name][:] = self[name]
        twin.table = self.table.copy()
        return twin

    def share(self) -> TokenStore:
        """A store on the same arrays but for `used`, which every read changes."""
        twin = object.__new__(TokenStore)
        twin.channels, twin.max_rows, twin.count = self.channels, self.max_rows, self.count
        twin.arrays = dict(self.arrays, used=self.arrays["used"].copy())
        twin.table = self.table
        return twin

    def _allocate(self, rows: int) -> dict[str, np.ndarray]:
        fields = dict(FIELDS, features=("float16", (self.channels,)))
        return {name: np.empty((rows, *shape), d) for name, (d, shape) in fields.items()}

    def _make_room(self, wanted: int) -> None:
        """At least one free row, and a table that is not half full (nor twice in memory)."""
        if self.count == self.capacity:
            if self.capacity < self.max_rows:
                self._grow(self.count + wanted)
            else:
                self._evict(wanted)
        if self.count >= len(self.table) // 2:
            self.table = None
            rows = min(self.capacity, max(2 * self.count, 256))
            self._rebuild_table(np.empty(_table_size(rows), np.int32))

    def _grow(self, wanted: int) -> None:
        """Doubles, field by field; from an eighth of the cap on goes straight to the cap.

        So the old copy of the field in hand never adds more than an eighth to the whole.
        Pages that hold no token yet are not touched.
        """
        rows = max(wanted, 2 * self.capacity, 256)
        rows = self.max_rows if 8 * rows > self.max_rows else rows
        for name, (dtype, shape) in dict(FIELDS, features=("float16", (self.channels,))).items():
            grown = np.empty((rows, *shape), dtype)
            grown[: self.count] = self[name]
            self.arrays[name] = grown

    def _evict(self, wanted: int) -> None:
        """Drops the tokens that won a cell longest ago, the oldest first among equals."""
        number = min(self.count, max(wanted, self.count // 16))
        order = np.lexsort((self["births_ns"], self["used"]))
        mask = np.ones(self.count, bool)
        mask[order[:number]] = False
        self.keep(mask)

    def _rebuild_table(self, table: np.ndarray) -> None:
        table.fill(-1)
        self.table = table
        _fill_table(table, self.arrays["keys"], self.count)


def _table_size(rows: int) -> int:
    """The power of two between 2 and 4 times the rows, at least 16."""
    return max(16, 1 << (2 * rows).bit_length())


def voxel_keys(positions: np.ndarray, footprints: np.ndarray) -> np.ndarray:
    """(n, 2) int64 voxel names of positions (n, 3) at footprints (n,), metres."""
    level = np.frexp(np.asarray(footprints, np.float64))[1] - 1
    edge = np.ldexp(EDGE_PER_FOOTPRINT, level)
    cells = np.floor(np.asarray(positions, np.float64) / edge[:, None])
    cells = np.clip(cells, -(2**31), 2**31 - 1).astype(np.int64)
    low = np.int64(0xFFFFFFFF)
    first = (cells[:, 0] << 32) | (cells[:, 1] & low)
    return np.stack([first, (cells[:, 2] << 32) | (level.astype(np.int64) & low)], -1)


def _columns(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Keys and footprints as they are, then every field as bytes for copying."""
    raw = tuple(_as_bytes(arrays[name]) for name in (*FIELDS, "features"))
    return arrays["keys"], arrays["footprints_m"], raw


def _as_bytes(array: np.ndarray) -> np.ndarray:
    width = array.dtype.itemsize * math.prod(array.shape[1:])
    return array.reshape(-1).view(np.uint8).reshape(len(array), width)


@njit(cache=True, nogil=True, inline="always")
def _slot(key, mask):
    """Where probing for a key starts (a 64-bit mix of both halves)."""
    mixed = np.uint64(key[0]) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(key[1]) + (mixed >> np.uint64(29))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@njit(cache=True, nogil=True)
def _fill_table(table, keys, count):
    mask = len(table) - 1
    for row in range(count):
        slot = _slot(keys[row], mask)
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = row


@njit(cache=True, nogil=True)
def _merge(old, count, table, new, start):
    """Puts new rows from `start` on into the store until it is full.

    Returns the count of rows, the first new row not handled, and how many were stored.
    """
    keys, footprints, raw = old
    new_keys, new_footprints, new_raw = new
    mask, stored = len(table) - 1, 0
    for i in range(start, len(new_footprints)):
        slot = _slot(new_keys[i], mask)
        while table[slot] >= 0:
            row = table[slot]
            if keys[row, 0] == new_keys[i, 0] and keys[row, 1] == new_keys[i, 1]:
                break
            slot = (slot + 1) & mask
        row = table[slot]
        if row < 0:
            if count == len(footprints) or 2 * count >= len(table):
                return count, i, stored
            row = count
            count += 1
            table[slot] = row
        elif footprints[row] < new_footprints[i]:
            continue
        for field in range(len(raw)):
            raw[field][row] = new_raw[field][i]
        stored += 1
    return count, len(new_footprints), stored


@njit(cache=True, nogil=True)
def _compact(rows, keep):
    to = 0
    for i in range(len(keep)):
        if keep[i]:
            if to != i:
                rows[to] = rows[i]
            to += 1

"""Where tokens live: a bounded structure of arrays, sorted by place batch by batch.

Rows 0..count-1 of every array are the tokens. Of two tokens in one voxel (voxels.py) one stays.
Removals compact the rows in order. Coarse bounds over consecutive rows (blocks.py) are kept
up to date, so that a read's cost follows what is in view.
"""

from __future__ import annotations

import math

import numpy as np

from mirage_ros.core.blocks import BLOCK_ROWS, BOUND_BYTES_PER_ROW, Blocks
from mirage_ros.core.voxels import (
    by_place,
    compact,
    copy_rows,
    fill_table,
    place_rows,
    table_size,
)

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
}
"""Name -> dtype and row shape; `features` (16 bits, channels) comes on top."""

FEATURE_TYPES = {"float16": "float16", "bfloat16": "uint16"}
"""What latents are kept as -> what numpy holds (it has no bfloat16, so that type's bits)."""

TABLE_BYTES_PER_ROW = 16
"""At most: a table is between 2 and 4 times as long as the rows it serves, int32 each."""

SCRATCH_BYTES_PER_ROW = 24
"""Sorting and placing rows while they are merged, or choosing rows while evicting."""

_KEPT_SHARE = 16
"""One in so many tokens goes when the cap is reached: often enough to keep nearly all, rarely
enough to cost little."""


def row_bytes(channels: int) -> int:
    """Bytes one token takes, without its share of the table."""
    own = sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in FIELDS.values())
    return own + 2 * channels


class TokenStore:
    """Arrays of tokens whose allocation never exceeds `max_bytes`, growth and eviction included."""

    def __init__(self, channels: int, max_bytes: int, dtype: str = "float16") -> None:
        self.channels, self.dtype = channels, dtype
        per_row = row_bytes(channels) * 9 // 8 + TABLE_BYTES_PER_ROW
        per_row += SCRATCH_BYTES_PER_ROW + BOUND_BYTES_PER_ROW
        self.max_rows = min(max_bytes // per_row, 2**30)
        self.count = 0
        self.arrays = self._allocate(0)
        self.table = np.full(16, -1, np.int32)
        self.blocks = Blocks.empty(0)

    def __getitem__(self, name: str) -> np.ndarray:
        """The live rows of one field."""
        return self.arrays[name][: self.count]

    @property
    def capacity(self) -> int:
        return len(self.arrays["used"])

    @property
    def nbytes(self) -> int:
        bounds = self.blocks.bounds[: -(-self.count // BLOCK_ROWS)]
        return self.count * row_bytes(self.channels) + self.table.nbytes + bounds.nbytes

    def insert(self, rows: dict[str, np.ndarray]) -> int:
        """Merges rows in order; in an occupied voxel the finer footprint wins, else the newer.

        Returns how many rows were stored.
        """
        rows = {name: np.ascontiguousarray(rows[name], a.dtype) for name, a in self.arrays.items()}
        total, stored = len(rows["used"]), 0
        for start in range(0, total, max(self.max_rows, 1)):
            part = slice(start, start + self.max_rows)
            stored += self._insert_part({name: array[part] for name, array in rows.items()})
        return stored

    def _insert_part(self, rows: dict[str, np.ndarray]) -> int:
        new = rows["positions_world"], rows["footprints_m"]
        order = by_place(*new)
        to, done, stored = np.empty(len(order), np.int32), 0, 0
        while done < len(order):
            self._make_room(len(order) - done)
            old = self.arrays["positions_world"], self.arrays["footprints_m"]
            bounds, start = (self.blocks.bounds, self.blocks.groups), done
            self.count, done, placed = place_rows(
                old, self.count, self.table, bounds, new, order, start, to
            )
            for name in rows.keys() - {"positions_world", "footprints_m"}:
                arrays = _as_bytes(self.arrays[name]), _as_bytes(rows[name])
                copy_rows(*arrays, order, to, start, done)
            stored += placed
        return stored

    def keep(self, mask: np.ndarray) -> int:
        """Drops the rows where the mask is False, keeping order; returns how many went."""
        before = self.count
        for array in self.arrays.values():
            compact(_as_bytes(array), mask)
        self.count = int(mask.sum())
        self.blocks.refit(self["positions_world"], self["footprints_m"])
        self._rebuild_table(self.table if self.count else np.empty(16, np.int32))
        return before - self.count

    def restore(self, rows: dict[str, np.ndarray]) -> None:
        """Copies saved rows in place of its own; of too many, those that evicting leaves."""
        count, kept = len(rows["used"]), slice(None)
        if count > self.max_rows:
            kept = _without_oldest(rows["used"], rows["births_ns"], count - self.max_rows)
            count = self.max_rows
        self.count, self.arrays = count, self._allocate(self._capacity_for(count))
        for name, array in rows.items():
            self[name][:] = array[kept]
        self.blocks = Blocks.empty(self.capacity)
        self.blocks.refit(self["positions_world"], self["footprints_m"])
        self._rebuild_table(np.empty(table_size(self.count), np.int32))

    def copy(self) -> TokenStore:
        """An independent store with the same tokens."""
        twin = self.share()
        twin.arrays = self._allocate(self.capacity)
        for name in self.arrays:
            twin[name][:] = self[name]
        twin.table, twin.blocks = self.table.copy(), self.blocks.copy()
        return twin

    def share(self) -> TokenStore:
        """A store on the same arrays."""
        twin = object.__new__(TokenStore)
        twin.__dict__.update(self.__dict__, arrays=dict(self.arrays))
        return twin

    def _fields(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return dict(FIELDS, features=(FEATURE_TYPES[self.dtype], (self.channels,)))

    def _allocate(self, rows: int) -> dict[str, np.ndarray]:
        return {name: np.empty((rows, *shape), d) for name, (d, shape) in self._fields().items()}

    def _make_room(self, wanted: int) -> None:
        """At least one free row, and a table that is not half full (nor twice in memory)."""
        if self.count == self.capacity:
            if self.capacity < self.max_rows:
                self._grow(self.count + wanted)
            else:
                number = max(1, self.count // _KEPT_SHARE)
                self.keep(_without_oldest(self["used"], self["births_ns"], number))
        if self.count >= len(self.table) // 2:
            self.table = None
            self._rebuild_table(np.empty(table_size(max(self.count, 128)), np.int32))

    def _grow(self, wanted: int) -> None:
        """Doubles, field by field; from an eighth of the cap on goes straight to the cap.

        So the old copy of the field in hand never adds more than an eighth to the whole.
        Pages that hold no token yet are not touched.
        """
        rows = self._capacity_for(max(wanted, 2 * self.capacity, 256))
        for name, (dtype, shape) in self._fields().items():
            grown = np.empty((rows, *shape), dtype)
            grown[: self.count] = self[name]
            self.arrays[name] = grown
        self.blocks = self.blocks.grown(rows)

    def _capacity_for(self, rows: int) -> int:
        return self.max_rows if 8 * rows > self.max_rows else rows

    def _rebuild_table(self, table: np.ndarray) -> None:
        table.fill(-1)
        self.table = table
        fill_table(table, self["positions_world"], self["footprints_m"])


def _without_oldest(used: np.ndarray, births_ns: np.ndarray, number: int) -> np.ndarray:
    """False for the tokens that won a cell longest ago, the oldest first among equals.

    Takes time and memory (at most 20 bytes a row) in proportion to the rows.
    """
    last = np.partition(used, number - 1)[number - 1]
    keep, equal = used >= last, used == last
    births = births_ns[equal]
    number -= len(used) - int(keep.sum())
    youngest = np.partition(births, number - 1)[number - 1]
    older = births < youngest
    some = np.flatnonzero(births == youngest)[: number - int(older.sum())]
    older[some] = True
    keep[equal] = ~older
    return keep


def _as_bytes(array: np.ndarray) -> np.ndarray:
    width = array.dtype.itemsize * math.prod(array.shape[1:])
    return array.reshape(-1).view(np.uint8).reshape(len(array), width)

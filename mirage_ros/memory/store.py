"""Where tokens live: a bounded structure of arrays, sorted by place batch by batch.

Rows 0..count-1 of every array are the tokens. Of two tokens in one voxel (voxel_index.py) one stays.
Removals compact the rows in order. Coarse bounds over consecutive rows (blocks.py) are kept
up to date, so that a read's cost follows what is in view.
"""

from __future__ import annotations

import math

import numpy as np

from mirage_ros.memory.blocks import BLOCK_ROWS, BOUND_BYTES_PER_ROW, Blocks
from mirage_ros.memory.rows import (
    SURFEL_FIELDS,
    VIEW_BYTES,
    Fields,
    ViewTable,
    as_bytes,
    compact,
    copy_rows,
    token_fields,
)
from mirage_ros.memory.surfels import (
    MOST_VIEWS,
    Surfels,
    last_used,
    of_views,
    present,
    renumber,
    view_numbers,
)
from mirage_ros.memory.voxel_index import (
    BYTES_PER_ROW,
    EMPTY,
    by_place,
    fill_table,
    is_full,
    new_table,
    place_rows,
)

SCRATCH_BYTES_PER_ROW = 24
"""Sorting and placing rows while they are merged, or choosing rows while evicting."""

_KEPT_SHARE = 16
"""One in so many tokens goes when the cap is reached: often enough to keep nearly all, rarely
enough to cost little. One in so many views likewise."""

_VIEWS_SHARE = 18
"""One in so many bytes of the cap is for views at most, and an eighth of that while they grow."""


def row_bytes(channels: int, dtype: str) -> int:
    """Bytes one token takes, without its share of table, bounds and view."""
    fields = token_fields(channels, dtype).values()
    return sum(np.dtype(d).itemsize * math.prod(shape) for d, shape in fields)


class TokenStore:
    """Arrays of tokens whose allocation never exceeds `max_bytes`, growth and eviction included."""

    def __init__(self, channels: int, max_bytes: int, dtype: str) -> None:
        self.channels, self.dtype = channels, dtype
        views = min(max(max_bytes // _VIEWS_SHARE // VIEW_BYTES, 8), MOST_VIEWS)
        per_row = row_bytes(channels, dtype) * 9 // 8 + BYTES_PER_ROW
        per_row += SCRATCH_BYTES_PER_ROW + BOUND_BYTES_PER_ROW
        self.max_rows = min((max_bytes - views * VIEW_BYTES * 9 // 8) // per_row, 2**30)
        self.count = 0
        self.arrays = self._allocate(0)
        self.table, self.blocks, self.views = new_table(0), Blocks.empty(0), ViewTable(views)

    def __getitem__(self, name: str) -> np.ndarray:
        """The live rows of one field."""
        return self.arrays[name][: self.count]

    @property
    def capacity(self) -> int:
        return len(self.arrays["used"])

    @property
    def nbytes(self) -> int:
        bounds = self.blocks.bounds[: -(-self.count // BLOCK_ROWS)]
        own = self.count * row_bytes(self.channels, self.dtype)
        return own + self.table.nbytes + bounds.nbytes + self.views.nbytes

    @property
    def surfels(self) -> Surfels:
        """What the z-buffer reads of the live rows."""
        return self._surfels(self.count)

    @property
    def stamps_ns(self) -> np.ndarray:
        """The stamp of each token's view."""
        return of_views(self["places"], self.views["stamps_ns"])

    @property
    def frame_ids(self) -> np.ndarray:
        """The id of each token's frame."""
        return of_views(self["places"], self.views["frame_ids"])

    def insert(self, rows: dict[str, np.ndarray], views: dict[str, np.ndarray]) -> int:
        """Merges rows in order; in an occupied voxel a real picture's token wins, then the finer
        footprint, then the newer.

        `views` are what `views_of` gives; the rows name theirs by its number there.
        Returns how many rows were stored.
        """
        stored, once = 0, max(self.views.most // 4, 1)
        for first in range(0, len(views["focals"]), once):
            some = rows
            if len(views["focals"]) > once:
                chosen = view_numbers(rows["places"]) // once == first // once
                some = {name: values[chosen] for name, values in rows.items()}
            for start in range(0, len(some["places"]), max(self.max_rows, 1)):
                part = slice(start, start + self.max_rows)
                stored += self._insert_part({n: v[part] for n, v in some.items()}, views)
        return stored

    def _insert_part(self, rows: dict[str, np.ndarray], views: dict[str, np.ndarray]) -> int:
        rows = {name: np.ascontiguousarray(rows[name], a.dtype) for name, a in self.arrays.items()}
        rows["places"] = rows["places"].copy()
        alive = present(rows["places"], len(views["focals"]))
        first = self._admit({name: values[alive] for name, values in views.items()})
        renumber(rows["places"], first + _numbers(alive))
        new = self._as_surfels(rows)
        order = by_place(new, self.count)
        to, done, stored = np.empty(len(order), np.int32), 0, 0
        while done < len(order):
            self._make_room(len(order) - done)
            old = tuple(self._surfels(self.capacity))
            bounds, start = (self.blocks.bounds, self.blocks.groups), done
            self.count, done, placed = place_rows(
                old, self.count, self.table, bounds, tuple(new), order, start, to
            )
            for name in rows.keys() - {"places"}:
                arrays = as_bytes(self.arrays[name]), as_bytes(rows[name])
                copy_rows(*arrays, order, to, start, done)
            stored += placed
        return stored

    def keep(self, mask: np.ndarray) -> int:
        """Drops the rows where the mask is False, keeping order; returns how many went."""
        before = self.count
        for array in self.arrays.values():
            compact(as_bytes(array), mask)
        self.count = int(mask.sum())
        self.blocks.refit(self.surfels)
        self._fill(self.table if self.count else new_table(0))
        return before - self.count

    def restore(self, rows: dict[str, np.ndarray], views: dict[str, np.ndarray]) -> None:
        """Copies saved rows and views in place of its own; of too many, those that evicting
        leaves."""
        places, stamps = rows["places"], views["stamps_ns"]
        gone = _least_used(rows["used"], places, stamps, len(stamps) - self.views.most)
        kept = of_views(places, ~gone)
        if (over := int(kept.sum()) - self.max_rows) > 0:
            kept[kept] = _without_oldest(rows["used"][kept], places[kept], stamps, over)
        self.count = int(kept.sum())
        self.arrays = self._allocate(self._capacity_for(self.count))
        for name, array in rows.items():
            self[name][:] = array if kept.all() else array[kept]
        self.views, alive = ViewTable(self.views.most), present(self["places"], len(stamps))
        self.views.make_room(int(alive.sum()))
        self.views.add({name: values[alive] for name, values in views.items()})
        renumber(self["places"], _numbers(alive))
        self.blocks = Blocks.empty(self.capacity)
        self.blocks.refit(self.surfels)
        self._fill(new_table(self.count))

    def copy(self) -> TokenStore:
        """An independent store with the same tokens."""
        twin = self.share()
        twin.arrays = self._of_rows(self.capacity)
        twin.table, twin.blocks = self.table.copy(), self.blocks.copy()
        twin.views = self.views.copy()
        return twin

    def share(self) -> TokenStore:
        """A store on the same arrays."""
        twin = object.__new__(TokenStore)
        twin.__dict__.update(self.__dict__, arrays=dict(self.arrays))
        return twin

    def fields(self) -> Fields:
        """Name -> dtype and row shape of all that a token has."""
        return token_fields(self.channels, self.dtype)

    def _allocate(self, rows: int) -> dict[str, np.ndarray]:
        return {name: np.empty((rows, *shape), d) for name, (d, shape) in self.fields().items()}

    def _of_rows(self, rows: int) -> dict[str, np.ndarray]:
        """The fields with room for so many tokens, those there are copied."""
        own = self._allocate(rows)
        for name, array in own.items():
            array[: self.count] = self[name]
        return own

    def _surfels(self, rows: int) -> Surfels:
        return self._as_surfels({name: self.arrays[name][:rows] for name in SURFEL_FIELDS})

    def _as_surfels(self, rows: dict[str, np.ndarray]) -> Surfels:
        """Rows whose views are the store's own."""
        views = (self.views[name] for name in ("rays", "focals", "real"))
        return Surfels(*(rows[name] for name in SURFEL_FIELDS), *views)

    def _make_room(self, wanted: int) -> None:
        """At least one free row, and a table that is not full (nor twice in memory)."""
        if self.count == self.capacity:
            if self.capacity < self.max_rows:
                self._grow(self.count + wanted)
            else:
                number = max(1, self.count // _KEPT_SHARE)
                stamps = self.views["stamps_ns"]
                self.keep(_without_oldest(self["used"], self["places"], stamps, number))
        if is_full(self.table, self.count):
            self.table = None
            self._fill(new_table(self.count))

    def _grow(self, wanted: int) -> None:
        """Doubles; from an eighth of the cap on goes straight to the cap.

        So the old rows never add more than an eighth to the whole. Pages that hold no token yet
        are not touched. All is there before any of it is taken over: where memory runs out in
        between, compiled loops must not meet arrays of unequal lengths.
        """
        rows = self._capacity_for(max(wanted, 2 * self.capacity, 256))
        self.arrays, self.blocks = self._of_rows(rows), self.blocks.grown(rows)

    def _capacity_for(self, rows: int) -> int:
        return self.max_rows if 8 * rows > self.max_rows else rows

    def _fill(self, table: np.ndarray) -> None:
        """Takes a table, and enters all rows."""
        table.fill(EMPTY)
        self.table = table
        fill_table(table, tuple(self.surfels))

    def _admit(self, views: dict[str, np.ndarray]) -> int:
        """Takes in views, in the place of those without tokens and then of those whose tokens
        were seen least recently; returns the first's number."""
        known, wanted = self.views, len(views["focals"])
        if known.count + wanted > known.capacity:
            self._drop_views(0)
            free = known.most - known.most // _KEPT_SHARE
            if known.count + wanted > free:
                self._drop_views(known.count + wanted - free)
            known.make_room(wanted)
        return known.add(views)

    def _drop_views(self, number: int) -> None:
        """Forgets the tokens of the `number` least used views, then all views without tokens."""
        known = self.views
        gone = _least_used(self["used"], self["places"], known["stamps_ns"], number)
        if gone.any():
            self.keep(of_views(self["places"], ~gone))
        alive = present(self["places"], known.count)
        known.keep(alive)
        renumber(self["places"], _numbers(alive))


def _without_oldest(used, places, stamps_ns, number: int) -> np.ndarray:
    """False for the tokens that won a cell longest ago, those of the oldest views among equals.

    Takes time and memory (at most 20 bytes a row) in proportion to the rows.
    """
    last = np.partition(used, number - 1)[number - 1]
    keep, equal = used >= last, used == last
    stamps = of_views(places, stamps_ns, equal)
    number -= len(used) - int(np.count_nonzero(keep))
    youngest = np.partition(stamps, number - 1)[number - 1]
    older = stamps < youngest
    some = np.flatnonzero(stamps == youngest)[: number - int(np.count_nonzero(older))]
    older[some] = True
    keep[equal] = ~older
    return keep


def _least_used(used, places, stamps_ns, number: int) -> np.ndarray:
    """True for the `number` views whose tokens won a cell longest ago, the oldest first among
    equals."""
    gone = np.zeros(len(stamps_ns), bool)
    if number > 0:
        last = last_used(used, places, len(stamps_ns))
        gone[np.lexsort((stamps_ns, last))[:number]] = True
    return gone


def _numbers(alive: np.ndarray) -> np.ndarray:
    """The number that each view has when only those alive are counted."""
    return np.cumsum(alive) - 1

"""The latent spatial memory: write lifts tokens into 3D, read shows them to new cameras.

After "Latent Spatial Memory for Video World Models" (arXiv 2606.09828): the model's own
latents, one token per latent cell, kept in the world. Tokens are never averaged; what wins a
voxel is decided in store.py, what wins a cell in zbuffer.py.

Tokens of one surface seen from near and from far live side by side (their voxels have
other levels), like the levels of a mip map: the read takes the one whose scale fits.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt16

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.blocks import SplatRule
from mirage_ros.memory.files import LAST_TICK, SavedMemory, load_memory, save_memory
from mirage_ros.memory.lifting import by_surfaces, cell_axes_of, in_whole_cells, lift_surfels, patches_of
from mirage_ros.memory.rows import (
    FEATURE_TYPES,
    LARGEST,
    latents_of_rows,
    representable,
    rows_of_latents,
    views_of,
)
from mirage_ros.memory.store import TokenStore, row_bytes
from mirage_ros.memory.surfels import (
    Surfels,
    cosines_of,
    footprints_of,
    met_in_tokens,
    normals_of,
    of_views,
    positions_of,
)
from mirage_ros.memory.zbuffer import Winners, find_winners
from mirage_ros.protocol import Patches, Points, Readout

__all__ = ["LatentMemory", "MemoryConfig", "Points"]
LEAST_COSINE = 0.2  # planes that were seen more grazingly are taken for seen so


@dataclass(frozen=True)
class MemoryConfig:
    """How a memory keeps and reads its tokens.

    Attributes:
        channels: of a latent.
        max_bytes: the hard cap on the memory's bytes.
        rule: of reading.
        dtype: what latents are kept as. "int6": 6 bits a number, times a scale of the token's
            own, which decoded pictures do not tell from "float16" (docs/log.md); "int8" and "int4"
            likewise; "bfloat16" is coarser than "float16", but of wider range.
        device: None reads with CPU threads. The name of a torch device ("cuda") keeps a copy of
            what the z-buffer needs there and reads with torch: the same bits.
    """

    channels: int
    max_bytes: int = 512 * 2**20
    rule: SplatRule = field(default_factory=SplatRule)
    dtype: str = "int6"
    device: str | None = None


class LatentMemory:
    """A bounded set of latent tokens in the world.

    Row numbers in a Readout's `index` hold until the next write or erase.
    """

    def __init__(self, config: MemoryConfig) -> None:
        if config.max_bytes < 64 * 2**10 + 4 * row_bytes(config.channels, "float16"):
            raise MirageError(
                f"The memory's cap is {config.max_bytes} bytes; give at least 128 KiB to it."
            )
        if config.dtype not in FEATURE_TYPES:
            raise MirageError(
                f"Latents cannot be kept as {config.dtype}; "
                f"choose one of {', '.join(FEATURE_TYPES)}."
            )
        self.config = config
        self._tick = 0
        self._own(TokenStore(config.channels, config.max_bytes, config.dtype))

    @property
    def tokens(self) -> int:
        return self._store.count

    @property
    def nbytes(self) -> int:
        """Bytes that tokens and index take; never above `config.max_bytes`."""
        return self._store.nbytes

    def write(
        self,
        latents: Float[torch.Tensor, "f c h w"],
        cameras: Camera,
        depth_m: Float[np.ndarray, "f h w"],
        static: Bool[np.ndarray, "f h w"],
        stamps_ns: Int[np.ndarray, "f"],
        rgb: UInt8[np.ndarray, "f h w 3"],
        frame_ids: Int[np.ndarray, "f"],
        parts: int = 1,
        real: bool = False,
    ) -> int:
        """Lifts the static cells of finite positive depth and merges them, frame by frame.

        `cameras` is the batch at latent size, or at `parts` times that: then every cell is a part
        of a latent cell, and has that one's whole latent. Returns how many tokens were stored (new
        ones and replacements). Refuses wrong shapes and latents that are not finite with a
        MirageError, before anything is changed. Tokens of `real` pictures are replaced by those of
        other real ones alone.
        """
        shape = (len(cameras), *cameras.size)
        depth = np.asarray(depth_m, np.float32)
        self._check_write(latents, depth, np.asarray(static), np.asarray(rgb), shape)
        chosen = np.asarray(static, bool) & np.isfinite(depth) & (depth > 0)
        if not chosen.any():
            return 0
        features = rows_of_latents(latents, chosen, self.config.dtype)
        if features is None:
            raise MirageError(
                "Latents to remember hold NaN, infinity or values beyond "
                f"{self.config.dtype}; check the model."
            )
        rows = lift_surfels(cameras, depth, chosen) | features
        rows["rgb"] = np.asarray(rgb, np.uint8)[chosen]
        rows["used"] = np.full(len(rows["rgb"]), self._next_tick(), np.uint16)
        views = views_of(cameras, stamps_ns, frame_ids, parts, real)
        return self._owned_store().insert(rows, views)

    def write_new(
        self,
        latents: Float[torch.Tensor, "f c h w"],
        cameras: Camera,
        depth_m: Float[np.ndarray, "f hp wp"],
        static: Bool[np.ndarray, "f h w"],
        stamps_ns: Int[np.ndarray, "f"],
        rgb: UInt8[np.ndarray, "f h w 3"],
        frame_ids: Int[np.ndarray, "f"],
        rewrite_log_scale: float = 0.35,
        real: bool = False,
    ) -> int:
        """Writes only the cells that memory does not show yet, or shows too coarsely.

        Frame by frame, each seeing what the frames before it wrote: so a surface keeps the tokens of its first view
        until a view comes whose cells are finer by more than `rewrite_log_scale` (natural log). Where memory shows a
        token of a real picture it stays, however coarse, unless this one is `real` too. Returns how many were stored.

        Depth may be finer than latents, see `write_by_surfaces`.
        """
        self._check_values(latents)
        stamps, ids, stored = np.asarray(stamps_ns), np.asarray(frame_ids), 0
        for i in range(len(cameras)):
            one = slice(i, i + 1)
            shown = self.read(cameras[one])
            kept = shown.visible & (shown.log_scale <= rewrite_log_scale)
            if not real:
                kept |= self.shows_real(shown)
            stored += self.write_by_surfaces(
                latents[one], cameras[one], depth_m[one], np.asarray(static[one]) & ~kept, stamps[one],
                rgb[one], ids[one], real,
            )  # fmt: skip
        return stored

    def write_by_surfaces(
        self, latents, cameras: Camera, depth_m, static, stamps_ns, rgb, frame_ids, real=False
    ) -> int:
        """As `write`, but depth may be finer than latents: then cells that show two surfaces are
        kept by parts (lifting.py)."""
        self._check_values(latents)
        groups = by_surfaces(latents, cameras, np.asarray(depth_m), np.asarray(static), np.asarray(rgb))
        return sum(
            self.write(*cells, stamps_ns, colours, frame_ids, parts, real)
            for *cells, colours, parts in groups
        )

    def read(self, cameras: Camera) -> Readout:
        """What f cameras at latent size see of the memory (see zbuffer.py for the rule)."""
        store, config = self._store, self.config
        winners = find_winners(self._surfels(), cameras, config.rule, store.blocks)
        index, visible = winners.index, winners.index >= 0
        rows = index[visible]
        tick = self._next_tick()
        self._owned_use()[rows] = tick
        place, depth_m = met_in_tokens(store.surfels, cameras.world_from_camera, cameras.intrinsics, winners)
        place, log_scale = self._in_whole_cells(place, winners, rows)
        return Readout(
            latents=latents_of_rows(store.arrays, index, config.channels, config.dtype),
            visible=visible,
            depth_m=depth_m,
            index=index,
            place=place,
            log_scale=log_scale,
        )

    def measure(self, cameras: Camera) -> tuple[Float32[np.ndarray, "f h w"], Bool[np.ndarray, "f h w"]]:
        """Depth along z of the surfaces that f cameras of any size meet, NaN where there is none, and where
        a real picture showed them.

        Unlike `read` it changes nothing: what is measured does not count as used.
        """
        store = self._store
        winners = find_winners(self._surfels(), cameras, self.config.rule, store.blocks)
        real, seen = winners.index >= 0, winners.index >= 0
        real[seen] = of_views(store["places"][winners.index[seen]], store.views["real"])
        return met_in_tokens(store.surfels, cameras.world_from_camera, cameras.intrinsics, winners)[1], real

    def patches(self, low: Float[np.ndarray, "b 3"], high: Float[np.ndarray, "b 3"]) -> Patches:
        """The surfaces of the tokens in any of b axis-aligned boxes of the world. Changes nothing."""
        return patches_of(self._store.surfels, low, high)

    def _in_whole_cells(self, place: Float32[np.ndarray, "f 2 h w"], winners: Winners, rows: Int[np.ndarray, "n"]):
        """`place` and `log_scale` of a Readout, of places in tokens; `rows` are those of the visible cells."""
        store, visible = self._store, winners.index >= 0
        log_scale = np.log(np.where(visible, winners.ratio, 1)).astype(np.float32)
        within = place.transpose(0, 2, 3, 1)
        within[visible], log_scale[visible] = in_whole_cells(
            store["places"][rows], store.views["parts"], within[visible], log_scale[visible]
        )
        return place, log_scale

    def source_frames(self, readout: Readout) -> Int[np.ndarray, "f h w"]:
        """The id of the frame in which each cell's winner was born, -1 unseen."""
        frames = np.full(readout.index.shape, -1, np.int32)
        places = self._store["places"][readout.index[readout.visible]]
        frames[readout.visible] = of_views(places, self._store.views["frame_ids"])
        return frames

    def shows_real(self, readout: Readout) -> Bool[np.ndarray, "f h w"]:
        """Where the winner is a token of a real picture."""
        real = readout.visible.copy()
        places = self._store["places"][readout.index[readout.visible]]
        real[readout.visible] = of_views(places, self._store.views["real"])
        return real

    def references(self, readout: Readout, count: int) -> list[int]:
        """At most `count` source frames, most winners first, then the lower id."""
        frames = self.source_frames(readout)
        ids, winners = np.unique(frames[frames >= 0], return_counts=True)
        return [int(i) for i in ids[np.argsort(-winners, kind="stable")][:count]]

    def erase(self, box_min: Float[np.ndarray, "3"], box_max: Float[np.ndarray, "3"]) -> int:
        """Forgets the tokens in an axis-aligned box of the world; returns how many."""
        low, high = np.asarray(box_min, np.float64), np.asarray(box_max, np.float64)
        if low.shape != (3,) or high.shape != (3,) or not (low <= high).all():
            raise MirageError(
                f"The box to erase spans {low.tolist()} to {high.tolist()}; "
                "give two corners (x, y, z) with min <= max."
            )
        xyz = positions_of(self._store.surfels)
        return self._owned_store().keep(~((xyz >= low) & (xyz <= high)).all(-1))

    def erase_frame(self, frame_id: int) -> int:
        """Forgets the tokens born in a frame; returns how many."""
        return self._owned_store().keep(self._store.frame_ids != frame_id)

    def forget(self, rows: Bool[np.ndarray, "n"]) -> int:
        """Forgets the marked tokens, in the order of `to_points`; returns how many."""
        return self._owned_store().keep(~rows)

    @property
    def from_real(self) -> Bool[np.ndarray, "n"]:
        """Which tokens a real picture showed, in the order of `to_points`."""
        return of_views(self._store["places"], self._store.views["real"])

    @property
    def positions_m(self) -> Float32[np.ndarray, "n 3"]:
        """Where each token lies in the world, in the order of `to_points`."""
        return positions_of(self._store.surfels)

    @property
    def footprints_m(self) -> Float[np.ndarray, "n"]:
        """Width of each token's cell in the world, in the order of `to_points`."""
        return footprints_of(self._store.surfels)

    @property
    def cell_axes_m(self) -> Float32[np.ndarray, "n 2 3"]:
        """How far each token's plane goes per column and per row of its view (lifting.py), in the order of `to_points`."""
        return cell_axes_of(self._store.surfels, LEAST_COSINE)

    @property
    def normals(self) -> Float32[np.ndarray, "n 3"]:
        """The direction that each token faces, in the order of `to_points`."""
        return normals_of(self._store.surfels)

    def clear(self) -> None:
        """Forgets everything."""
        self._leave()
        self._own(TokenStore(self.config.channels, self.config.max_bytes, self.config.dtype))

    def to_points(self) -> Points:
        """Copies of what a viewer needs; a token keeps its colour for life."""
        surfels = self._store.surfels
        rgb, written_ns = self._store["rgb"].copy(), self._store.stamps_ns
        return Points(positions_of(surfels), rgb, cosines_of(surfels), written_ns)

    def fork(self) -> LatentMemory:
        """A memory of its own that shares the arrays until either of the two is changed."""
        twin = object.__new__(LatentMemory)
        twin.__dict__.update(self.__dict__, _store=self._store.share())
        for sharers in (self._sharers, self._use_sharers):
            sharers.add(twin)
        return twin

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file, all or nothing."""
        store = self._store
        rows = {name: store[name] for name in store.fields()}
        save_memory(
            path, SavedMemory(store.channels, self.config.max_bytes, store.dtype, self._tick, rows, store.views)
        )

    @classmethod
    def load(cls, path: str | os.PathLike, config: MemoryConfig | None = None) -> LatentMemory:
        """A saved memory; without a config it keeps its channels, cap and type. A file that is
        missing, damaged, of another version or unfit raises MirageError. More tokens than the cap
        holds lose the ones least recently seen."""
        channels, dtype = (None, None) if config is None else (config.channels, config.dtype)
        saved = load_memory(path, channels, dtype)
        memory = cls(config or MemoryConfig(saved.channels, saved.max_bytes, dtype=saved.dtype))
        memory._store.restore(saved.rows, saved.views)
        memory._tick = saved.tick
        return memory

    def _own(self, store: TokenStore) -> None:
        """Takes a store that no other memory has."""
        self._store = store
        self._sharers, self._use_sharers = weakref.WeakSet([self]), weakref.WeakSet([self])
        self._on_device: Surfels | None = None

    def _owned_store(self) -> TokenStore:
        """The store, to change it: a copy if another living memory shares it."""
        if len(self._sharers) > 1:
            own = self._store.copy()
            self._leave()
            self._own(own)
        self._on_device = None
        return self._store

    def _owned_use(self) -> UInt16[np.ndarray, "n"]:
        """When each token last won a cell, to change it: reads of one fork are not the other's."""
        if len(self._use_sharers) > 1:
            used, count = self._store.arrays["used"], self._store.count
            own = np.empty_like(used)
            own[:count] = used[:count]
            self._use_sharers.discard(self)
            self._use_sharers = weakref.WeakSet([self])
            self._store.arrays["used"] = own
        return self._store["used"]

    def _leave(self) -> None:
        self._sharers.discard(self)
        self._use_sharers.discard(self)

    def _surfels(self) -> Surfels:
        """What the z-buffer reads, on the memory's device."""
        if self.config.device is None:
            return self._store.surfels
        if self._on_device is None:
            self._on_device = self._store.surfels.to(self.config.device)
        return self._on_device

    def _next_tick(self) -> int:
        """The number of this read or write. When 16 bits are used up all are halved, so that what
        was seen long ago is distinguished more coarsely."""
        if self._tick == LAST_TICK:
            self._owned_use()[:] //= 2
            self._tick //= 2
        self._tick += 1
        return self._tick

    def _check_values(self, latents) -> None:
        """What is written in several goes is checked before the first of them."""
        if not representable(latents):
            raise MirageError(
                f"Latents to remember hold NaN or values beyond {LARGEST:,.0f}; check the model."
            )

    def _check_write(self, latents, depth, static, rgb, shape) -> None:
        wanted = (shape[0], self.config.channels, *shape[1:])
        if tuple(latents.shape) != wanted:
            raise MirageError(
                f"Latents to remember have the shape {tuple(latents.shape)}; the cameras and the "
                f"memory need {wanted}."
            )
        if depth.shape != shape or static.shape != shape or rgb.shape != (*shape, 3):
            raise MirageError(
                f"Depth {depth.shape}, static mask {static.shape} and colours {rgb.shape} to "
                f"remember must all have the latent grid {shape}."
            )

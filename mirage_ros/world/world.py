"""A generated world: one picture in, frames for any planned cameras out; and rigs of cameras in it.

    world = World(model)
    first = world.reset(picture, camera)
    for chunk in world.rollout(cameras, stamps_ns): ...

A real picture with depth tells two things: where surfaces are, and that nothing stands before them. So when one is
observed, every token in view that lies at a measured surface or before it goes, real ones of an older picture too, and
the picture's own tokens come in. What lies behind, or where depth is invalid, stays.

The cameras of a rig have one memory, and each has frames that precede its next ones. A rig is stepped
camera after camera: what the first one imagines, the second one remembers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import cell_colours, cell_share, fit_seed
from mirage_ros.memory.memory import LatentMemory
from mirage_ros.memory.rows import FIRST_OBSERVED
from mirage_ros.protocol import Chunk, SpatialMemory, WorldModel, readout_cells, readout_side
from mirage_ros.world.cycle import Cycle, LatentBackend, Plan, memory_config, overlapped
from mirage_ros.world.files import load_world, save_world
from mirage_ros.world.state import (
    KEPT_LATENTS,
    MAX_DEPTH_M,
    REWRITE_LOG_SCALE,
    MakeBackend,
    WorldConfig,
    WorldState,
    check_latents,
    check_plan,
    frames_per_latent,
    latent_size,
    moving_in_real,
    perceive_seed,
)

__all__ = ["Rig", "World", "WorldConfig"]

Result = TypeVar("Result")
FIRST_ID = 2**24
"""Ids of camera k of a rig begin at k times this, so that every id names one picture of one camera."""
MAX_CAMERAS = FIRST_OBSERVED // FIRST_ID - 1
TOLERANCE = 0.05
"""A token this much behind a measured surface, relative to its depth, is taken for the surface."""
KEPT_OBSERVED = 64
"""So many latents of observed pictures are kept, for reference."""


class World:
    """A generated world, and the one owner of its state.

    A call that fails leaves the world as it was, whatever failed: a state is never changed, each
    call works on a fork and takes it over as its last act. So memory is there twice while a call
    writes to it.

    Args:
        backend: makes what gives the world its memory, from model and config.
    """

    def __init__(
        self,
        model: WorldModel,
        config: WorldConfig = WorldConfig(),
        backend: MakeBackend = LatentBackend,
    ) -> None:
        self.cycle = Cycle(model, config, backend)
        self.model, self.config = model, config
        self._state: WorldState | None = None

    @property
    def state(self) -> WorldState:
        """What there is now. Never changed, but its memory is: take a snapshot to keep it."""
        if self._state is None:
            raise MirageError("The world has no seed yet; call reset with a picture first.")
        return self._state

    @property
    def memory(self) -> SpatialMemory:
        return self.state.memory

    @property
    def frames_seen(self) -> int:
        return 0 if self._state is None else self._state.frames_seen

    @property
    def camera(self) -> Camera:
        """The last frame's camera."""
        return self.state.camera

    @property
    def stamp_ns(self) -> int:
        """The last frame's stamp."""
        return self.state.stamp_ns

    def reset(
        self,
        rgb: np.ndarray,
        camera: Camera,
        depth_m: np.ndarray | None = None,
        stamp_ns: int = 0,
    ) -> Chunk:
        """A new world around one uint8 (H, W, 3) picture and, if there is one, its (H, W) depth.

        Returns one frame, the seed as the model decodes it.
        The picture's middle is cropped to the model's aspect and resized, the intrinsics
        follow; a SeedWarning says so where much of it is lost. Depth is metric and may hold NaN:
        such holes are completed from what was measured around them, or stay open until they are
        imagined. Without depth perception gives all of it. Nothing that is imagined later replaces
        what this picture shows. Bad input raises MirageError.
        """
        self._state, chunk = self.cycle.first(rgb, camera, depth_m, stamp_ns)
        return chunk

    def change(self, change: Callable[[WorldState], tuple[WorldState, Result]]) -> Result:
        """Takes over the state that `change` makes of this one, and returns what else it made.

        The new state must be no fork that others write to, and this one must stay as it is.
        """
        self._state, result = change(self.state)
        return result

    def step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> Chunk:
        """The next chunk: at most `model.chunk_frames` cameras at increasing stamps.

        Frames seen before come back, the rest is imagined. Bad plans raise MirageError.
        """
        return self.change(lambda state: self.cycle.stepped(state, cameras, stamps_ns))

    def rollout(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> Iterator[Chunk]:
        """Steps through a plan of any length, yielding chunk after chunk.

        With `overlap_decode` the world may be looked at and saved between two chunks but not changed,
        else the next one raises MirageError. A rollout that fails or is left early leaves the world
        after the last chunk that it gave.
        """
        stamps = check_plan(cameras, stamps_ns, self.state.stamp_ns, None)
        starts = range(0, len(stamps), self.model.chunk_frames)
        parts = [slice(start, start + self.model.chunk_frames) for start in starts]
        plans = [(cameras[part], stamps[part]) for part in parts]
        if self.config.overlap_decode:
            yield from self._overlapped(plans)
        else:
            yield from (self.step(*plan) for plan in plans)

    def _overlapped(self, plans: Sequence[Plan]) -> Iterator[Chunk]:
        with closing(overlapped(self.cycle, self.state, plans)) as chunks:
            for state, chunk in chunks:
                self._state = state
                yield chunk
                if self._state is not state:
                    raise MirageError(
                        "The world was changed between two chunks of a rollout with overlap_decode, "
                        "whose next chunk was begun already; end the rollout first, or set it to false."
                    )

    def observe(
        self, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None, stamp_ns: int, adds: bool = False
    ) -> tuple[int, int]:
        """Writes one uint8 (H, W, 3) picture with metric (H, W) depth into memory.

        It takes the place of what memory had there; where it only `adds`, what real pictures showed as
        finely already stays, and what stands clearly before its surfaces goes.

        Holes in depth (NaN) are completed from what was measured around them (images.completed); where
        they stay nothing changes. +inf is free as far as one can see. Time and the camera stay where
        they are. Returns how many tokens went, and how many came. Raises MirageError for bad input, no
        world, or a memory that cannot be corrected.
        """
        return self.change(
            lambda state: observed(
                self.model, self.config, state, rgb, camera, depth_m, stamp_ns, adds
            )
        )

    def erase(self, box_min: Float[np.ndarray, "3"], box_max: Float[np.ndarray, "3"]) -> int:
        """Forgets what memory holds in an axis-aligned box; returns how many tokens went."""
        fork = self.state.forked()
        erased = fork.memory.erase(box_min, box_max)
        self._state = fork
        return erased

    def redate(self, stamp_ns: int) -> None:
        """Sets the stamp of the last frame: what comes next may bear any later one."""
        self._state = replace(self.state, stamp_ns=int(stamp_ns))

    def snapshot(self) -> WorldState:
        """The world as it is now; cheap, memory is shared until one side changes."""
        return self.state.forked()

    def restore(self, state: WorldState) -> None:
        """Back to a snapshot, which stays good for further restores."""
        self._state = state.forked()

    def remember_as(self, state: WorldState) -> None:
        """Takes over all of a snapshot but its time and camera."""
        now = self.state
        self._state = replace(state.forked(), stamp_ns=now.stamp_ns, camera=now.camera)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """A block after which the world is as it was before, if the block raises."""
        before = self._state
        try:
            yield
        except BaseException:
            self._state = before
            raise

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the whole world to a folder, all or nothing."""
        save_world(self.state, self.model, folder)

    def load(self, folder: str | os.PathLike) -> None:
        """Takes over a saved world of the same model; a bad folder raises MirageError."""
        self._state = load_world(folder, self.model, memory_config(self.model, self.config))


class Rig:
    """The cameras of one world. The first one is the world's own.

    Args:
        world: has to be reset before the first step.
        cameras: how many.
    """

    def __init__(self, world: World, cameras: int) -> None:
        if not 1 <= cameras <= MAX_CAMERAS:
            raise MirageError(f"A rig got {cameras} cameras; give 1 to {MAX_CAMERAS}.")
        if cameras > 1 and frames_per_latent(world.model) > 1:
            raise MirageError(
                f"A rig of {cameras} cameras got the model {world.model.name}, whose video codec "
                "decodes one stream; give one camera, or a model with a latent per frame."
            )
        self.world, self.cameras = world, cameras

    def step(self, cameras: Sequence[Camera], stamps_ns: Int[np.ndarray, "f"]) -> tuple[Chunk, ...]:
        """The next chunk of every camera at the same stamps; `cameras` holds one batch for each.

        Bad plans raise MirageError, and none of the cameras has written anything.
        """
        if len(cameras) != self.cameras:
            raise MirageError(f"The rig has {self.cameras} cameras and got {len(cameras)} plans.")
        if self.cameras == 1:
            return (self.world.step(cameras[0], stamps_ns),)
        return self.world.change(lambda state: self._stepped(state, cameras, stamps_ns))

    def _stepped(
        self, start: WorldState, cameras: Sequence[Camera], stamps_ns: Int[np.ndarray, "f"]
    ) -> tuple[WorldState, tuple[Chunk, ...]]:
        latents, chunks, after, last = dict(start.latents), [], [], start
        for index in range(self.cameras):
            entry = self._entry(index, start, latents)
            entry = replace(entry, memory=last.memory, free_space=last.free_space)
            last, chunk = self.world.cycle.stepped(entry, cameras[index], stamps_ns)
            after.append(last)
            chunks.append(chunk)
            latents |= self._new(last, len(chunk.frames))
        kept = self._kept(latents, [state.frames_seen for state in after])
        state = replace(after[0], latents=kept, memory=last.memory, free_space=last.free_space)
        return state, tuple(chunks)

    def _entry(self, index: int, start: WorldState, latents: dict) -> WorldState:
        """The world as camera `index` meets it: its own last frames precede, at first the seed."""
        if index == 0:
            return replace(start, latents=dict(latents))
        base = index * FIRST_ID
        own = [i for i in latents if base <= i < base + FIRST_ID]
        if not own:
            own = list(range(base, base + max(1, self.world.model.preceding_frames)))
            latents |= dict.fromkeys(own, latents[0])
        return replace(start, latents=dict(latents), frames_seen=max(own) + 1)

    def _new(self, after: WorldState, count: int) -> dict:
        ids = range(after.frames_seen - count, after.frames_seen)
        return {i: after.latents[i] for i in ids if i in after.latents}

    def _kept(self, latents: dict, ends: list[int]) -> dict:
        """The seed's latent and the last ones of each camera."""
        return {
            i: latent
            for i, latent in latents.items()
            if i == 0 or i >= FIRST_OBSERVED or any(end - KEPT_LATENTS <= i < end for end in ends)
        }


def observed(
    model: WorldModel,
    config: WorldConfig,
    state: WorldState,
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    stamp_ns: int,
    adds: bool = False,
) -> tuple[WorldState, tuple[int, int]]:
    """A state with the picture in its memory, and how many tokens went and came; see World.observe."""
    if depth_m is None:
        raise MirageError("An observation needs depth; send a depth picture with it.")
    if not isinstance(state.memory, LatentMemory):
        raise MirageError("This world's memory cannot be corrected; use the latent memory.")
    rgb, camera, depth_m = fit_seed(rgb, camera, depth_m, model.size)
    depth_m = completed(depth_m)
    latents = check_latents(model.encode(rgb[None]), model, 1)
    number = max((i for i in state.latents if i >= FIRST_OBSERVED), default=FIRST_OBSERVED - 1) + 1
    fork = state.forked()
    counts = _replaced(fork.memory, model, config, latents, rgb, camera, depth_m, stamp_ns, number, adds)
    kept = {
        i: latent for i, latent in state.latents.items() if i < FIRST_OBSERVED or i > number - KEPT_OBSERVED
    }
    kept[number] = latents[0].to("cpu", torch.float16)
    free_space = state.free_space.with_real(camera, depth_m, readout_side(model))
    return replace(fork, latents=kept, free_space=free_space), counts


def _replaced(
    memory: LatentMemory,
    model: WorldModel,
    config: WorldConfig,
    latents: Float[torch.Tensor, "1 c lh lw"],
    rgb: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    depth_m: Float[np.ndarray, "h w"],
    stamp_ns: int,
    frame_id: int,
    adds: bool,
) -> tuple[int, int]:
    """Writes a picture's tokens in place of those that its depth contradicts; how many went and came."""
    cameras = Camera.stack([camera])
    cells = cameras.resized(latent_size(model))
    fine = np.where(depth_m > MAX_DEPTH_M, np.float32(np.inf), depth_m)[None]
    depth = cell_depth(fine, model.stride)
    moving = moving_in_real(
        model,
        rgb[None],
        config.forget_moving,
        lambda: perceive_seed(model, rgb[None], cameras, depth_m).dynamic,
    )
    known = np.isfinite(depth) & (cell_share(moving, model.stride) <= config.max_dynamic_share)
    erased = memory.forget(contradicted(memory, cells[0], depth[0], adds))
    if adds:
        known &= lacking(memory, cells)
    stored = memory.write_by_surfaces(
        latents,
        cells,
        fine if readout_cells(model) > 1 else depth,
        known,
        np.array([stamp_ns], np.int64),
        cell_colours(rgb[None], model.stride),
        np.array([frame_id]),
        real=True,
    )
    return erased, stored


def lacking(memory: LatentMemory, cells: Camera) -> Bool[np.ndarray, "f h w"]:
    """The cells of cameras at latent size of which no real picture showed as much yet."""
    shown = memory.read(cells)
    real = memory.measure(cells)[1]
    return ~(shown.visible & real & (shown.log_scale <= REWRITE_LOG_SCALE))


def contradicted(
    memory: LatentMemory, camera: Camera, depth_m: Float[np.ndarray, "h w"], clearly: bool = False
) -> Bool[np.ndarray, "n"]:
    """The tokens that lie at or before a depth measured at latent size, in view; or those `clearly` before it, and
    before what was measured in the cells around: poses are a little off, and edges would be nibbled at."""
    if clearly:
        padded = np.pad(np.where(np.isnan(depth_m), -np.inf, depth_m), 1, constant_values=-np.inf)
        depth_m = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).min((-2, -1))
    points = memory.positions_m.astype(np.float64)
    pixels, depth = camera.project(points)
    with np.errstate(invalid="ignore"):
        column, row = np.rint(pixels).T
        inside = (depth > 0) & (row >= 0) & (row < camera.size[0])
        inside &= (column >= 0) & (column < camera.size[1])
    result = np.zeros(len(points), bool)
    index = np.nonzero(inside)[0]
    measured = depth_m[row[index].astype(int), column[index].astype(int)]
    footprint = memory.footprints_m[index]
    with np.errstate(invalid="ignore"):
        sign = -1 if clearly else 1
        result[index] = depth[index] <= measured * (1 + sign * TOLERANCE) + sign * footprint
    return result

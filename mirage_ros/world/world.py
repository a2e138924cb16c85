"""A generated world: one picture in, frames for any planned cameras out; and rigs of cameras in it.

    world = World(model)
    first = world.reset(picture, camera)
    for chunk in world.rollout(cameras, stamps_ns): ...

The cameras of a rig have one memory, and each has frames that precede its next ones. A rig is stepped
camera after camera: what the first one imagines, the second one remembers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.rows import FIRST_OBSERVED
from mirage_ros.protocol import Chunk, SpatialMemory, WorldModel, imagines
from mirage_ros.world.collision import Physics
from mirage_ros.world.cycle import Cycle, Decoded, Plan, overlapped
from mirage_ros.world.drawing import drawn
from mirage_ros.world.entities import STILL, Entities
from mirage_ros.world.files import load_world, save_world
from mirage_ros.world.imagining import joined
from mirage_ros.world.observing import LatentBackend, kept_up, memory_config, observed
from mirage_ros.world.sightings import Sighting
from mirage_ros.world.state import KEPT_LATENTS, MakeBackend, WorldConfig, WorldState, check_plan, frames_per_latent

__all__ = ["Rig", "Watch", "World", "WorldConfig"]

Result = TypeVar("Result")
FIRST_ID = 2**24
"""Ids of camera k of a rig begin at k times this, so that every id names one picture of one camera."""
MAX_CAMERAS = FIRST_OBSERVED // FIRST_ID - 1


class World:
    """A generated world, and the one owner of its state.

    A call that fails leaves the world as it was, whatever failed: a state is never changed, each
    call works on a fork and takes it over as its last act. So memory is there twice while a call
    writes to it.

    Args:
        backend: makes what gives the world its memory, from model and config.
        physics: moves the entities, such as physics.Mujoco(); None leaves them to their velocities.
    """

    def __init__(
        self,
        model: WorldModel,
        config: WorldConfig = WorldConfig(),
        backend: MakeBackend = LatentBackend,
        physics: Physics | None = None,
    ) -> None:
        self.physics = physics
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
    def entities(self) -> Entities:
        """The bodies that stand in the world."""
        return self.state.entities

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
        state, chunk = self.cycle.first(rgb, camera, depth_m, stamp_ns)
        self._take_over(state, Entities())
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
        return self.drawn(self.bare_step(cameras, stamps_ns))

    def bare_step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"], decoded: Decoded | None = None) -> Chunk:
        """As `step`, before the entities are drawn; see `drawn`, and `Cycle.stepped` for `decoded`."""
        return self.change(lambda state: self.lived(state, *self.cycle.stepped(state, cameras, stamps_ns, decoded)))

    def lived(self, before: WorldState, after: WorldState, chunk: Result, poses: Chunk | None = None) -> tuple[WorldState, Result]:
        """What follows a state, its entities moved on by physics.

        Args:
            poses: of the robot that carries the camera, where that is not the chunk.
        """
        if self.physics is None or not len(before.entities):
            return after, chunk
        frames = (chunk if poses is None else poses).frames
        stamps = np.array([before.stamp_ns, *(frame.stamp_ns for frame in frames)])
        cameras_m = np.stack([before.camera.position_world, *(frame.camera.position_world for frame in frames)])
        entities = self.physics.stepped(before.entities, after.memory, after.free_space, stamps, cameras_m)
        return replace(after, entities=entities), chunk

    def drawn(self, chunk: Chunk, hidden: Collection[str] = ()) -> Chunk:
        """A chunk of this world, brought to any size, with the entities in its frames but for the hidden ones."""
        return drawn(chunk, self.entities.but(hidden), self.memory)

    def change_entities(self, change: Callable[[Entities, int], Entities]) -> None:
        """Takes over what `change` makes of the entities and of the last frame's stamp."""
        self._state = replace(self.state, entities=change(self.entities, self.stamp_ns))

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
        # What an Imaginer imagines is read again at once, so there is nothing to do side by side.
        if self.config.overlap_decode and not imagines(self.model):
            yield from self._overlapped(plans)
        else:
            yield from (self.step(*plan) for plan in plans)

    def _overlapped(self, plans: Sequence[Plan]) -> Iterator[Chunk]:
        with closing(overlapped(self.cycle, self.state, plans)) as chunks:
            for state, chunk in chunks:
                state, chunk = self.lived(self.state, state, chunk)
                self._state = state
                yield self.drawn(chunk)
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
        picture = rgb, camera, depth_m, stamp_ns
        return self.change(lambda state: observed(self.model, self.config, state, *picture, adds))

    def keep_up(
        self, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None, stamp_ns: int, sightings: tuple[Sighting, ...] = ()
    ) -> tuple[tuple[int, int], tuple[Sighting, ...]]:
        """As `observe`, for pictures of a camera that looks all the time: most of them change nothing, and cost little.

        What no real picture showed yet is written; what one showed otherwise is replaced when two pictures agree on it that
        lie 0.3 s apart at least. Returns how many tokens went and came, and what to give to the next call.
        """
        picture = rgb, camera, depth_m, stamp_ns
        return self.change(lambda state: kept_up(self.model, self.config, state, *picture, sightings))

    def erase(self, box_min: Float[np.ndarray, "3"], box_max: Float[np.ndarray, "3"]) -> int:
        """Forgets what memory holds in an axis-aligned box; returns how many tokens went."""
        fork = self.state.forked()
        erased = fork.memory.erase(box_min, box_max)
        self._state = fork
        return erased

    def redate(self, stamp_ns: int) -> None:
        """Sets the stamp of the last frame: what comes next may bear any later one."""
        entities = self.entities.redated(self.stamp_ns, int(stamp_ns))
        self._state = replace(self.state, stamp_ns=int(stamp_ns), entities=entities)

    def snapshot(self) -> WorldState:
        """The world as it is now; cheap, memory is shared until one side changes."""
        return self.state.forked()

    def restore(self, state: WorldState) -> None:
        """Back to a snapshot, which stays good for further restores."""
        self._state = state.forked()

    def remember_as(self, state: WorldState) -> None:
        """Takes over all of a snapshot but its time and camera; entities go on from where they were."""
        now = self.state
        entities = state.entities.redated(state.stamp_ns, now.stamp_ns)
        self._take_over(replace(state.forked(), stamp_ns=now.stamp_ns, camera=now.camera), entities)

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
        """Takes over a saved world of the same model; a bad folder raises MirageError.

        What physics moved when it was saved stands still where there are none.
        """
        state, stands = load_world(folder, self.model, memory_config(self.model, self.config)), self.physics is None
        state = replace(state, sky=state.sky or self.cycle.backend.sky())  # of one that was saved without
        self._take_over(state, state.entities.each(lambda s: replace(s, motion=STILL) if stands and s.passed else s))

    def _take_over(self, state: WorldState, entities: Entities) -> None:
        """Another state, in which no entity gets a number that one had before."""
        before = entities if self._state is None else self._state.entities
        self._state = replace(state, entities=entities.numbered_after(before))


LIVE_SHARE = 0.15
"""At most this share of the time goes into what a camera shows that looks all the time."""


class Watch:
    """A camera that looks at a world all the time: `World.keep_up` with what it needs between two pictures, its `sightings`, and in
    its share of the time. Pictures that come while the last one is being paid for are left out."""

    def __init__(self) -> None:
        self._next_s, self.sightings = -np.inf, ()

    def observe(
        self, world: World, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None, stamp_ns: int, sightings: tuple | None = None
    ) -> tuple[int, int]:
        """How many tokens went, and how many came. Raises as `World.observe`.

        Args:
            sightings: those that there were before a picture that is repeated, which comes to the same then and is never left out.
        """
        start_s, repeated = time.monotonic(), sightings is not None
        if not repeated and start_s < self._next_s:
            return 0, 0
        counts, self.sightings = world.keep_up(rgb, camera, depth_m, stamp_ns, sightings if repeated else self.sightings)
        if not repeated:
            self._next_s = start_s + (time.monotonic() - start_s) / LIVE_SHARE
        return counts


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

    def step(
        self,
        cameras: Sequence[Camera],
        stamps_ns: Int[np.ndarray, "f"],
        fitted: Callable[[int, Chunk], Chunk] = lambda index, chunk: chunk,
        hidden: Callable[[int], Collection[str]] = lambda index: (),
    ) -> tuple[Chunk, ...]:
        """The next chunk of every camera at the same stamps; `cameras` holds one batch for each.

        Bad plans raise MirageError, and none of the cameras has written anything.

        Args:
            fitted: brings each camera's chunk to the size of its pictures; entities are drawn after that.
            hidden: names of the entities that a camera does not see.
        """
        if len(cameras) != self.cameras:
            raise MirageError(f"The rig has {self.cameras} cameras and got {len(cameras)} plans.")

        def stepped(state: WorldState) -> tuple[WorldState, tuple[Chunk, ...]]:
            after, chunks = self._stepped(state, cameras, stamps_ns)
            return self.world.lived(state, after, chunks, chunks[0])

        chunks = self.world.change(stepped)
        return tuple(self.world.drawn(fitted(index, chunk), hidden(index)) for index, chunk in enumerate(chunks))

    def _stepped(
        self, start: WorldState, cameras: Sequence[Camera], stamps_ns: Int[np.ndarray, "f"]
    ) -> tuple[WorldState, tuple[Chunk, ...]]:
        """The state after the next chunk of every camera, and the chunks."""
        if self.cameras == 1:
            state, chunk = self.world.cycle.stepped(start, cameras[0], stamps_ns)
            return state, (chunk,)
        if imagines(self.world.model) and len(stamps_ns) > 1:
            return self._frame_by_frame(start, cameras, stamps_ns)
        latents, chunks, after, last = dict(start.latents), [], [], start
        for index in range(self.cameras):
            entry = self._entry(index, start, latents)
            entry = replace(entry, memory=last.memory, free_space=last.free_space, sky=last.sky)
            last, chunk = self.world.cycle.stepped(entry, cameras[index], stamps_ns)
            after.append(last)
            chunks.append(chunk)
            latents |= self._new(last, len(chunk.frames))
        kept = self._kept(latents, [state.frames_seen for state in after])
        known = dict(item for state in (start, *after) for item in state.cameras.items() if item[0] in kept)
        state = replace(after[0], latents=kept, cameras=known, memory=last.memory, free_space=last.free_space, sky=last.sky)
        return state, tuple(chunks)

    def _frame_by_frame(self, state: WorldState, cameras: Sequence[Camera], stamps_ns: Int[np.ndarray, "f"]):
        """What one camera imagines is there for the others at once, so all see a frame before any sees the next one."""
        for camera in cameras:
            check_plan(camera, stamps_ns, state.stamp_ns, self.world.model.chunk_frames)
        chunks = [[] for _ in cameras]
        for i in range(len(stamps_ns)):
            state, ones = self._stepped(state, [camera[i : i + 1] for camera in cameras], stamps_ns[i : i + 1])
            for chunk, one in zip(chunks, ones, strict=True):
                chunk.append(one)
        return state, tuple(map(joined, chunks))

    def _entry(self, index: int, start: WorldState, latents: dict) -> WorldState:
        """The world as camera `index` meets it: its own last frames precede, at first the seed."""
        if index == 0:
            return replace(start, latents=dict(latents))
        base = index * FIRST_ID
        own = [i for i in latents if base <= i < base + FIRST_ID]
        if not own:
            own = list(range(base, base + max(1, self.world.model.preceding_frames)))
            latents |= dict.fromkeys(own, latents[0])
        seeds = {i: start.cameras[0] for i in own if i not in start.cameras}
        return replace(start, latents=dict(latents), cameras=start.cameras | seeds, frames_seen=max(own) + 1)

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

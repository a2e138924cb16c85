"""Several cameras in one world: one memory, and for each camera frames that precede its next ones.

A rig is stepped camera after camera: what the first one imagines, the second one remembers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.views import FIRST_OBSERVED
from mirage_ros.protocol import Chunk
from mirage_ros.world.chunking import frames_per_latent
from mirage_ros.world.state import KEPT_LATENTS, WorldState
from mirage_ros.world.world import World

# Ids of camera k begin at k times this, so that every id names one picture of one camera.
FIRST_ID = 2**24
MAX_CAMERAS = FIRST_OBSERVED // FIRST_ID - 1


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
            entry = replace(entry, memory=last.memory, sights=last.sights)
            last, chunk = self.world.cycle.stepped(entry, cameras[index], stamps_ns)
            after.append(last)
            chunks.append(chunk)
            latents |= self._new(last, len(chunk.frames))
        kept = self._kept(latents, [state.frames_seen for state in after])
        state = replace(after[0], latents=kept, memory=last.memory, sights=last.sights)
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

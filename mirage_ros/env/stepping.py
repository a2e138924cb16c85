"""A face that takes one camera at a time, over a world that works in chunks.

The network draws `chunk_frames` frames at once, for little more than the price of one. A
one-step face learns each camera only when its action comes. So:

- An action that differs from the last one gets a chunk of one frame.
- An action that repeats the last one is taken to be held: the whole chunk is drawn for
  the cameras it would lead to. The next steps cost nothing while they do.
- When they do not, the world goes back to before that chunk, and the frames that
  were shown are written into it again from a tape, so memory holds exactly what was shown.

What is drawn depends on past actions alone: the same seed and actions give the same frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mirage_ros.core.camera import Camera
from mirage_ros.core.types import Chunk, Frame, Perception, WorldModel
from mirage_ros.core.world import World, WorldConfig
from mirage_ros.core.world_state import WorldState
from mirage_ros.seeds import Seed

SECOND_NS = 1_000_000_000


class Tape:
    """A WorldModel that can give the first frames of its last chunk again, for free."""

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        self._replayed: int | None = None

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def replay(self, frames: int | None) -> None:
        """Of the next calls: the first `frames` of what was given last; None asks the model."""
        self._replayed = frames

    def generate(self, *arguments):
        if self._replayed is None:
            self._latents = self._model.generate(*arguments)
            return self._latents
        return self._latents[: self._replayed]

    def decode(self, latents):
        if self._replayed is None:
            self._rgb = self._model.decode(latents)
            return self._rgb
        return self._rgb[: self._replayed]

    def perceive(self, *arguments) -> Perception:
        if self._replayed is None:
            self._perception = self._model.perceive(*arguments)
            return self._perception
        seen, part = self._perception, slice(self._replayed)
        return Perception(seen.depth_m[part], seen.dynamic[part], seen.sky[part])


class WorldFrames:
    """Frames of a generated world, one camera at a time.

    Attributes:
        drawn: chunks that were drawn so far.
        wasted: frames that were drawn ahead and never shown.
    """

    def __init__(
        self, model: WorldModel, period_s: float, max_memory_bytes: int, lookahead: bool = True
    ) -> None:
        # Where one latent holds several frames, the world cannot be cut after any of them.
        self._lookahead = lookahead and getattr(model, "frames_per_latent", 1) == 1
        self._tape = Tape(model)
        self._period_ns = round(period_s * SECOND_NS)
        self._config = WorldConfig(max_memory_bytes=max_memory_bytes)
        self._ahead: list[Frame] = []
        self.drawn = self.wasted = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return self._tape.size

    @property
    def chunk_frames(self) -> int:
        return self._tape.chunk_frames

    def reset(self, seed: Seed, noise: int) -> Frame:
        """A new world; its first frame is the seed as the model shows it, stamped 0."""
        self._world = World(self._tape, replace(self._config, seed=noise))
        self._ahead, self._shown = [], []
        return self._world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]

    def advance(self, camera: Camera, held: Camera | None = None) -> Frame:
        """The next frame.

        Args:
            camera: where it is seen from, of the pictures' size.
            held: a batch of cameras that follow if the action is held; None does not look ahead.
        """
        if self._ahead and _same(self._ahead[0].camera, camera):
            self._shown.append(self._ahead.pop(0))
            return self._shown[-1]
        self._settle()
        cameras = Camera.stack([camera])
        if held is not None and self._lookahead:
            ahead = list(held)[: self._tape.chunk_frames - 1]
            cameras = Camera.stack([camera, *ahead])
        self._before: WorldState = self._world.snapshot()
        frame, *self._ahead = self._step(cameras).frames
        self.drawn += 1
        self._shown = [frame]
        return frame

    def _settle(self) -> None:
        """Takes back what was drawn ahead but not shown."""
        if not self._ahead:
            return
        self.wasted += len(self._ahead)
        self._world.restore(self._before)
        self._tape.replay(len(self._shown))
        try:
            self._step(Camera.stack([frame.camera for frame in self._shown]))
        finally:
            self._tape.replay(None)
        self._ahead = []

    def _step(self, cameras: Camera) -> Chunk:
        steps = np.arange(1, len(cameras) + 1)
        return self._world.step(cameras, self._world.stamp_ns + steps * self._period_ns)


def _same(one: Camera, other: Camera) -> bool:
    return np.array_equal(one.world_from_camera, other.world_from_camera)

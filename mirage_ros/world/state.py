"""What a world remembers between steps, and a chunk on its way through one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.free_space import Sights
from mirage_ros.protocol import Readout, SpatialMemory
from mirage_ros.world.chunking import DecoderState


@dataclass(frozen=True)
class WorldState:
    """A world between two steps.

    `latents` maps latent ids to (c, h, w) float16, a frame's id where each frame has a latent;
    camera and stamp are the last frame's, the camera at the model's picture size. `decoder` is
    what a causal video codec remembers (video.py), None for a picture codec; `grouped` counts
    the frames that share a latent with one before them; `sights` tells which space is free.
    """

    memory: SpatialMemory
    latents: dict[int, Float[torch.Tensor, "c h w"]]
    frames_seen: int
    camera: Camera
    stamp_ns: int
    decoder: DecoderState | None = None
    grouped: int = 0
    sights: Sights = field(default_factory=Sights.none)

    @property
    def latents_seen(self) -> int:
        """The next latent's id."""
        return self.frames_seen - self.grouped

    def forked(self) -> WorldState:
        """A state of its own; memory is shared until one of both changes."""
        return replace(self, memory=self.memory.fork(), latents=dict(self.latents))


@dataclass(frozen=True)
class Draft:
    """A chunk that has been read and not generated yet: all that a model is given for it.

    Attributes:
        cameras: of picture size, one per frame.
        shown: what memory shows to each frame.
        readout, cells: the same and its cameras, for the frame that each latent is read through.
        preceding, references: context latents.
        noise: seed of the chunk's noise.
        seconds: by stage, filled in as the chunk goes on.
    """

    cameras: Camera
    stamps_ns: Int[np.ndarray, "f"]
    shown: Readout
    readout: Readout
    cells: Camera
    preceding: Float[torch.Tensor, "p c lh lw"]
    references: Float[torch.Tensor, "r c lh lw"]
    noise: int
    seconds: dict[str, float]

"""What a world is between two steps, how it runs, and what it asks of its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.protocol import Perception, Readout, SpatialMemory, WorldModel
from mirage_ros.world.chunking import DecoderState

MAX_DEPTH_M = 100.0
"""What lies farther is beyond range (+inf) and not remembered."""
REWRITE_LOG_SCALE = 0.35
"""Visible cells are written anew when the natural log of the token's footprint over the cell's width
exceeds this: tokens 1.4 times too coarse."""
KEPT_LATENTS = 512
"""Latents of past frames that are kept for reference, besides the seed's."""


@dataclass(frozen=True)
class WorldConfig:
    """How a world runs.

    Attributes:
        seed: of all noise; the same seed, picture and plan give the same frames. At least 0.
        use_memory: False never writes to memory: the baseline that forgets.
        max_memory_bytes: hard cap of the latent memory, of which there are two for as long as a
            call writes.
        forget_moving: in which pictures the perceiver's guess of what moves is not remembered:
            "imagined", "all" (the seed and observed ones too) or "none". A segmenter that was asked
            for counts in all, but with "none".
        max_dynamic_share: cells with a larger share of moving pixels are not remembered, below 1.
        overlap_decode: a rollout generates each chunk while the one before it is decoded,
            perceived and written; what memory shows it lags by that chunk (cycle.overlapped).
    """

    seed: int = 0
    use_memory: bool = True
    max_memory_bytes: int = 512 * 2**20
    forget_moving: str = "imagined"
    max_dynamic_share: float = 0.25
    overlap_decode: bool = False


@dataclass(frozen=True)
class WorldState:
    """A world between two steps.

    `latents` maps latent ids to (c, h, w) float16, a frame's id where each frame has a latent;
    camera and stamp are the last frame's, the camera at the model's picture size. `decoder` is
    what a causal video codec remembers (chunking.py), None for a picture codec; `grouped` counts
    the frames that share a latent with one before them; `free_space` tells which space is free.
    """

    memory: SpatialMemory
    latents: dict[int, Float[torch.Tensor, "c h w"]]
    frames_seen: int
    camera: Camera
    stamp_ns: int
    decoder: DecoderState | None = None
    grouped: int = 0
    free_space: FreeSpaceViews = field(default_factory=FreeSpaceViews.none)

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


@dataclass(frozen=True)
class Pictures:
    """Pictures that are to be remembered, with what is known of them.

    Attributes:
        latents, first_id: what they were decoded from, and the id of the first latent.
        cameras, perception, rgb, stamps_ns: of each picture.
        given: the real picture whose latent was decoded, None for imagined ones.
        measured: whether depth is, rather than perceived.
    """

    latents: Float[torch.Tensor, "n c lh lw"]
    first_id: int
    cameras: Camera
    perception: Perception
    rgb: UInt8[np.ndarray, "f h w 3"]
    stamps_ns: Int[np.ndarray, "f"]
    given: UInt8[np.ndarray, "1 h w 3"] | None = None
    measured: bool = False


class MemoryBackend(Protocol):
    """Makes the memory of a world and writes to it."""

    def new(self) -> SpatialMemory:
        """An empty memory."""
        ...

    def write(self, memory: SpatialMemory, pictures: Pictures) -> None:
        """Remembers what keeps still in pictures and is not shown finely enough yet."""
        ...


MakeBackend = Callable[[WorldModel, WorldConfig], MemoryBackend]

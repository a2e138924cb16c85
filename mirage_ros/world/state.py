"""What a world is between two steps, how it runs, what it asks of its memory, and what it checks of its model: sizes
of chunks of latents and pictures, groups of frames, the stream decoder.

Latents have one cell for each `stride` pixels. A model may ask for a finer readout, with
`readout_cells` cells to a side of each latent cell, where one token a cell would be too little.

A picture codec has one latent per frame. A video codec such as Wan's gives the first frame of a
stream a latent of its own and every later latent `frames_per_latent` frames, whose decoder looks
back at what it decoded before. So the seed is the stream's first frame, every chunk continues
the stream, and what the decoder remembers belongs to the world's state: that is what keeps
chunk borders from flickering. A latent that stands for several frames is read and written through
the camera of one of them, its anchor, in the middle, where the others are nearest.

Refused are plans out of order, and models whose outputs do not fit. Perception of real pictures is
completed here: holes in their depth, and what moves in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.memory.rows import LARGEST, representable
from mirage_ros.protocol import (
    DecoderState,
    Perception,
    Readout,
    SpatialMemory,
    Views,
    WorldModel,
    readout_cells,
    readout_side,
)
from mirage_ros.world.entities import Entities


def latent_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of the model's latents."""
    height, width = model.size
    return height // model.stride, width // model.stride


def readout_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of what memory shows to the model."""
    height, width = latent_size(model)
    return height * readout_cells(model), width * readout_cells(model)


@runtime_checkable
class StreamDecoder(Protocol):
    """What a WorldModel with a causal video codec has besides.

    Attributes:
        frames_per_latent: frames that a latent after the first stands for.
    """

    frames_per_latent: int

    def decode_stream(
        self, latents: Float[torch.Tensor, "n c lh lw"], state: DecoderState | None
    ) -> tuple[UInt8[np.ndarray, "f h w 3"], DecoderState]:
        """The pictures that follow on those after which `state` was returned, and the new state.

        Without a state the first latent begins a stream and gives one picture.
        """
        ...


def frames_per_latent(model: WorldModel) -> int:
    """1 for a picture codec."""
    return int(getattr(model, "frames_per_latent", 1))


def anchor_frames(frames: int, per_latent: int) -> Int[np.ndarray, "n"]:
    """The frame of a chunk through whose camera each of its latents is read and written.

    A last group that is not full is continued by its last frame.
    """
    latents = -(-frames // per_latent)
    return np.minimum(np.arange(latents) * per_latent + per_latent // 2, frames - 1)


def any_in_group(mask: Bool[np.ndarray, "f h w"], per_latent: int) -> Bool[np.ndarray, "n h w"]:
    """True where any frame of a latent's group is; the last group may be short."""
    whole = len(mask) // per_latent * per_latent
    groups = mask[:whole].reshape(-1, per_latent, *mask.shape[1:]).any(1)
    return np.concatenate([groups, mask[whole:].any(0, keepdims=True)[: len(mask) - whole]])


def rows(readout: Readout, index: Int[np.ndarray, "n"]) -> Readout:
    """The readout of some of its cameras."""
    return Readout(**{entry.name: getattr(readout, entry.name)[index] for entry in fields(Readout)})


def decode_next(
    model: WorldModel,
    latents: Float[torch.Tensor, "n c lh lw"],
    state: DecoderState | None,
    frames: int,
) -> tuple[UInt8[np.ndarray, "f h w 3"], DecoderState | None]:
    """The next `frames` pictures, and what the decoder remembers.

    When the last group is not full its surplus pictures are dropped: they show the last camera
    again, at times that the plan does not have.
    """
    if not isinstance(model, StreamDecoder):
        return model.decode(latents), None
    pictures, state = model.decode_stream(latents, state)
    return pictures[:frames], state


def check_plan(
    cameras: Camera, stamps_ns: Int[np.ndarray, "f"], last_ns: int, most: int | None
) -> Int[np.ndarray, "f"]:
    """The stamps as int64, if they increase from the last frame's and each has a camera.

    `most` is how many cameras there may be, None any number. Raises MirageError.
    """
    stamps = np.asarray(stamps_ns, np.int64)
    if len(cameras.batch_shape) != 1 or stamps.shape != cameras.batch_shape:
        raise MirageError(
            f"A plan got cameras of batch shape {cameras.batch_shape} and stamps of shape "
            f"{stamps.shape}; give one stamp for each of f cameras."
        )
    if len(stamps) == 0 or (most is not None and len(stamps) > most):
        raise MirageError(f"A step got {len(stamps)} cameras; give 1 to {most} of them.")
    if (np.diff(stamps, prepend=last_ns) <= 0).any():
        raise MirageError(
            f"A plan's stamps {stamps.tolist()[:8]} ns must increase and come after the last "
            f"frame's {last_ns} ns; plan later times or reset the world."
        )
    return stamps


def check_latents(latents: torch.Tensor, model: WorldModel, frames: int) -> torch.Tensor:
    """The latents, if they have the model's shape and memory can hold them."""
    wanted = (frames, model.channels, *(side // model.stride for side in model.size))
    if tuple(latents.shape) != wanted:
        raise MirageError(
            f"The model {model.name} gave latents of shape {tuple(latents.shape)} where {wanted} "
            "is needed; check the checkpoint."
        )
    if not representable(latents):
        raise MirageError(
            f"The model {model.name} gave latents with NaN or values beyond {LARGEST:,.0f}, which "
            "memory cannot hold; check the checkpoint."
        )
    return latents


def check_pictures(rgb: np.ndarray, model: WorldModel, frames: int) -> np.ndarray:
    """The pictures, if they have the model's size."""
    wanted = (frames, *model.size, 3)
    if rgb.shape != wanted or rgb.dtype != np.uint8:
        raise MirageError(
            f"The model {model.name} gave {rgb.dtype} pictures of shape {rgb.shape} where uint8 "
            f"{wanted} is needed; check the checkpoint."
        )
    return rgb


def check_perception(perception: Perception, model: WorldModel, frames: int) -> Perception:
    """The perception, if all of it has the model's picture size."""
    wanted = (frames, *model.size)
    shapes = {np.shape(getattr(perception, name)) for name in ("depth_m", "dynamic", "sky")}
    if shapes != {wanted}:
        raise MirageError(
            f"The model {model.name} gave perception of shapes {sorted(shapes)} where {wanted} is "
            "needed; check the checkpoint."
        )
    return perception


FORGET_MOVING = ("imagined", "all", "none")
"""In which pictures what a perceiver takes for moving is not remembered. In real ones (seeds and
observations) it is a guess from looks alone, and still things that the world was given would go;
there only a segmenter that was asked for counts, but with "none"."""


def perceive_seed(
    model: WorldModel,
    rgb: UInt8[np.ndarray, "1 h w 3"],
    cameras: Camera,
    depth_m: Float[np.ndarray, "h w"],
) -> Perception:
    """Perception of a real picture whose depth is given, at least in part.

    Given depth stands; holes in it are completed from what was measured around them
    (images.completed) or stay NaN, but for what looks like sky. Raises MirageError where not one
    latent cell has depth then.
    """
    given = completed(depth_m)[None]
    if np.isnan(cell_depth(given, model.stride)).all():
        raise MirageError(
            f"The seed's depth is known in {np.isfinite(given).mean():.1%} of its pixels and in no "
            f"cell of {model.stride}x{model.stride} by half; give denser depth, or none."
        )
    anchor = cell_depth(given, readout_side(model))
    anchor = np.where(np.isfinite(anchor), anchor, np.float32(np.nan))
    perceived = model.perceive(rgb, cameras, anchor if np.isfinite(anchor).any() else None)
    perceived = check_perception(perceived, model, 1)
    sky = np.where(np.isnan(given), perceived.sky, np.isposinf(given))
    return replace(perceived, depth_m=given, sky=sky)


def moving_in_real(
    model: WorldModel,
    rgb: UInt8[np.ndarray, "f h w 3"],
    forget_moving: str,
    guess: Callable[[], Bool[np.ndarray, "f h w"]],
) -> Bool[np.ndarray, "f h w"]:
    """What of real pictures is not to be remembered because it moves.

    Args:
        forget_moving: one of `FORGET_MOVING`.
        guess: gives what the model's perceiver takes for moving.
    """
    if forget_moving == "all":
        return guess()
    segmented = None
    if forget_moving != "none" and hasattr(model, "segmented"):
        segmented = model.segmented(rgb)
    return np.zeros(rgb.shape[:3], bool) if segmented is None else segmented


def in_range(perception: Perception, max_depth_m: float) -> Perception:
    """Depth of the sky and beyond the range becomes +inf (REP 117)."""
    depth = np.asarray(perception.depth_m, np.float32)
    with np.errstate(invalid="ignore"):
        beyond = perception.sky | (depth > max_depth_m)
    return replace(perception, depth_m=np.where(beyond, np.float32(np.inf), depth))


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
    what a causal video codec remembers, None for a picture codec; `grouped` counts
    the frames that share a latent with one before them; `free_space` tells which space is free;
    `entities` stand in the world and are not remembered; `cameras` are those that the latents show the world to, by their
    ids, at the model's picture size; `sky` is remembered apart (sky.py), None: not at all.
    """

    memory: SpatialMemory
    latents: dict[int, Float[torch.Tensor, "c h w"]]
    frames_seen: int
    camera: Camera
    stamp_ns: int
    decoder: DecoderState | None = None
    grouped: int = 0
    free_space: FreeSpaceViews = field(default_factory=FreeSpaceViews.none)
    entities: Entities = field(default_factory=Entities)
    cameras: dict[int, Camera] = field(default_factory=dict)
    sky: SpatialMemory | None = None

    @property
    def latents_seen(self) -> int:
        """The next latent's id."""
        return self.frames_seen - self.grouped

    def forked(self) -> WorldState:
        """A state of its own; memory is shared until one of both changes."""
        sky = None if self.sky is None else self.sky.fork()
        return replace(self, memory=self.memory.fork(), latents=dict(self.latents), sky=sky)


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
        taken: the latents that come from memory as it was before the chunk.
        imagined, free_space: an Imaginer's whole views, for what memory does not show in `shown`, and what is seen to be free
            after them; None where memory shows all.
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
    taken: Bool[np.ndarray, "n lh lw"]
    imagined: Views | None = None
    free_space: FreeSpaceViews | None = None


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

    def sky(self) -> SpatialMemory | None:
        """An empty one of the sky; None where it is not remembered."""
        ...

    def write(self, memory: SpatialMemory, pictures: Pictures, sky: SpatialMemory | None) -> None:
        """Remembers what keeps still in pictures and is not shown finely enough yet, and the sky."""
        ...


MakeBackend = Callable[[WorldModel, WorldConfig], MemoryBackend]

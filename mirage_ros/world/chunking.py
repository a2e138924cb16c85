"""Chunks of latents and pictures: sizes, groups of frames, the stream decoder, and what is checked.

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
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import cell_share
from mirage_ros.memory.rows import LARGEST, representable
from mirage_ros.protocol import Perception, Readout, WorldModel

MOSTLY = 0.5
"""Share of a latent's readout cells from which memory is said to show it."""


def readout_cells(model: WorldModel) -> int:
    """Cells of a readout to a side of each latent cell; 1 where the model asks for no more."""
    return int(getattr(model, "readout_cells", 1))


def latent_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of the model's latents."""
    height, width = model.size
    return height // model.stride, width // model.stride


def readout_size(model: WorldModel) -> tuple[int, int]:
    """(height, width) of what memory shows to the model."""
    height, width = latent_size(model)
    return height * readout_cells(model), width * readout_cells(model)


def readout_side(model: WorldModel) -> int:
    """Pixels to a side of each cell of a readout."""
    return model.stride // readout_cells(model)


def from_memory(model: WorldModel, readout: Readout) -> Bool[np.ndarray, "f lh lw"]:
    """The latent cells that the model takes from memory; it imagines the others.

    The model itself says which, by its method of this name. One without takes the cells of which
    memory shows at least half.
    """
    if hasattr(model, "from_memory"):
        return model.from_memory(readout)
    return cell_share(readout.visible, readout_cells(model)) >= MOSTLY


DecoderState = dict[str, torch.Tensor]
"""What a causal decoder remembers. Its tensors are never changed in place, so states share them."""


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

"""What a world refuses: plans out of order, and models whose outputs do not fit."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.features import LARGEST, representable
from mirage_ros.core.types import Perception, WorldModel


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

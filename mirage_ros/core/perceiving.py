"""Perception of real pictures, which one picture cannot give whole: what moves, and depth in holes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.checks import check_perception
from mirage_ros.core.depth import cell_depth, completed
from mirage_ros.core.errors import MirageError
from mirage_ros.core.grids import readout_side
from mirage_ros.core.types import Perception, WorldModel

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
    (depth.completed) or stay NaN, but for what looks like sky. Raises MirageError where not one
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

"""Perception in metres: what lies beyond range, and how a seed's given depth is completed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.checks import check_depth_scale, check_perception
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.grids import readout_side
from mirage_ros.core.types import Perception, WorldModel


def perceive_seed(
    model: WorldModel,
    rgb: UInt8[np.ndarray, "1 h w 3"],
    cameras: Camera,
    depth_m: Float[np.ndarray, "h w"],
) -> Perception:
    """Perception of a seed picture whose depth is given, at least in part.

    Given depth stands; where it is NaN perceived depth comes in, scaled by the median ratio of
    both where both are valid.
    """
    given = np.asarray(depth_m, np.float32)[None]
    anchor = cell_depth(given, readout_side(model))
    anchor = np.where(np.isfinite(anchor), anchor, np.float32(np.nan))
    perceived = model.perceive(rgb, cameras, anchor if np.isfinite(anchor).any() else None)
    perceived = check_perception(perceived, model, 1)
    gaps = np.isnan(given)
    if not gaps.any():
        return replace(perceived, depth_m=given, sky=np.isposinf(given))
    both = np.isfinite(given) & np.isfinite(perceived.depth_m) & (perceived.depth_m > 0)
    ratios = given[both] / perceived.depth_m[both]
    scale = check_depth_scale(float(np.median(ratios)) if ratios.size else np.nan)
    depth = np.where(gaps, perceived.depth_m * scale, given).astype(np.float32)
    return replace(
        perceived, depth_m=depth, sky=np.where(gaps, perceived.sky, np.isposinf(given))
    )


def in_range(perception: Perception, max_depth_m: float) -> Perception:
    """Depth of the sky and beyond the range becomes +inf (REP 117)."""
    depth = np.asarray(perception.depth_m, np.float32)
    with np.errstate(invalid="ignore"):
        beyond = perception.sky | (depth > max_depth_m)
    return replace(perception, depth_m=np.where(beyond, np.float32(np.inf), depth))

"""What a camera that looks all the time showed otherwise than memory does: kept until another picture agrees with it.

Plain values without torch: a worker hands them out with the pictures that have to be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mirage_ros.geometry.camera import Camera

TOLERANCE = 0.05
"""A token this much behind a measured surface, relative to its depth, is taken for the surface."""
SETTLED_NS = 300_000_000
"""Two pictures that agree on a change lie so far apart at least: what moves is elsewhere by then."""


@dataclass(frozen=True)
class Sighting:
    """What a picture showed where memory shows other surfaces of real pictures.

    Attributes:
        cells: its camera at latent size.
        depth_m: along z, NaN where it agreed with memory.
    """

    stamp_ns: int
    cells: Camera
    depth_m: Float[np.ndarray, "h w"]


def agreed(cells: Camera, depth_m: Float[np.ndarray, "h w"], stamp_ns: int, sightings: tuple[Sighting, ...]):
    """Which cells an earlier sighting, long enough ago, saw at the same place."""
    found, where = np.zeros(depth_m.shape, bool), np.isfinite(depth_m)
    points = cells.lift(depth_m)[where]
    for sighting in sightings:
        if stamp_ns - sighting.stamp_ns >= SETTLED_NS and len(points):
            pixels, z = sighting.cells.project(points)
            height, width = sighting.depth_m.shape
            with np.errstate(invalid="ignore"):
                inside = (z > 0) & (np.rint(pixels) >= 0).all(1) & (np.rint(pixels) < (width, height)).all(1)
                column, row = np.rint(np.where(inside[:, None], pixels, 0)).astype(int).T
                slack = TOLERANCE * z + z / cells.intrinsics[0, 0]
                found[where] |= inside & (np.abs(sighting.depth_m[row, column] - z) <= slack)
    return found

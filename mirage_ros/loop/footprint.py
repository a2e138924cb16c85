"""The robot's body as an upright cylinder, and points in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Footprint:
    """A cylinder around the base's centre.

    Attributes:
        radius_m: of the body.
        low_m, high_m: the heights between which it would touch something. Below is ground
            clearance: depth of a floor is not known better than that.
    """

    radius_m: float = 0.2
    low_m: float = 0.3
    high_m: float = 1.2

    def at_its_height(self, xyz: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
        """Points that the body can touch at all."""
        return (xyz[:, 2] > self.low_m) & (xyz[:, 2] < self.high_m)

    def touches(
        self, xyz: Float[np.ndarray, "n 3"], centres: Float[np.ndarray, "m 2"]
    ) -> Bool[np.ndarray, "m"]:
        """Whether the body at each centre holds a point."""
        return distances_m(xyz[self.at_its_height(xyz)], centres) < self.radius_m


def distances_m(
    xyz: Float[np.ndarray, "n k"], centres: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m"]:
    """On the floor, from each centre to the nearest of the points; inf without points."""
    if not len(xyz):
        return np.full(len(centres), np.inf)
    away = np.asarray(xyz, np.float64)[None, :, :2] - np.asarray(centres)[:, None]
    return np.linalg.norm(away, axis=-1).min(1)

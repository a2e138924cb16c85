"""A map of obstacles from depth pictures: voxels with the evidence for and against each.

Generated depth is not measured depth: it flickers from frame to frame, its edges smear, and a
surface looked at from its back may be missing from a picture. So a single picture never takes
anything out of the map. A voxel goes when many pictures saw well past it, from the side that it was
seen from, and far more of them than ever showed it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mirage_ros.core.camera import Camera

NEAREST_M = 0.05
AXIS_BITS = 20


@dataclass(frozen=True)
class MapConfig:
    """How obstacles are remembered.

    Attributes:
        cell_m: edge of a voxel.
        reach_m: what is farther away from the robot than this is forgotten.
        past_factor, past_m: a picture speaks against a voxel when the depth that it shows there
            is greater than the voxel's by this factor and this much,
        past_px: in all pixels up to this far from it,
        past_range_m: and the voxel is no farther away than this,
        same_side: and the cosine between the directions it is seen from now and was seen from at
            first, on the floor, is at least this.
        misses, misses_per_hit: a voxel is forgotten after so many pictures against it, and so many
            times as many as showed it.
    """

    cell_m: float = 0.08
    reach_m: float = 12.0
    past_factor: float = 1.25
    past_m: float = 0.15
    past_px: int = 2
    past_range_m: float = 3.0
    same_side: float = 0.5
    misses: int = 6
    misses_per_hit: float = 2.0


class ObstacleMap:
    """Points of the world at the body's height, each the first that was seen in its voxel.

    Attributes:
        points: (n, 3).
        hits, misses: (n,) pictures that showed the voxel, and that saw past it.
    """

    def __init__(self, config: MapConfig = MapConfig()) -> None:
        self.config = config
        self.points: Float[np.ndarray, "n 3"] = np.zeros((0, 3))
        self.hits: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self.misses: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self._keys: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self._sides: Float[np.ndarray, "n 2"] = np.zeros((0, 2))

    def __len__(self) -> int:
        return len(self.points)

    def look(
        self, points: Float[np.ndarray, "m 3"], depth_m: Float[np.ndarray, "h w"], view: Camera
    ) -> None:
        """Takes in one picture.

        Args:
            points: of it, those that the body can touch.
            depth_m: all of it; what is not finite says nothing, but +inf is far away.
            view: its camera.
        """
        self._count_misses(depth_m, view)
        self._count_hits(points, view)
        config = self.config
        enough = np.maximum(config.misses, config.misses_per_hit * self.hits)
        away = np.linalg.norm(self.points[:, :2] - view.position_world[:2], axis=1)
        self._keep((self.misses < enough) & (away < config.reach_m))

    def _count_hits(self, points: np.ndarray, view: Camera) -> None:
        """Voxels are kept in the order of their keys, so that old ones are found by bisection."""
        keys, first = np.unique(_keys_of(points, self.config.cell_m), return_index=True)
        place = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), bool)
        known[place < len(self)] = self._keys[place[place < len(self)]] == keys[place < len(self)]
        self.hits[place[known]] += 1
        fresh, at = points[first[~known]], place[~known]
        self._keys = np.insert(self._keys, at, keys[~known])
        self.points = np.insert(self.points, at, fresh, axis=0)
        self.hits = np.insert(self.hits, at, 1)
        self.misses = np.insert(self.misses, at, 0)
        self._sides = np.insert(self._sides, at, _sides(fresh, view), axis=0)

    def _count_misses(self, depth_m: np.ndarray, view: Camera) -> None:
        config = self.config
        pixels, along_m = view.project(self.points)
        height, width = view.size
        u, v = np.round(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(int).T
        inside = (along_m > NEAREST_M) & (along_m < config.past_range_m)
        inside &= (u >= 0) & (u < width) & (v >= 0) & (v < height)
        inside &= (_sides(self.points, view) * self._sides).sum(1) >= config.same_side
        shown_m = _nearest_around(depth_m, config.past_px)[v[inside], u[inside]]
        with np.errstate(invalid="ignore"):
            past = shown_m > config.past_factor * along_m[inside] + config.past_m
        self.misses[np.flatnonzero(inside)[past]] += 1

    def _keep(self, rows: Bool[np.ndarray, "n"]) -> None:
        self.points, self._keys = self.points[rows], self._keys[rows]
        self.hits, self.misses, self._sides = self.hits[rows], self.misses[rows], self._sides[rows]


def _keys_of(points: Float[np.ndarray, "n 3"], cell_m: float) -> Int[np.ndarray, "n"]:
    """One number for each point's voxel."""
    half = 1 << (AXIS_BITS - 1)
    x, y, z = np.clip(np.floor(points / cell_m).astype(np.int64) + half, 0, 2 * half - 1).T
    return (x << 2 * AXIS_BITS) | (y << AXIS_BITS) | z


def _sides(points: Float[np.ndarray, "n 3"], view: Camera) -> Float[np.ndarray, "n 2"]:
    """Unit directions on the floor from points to the camera."""
    back = view.position_world[:2] - points[:, :2]
    return back / np.maximum(np.linalg.norm(back, axis=1, keepdims=True), 1e-9)


def _nearest_around(depth_m: Float[np.ndarray, "h w"], reach: int) -> Float[np.ndarray, "h w"]:
    """The least depth of each pixel's square neighbourhood; NaN where any of it is unknown."""
    nearest = np.asarray(depth_m, np.float64)
    for axis in (0, 1):
        padded = np.pad(nearest, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        count = nearest.shape[axis]
        parts = [padded.take(range(i, i + count), axis) for i in range(2 * reach + 1)]
        nearest = np.minimum.reduce(parts)
    return nearest

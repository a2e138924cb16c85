"""Boxes that stand for a scene's solid things: distances and rays, vectorised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mirage_ros.scenes.builder import Builder


@dataclass(frozen=True)
class Solids:
    """n upright boxes.

    Attributes:
        centres: (n, 3) metres.
        halves: (n, 3) half sizes.
        yaws: (n,) radians about z.
    """

    centres: np.ndarray
    halves: np.ndarray
    yaws: np.ndarray

    @classmethod
    def from_builder(cls, builder: Builder) -> Solids:
        return cls(
            np.array([solid[0] for solid in builder.solids]).reshape(-1, 3),
            np.array([solid[1] for solid in builder.solids]).reshape(-1, 3),
            np.array([solid[2] for solid in builder.solids], float),
        )

    def where(self, keep: np.ndarray) -> Solids:
        """Only some of the boxes."""
        return Solids(self.centres[keep], self.halves[keep], self.yaws[keep])

    def _local(self, vectors: np.ndarray) -> np.ndarray:
        """(m, n, 3) vectors in the boxes' own axes."""
        c, s = np.cos(self.yaws), np.sin(self.yaws)
        x, y, z = np.moveaxis(vectors, -1, 0)
        return np.stack([c * x + s * y, c * y - s * x, z], -1)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Metres from (m, 3) points to the nearest box surface, negative inside; (m,)."""
        if not len(self.yaws):
            return np.full(len(points), np.inf)
        away = np.abs(self._local(points[:, None] - self.centres)) - self.halves
        outside = np.linalg.norm(np.maximum(away, 0), axis=-1)
        return (outside + np.minimum(away.max(-1), 0)).min(1)

    def cast(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Metres along unit rays, from (m, 3) points, to the first box; inf if none; (m,)."""
        origin = self._local(points[:, None] - self.centres)
        ray = self._local(np.repeat(directions[:, None], len(self.yaws), 1))
        ray = np.where(np.abs(ray) < 1e-9, 1e-9, ray)
        near, far = (-self.halves - origin) / ray, (self.halves - origin) / ray
        enter = np.minimum(near, far).max(-1)
        leave = np.maximum(near, far).min(-1)
        hit = (leave >= enter) & (leave > 0)
        return np.where(hit, np.maximum(enter, 0), np.inf).min(1)

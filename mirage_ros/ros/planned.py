"""Frames to render, as plain values that cross to the worker's process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Planned:
    """Frames to render: stamps (ns, rising) and world_from_camera of each.

    Attributes:
        skipped: frames before these that are left out because they are late.
    """

    stamps_ns: tuple[int, ...]
    world_from_camera: Float[np.ndarray, "f 4 4"]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def first(self, count: int) -> Planned:
        """The first `count` frames."""
        return Planned(self.stamps_ns[:count], self.world_from_camera[:count])

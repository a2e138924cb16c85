"""Plain, bright, sometimes glowing things that stand still.

Moving bodies wear colours that furniture does not. Without things that wear them too and stay,
a perceiver learns that a bright colour moves, and a goal painted red is never remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mirage_ros.scenes.builder import Builder, Material
from mirage_ros.scenes.noise import hsv
from mirage_ros.scenes.placing import Layout
from mirage_ros.scenes.solids import Solids

TRIES = 40
FREE_M = 0.3


def decoys(rng: np.random.Generator) -> Callable[[Builder, Layout], None]:
    """What `make_scene` takes as `add`: 3 to 7 boxes and drums on free floor."""

    def add(builder: Builder, layout: Layout) -> None:
        solids = Solids.from_builder(builder)
        for number in range(int(rng.integers(3, 8))):
            place = _free_place(rng, solids, layout)
            if place is None:
                continue
            glow = float(rng.choice([0.0, 0.35, 0.9]))
            rgb = hsv(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.4, 1))
            picture = np.full((8, 8, 3), rgb, np.uint8)
            paint = Material(f"decoy{number}", picture, 0.0, 0.05, glow)
            wide, high = rng.uniform(0.15, 0.6), rng.uniform(0.15, 0.9)
            with builder.at(*place, float(rng.uniform(0, np.pi))):
                if rng.random() < 0.75:
                    builder.box(paint, (0, 0, high / 2), (wide, wide, high), skip="b")
                else:
                    builder.cylinder(paint, (0, 0, 0), wide / 2, high)

    return add


def _free_place(rng, solids: Solids, layout: Layout) -> np.ndarray | None:
    low, high = np.array(layout.low)[:2], np.array(layout.high)[:2]
    for place in rng.uniform(low, high, (TRIES, 2)):
        if solids.distance(np.array([[*place, FREE_M + 0.1]])).min() > FREE_M:
            return place
    return None

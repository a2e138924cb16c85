"""Where furniture and pictures go: along walls and free-standing, never into each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mirage_ros.scenes import furniture as f
from mirage_ros.scenes.shells import SIDES, panel

AISLE_M = 0.95  # kept between free-standing things, so that cameras get through


@dataclass
class Layout:
    """What a floor plan tells the scene; lights are keyword arguments of MjSpec's add_light."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    lights: list[dict] = field(default_factory=list)
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.4))
    points_of_interest: list = field(default_factory=list)
    has_sky: bool = False
    taken: list[tuple[float, float, float]] = field(default_factory=list)
    hung: list[tuple[float, float, float]] = field(default_factory=list)


def furnish_walls(b, w, rng, layout, rect, things, share=0.7, gaps=()):
    """Rows of furniture with their backs to the walls, pictures in between and above."""
    x, y, wide, deep, high = rect
    for side, (outward, yaw) in SIDES.items():
        along = np.array([np.cos(yaw), np.sin(yaw)])
        length = wide if side in ("south", "north") else deep
        reach = (deep if side in ("south", "north") else wide) / 2
        place = -length / 2 + rng.uniform(0.1, 0.9)
        while place < length / 2 - 0.5:
            thing = things[rng.integers(len(things))]
            size = rng.uniform(*f.FOOTPRINTS[thing])
            size[2] = min(size[2], high - 0.05)
            blocked = any(s == side and a < place + size[0] and place < z for s, a, z in gaps)
            if place + size[0] > length / 2 - 0.75 and place > -length / 2 + 1.0:
                break
            if blocked or rng.random() > share:
                if not blocked:
                    hang(b, w, rng, layout, side, rect, place + size[0] / 2, 0.0, size[0])
                place += rng.uniform(0.7, 1.4)
                continue
            middle = np.array([x, y]) + along * (place + size[0] / 2)
            middle = middle + outward * (reach - size[1] / 2 - 0.005)
            if stand(b, w, rng, layout, thing, middle, yaw, size):
                hang(b, w, rng, layout, side, rect, place + size[0] / 2, size[2], size[0])
            place += size[0] + rng.uniform(0.1, 0.7)


def stand(b, w, rng, layout, thing, middle, yaw, size, spare=0.0) -> bool:
    """Puts a thing on the floor where nothing stands yet."""
    radius = float(np.hypot(size[0], size[1])) / 2 * 0.9 + spare
    for px, py, other in layout.taken:
        if np.hypot(px - middle[0], py - middle[1]) < (radius + other) * 0.82:
            return False
    layout.taken.append((*middle, radius - spare))
    with b.at(*middle, yaw):
        thing(b, w, rng, size)
    layout.points_of_interest.append((*middle, min(size[2], 1.4) * 0.8))
    return True


def hang(b, w, rng, layout, side, rect, place, above, room_m):
    """A picture, window or notice on the wall above height `above`, centred at `place`."""
    x, y, wide, deep, high = rect
    wall = wide if side in ("south", "north") else deep
    window = rng.random() < 0.3
    tall = rng.uniform(0.7, 1.3) if window else rng.uniform(0.35, 0.9)
    broad = min(tall * rng.uniform(0.7, 1.8), room_m * 1.3, 2 * (wall / 2 - abs(place)) - 0.2)
    level = max(above + 0.12, rng.uniform(0.9, 1.2))
    if level + tall > high - 0.1 or broad < 0.2 or rng.random() < 0.15:
        return
    outward, yaw = SIDES[side]
    along = np.array([np.cos(yaw), np.sin(yaw)])
    reach = (deep if side in ("south", "north") else wide) / 2
    spot = np.array([x, y]) + along * place + outward * reach
    for px, py, other in layout.hung:
        if np.hypot(px - spot[0], py - spot[1]) < (broad + other) / 2 + 0.05:
            return
    layout.hung.append((*spot, broad))
    with b.at(*spot, yaw):
        panel(b, w.window() if window else w.picture(), w.furniture(), broad, tall, level)
    layout.points_of_interest.append((*spot, level + tall / 2))


def door_panel(b, w, layout, side, rect, place):
    x, y, wide, deep, high = rect
    outward, yaw = SIDES[side]
    along = np.array([np.cos(yaw), np.sin(yaw)])
    reach = (deep if side in ("south", "north") else wide) / 2
    spot = np.array([x, y]) + along * place + outward * reach
    layout.hung.append((*spot, 1.0))
    with b.at(*spot, yaw):
        panel(b, w.door(), w.furniture(), 0.98, 2.06, 0.0, 0.05)
    layout.points_of_interest.append((*spot, 1.2))


def scatter(b, w, rng, layout, rect, things, count, margin=1.2):
    """Free-standing things away from the walls with aisles between them."""
    x, y, wide, deep, high = rect
    for _ in range(count * 4):
        if count <= 0:
            return
        thing = things[rng.integers(len(things))]
        size = rng.uniform(*f.FOOTPRINTS[thing])
        size[2] = high if thing is f.pillar else min(size[2], high - 0.05)
        spare = np.array([wide, deep]) / 2 - margin - size[:2].max() / 2
        if (spare < 0.1).any():
            continue
        middle = np.array([x, y]) + rng.uniform(-spare, spare)
        turn = rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0, 0.25)
        count -= stand(b, w, rng, layout, thing, middle, turn, size, AISLE_M)

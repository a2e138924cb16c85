"""The bodies that move: people, dogs, robots, trucks and beach balls.

What may move is told by its looks, as by the text-prompted masks of larger models: no piece of
furniture looks like one of these, so that one picture is enough to know that a body will not stay.
"""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.builder import Builder, Material
from mirage_ros.scenes.noise import colour, hsv


class Outfits:
    """Materials that furniture never wears; one of each kind for each body."""

    def __init__(self, wardrobe, rng: np.random.Generator, name: str) -> None:
        self._wardrobe, self._rng, self._name = wardrobe, rng, name

    def cloth(self) -> Material:
        return self._wardrobe.fabric()

    def plain(self, part: str, rgb, emission: float = 0.0) -> Material:
        picture = np.full((16, 16, 3), np.clip(rgb, 0, 255), np.uint8)
        return Material(f"{self._name}_{part}", picture, 1.0, 0.1, emission)

    def skin(self) -> Material:
        tone = self._rng.uniform()
        return self.plain("skin", np.array([235, 190, 160]) * (1 - tone) + np.array([95, 60, 42]) * tone)

    def fur(self) -> Material:
        return self.plain("fur", hsv(self._rng.uniform(0.04, 0.12), self._rng.uniform(0.1, 0.6),
                                     self._rng.uniform(0.2, 0.9)))  # fmt: skip

    def dark(self) -> Material:
        return self.plain("dark", colour(self._rng, 0.9) * 0.25)

    def lamp(self) -> Material:
        return self.plain("lamp", hsv(self._rng.uniform(0.45, 0.65), 0.7, 1.0), 0.9)

    def striped(self, part: str, colours, count: int, emission: float = 0.15) -> Material:
        """Upright stripes, one tile around the body."""
        place = np.arange(64) * count // 64
        picture = np.asarray(colours)[place % len(colours)][None].repeat(16, 0)
        return Material(f"{self._name}_{part}", picture.astype(np.uint8), 0.5, 0.15, emission)


def ball(b: Builder, o: Outfits, rng) -> float:
    """A beach ball: white segments between bright ones."""
    radius, hues = rng.uniform(0.12, 0.3), rng.random() + np.array([0.0, 0.33, 0.62])
    bright = [hsv(hue, 0.9, 0.95) for hue in hues]
    segments = [part for each in bright for part in (each, np.full(3, 245.0))]
    b.ball(o.striped("beach", segments, 6), (0, 0, radius), radius)
    return radius


def robot(b: Builder, o: Outfits, rng) -> float:
    """A white or bright base on dark wheels, a mast, a head with a glowing screen."""
    paint = o.plain("paint", hsv(rng.random(), rng.choice([0.05, 0.85]), 0.95))
    dark, lamp, mast = o.dark(), o.lamp(), rng.uniform(0.3, 0.7)
    b.box(paint, (0, 0, 0.2), (0.5, 0.4, 0.22))
    b.box(lamp, (0, 0, 0.27), (0.52, 0.42, 0.04))
    for x in (-0.15, 0.15):
        b.box(dark, (x, 0, 0.07), (0.14, 0.44, 0.14))
    b.cylinder(dark, (-0.1, 0, 0.31), 0.05, mast)
    b.box(paint, (-0.1, 0, 0.42 + mast), (0.16, 0.34, 0.24))
    for x in (-0.19, -0.01):
        b.box(lamp, (x, 0, 0.42 + mast), (0.02, 0.26, 0.16))
    return 0.5


def person(b: Builder, o: Outfits, rng) -> float:
    """Two legs in dark trousers, a dressed trunk with arms, a head with hair."""
    tall, skin, trousers, cloth = rng.uniform(0.85, 1.1), o.skin(), o.dark(), o.cloth()
    stride = rng.uniform(0.05, 0.2)
    for side, forward in ((-1, stride), (1, -stride)):
        b.cylinder(trousers, (forward, 0.1 * side, 0), 0.075, 0.8 * tall, top_radius=0.1)
        b.cylinder(cloth, (-forward, 0.24 * side, 0.85 * tall), 0.05, 0.5 * tall)
        b.ball(skin, (-forward, 0.24 * side, 0.82 * tall), 0.06)
    b.cylinder(cloth, (0, 0, 0.78 * tall), 0.17, 0.6 * tall, top_radius=0.2)
    b.ball(skin, (0, 0, 1.55 * tall), 0.12, squash=1.25)
    b.ball(o.plain("hair", hsv(rng.uniform(0.03, 0.12), 0.5, rng.uniform(0.05, 0.6))),
           (-0.03, 0, 1.62 * tall), 0.12)  # fmt: skip
    return 0.9 * tall


def dog(b: Builder, o: Outfits, rng) -> float:
    """Four legs, a long trunk, head with a snout, tail."""
    size, fur, dark = rng.uniform(0.7, 1.3), o.fur(), o.dark()
    for x in (-0.22, 0.22):
        for y in (-0.07, 0.07):
            b.cylinder(fur, (size * x, size * y, 0), 0.035 * size, 0.3 * size)
    for x in (-0.22, -0.08, 0.08, 0.22):
        b.ball(fur, (size * x, 0, 0.38 * size), 0.14 * size)
    b.ball(fur, (0.38 * size, 0, 0.55 * size), 0.11 * size)
    b.box(fur, (0.5 * size, 0, 0.52 * size), (0.14 * size, 0.08 * size, 0.08 * size))
    b.ball(dark, (0.57 * size, 0, 0.53 * size), 0.03 * size)
    b.cylinder(fur, (-0.36 * size, 0, 0.4 * size), 0.025 * size, 0.25 * size)
    return 0.45 * size


def truck(b: Builder, o: Outfits, rng) -> float:
    """A small lift truck: hazard stripes, a yellow body, mast and forks, a lamp on the roof."""
    yellow = o.plain("yellow", hsv(rng.uniform(0.08, 0.15), 0.9, 0.95))
    hazard = o.striped("hazard", [(245, 200, 20), (25, 25, 25)], 12)
    dark = o.dark()
    b.box(yellow, (-0.15, 0, 0.4), (0.7, 0.5, 0.45))
    b.box(hazard, (-0.15, 0, 0.16), (0.72, 0.52, 0.1))
    for x in (-0.4, 0.12):
        b.box(dark, (x, 0, 0.1), (0.2, 0.54, 0.2))
    for x, y in ((-0.4, -0.2), (-0.4, 0.2), (0.12, -0.2), (0.12, 0.2)):
        b.cylinder(dark, (x, y, 0.62), 0.025, 0.6)
    b.box(yellow, (-0.14, 0, 1.24), (0.62, 0.5, 0.05))
    b.ball(o.plain("beacon", (255, 120, 0), 0.9), (-0.14, 0, 1.3), 0.06)
    for y in (-0.15, 0.15):
        b.box(dark, (0.25, y, 0.7), (0.06, 0.06, 1.3))
        b.box(dark, (0.5, y, 0.05), (0.5, 0.1, 0.04))
    return 0.8


SHAPES = (person, person, dog, robot, truck, ball)

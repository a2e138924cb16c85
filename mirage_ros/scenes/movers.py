"""Moving bodies, whose poses are analytic functions of time, and the scene that they are part of.

Bodies are people, dogs, robots, trucks and beach balls. Solids are boxes that answer distances and rays.

What may move is recognised by its looks, as by the text-prompted masks of larger models: no piece of
furniture looks like one of these, so that one picture is enough to know that a body will not stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mirage_ros.scenes.builder import Builder, Material
from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.pictures import colour, hsv


class BodyMaterials:
    """Materials that furniture never wears; one of each kind for each body."""

    def __init__(self, materials, rng: np.random.Generator, name: str) -> None:
        self._materials, self._rng, self._name = materials, rng, name

    def cloth(self) -> Material:
        return self._materials.fabric()

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


def ball(b: Builder, o: BodyMaterials, rng) -> float:
    """A beach ball: white segments between bright ones."""
    radius, hues = rng.uniform(0.12, 0.3), rng.random() + np.array([0.0, 0.33, 0.62])
    bright = [hsv(hue, 0.9, 0.95) for hue in hues]
    segments = [part for each in bright for part in (each, np.full(3, 245.0))]
    b.ball(o.striped("beach", segments, 6), (0, 0, radius), radius)
    return radius


def robot(b: Builder, o: BodyMaterials, rng) -> float:
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


def person(b: Builder, o: BodyMaterials, rng) -> float:
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


def dog(b: Builder, o: BodyMaterials, rng) -> float:
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


def truck(b: Builder, o: BodyMaterials, rng) -> float:
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


TRIES = 200


@dataclass(frozen=True)
class Mover:
    """A body on an ellipse or a line, bouncing if it is a ball.

    Attributes:
        centre: (3,) middle of its path on the floor, metres.
        axis_a, axis_b: (3,) half axes of its path; axis_b zero moves it to and fro.
        omega: rad/s along the path; phase at time 0.
        bounce_m: height of its jumps; bounce_hz: jumps a second.
        radius_m: of a ball around the body, about its own origin raised by `radius_m`.
        spin: True rolls it, False turns it to face its way.
    """

    centre: np.ndarray
    axis_a: np.ndarray
    axis_b: np.ndarray
    omega: float
    phase: float
    bounce_m: float
    bounce_hz: float
    radius_m: float
    spin: bool

    def position(self, time_s: np.ndarray | float) -> np.ndarray:
        """(*t, 3) position of the body's origin (its lowest point)."""
        time_s = np.asarray(time_s, float)
        turn = (self.omega * time_s + self.phase)[..., None]
        place = self.centre + self.axis_a * np.cos(turn) + self.axis_b * np.sin(turn)
        place[..., 2] += self.bounce_m * np.abs(
            np.sin(np.pi * self.bounce_hz * time_s + self.phase)
        )
        return place

    def yaw(self, time_s: float) -> float:
        """Heading along the path, radians (continuous: to and fro bodies do not flip)."""
        turn = self.omega * time_s + self.phase
        if not self.axis_b.any():
            return float(np.arctan2(self.axis_a[1], self.axis_a[0]))
        speed = self.omega * (self.axis_b * np.cos(turn) - self.axis_a * np.sin(turn))
        return float(np.arctan2(speed[1], speed[0]))

    def quat(self, time_s: float) -> np.ndarray:
        """(4,) wxyz."""
        if self.spin:
            angle = self.omega * time_s * np.linalg.norm(self.axis_a) / self.radius_m
            axis = np.array([-self.axis_a[1], self.axis_a[0], 0.0])
            axis = axis / max(np.linalg.norm(axis), 1e-9)
            return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)])
        return np.array([np.cos(self.yaw(time_s) / 2), 0, 0, np.sin(self.yaw(time_s) / 2)])


def make_movers(spec, materials, rng, solids, layout, group: int) -> tuple[Mover, ...]:
    """Adds 2 to 5 mocap bodies on free paths to the spec; may return fewer where it is tight."""
    movers = []
    for number in range(int(rng.integers(2, 6))):
        builder = Builder()
        shape = SHAPES[rng.integers(len(SHAPES))]
        radius = shape(builder, BodyMaterials(materials, rng, f"mover{number}"), rng)
        mover = _free_path(rng, solids, layout, radius, shape)
        if mover is None:
            continue
        body = spec.worldbody.add_body(name=f"mover{number}", mocap=True)
        builder.add_to(spec, body, f"mover{number}_", group)
        movers.append(mover)
    return tuple(movers)


def _free_path(rng, solids, layout, radius, shape) -> Mover | None:
    low, high = np.array(layout.low), np.array(layout.high)
    times = np.linspace(0, 1, 16)
    tops = solids.centres[:, 2] + solids.halves[:, 2]
    standing = solids.where((tops > 0.05) & (solids.centres[:, 2] - solids.halves[:, 2] < 1.5))
    for _ in range(TRIES):
        turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.8)
        axis_a = reach * np.array([np.cos(turn), np.sin(turn), 0])
        ratio = 0.0 if rng.random() < 0.5 else rng.uniform(0.4, 1.0)
        axis_b = ratio * np.array([-axis_a[1], axis_a[0], 0])
        speed = rng.uniform(0.3, 1.2) * rng.choice([-1, 1])
        bounces = shape is ball and rng.random() < 0.5
        mover = Mover(
            centre=np.append(rng.uniform(low[:2], high[:2]), 0.0),
            axis_a=axis_a,
            axis_b=axis_b,
            omega=speed / reach,
            phase=rng.uniform(0, 2 * np.pi),
            bounce_m=rng.uniform(0.3, 0.8) if bounces else 0.0,
            bounce_hz=rng.uniform(0.7, 1.5) if bounces else 0.0,
            radius_m=radius,
            spin=shape is ball and ratio == 0.0,
        )
        path = mover.position(times * 2 * np.pi / abs(mover.omega))
        path[:, 2] = 0.3
        inside = (path[:, :2] > low[:2]).all() and (path[:, :2] < high[:2]).all()
        if inside and standing.distance(path).min() > min(radius, 0.45):
            return mover
    return None


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


@dataclass(frozen=True)
class Scene:
    """A world to render.

    Attributes:
        seed, kind: what made it.
        model: the MuJoCo model; moving things are its mocap bodies, in `movers` order.
        solids: what cameras keep away from.
        low, high: corners of the box in which cameras may be, metres.
        movers: moving bodies, poses analytic in time.
        points_of_interest: (n, 3) world points worth looking at.
        has_sky: rays may leave the scene.
    """

    seed: int
    kind: str
    model: mujoco.MjModel
    solids: Solids
    low: np.ndarray
    high: np.ndarray
    movers: tuple[Mover, ...]
    points_of_interest: np.ndarray
    has_sky: bool

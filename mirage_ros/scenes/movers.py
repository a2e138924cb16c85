"""Moving bodies: kinematic, their poses are analytic functions of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mirage_ros.scenes.bodies import SHAPES, Outfits, ball
from mirage_ros.scenes.builder import Builder

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


def make_movers(spec, wardrobe, rng, solids, layout, group: int) -> tuple[Mover, ...]:
    """Adds 2 to 5 mocap bodies on free paths to the spec; may return fewer where it is tight."""
    movers = []
    for number in range(int(rng.integers(2, 6))):
        builder = Builder()
        shape = SHAPES[rng.integers(len(SHAPES))]
        radius = shape(builder, Outfits(wardrobe, rng, f"mover{number}"), rng)
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

"""A kinematic base: velocity commands in, poses out; and its body, an upright cylinder.

x forward, y left, z up (REP 103).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import inverse


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


STRAIGHT_RPS = 1e-6
UPRIGHT = 0.5


@dataclass(frozen=True)
class Command:
    """Speed ahead (m/s) and turn rate to the left (rad/s)."""

    speed_mps: float = 0.0
    turn_rps: float = 0.0


STILL = Command()


@dataclass(frozen=True)
class BasePose:
    """Place (m) on the floor and heading (rad, from x to the left) in the world."""

    x_m: float = 0.0
    y_m: float = 0.0
    yaw_rad: float = 0.0

    @property
    def world_from_base(self) -> Float[np.ndarray, "4 4"]:
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        pose = np.eye(4)
        pose[:2, :2] = [[cos, -sin], [sin, cos]]
        pose[:2, 3] = self.x_m, self.y_m
        return pose

    def after(self, command: Command, seconds: float) -> BasePose:
        """Where the command leads: along an arc, exactly."""
        length = command.speed_mps * seconds
        turn = command.turn_rps * seconds
        chord = length
        if abs(command.turn_rps) > STRAIGHT_RPS:
            chord = 2 * command.speed_mps / command.turn_rps * math.sin(turn / 2)
        middle = self.yaw_rad + turn / 2
        yaw = math.remainder(self.yaw_rad + turn, 2 * math.pi)
        return BasePose(
            self.x_m + chord * math.cos(middle), self.y_m + chord * math.sin(middle), yaw
        )

    def along(self, command: Command, period_s: float, count: int) -> Iterator[BasePose]:
        """The next `count` poses, a period apart."""
        for index in range(1, count + 1):
            yield self.after(command, index * period_s)


def base_under(
    world_from_camera: Float[np.ndarray, "4 4"],
) -> tuple[BasePose, Float[np.ndarray, "4 4"]]:
    """The base that carries a camera, heading where it looks, and the camera's mount on it.

    Returns:
        The base's pose on the floor (z = 0) and base_from_camera.

    Raises:
        MirageError: the camera does not stand upright in a world with z up.
    """
    rotation = world_from_camera[:3, :3]
    if -rotation[2, 1] < UPRIGHT:
        raise MirageError(
            f"The camera's up is {(-rotation[:, 1]).round(2).tolist()} in its world; a base needs "
            "a camera that stands upright in a world with z up: give another seed."
        )
    yaw = math.atan2(rotation[1, 2], rotation[0, 2])
    base = BasePose(float(world_from_camera[0, 3]), float(world_from_camera[1, 3]), yaw)
    return base, inverse(base.world_from_base) @ world_from_camera

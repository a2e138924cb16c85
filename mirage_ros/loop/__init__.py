"""A robot that drives through a generated world by what it sees there; no ROS.

Here its kinematic base: velocity commands in, poses out; and its body, an upright cylinder. `BasePose` goes along arcs on
the floor for a base in lockstep; `LiveBase` moves while time passes. x forward, y left, z up (REP 103).

wander.py  the policy and its map: from depth pictures to commands
drive.py   the closed loop, the worlds that it drives in, and figures of a drive
teleop.py  keys, a gamepad and pictures in a terminal
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import exp, inverse, orthonormal
from mirage_ros.protocol import SECOND_NS


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


@dataclass(frozen=True, eq=False)
class Obstacles:
    """What stops a body.

    Attributes:
        points_m: of surfaces, in the axes that the body's places are in.
        body: its low_m and high_m are heights there.
        flies: it is a ball around its place instead, with the body's radius.
    """

    points_m: Float[np.ndarray, "n 3"]
    body: Footprint = Footprint()
    flies: bool = False

    def stop(self, before: Float[np.ndarray, "3"], after: Float[np.ndarray, "3"]) -> bool:
        """Whether a move brings the body nearer to a point that it holds then. Away from one is free."""
        axes = 3 if self.flies else 2
        points = self.points_m if self.flies else self.points_m[self.body.at_its_height(self.points_m)]
        near = (np.abs(points[:, :axes] - after[:axes]) < self.body.radius_m).all(1)
        then, now = (np.linalg.norm(points[near, :axes] - place[:axes], axis=1) for place in (after, before))
        return bool(((then < self.body.radius_m) & (then < now)).any())

    def reached(self, before: Float[np.ndarray, "3"], after: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
        """How far the body comes on a straight way."""
        steps = max(1, math.ceil(float(np.linalg.norm(after - before)) / FINE_M))
        place = before
        for share in np.arange(1, steps + 1) / steps:
            ahead = before + share * (after - before)
            if self.stop(place, ahead):
                break
            place = ahead
        return place


FINE_M = 0.005
"""Obstacles are looked for in steps of this."""
STRAIGHT_RPS = 1e-6
UPRIGHT = 0.5
# Of any component of a command, so that its length is a number (m/s, rad/s).
FASTEST = 1e6
# Optical axes (x right, y down, z ahead) on a base that looks along x.
BASE_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


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

    def stopped(self, command: Command, period_s: float, count: int, obstacles: Obstacles) -> Iterator[BasePose]:
        """As `along`, up to where something stops it; there it stays."""
        steps = max(1, math.ceil(abs(command.speed_mps) * period_s / FINE_M))
        pose, stands = self, False
        for index in range(count * steps):
            after = self.after(command, (index + 1) * period_s / steps)
            stands = stands or obstacles.stop(pose.world_from_base[:3, 3], after.world_from_base[:3, 3])
            pose = pose if stands else after
            if (index + 1) % steps == 0:
                yield pose


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


KINDS = ("diff", "omni", "free")
# Of a body twist (vx vy vz wx wy wz), what each kind of base can do.
DRIVEN_AXES = {"diff": (1, 0, 0, 0, 0, 1), "omni": (1, 1, 0, 0, 0, 1), "free": (1, 1, 1, 1, 1, 1)}
LINEAR, ANGULAR = slice(0, 3), slice(3, 6)
# A ramp is integrated in steps of this length: the twist of each is its mean.
STEP_S = 0.01


@dataclass(frozen=True)
class LiveBaseConfig:
    """How a base that is driven in real time moves.

    Attributes:
        kind: diff (ahead and turn), omni (sideways as well) or free (a camera that flies, all six axes).
        max_speed_mps, max_turn_rps: the lengths of the linear and of the angular velocity are cut down to these.
        acceleration_mps2, turn_acceleration_rps2: how fast they change, braking included.
        timeout_s: the base stops when its newest command is older.

    Raises:
        MirageError: another kind, or a number that is not finite and above 0.
    """

    kind: str = "diff"
    max_speed_mps: float = 1.0
    max_turn_rps: float = 1.5
    acceleration_mps2: float = 2.0
    turn_acceleration_rps2: float = 6.0
    timeout_s: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MirageError(f"The base's kind is {self.kind!r}; give one of {', '.join(KINDS)}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "kind" and not (math.isfinite(value) and value > 0):
                raise MirageError(f"The base's {field.name} is {value}; give a finite number above 0.")


class LiveBase:
    """A base that moves while time passes: body twists in, its pose now out. No ROS.

    Attributes:
        odom_from_base: where it stands.
        twist: its velocity in its own frame, vx vy vz (m/s) wx wy wz (rad/s).
        obstacles: what stops it; it turns on at them, and goes away from them. None is nothing.

    Args:
        odom_from_base: where it stands when time begins.
    """

    def __init__(
        self, odom_from_base: Float[np.ndarray, "4 4"], config: LiveBaseConfig = LiveBaseConfig()
    ) -> None:
        self.config = config
        self.odom_from_base = odom_from_base.copy()
        self.twist = np.zeros(6)
        self.obstacles: Obstacles | None = None
        self._target = np.zeros(6)
        self._expires_ns = self._now_ns = 0

    def command(self, twist: Float[np.ndarray, "6"], now_ns: int) -> bool:
        """Heeds a command from now on. False, and the base stops, when it is not all finite."""
        self.advance(now_ns)
        finite = bool(np.isfinite(twist).all())
        self._target = self._possible(twist) if finite else np.zeros(6)
        self._expires_ns = now_ns + round(self.config.timeout_s * SECOND_NS)
        return finite

    def advance(self, now_ns: int) -> None:
        """Moves on to a time. Where time jumps back, or begins, the base stays and stands still."""
        if now_ns < self._now_ns or not self._now_ns:
            self.twist, self._target = np.zeros(6), np.zeros(6)
            self._now_ns = self._expires_ns = now_ns
        commanded_ns = min(now_ns, max(self._expires_ns, self._now_ns)) - self._now_ns
        self._move(commanded_ns / SECOND_NS)
        if now_ns >= self._expires_ns:
            self._target = np.zeros(6)
        self._move((now_ns - self._now_ns - commanded_ns) / SECOND_NS)
        self._now_ns = now_ns

    def _possible(self, twist: np.ndarray) -> np.ndarray:
        """What this kind of base can do of a twist, within its limits, in the same direction."""
        possible = np.where(DRIVEN_AXES[self.config.kind], np.clip(twist, -FASTEST, FASTEST), 0.0)
        for part, limit in ((LINEAR, self.config.max_speed_mps), (ANGULAR, self.config.max_turn_rps)):
            possible[part] *= min(1.0, limit / max(float(np.linalg.norm(possible[part])), 1e-12))
        return possible

    def _move(self, seconds: float) -> None:
        """Integrates, exactly where the twist is constant, until time is up or the base rests."""
        while seconds > 0 and (self.twist.any() or self._target.any()):
            twist, step_s = self._ramped(seconds if self.obstacles is None else min(seconds, self._fine_s()))
            after = self.odom_from_base @ exp((self.twist + twist) / 2 * step_s)
            if self.obstacles is not None and self.obstacles.stop(self.odom_from_base[:3, 3], after[:3, 3]):
                after[:3, 3], twist[LINEAR] = self.odom_from_base[:3, 3], 0.0
            self.odom_from_base, self.twist = after, twist
            seconds -= step_s
        self.odom_from_base = orthonormal(self.odom_from_base)

    def _fine_s(self) -> float:
        """How long it takes at most FINE_M."""
        speeds = (float(np.linalg.norm(twist[LINEAR])) for twist in (self.twist, self._target))
        return max(FINE_M / max(*speeds, FINE_M), 1e-4)

    def _ramped(self, seconds: float) -> tuple[np.ndarray, float]:
        """The twist after a step of at most so long, and the length of that step."""
        limits = np.repeat([self.config.acceleration_mps2, self.config.turn_acceleration_rps2], 3)
        change = self._target - self.twist
        lengths = np.repeat([np.linalg.norm(change[LINEAR]), np.linalg.norm(change[ANGULAR])], 3)
        ramps_s = lengths / limits
        left_s = ramps_s[ramps_s > 0]
        step_s = min(seconds, STEP_S, float(left_s.min())) if left_s.size else seconds
        share = np.divide(step_s, ramps_s, out=np.ones(6), where=ramps_s > step_s)
        return np.where(share < 1, self.twist + change * share, self._target), step_s


def live_base_under(
    world_from_camera: Float[np.ndarray, "4 4"], kind: str
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]:
    """Where a base stands that carries a camera, and the camera's mount on it: world_from_base, base_from_camera.

    A free base flies where its camera is, upright where the camera is; the others stand on the floor below.

    Raises:
        MirageError: the camera does not stand upright and the base is not free.
    """
    if kind == "free" and -world_from_camera[2, 1] < UPRIGHT:
        world_from_base = world_from_camera @ inverse(BASE_FROM_OPTICAL)
        return world_from_base, BASE_FROM_OPTICAL.copy()
    base, mount = base_under(world_from_camera)
    world_from_base = base.world_from_base
    if kind == "free":
        height_m = world_from_camera[2, 3]
        world_from_base[2, 3], mount[2, 3] = height_m, mount[2, 3] - height_m
    return world_from_base, mount

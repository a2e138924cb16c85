"""Several robots in one world: a YAML file of them, and where each one is at the frames' times, as TF says.

A frame comes once all robots that move have said where they are then. One that falls silent is waited for no longer than
a second; from then on it stands where it was, and the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from transforms3d.euler import euler2mat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import inverse
from mirage_ros.loop import BASE_FROM_OPTICAL, KINDS
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros import CameraOutput, Carrier
from mirage_ros.ros.cameras import RigCamera, read_listed, rig_camera
from mirage_ros.ros.tracks import TransformError, Transforms
from mirage_ros.ros.worker import Planned
from mirage_ros.world.entities import plain_name

Pose = Float[np.ndarray, "4 4"]
Poses = Float[np.ndarray, "f 4 4"]
PATIENCE_S = 1.0
KEYS = {"namespace", "base", "start", "body", "cameras", "base_frame"}
START_KEYS = {"x", "y", "z", "yaw_deg"}
ELSEWHERE = "none"
"""The base of a robot whose poses come from somebody else."""
NEEDED = (
    "a list 'robots' of namespace, cameras (name, width, height, xyz and rpy_deg on the base), and as you like start (x, y, "
    "yaw_deg), base (diff, omni, free, none), body and base_frame"
)


@dataclass(frozen=True, eq=False)
class Robot:
    """One robot.

    Attributes:
        namespace: of its topics and frames; also the entity that the others see.
        base: what `mirage base` drives it as, or `none`.
        start: world_from_base before anybody says where it is.
        body: uri of what the others see, in the axes of its base; '' is nothing.
        cameras: with their mounts on its base.
    """

    namespace: str
    base: str
    start: Pose
    body: str
    cameras: tuple[RigCamera, ...]
    base_frame: str

    @property
    def odom_frame(self) -> str:
        return f"{self.namespace}/odom"


def read_robots(path: str) -> tuple[Robot, ...]:
    """The robots of a file (see `user_path`), or a shipped one's name, in order.

    Raises:
        MirageError: says what is wrong.
    """
    return read_listed("The robots' file", path, "robots", "robots", "namespace", NEEDED, _robot)


def robot_named(path: str, namespace: str) -> Robot:
    """One of a file's robots. Raises MirageError where it has none of the name."""
    robots = read_robots(path)
    found = [robot for robot in robots if robot.namespace == namespace]
    if not found:
        names = ", ".join(robot.namespace for robot in robots)
        raise MirageError(f"The robots' file {path} has no robot '{namespace}'; it has {names}.")
    return found[0]


def _robot(what: str, entry: dict) -> Robot:
    name, base = str(entry["namespace"]), str(entry.get("base", "diff"))
    unknown = sorted(entry.keys() - KEYS)
    if unknown or not plain_name(name) or "/" in name or base not in (*KINDS, ELSEWHERE):
        fault = f"unknown {unknown}" if unknown else f"the base '{base}'"
        raise MirageError(f"{what} has a robot '{name:.100}' with {fault}; it needs {NEEDED}, a namespace of letters, digits and _.")
    start = {key: float(value) for key, value in (entry.get("start") or {}).items()}
    z_m = start.get("z", 0.0)
    if start.keys() - START_KEYS or not all(map(math.isfinite, start.values())) or (z_m and base in ("diff", "omni")):
        raise MirageError(
            f"{what} has the robot '{name}' start at {start}; give finite numbers x, y and yaw_deg, and z for a base that flies."
        )
    pose = np.eye(4)
    pose[:3, :3] = euler2mat(0, 0, math.radians(start.get("yaw_deg", 0.0)))
    pose[:3, 3] = start.get("x", 0.0), start.get("y", 0.0), z_m
    cameras = [_camera(what, name, dict(camera)) for camera in entry["cameras"]]
    taken = [camera.name for camera in cameras]
    if not cameras or len(set(taken)) != len(taken):
        raise MirageError(f"{what} gives the robot '{name}' the cameras {taken}; give it one or more, each with its own name.")
    alone = len(cameras) == 1
    cameras = [replace(c, named=_output(name, c.name, alone, index == 0)) for index, c in enumerate(cameras)]
    return Robot(name, base, pose, str(entry.get("body", "")), tuple(cameras), str(entry.get("base_frame", f"{name}/base_link")))


def _camera(what: str, robot: str, entry: dict) -> RigCamera:
    """A camera whose mount is given as in URDF: it looks along x, turned by roll, pitch and yaw."""
    xyz, rpy = (np.array(entry.pop(key, [0, 0, 0]), np.float64) for key in ("xyz", "rpy_deg"))
    by_tf = "frame" in entry
    entry.setdefault("frame", f"{robot}/{entry['name']}_optical_frame")
    if "wxyz" in entry or xyz.shape != (3,) or rpy.shape != (3,) or not np.isfinite([xyz, rpy]).all():
        raise MirageError(f"{what} mounts the camera '{entry['name']}' of '{robot}' wrongly; give xyz and rpy_deg, three numbers each.")
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = euler2mat(*np.radians(rpy)), xyz
    camera = rig_camera(what, entry)
    return replace(camera, planned_from_camera=None if by_tf else mount @ BASE_FROM_OPTICAL)


def _output(robot: str, camera: str, alone: bool, first: bool) -> CameraOutput:
    prefix = f"{robot}/" if alone else f"{robot}/{camera}/"
    frames = (f"{robot}/mirage_{camera}_{what}_frame" for what in ("optical", "scan", "lidar"))
    return CameraOutput(f"{robot}/{camera}", prefix, *frames, robot=f"{robot}/" if first else None)


def carriers(robots: Sequence[Robot]) -> tuple[Carrier, ...]:
    """As the worker has them: their cameras are counted through."""
    found, count = [], 0
    for robot in robots:
        found.append(Carrier(tuple(range(count, count + len(robot.cameras))), robot.namespace, robot.body))
        count += len(robot.cameras)
    return tuple(found)


class RobotPlan:
    """What TF plans for several robots: a `plan.Source`, whose poses are those of the first one's first camera.

    Args:
        now_s: a steady clock.

    Attributes:
        cameras: of all robots.
        silent: namespaces of those that are not waited for.
    """

    def __init__(
        self, robots: Sequence[Robot], buffer: Transforms, world_frame: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.robots, self.cameras = tuple(robots), tuple(camera for robot in robots for camera in robot.cameras)
        self.silent: tuple[str, ...] = ()
        self._carriers = tuple(robot for robot in robots for _ in robot.cameras)
        self._buffer, self._world, self._now_s = buffer, world_frame, now_s
        # The end of what each has planned, and when (s) that was first seen.
        self._heard: dict[str, tuple[int | None, float]] = {}
        self._planned_ns = 0

    @property
    def frames(self) -> list[str]:
        """Of all bases and cameras."""
        mounted = [camera.frame for camera in self.cameras if camera.planned_from_camera is None]
        return [robot.base_frame for robot in self.robots] + mounted

    def span(self) -> tuple[int, int] | None:
        """From the first pose of any robot up to where all have planned that are waited for."""
        spans = {robot.namespace: self._span(robot) for robot in self.robots}
        moving = {name: span for name, span in spans.items() if span is not None}
        if not moving:
            self._heard.clear()
            self.silent, self._planned_ns = (), 0
            return self._buffer.span(self._world, self.robots[0].base_frame)
        waited = self._waited({name: span and span[1] for name, span in spans.items()})
        self.silent = tuple(name for name in spans if name not in waited)
        if any(name not in moving for name in waited):
            return None
        ends = [span[1] for name, span in moving.items() if name in waited] or [max(end for _, end in moving.values())]
        self._planned_ns = max(self._planned_ns, min(ends))
        return min(begin for begin, _ in moving.values()), min(ends)

    def _waited(self, ends: dict[str, int | None]) -> list[str]:
        """Those that were heard of lately; one that comes back is waited for again once it has caught up."""
        now_s, found = self._now_s(), []
        for name, end_ns in ends.items():
            before = self._heard.setdefault(name, (end_ns, now_s))
            if before[0] != end_ns:
                before = self._heard[name] = end_ns, now_s
            behind = name in self.silent and (end_ns or 0) + PATIENCE_S * SECOND_NS < self._planned_ns
            if now_s - before[1] < PATIENCE_S and not behind and not self._stands(name):
                found.append(name)
        return found

    def _stands(self, name: str) -> bool:
        """TF knows where it is, and that it never moves."""
        robot = next(robot for robot in self.robots if robot.namespace == name)
        try:
            return all(track.static for track in self._buffer.chain(self._world, robot.base_frame))
        except TransformError:
            return False

    def gap(self, stamp_ns: int) -> tuple[int, int]:
        """Where none of them has a pose."""
        gaps = [
            self._buffer.gap(self._world, robot.base_frame, stamp_ns)
            for robot in self.robots
            if (span := self._span(robot)) is not None and span[0] <= stamp_ns <= span[1]
        ]
        return max((before for before, _ in gaps), default=stamp_ns), min((after for _, after in gaps), default=stamp_ns)

    def pose(self, stamp_ns: int) -> Pose:
        lead = self.robots[0]
        return self._base(lead, stamp_ns) @ self._mount(lead, lead.cameras[0], stamp_ns)

    def poses(self, planned: Planned) -> tuple[tuple[Poses, ...], tuple[Poses, ...]]:
        """world_from_camera of all cameras at each planned time, and world_from_base of the robots that have a body.

        The first robot is where the plan says, which may be a Path. Raises TransformError for a mount that TF does not know.
        """
        cameras, bodies = [], []
        for robot in self.robots:
            mounts = [np.stack([self._mount(robot, camera, t) for t in planned.stamps_ns]) for camera in robot.cameras]
            if robot is self.robots[0]:
                bases = planned.world_from_camera @ inverse(mounts[0])
            else:
                bases = np.stack([self._base(robot, stamp_ns) for stamp_ns in planned.stamps_ns])
            cameras += [bases @ mount for mount in mounts]
            bodies += [bases] if robot.body else []
        return tuple(cameras), tuple(bodies)

    def camera_pose(self, index: int, stamp_ns: int) -> Pose:
        """world_from_camera of one of all cameras, as TF has it."""
        robot = self._carriers[index]
        return self._base(robot, stamp_ns) @ self._mount(robot, self.cameras[index], stamp_ns)

    def _span(self, robot: Robot) -> tuple[int, int] | None:
        try:
            return self._buffer.span(self._world, robot.base_frame)
        except TransformError:
            return None

    def _base(self, robot: Robot, stamp_ns: int) -> Pose:
        """Where it is; before and after what is known as at its ends."""
        try:
            return self._held(self._world, robot.base_frame, stamp_ns)
        except TransformError:
            return robot.start

    def _held(self, target: str, source: str, stamp_ns: int) -> Pose:
        span = self._buffer.span(target, source)
        return self._buffer.matrix(target, source, stamp_ns if span is None else min(max(stamp_ns, span[0]), span[1]))

    def _mount(self, robot: Robot, camera: RigCamera, stamp_ns: int) -> Pose:
        if camera.planned_from_camera is not None:
            return camera.planned_from_camera
        return self._held(robot.base_frame, camera.frame, stamp_ns)

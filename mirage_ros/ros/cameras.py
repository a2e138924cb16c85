"""The cameras: one, or a rig from a YAML file, where they stand and how they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml
from jaxtyping import Float

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, open_file, share_path, user_path
from mirage_ros.geometry.rigid import from_quaternion, twist_between
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros import CameraOutput, Carrier, NodeConfig
from mirage_ros.ros.plan import PlanConfig
from mirage_ros.ros.tracks import Transforms
from mirage_ros.ros.worker import Planned, View, WorkerConfig
from mirage_ros.world.entities import RobotBody
from mirage_ros.world.sensors import ImuConfig, LidarConfig, MapConfig, ScanConfig

KEYS = {"name", "frame", "width", "height", "hfov_deg", "fx", "fy", "cx", "cy", "xyz", "wxyz"}
Twist = tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]

CAMERA = "camera"
"""Name of the one camera without a rig, as an entity."""
NEEDED = "name, frame, width, height, hfov_deg or fx fy cx cy, and xyz wxyz unless TF knows frame"

Named = TypeVar("Named")


@dataclass(frozen=True)
class RigCamera:
    """One camera of a rig.

    Attributes:
        name: of its topics (`<name>/color/image_raw`) and its entity.
        frame: TF frame that it is mounted at, optical axes.
        view: its pictures.
        planned_from_camera: its mount on the planned frame, or on its robot's base; None asks TF, as with a URDF.
        named: its output, where its name does not say it.
    """

    name: str
    frame: str
    view: View
    planned_from_camera: Float[np.ndarray, "4 4"] | None = None
    named: CameraOutput | None = None

    @property
    def output(self) -> CameraOutput:
        if self.named is not None:
            return self.named
        frames = (f"mirage_{self.name}_{what}_frame" for what in ("optical", "scan", "lidar"))
        return CameraOutput(self.name, f"{self.name}/", *frames)


def single_camera(config: NodeConfig) -> tuple[View, CameraOutput]:
    """The one camera of a node without a rig."""
    size = (config.image_height, config.image_width) if config.image_width else None
    output = CameraOutput(CAMERA, "", config.rendered_camera_frame, config.scan_frame, config.lidar_frame)
    return View(size, config.hfov_deg), output


def read_rig(path: str) -> tuple[RigCamera, ...]:
    """The cameras of a rig file (see `user_path`) or a shipped rig's name, in order.

    Raises:
        MirageError: says what is wrong.
    """
    return read_listed("The rig", path, "rigs", "cameras", "name", f"a list 'cameras' of {NEEDED}", rig_camera)


def read_listed(
    what: str, path: str, folder: str, key: str, name: str, needed: str, make: Callable[[str, dict], Named]
) -> tuple[Named, ...]:
    """What a YAML file lists, each with its own name; of a path, or of a name in the shipped `config/FOLDER`.

    Args:
        what: the kind of file, for errors.
        key, name: of the list, and of the attribute that its members differ by.
        make: makes a member of the file's words and its entry.

    Raises:
        MirageError: says what is wrong.
    """
    what = f"{what} {path}"
    try:
        with open_file(_file(path, folder)) as text:
            entries = yaml.safe_load(text)[key]
        members = tuple(make(what, dict(entry)) for entry in entries)
    except (OSError, yaml.YAMLError, *UNREADABLE) as error:
        raise MirageError(f"{what} cannot be read ({error!r:.200}); it needs {needed}.") from error
    names = [getattr(member, name) for member in members]
    if not members or len(set(names)) != len(names):
        raise MirageError(f"{what} names the {key} {names}; give each its own {name}.")
    return members


def _file(path: str, folder: str) -> Path:
    """A user's file, or one of a name in the shipped `config/FOLDER`."""
    file = user_path(path)
    if path.isidentifier() and not file.exists():
        return share_path("config", folder, f"{path}.yaml")
    return file


def mounted(
    cameras: Sequence[RigCamera], buffer: Transforms, planned_frame: str, planned: Planned
) -> tuple[Float[np.ndarray, "f 4 4"], ...]:
    """world_from_camera of each camera at each planned time.

    Raises:
        MirageError: TF does not know where a camera is mounted.
    """
    poses = []
    for camera in cameras:
        if camera.planned_from_camera is not None:
            mount = np.broadcast_to(camera.planned_from_camera, (len(planned), 4, 4))
        elif camera.frame == planned_frame:
            mount = np.broadcast_to(np.eye(4), (len(planned), 4, 4))
        else:
            mount = np.stack(
                [buffer.matrix(planned_frame, camera.frame, t) for t in planned.stamps_ns]
            )
        poses.append(planned.world_from_camera @ mount)
    return tuple(poses)


def rig_camera(what: str, entry: dict) -> RigCamera:
    """A camera of a file's entry; `what` names the file in errors."""
    name, size = str(entry["name"]), (int(entry["height"]), int(entry["width"]))
    unknown = entry.keys() - KEYS
    if unknown or not name.isidentifier() or min(size) < 8:
        fault = f"unknown {sorted(unknown)}" if unknown else f"the size {size[1]} x {size[0]}"
        raise MirageError(
            f"{what} has a camera '{name}' with {fault}; it needs {NEEDED}, a name of "
            "letters, digits and _, and at least 8 pixels a side."
        )
    intrinsics = None
    if "fx" in entry:
        fx, fy, cx, cy = (float(entry[key]) for key in ("fx", "fy", "cx", "cy"))
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    view = View(size, float(entry.get("hfov_deg", 0.0)), intrinsics)
    return RigCamera(name, str(entry.get("frame", name)), view, _mount(entry))


def _mount(entry: dict) -> np.ndarray | None:
    if "xyz" not in entry and "wxyz" not in entry:
        return None
    quaternion = np.array(entry.get("wxyz", [1, 0, 0, 0]), np.float64)
    if quaternion.shape != (4,) or abs(np.linalg.norm(quaternion) - 1) > 1e-2:
        raise ValueError(f"wxyz {quaternion.tolist()} is no unit quaternion")
    position = np.array(entry.get("xyz", [0, 0, 0]), np.float64)
    return from_quaternion(position, quaternion / np.linalg.norm(quaternion))


def plan_config(config: NodeConfig) -> PlanConfig:
    return PlanConfig(
        config.world_frame, config.camera_frame, config.frame_rate_hz, config.plan_gap_s
    )


def worker_config(
    config: NodeConfig, rig: Sequence[RigCamera], single: View, robots: Sequence[Carrier] = ()
) -> WorkerConfig:
    """Args: rig: its cameras, or the robots', empty without one; single: the one camera then."""
    return WorkerConfig(
        world_seed=config.world_seed,
        use_memory=config.use_memory,
        max_memory_bytes=config.max_memory_mb * 2**20,
        forget_moving=config.forget_moving,
        max_dynamic_share=config.max_dynamic_share,
        period_ns=plan_config(config).period_ns,
        anchored=config.anchor == "tf",
        views=tuple(camera.view for camera in rig) or (single,),
        robots=tuple(robots) or (Carrier(tuple(range(max(1, len(rig))))),),
        scan=scan_config(config),
        lidar=lidar_config(config),
        map=map_config(config),
        reserved=tuple(camera.output.name for camera in rig) + tuple(robot.name for robot in robots) or (CAMERA,),
        physics=config.physics,
        robot=RobotBody(config.robot_radius_m, config.map_floor_m + config.map_floor_margin_m, config.map_floor_m),
        observe_live=config.observe_live,
        spawnables=str(user_path(config.spawnables_folder)) if config.spawnables_folder else "",
    )


def scan_config(config: NodeConfig) -> ScanConfig:
    """Raises MirageError for parameters that do not go together."""
    return ScanConfig(
        config.scan_fov_deg,
        config.scan_resolution_deg,
        config.scan_range_min_m,
        config.scan_range_max_m,
        config.scan_height_m,
    )


def lidar_config(config: NodeConfig) -> LidarConfig:
    """The pattern of a YAML file (see `user_path`), or a shipped one's name. Raises MirageError."""
    try:
        with open_file(_file(config.lidar, "lidars")) as text:
            pattern = dict(yaml.safe_load(text))
        rings = tuple(float(angle) for angle in pattern.pop("elevations_deg"))
        others = {name: float(value) for name, value in pattern.items()}
        return LidarConfig(rings, **others, height_m=config.lidar_height_m)
    except (OSError, yaml.YAMLError, *UNREADABLE) as error:
        raise MirageError(
            f"The lidar {config.lidar} cannot be read ({error!r:.100}); it needs elevations_deg, a list, and may have "
            "azimuth_step_deg, fov_deg, range_min_m and range_max_m."
        ) from error


def map_config(config: NodeConfig) -> MapConfig:
    """Raises MirageError for parameters that do not go together."""
    return MapConfig(
        config.map_resolution_m,
        config.map_size_m,
        config.map_floor_m,
        config.map_floor_margin_m,
        config.map_robot_height_m,
        config.map_imagined,
        config.map_period_s,
    )


def imu_config(config: NodeConfig) -> ImuConfig:
    gap_ns = round(config.plan_gap_s * SECOND_NS)
    return ImuConfig(config.imu_gyro_noise, config.imu_accel_noise, config.world_seed, gap_ns)


class CameraStates:
    """Poses and velocities, in the world.

    Args:
        gap_ns: instants further apart than this are no motion.

    Attributes:
        first: world_from_camera of the first camera.
    """

    def __init__(self, gap_ns: int) -> None:
        self._gap_ns = gap_ns
        self.placed(level_camera_pose())

    def placed(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The first camera was put here, and stands still."""
        self.first = world_from_camera
        self._shown: list[np.ndarray] = []
        self._twists: list[Twist] = []
        self._stamp_ns: int | None = None

    def showed(self, stamp_ns: int, world_from_cameras: Sequence[Float[np.ndarray, "4 4"]]) -> None:
        """Frames of one instant were published, one of each camera."""
        elapsed_ns = None if self._stamp_ns is None else stamp_ns - self._stamp_ns
        moving = elapsed_ns is not None and 0 < elapsed_ns <= self._gap_ns
        self._twists = [
            twist_between(before, now, elapsed_ns / SECOND_NS)
            for before, now in zip(self._shown, world_from_cameras, strict=True)
        ] if moving else []  # fmt: skip
        self._stamp_ns, self._shown = stamp_ns, list(world_from_cameras)
        self.first = self._shown[0]

    def pose(self, index: int) -> Float[np.ndarray, "4 4"] | None:
        """Of a camera; None for one that has shown nothing since the first one was put somewhere."""
        if index == 0:
            return self.first
        return self._shown[index] if self._shown else None

    def twist(self, index: int) -> Twist:
        """Linear (m/s) and angular (rad/s) velocity of a camera, along the world's axes."""
        return self._twists[index] if self._twists else (np.zeros(3), np.zeros(3))

"""The node's parameters: one table, declared with descriptions and ranges, read into one config."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from mirage_ros.errors import MirageError
from mirage_ros.physics import check_installed
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.cameras import lidar_config, map_config, scan_config
from mirage_ros.world.entities import PHYSICS


@dataclass(frozen=True)
class Row:
    """One parameter: what it means, what it may be, and whether it may change while running."""

    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    live: bool = False
    frame: bool = False


__all__ = ["NodeConfig", "TABLE", "changed", "check", "declare", "result", "unknown_overrides"]

RELIABILITIES = ("reliable", "best_effort")
DURABILITIES = ("volatile", "transient_local")
TABLE: dict[str, Row] = {
    "model": Row("Checkpoint: a shipped name (mini), a folder or a hub id."),
    "device": Row("Where the model runs.", choices=("auto", "cpu", "cuda")),
    "prompt": Row("What the world is to look like, in words; for models that read text."),
    "model_settings": Row(
        "Settings of a large model as a YAML mapping, such as '{steps: 4, size: [480, 832]}'."
    ),
    "autostart": Row("Configure and activate at once; false leaves both to a life cycle manager."),
    "time_mode": Row(
        "stream: frames follow the plan's own clock; lockstep: the node owns /clock, and time "
        "moves only when frames exist.",
        choices=("stream", "lockstep"),
    ),
    "step_frames": Row(
        "Frames that are planned before any of them is rendered, at most the model's chunk; 0 is that chunk.",
        low=0,
        high=1024,
    ),
    "start_time_s": Row(
        "Lockstep: the time on /clock before the first frame.", low=0.001, high=2e9
    ),
    "start_paused": Row("Render nothing until the simulation is stepped or set to playing."),
    "rig": Row("Several cameras: a YAML file or a shipped name (three); empty is one."),
    "robots": Row(
        "Several robots in place of one camera: a YAML file or a shipped name (three) that says their namespaces, bases, bodies "
        "and cameras; empty is one camera, or the rig."
    ),
    "record": Row(
        "What is recorded while the node is active, a file or a folder; its ending says the "
        "format: .mcap, .mp4, .lerobot, .png, .exr, else a rosbag2 folder. Empty records nothing."
    ),
    "worlds_folder": Row(
        "Folder whose seeds and saved worlds get_available_worlds lists besides the shipped ones."
    ),
    "spawnables_folder": Row("Folder of your own models for spawn_entity, besides the shipped ones."),
    "seed": Row(
        "What the world starts from: a shipped name, a seed folder or a picture file; "
        "empty waits for seed/image."
    ),
    "seed_hfov_deg": Row(
        "Horizontal field of view of a seed picture without intrinsics, degrees.",
        low=1.0,
        high=170.0,
    ),
    "seed_rectified": Row("seed/image is an image_rect: its intrinsics are P of the CameraInfo."),
    "seed_reliability": Row("Reliability of the seed/* subscriptions.", choices=RELIABILITIES),
    "world_frame": Row("TF frame of the world, z up.", frame=True),
    "camera_frame": Row("TF frame whose planned poses are rendered, optical axes.", frame=True),
    "rendered_camera_frame": Row(
        "Frame id of the published pictures; its pose is published on TF.", frame=True
    ),
    "start_frame": Row(
        "Frame on /tf_static where the world starts: the pose that its seed was taken from, "
        "optical axes.",
        frame=True,
    ),
    "scan_frame": Row(
        "Frame id of scan: x ahead, y left, z up; its pose is published on TF while somebody subscribes.",
        frame=True,
    ),
    "lidar_frame": Row("Frame id of lidar/points, likewise.", frame=True),
    "anchor": Row(
        "Where the world stands in world_frame. seed: its camera is where the seed says; tf: the "
        "world is put so that the seed's camera stands at the first frame's planned pose. Live "
        "seeds and saved worlds stay where they are.",
        choices=("seed", "tf"),
    ),
    "frame_rate_hz": Row("Frames per second of planned time.", low=0.1, high=240.0),
    "image_width": Row(
        "Width of the published pictures, pixels; 0 is the model's.", low=0, high=8192
    ),
    "image_height": Row(
        "Height of the published pictures, pixels; 0 is the model's.", low=0, high=8192
    ),
    "hfov_deg": Row(
        "Horizontal field of view of the published pictures, degrees; 0 is the seed's.",
        low=0.0,
        high=170.0,
    ),
    "on_missing_plan": Row(
        "When the plan ends: wait for more, hold the last pose, or extrapolate its motion.",
        choices=("wait", "hold", "extrapolate"),
        live=True,
    ),
    "late_plan": Row(
        "Stream, where rendering is slower than the plan: all frames, later and later, or skip "
        "those that are late (before ROS time) while a chunk of newer ones is planned.",
        choices=("all", "skip"),
        live=True,
    ),
    "plan_idle_s": Row(
        "After this long without newer poses a chunk that is not full is rendered.",
        low=0.05,
        high=60.0,
        live=True,
    ),
    "plan_gap_s": Row(
        "Poses further apart than this are two plans; nothing is rendered between.",
        low=0.01,
        high=3600.0,
    ),
    "plan_history_s": Row(
        "How much planned time is kept until it is rendered.", low=10.0, high=36000.0
    ),
    "plan_horizon_s": Row(
        "A pose stamped further than this after all that is known is left out and told, unless "
        "three in a row go on from there.",
        low=1.0,
        high=1e6,
    ),
    "max_extrapolation_s": Row(
        "How far extrapolate goes beyond the plan.", low=0.0, high=60.0, live=True
    ),
    "world_seed": Row(
        "Seed of the noise: the same seed and plan give the same world.", low=0, high=2**31 - 1
    ),
    "use_memory": Row("False switches the spatial memory off, for comparison."),
    "forget_moving": Row(
        "Pictures whose moving things are not remembered, as the perceiver guesses them from looks: "
        "imagined ones, all (the seed and observed ones too), none. A segmenter that the model's "
        "settings ask for counts in all pictures, but with none.",
        choices=("imagined", "all", "none"),
    ),
    "max_dynamic_share": Row(
        "Cells with a larger share of moving pixels are not remembered.", low=0.0, high=0.99
    ),
    "max_memory_mb": Row("Upper bound of the spatial memory, MiB.", low=1, high=1048576),
    "cloud_period_s": Row(
        "Least wall time between two clouds; the last state is always sent.",
        low=0.0,
        high=3600.0,
        live=True,
    ),
    "image_reliability": Row(
        "Reliability of the published pictures; reliable serves every subscriber.",
        choices=RELIABILITIES,
    ),
    "image_durability": Row(
        "transient_local keeps the newest image_depth frames for who subscribes later, such as a "
        "policy that comes back while time waits for it; they are then made for nobody as well.",
        choices=DURABILITIES,
    ),
    "image_depth": Row(
        "Frames kept for slow subscribers; a chunk comes in one burst, so keep at "
        "least two chunks.",
        low=1,
        high=1000,
    ),
    "compressed_format": Row("What color/image_raw/compressed holds.", choices=("jpeg", "png")),
    "jpeg_quality": Row("Quality of its JPEGs.", low=1, high=100),
    "delta_bytes_per_s": Row(
        "Mean rate that cache/deltas keeps to, bytes per second of wall time; 0 is no cap.",
        low=0.0,
        high=1e12,
    ),
    "scan_fov_deg": Row("Field of view of scan, centred ahead, degrees.", low=1.0, high=360.0),
    "scan_resolution_deg": Row("From one beam of scan to the next, degrees.", low=0.05, high=90.0),
    "scan_range_min_m": Row("Surfaces nearer than this are -inf in scan, metres.", low=0.0, high=100.0),
    "scan_range_max_m": Row("Surfaces farther than this are inf in scan, metres.", low=0.1, high=1000.0),
    "scan_height_m": Row(
        "Height of scan's plane above z = 0 of the world, metres; 0 is the camera's height.", low=0.0, high=100.0
    ),
    "lidar": Row("Pattern of lidar/points: a YAML file or a shipped name (sixteen)."),
    "lidar_height_m": Row(
        "Height of the lidar above z = 0 of the world, metres; 0 is the camera's height.", low=0.0, high=100.0
    ),
    "imu_gyro_noise": Row(
        "Density of the white noise in imu's angular velocity, rad/s per square root of Hz.", low=0.0, high=10.0
    ),
    "imu_accel_noise": Row(
        "Density of the white noise in imu's acceleration, m/s^2 per square root of Hz.", low=0.0, high=100.0
    ),
    "map_resolution_m": Row("Side of a cell of map, metres.", low=0.01, high=1.0),
    "map_size_m": Row("Sides of the square around the camera that map is cut to, metres.", low=1.0, high=1000.0),
    "map_floor_m": Row("Height of the floor in world_frame, metres.", low=-1000.0, high=1000.0),
    "map_floor_margin_m": Row("Surfaces up to this above the floor are floor, metres.", low=0.0, high=1.0),
    "map_robot_height_m": Row("Surfaces above this do not stop the robot, metres.", low=0.01, high=100.0),
    "map_imagined": Row("What was imagined counts as known in map; false: only what real pictures showed."),
    "map_period_s": Row("Least wall time between two maps; the last state is always sent.", low=0.0, high=3600.0),
    "observe_live": Row(
        "observe/* come from a camera that looks all the time: what is new is written, what changed when two pictures agree."
    ),
    "entity_timeout_s": Row(
        "A body stands still so long after its last entities/NAME/cmd_vel, seconds of the plan's time.",
        low=0.01,
        high=3600.0,
        live=True,
    ),
    "entity_speed_mps": Row(
        "A body follows an entities/NAME/path without stamps at this speed, m/s.", low=0.001, high=100.0, live=True
    ),
    "physics": Row(
        "off; contact: obstacles and contacts tell what the robot runs into, and bases stop there; mujoco: entities fall, "
        "rest, roll and are pushed as well, which needs the extra physics.",
        choices=PHYSICS,
    ),
    "robot_radius_m": Row(
        "Radius of the upright cylinder that the robot is, from map_floor_margin_m above the floor up to its camera; 0 is no "
        "body, metres.",
        low=0.0,
        high=1.5,
    ),
    "worker_silence_s": Row(
        "An inference worker whose work gets nowhere for so long is replaced; one call of a network "
        "has to be faster.",
        low=2.0,
        high=3600.0,
    ),
}


def descriptor(name: str) -> ParameterDescriptor:
    """The ROS descriptor of a row of the table."""
    row = TABLE[name]
    result = ParameterDescriptor(description=row.description, read_only=not row.live)
    if row.choices:
        result.additional_constraints = "one of: " + ", ".join(row.choices)
    result.dynamic_typing = "off" in row.choices  # which YAML takes for false
    if row.frame:
        result.additional_constraints = "a TF frame name, not empty, without a leading slash"
    if isinstance(row.low, float):
        result.floating_point_range = [FloatingPointRange(from_value=row.low, to_value=row.high)]
    elif row.low is not None:
        result.integer_range = [IntegerRange(from_value=row.low, to_value=row.high)]
    return result


def check(config: NodeConfig) -> None:
    """What ranges cannot say. Raises MirageError with the parameter's name."""
    for name, row in TABLE.items():
        value = getattr(config, name)
        if row.choices and value not in row.choices:
            raise MirageError(f"{name} is '{value}'; set one of {', '.join(row.choices)}.")
        # A range lets NaN pass, which is on no side of its ends.
        if isinstance(value, float) and not math.isfinite(value):
            raise MirageError(f"{name} is {value}; {_allowed(name)}.")
        if row.frame and (not value or value.startswith("/")):
            raise MirageError(f"{name} is '{value}'; set a frame name without a leading slash.")
    others = [config.camera_frame, config.world_frame]
    for name in ("rendered_camera_frame", "start_frame", "scan_frame", "lidar_frame"):
        frame = getattr(config, name)
        if frame in others:
            raise MirageError(f"{name} is '{frame}', which others publish; set a frame of its own.")
        others.append(frame)
    if config.camera_frame == config.world_frame:
        raise MirageError(
            f"camera_frame and world_frame are both '{config.world_frame}'; set two frames."
        )
    if bool(config.image_width) != bool(config.image_height):
        raise MirageError(
            f"image_width is {config.image_width} and image_height {config.image_height}; set both "
            "or leave both at 0."
        )
    if config.rig and config.robots:
        raise MirageError(f"rig is '{config.rig}' and robots '{config.robots}'; set one of them: robots have cameras of their own.")
    if config.physics == "mujoco":
        check_installed()
    scan_config(config)
    map_config(config)
    lidar_config(config)


def declare(node: Node) -> NodeConfig:
    """Declares the table on the node and reads it. Raises MirageError for a wrong value."""
    values: dict[str, Any] = {}
    for field in fields(NodeConfig):
        try:
            values[field.name] = node.declare_parameter(
                field.name, field.default, descriptor(field.name)
            ).value
        except ParameterException as error:
            given = overrides(node).get(field.name)
            got = f" is {given.value!r}" if given is not None else ""
            raise MirageError(f"{field.name}{got}; {_allowed(field.name)}.") from error
        if values[field.name] is False and "off" in TABLE[field.name].choices:
            values[field.name] = "off"
    config = NodeConfig(**values)
    check(config)
    return config


def overrides(node: Node) -> dict[str, Parameter]:
    """What a parameter file or the command line gives this node."""
    return getattr(node, "_parameter_overrides", {})


def unknown_overrides(node: Node) -> list[str]:
    """Names that were given but that the node does not have: most likely misspelt."""
    return sorted(name for name in overrides(node) if not node.has_parameter(name))


def _allowed(name: str) -> str:
    row = TABLE[name]
    kind = {field.name: type(field.default).__name__ for field in fields(NodeConfig)}[name]
    if row.low is None:
        return f"set a {kind}"
    return f"set a {kind} from {row.low:g} to {row.high:g}"


def changed(config: NodeConfig, parameters: list[Parameter]) -> tuple[NodeConfig, str]:
    """The config after a request to set parameters, and the reason if it is refused."""
    known = {field.name for field in fields(NodeConfig)}
    wanted = {item.name: item.value for item in parameters if item.name in known}
    after = replace(config, **wanted)
    try:
        check(after)
    except MirageError as error:
        return config, str(error)
    return after, ""


def result(reason: str) -> SetParametersResult:
    """The answer to a request: refused where there is a reason."""
    return SetParametersResult(successful=not reason, reason=reason)

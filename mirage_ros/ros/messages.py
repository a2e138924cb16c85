"""Stamps, poses, cameras, clouds and figures between ROS messages and the project's own values.

Quaternions are xyzw in messages and wxyz inside; what is written is laid out by recording/topics.py.
"""

from __future__ import annotations

import array
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, Quaternion, TransformStamped, Twist, TwistStamped, Vector3
from jaxtyping import Float, Int, UInt8
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, PointCloud2

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera, check_place
from mirage_ros.geometry.rigid import from_quaternion, from_rows
from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import SECOND_NS, STAGES, Chunk
from mirage_ros.recording.topics import (
    Fields,
    camera_info_fields,
    cloud_fields,
    packed_colours,
    quaternion_fields,
    stamp_fields,
    transform_fields,
)

UNIT_TOLERANCE = 1e-2
# What comes as cmd_vel.
COMMAND_TYPES = {"geometry_msgs/msg/Twist": Twist, "geometry_msgs/msg/TwistStamped": TwistStamped}
COMPOSED = re.compile(r"(\w+)/(\w+)")
MOST_PENDING = 2**32 - 1
# x y z, then the packed colour where RViz and Foxglove look for it.
POINT = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("rgb", "<u4"),
        ("confidence", "<f4"),
        ("age", "<f4"),
    ]
)


def message_class(type_name: str) -> type:
    """The class of a full type name such as "sensor_msgs/msg/Image"."""
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise MirageError(
            f"The message type {type_name} is not installed; install or build its package."
        ) from error


def message_of(kind: type, fields: Fields) -> Any:
    """A message of the class `kind` with fields as `recording/topics.py` gives them."""
    layout = _layout(kind)
    return kind(**{name: _value(value, *layout[name]) for name, value in fields.items()})


@lru_cache(maxsize=64)
def _layout(kind: type) -> dict[str, tuple[type | None, bool]]:
    """By field: the class of the messages it holds, None for plain ones, and whether it is a list."""
    found = {}
    for name, text in kind.get_fields_and_field_types().items():
        part = COMPOSED.search(text)
        nested = message_class(f"{part[1]}/msg/{part[2]}") if part else None
        found[name] = (nested, text.startswith("sequence<"))
    return found


def _value(value: Any, nested: type | None, is_list: bool) -> Any:
    if nested is not None:
        return [message_of(nested, item) for item in value] if is_list else message_of(nested, value)
    if not (is_list and isinstance(value, np.ndarray)):
        return value
    # rclpy takes an array.array as it is; every other type it checks number by number.
    numbers = array.array(value.dtype.char)
    numbers.frombytes(value.data.cast("B") if value.size else b"")
    return numbers


def stamp_to_ros(stamp_ns: int) -> Time:
    """A message stamp from integer nanoseconds. Raises MirageError below 0 or beyond int32 s."""
    return Time(**stamp_fields(stamp_ns))


def stamp_from_ros(stamp: Time) -> int:
    """Integer nanoseconds of a message stamp. Raises MirageError below 0."""
    if stamp.sec < 0:
        raise MirageError(f"A message is stamped {stamp.sec} s; send stamps of at least 0.")
    return stamp.sec * SECOND_NS + stamp.nanosec


def unit_quaternion(quaternion_wxyz: Float[np.ndarray, "4"], what: str) -> Float[np.ndarray, "4"]:
    """The quaternion at length 1. Raises MirageError when it is NaN or its length is off by 1 %.

    Args:
        what: what the quaternion belongs to, for the message.
    """
    quaternion = np.asarray(quaternion_wxyz, np.float64)
    if not np.isfinite(quaternion).all():
        raise MirageError(f"{what} has a quaternion with NaN or infinity; send finite numbers.")
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1) > UNIT_TOLERANCE:
        raise MirageError(
            f"{what} has a quaternion of length {length:.3g}; it must be 1: normalise it, "
            "and mind the order x y z w."
        )
    return quaternion / length


def _quaternion_from_ros(message: Quaternion, what: str) -> np.ndarray:
    return unit_quaternion(np.array([message.w, message.x, message.y, message.z]), what)


def _position_from_ros(message, what: str) -> np.ndarray:
    return checked_position(np.array([message.x, message.y, message.z], np.float64), what)


def checked_position(position: Float[np.ndarray, "3"], what: str) -> Float[np.ndarray, "3"]:
    """The position in metres. Raises MirageError for NaN or infinity.

    Args:
        what: what the position belongs to, for the message.
    """
    if not np.isfinite(position).all():
        raise MirageError(f"{what} has a position with NaN or infinity; send finite metres.")
    check_place(position, what)
    return position


def pose_from_ros(pose: Pose, what: str = "A pose") -> Float[np.ndarray, "4 4"]:
    """The map frame_from_body of a pose. Raises MirageError on NaN or a non-unit quaternion."""
    position = _position_from_ros(pose.position, what)
    return from_quaternion(position, _quaternion_from_ros(pose.orientation, what))


def pose_to_ros(frame_from_body: Float[np.ndarray, "4 4"]) -> Pose:
    """A pose message from a rigid map."""
    pose = Pose(orientation=Quaternion(**quaternion_fields(frame_from_body[:3, :3])))
    pose.position.x, pose.position.y, pose.position.z = map(float, frame_from_body[:3, 3])
    return pose


def twist_to_ros(linear: Float[np.ndarray, "3"], angular: Float[np.ndarray, "3"]) -> Twist:
    """A twist message from velocities in m/s and rad/s."""
    (vx, vy, vz), (wx, wy, wz) = map(float, linear), map(float, angular)
    return Twist(linear=Vector3(x=vx, y=vy, z=vz), angular=Vector3(x=wx, y=wy, z=wz))


def twist_from_ros(message: Twist) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Linear (m/s) and angular (rad/s) velocity, NaN as it comes."""
    return tuple(np.array((v.x, v.y, v.z), np.float64) for v in (message.linear, message.angular))


def command_publishers(node: Node, topic: str, types: Iterable[str] = COMMAND_TYPES) -> dict[str, list[str]]:
    """Names of the nodes that publish commands on a topic, by type; a type that nobody publishes is left out."""
    found = node.get_publishers_info_by_topic(topic)
    publishers = {name: [info.node_name for info in found if info.topic_type == name] for name in types}
    return {name: nodes for name, nodes in publishers.items() if nodes}


def parts_from_ros(message: TransformStamped) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) in metres and quaternion (4,) wxyz of a transform: parent_from_child."""
    what = f"TF {message.header.frame_id} -> {message.child_frame_id}"
    position = _position_from_ros(message.transform.translation, what)
    return position, _quaternion_from_ros(message.transform.rotation, what)


def transform_from_ros(message: TransformStamped) -> Float[np.ndarray, "4 4"]:
    """The map parent_from_child of a transform. MirageError on NaN or a non-unit quaternion."""
    return from_quaternion(*parts_from_ros(message))


def transform_to_ros(
    parent_from_child: Float[np.ndarray, "4 4"], parent: str, child: str, stamp_ns: int
) -> TransformStamped:
    """A stamped transform message from a rigid map."""
    return message_of(TransformStamped, transform_fields(parent_from_child, parent, child, stamp_ns))


def camera_info_to_ros(camera: Camera, stamp_ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of an ideal camera: plumb_bob with 5 zeros, R = I, P = [K 0]."""
    return message_of(CameraInfo, camera_info_fields(camera, stamp_ns, frame_id))


def camera_from_ros(
    message: CameraInfo,
    world_from_camera: Float[np.ndarray, "4 4"] | None = None,
    rectified: bool = False,
) -> Camera:
    """The pinhole camera of a CameraInfo.

    Args:
        world_from_camera: its pose, the identity if not given.
        rectified: the picture is an image_rect, so P holds its intrinsics; otherwise K does.

    Raises:
        MirageError: uncalibrated (K[0] = 0), distorted but not rectified, binned or a region
            of interest, no size.
    """
    matrix = np.asarray(message.p if rectified else message.k, np.float64).reshape(3, -1)[:, :3]
    name = "P" if rectified else "K"
    if matrix[0, 0] == 0:
        raise MirageError(
            f"The CameraInfo is uncalibrated ({name}[0] is 0); calibrate the camera and send its "
            "intrinsics."
        )
    if not rectified and np.any(np.asarray(message.d, np.float64)):
        raise MirageError(
            "The CameraInfo has a lens distortion, the world needs a pinhole picture; feed "
            "image_rect and set the parameter seed_rectified to true."
        )
    if message.binning_x > 1 or message.binning_y > 1 or message.roi.width or message.roi.height:
        raise MirageError(
            "The CameraInfo has a binning or a region of interest; send the full picture."
        )
    pose = np.eye(4) if world_from_camera is None else world_from_camera
    intrinsics = np.array(
        [[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1.0]]
    )
    return Camera(intrinsics, pose, (message.height, message.width))


def poses_from_flat(values: Float[np.ndarray, "m"]) -> Float[np.ndarray, "n 4 4"]:
    """world_from_camera of x y z qx qy qz qw in turn. Raises MirageError for what is no pose."""
    if not len(values) or len(values) % 7:
        raise MirageError(
            f"The rollout's poses hold {len(values)} numbers; give 7 for each pose: "
            "x y z qx qy qz qw."
        )
    rows = values.reshape(-1, 7)
    index = faulty_pose(rows)
    if index is not None:
        raise MirageError(
            f"Pose {index} of the rollout is {rows[index].tolist()}; give finite positions and "
            "unit quaternions x y z w."
        )
    check_place(rows[:, :3], "A pose of the rollout")
    return from_rows(rows)


def faulty_pose(rows: Float[np.ndarray, "n 7"]) -> int | None:
    """The first of x y z qx qy qz qw that is not finite or has no unit quaternion, if any."""
    # What is not finite is not within any bound, either.
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", rows[:, 3:], rows[:, 3:]))
        good = (np.abs(lengths - 1) <= UNIT_TOLERANCE) & np.isfinite(rows[:, :3].sum(1))
    return None if good.all() else int(good.argmin())


def cloud_to_ros(
    xyz: Float[np.ndarray, "n 3"],
    rgb: UInt8[np.ndarray, "n 3"],
    confidence: Float[np.ndarray, "n"],
    written_ns: Int[np.ndarray, "n"],
    stamp_ns: int,
    frame_id: str,
) -> PointCloud2:
    """A dense cloud: x y z in metres, packed rgb, confidence, age in seconds before the stamp."""
    points = np.zeros(len(xyz), POINT)
    points["x"], points["y"], points["z"] = np.asarray(xyz, np.float32).T
    points["rgb"] = packed_colours(rgb)
    points["confidence"] = confidence
    points["age"] = (int(stamp_ns) - np.asarray(written_ns, np.int64)) / SECOND_NS
    return message_of(PointCloud2, cloud_fields(points, stamp_ns, frame_id))


def cloud_from_ros(message: PointCloud2) -> dict[str, np.ndarray]:
    """The arrays of such a cloud: xyz (n, 3), rgb (n, 3) uint8, confidence (n,), age (n,) s."""
    if message.point_step != POINT.itemsize or message.is_bigendian:
        raise MirageError(
            f"The cloud has {message.point_step} bytes a point; {POINT.itemsize} little-endian "
            "bytes are needed: x y z rgb confidence age."
        )
    points = np.frombuffer(message.data, POINT)
    packed = points["rgb"]
    return {
        "xyz": np.stack([points["x"], points["y"], points["z"]], -1),
        "rgb": np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], -1).astype(np.uint8),
        "confidence": points["confidence"].copy(),
        "age": points["age"].copy(),
    }


def xyz_from_ros(message: PointCloud2) -> Float[np.ndarray, "n 3"]:
    """The places of a cloud whose points begin with x y z as little-endian float32."""
    if message.point_step < 12 or message.is_bigendian or [field.name for field in message.fields[:3]] != list("xyz"):
        raise MirageError(
            f"The cloud has {message.point_step} bytes a point; little-endian ones that begin with x y z are needed."
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(-1, message.point_step)
    return np.ascontiguousarray(rows[:, :12]).view(np.float32)


def status_to_ros(
    chunk: Chunk, chunk_index: int, frames_pending: int, model: str, total_s: float, frame_id: str
) -> RolloutStatus:
    """What a chunk cost. `total_s` is the wall time of the whole step."""
    message = RolloutStatus(
        chunk_index=chunk_index,
        frames=len(chunk.frames),
        total_s=float(total_s),
        frames_per_s=len(chunk.frames) / total_s if total_s > 0 else 0.0,
        cache_tokens=int(chunk.tokens),
        cache_bytes=int(chunk.memory_bytes),
        observed_fraction=float(chunk.observed_fraction),
        frames_pending=min(frames_pending, MOST_PENDING),
        model=model,
    )
    for stage in STAGES:
        setattr(message, f"{stage}_s", float(chunk.seconds.get(stage, 0.0)))
    message.header.stamp = stamp_to_ros(chunk.frames[-1].stamp_ns)
    message.header.frame_id = frame_id
    return message

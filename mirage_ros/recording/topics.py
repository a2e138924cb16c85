"""The node's topics in one table: name, type, QoS, and the fields of the messages made of a frame.

No ROS package is imported here. `ros/topics.py` turns the fields into messages and publishes them,
`recording/messages.py` serialises the same fields for MCAP; recorder, playback, loop monitor, doctor and
the tests of the documents read the table as well.

A new topic of every frame is a row in TOPICS and a function that returns its fields; docs/ros.md
lists it, and config/sros2 permits it. Fields are a dict by field name, as the message definition
has them; nested messages are dicts, and arrays are numpy arrays of the field's type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt32
from transforms3d.quaternions import mat2quat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import SECOND_NS, FloorPlan, Frame, ImuSample, SurfacePoints

Fields = dict[str, Any]

IMAGE, INFO, LASER = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/LaserScan"
COMPRESSED, CLOUD = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/PointCloud2"
GRID = "nav_msgs/msg/OccupancyGrid"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
# rosbag2 writes this span for a deadline, lifespan or lease that was not set.
FOREVER = {"sec": 9223372036, "nsec": 854775807}
# PointField.datatype by numpy's: the packed colour is float32 by convention.
DATATYPES = {"<f4": 7, "<u4": 7, "<i4": 5, "<u2": 4}
COLOR_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])


@dataclass(frozen=True)
class Qos:
    """What a publisher offers. None: the node's parameter image_<name> decides.

    Attributes:
        depth: messages kept (KEEP_LAST).
        reliability: reliable or best_effort.
        durability: volatile, or transient_local for topics whose last message late subscribers get.
    """

    depth: int | None = None
    reliability: str | None = None
    durability: str | None = None

    def resolved(self, depth: int = 16, reliability: str = "reliable", durability: str = "volatile") -> Qos:
        """With the parameters, by default as they are shipped, where this one has None."""
        return Qos(self.depth or depth, self.reliability or reliability, self.durability or durability)

    def rosbag_profile(self) -> dict:
        """The profile as rosbag2 notes it."""
        qos = self.resolved()
        return {
            "history": "keep_last",
            "depth": qos.depth,
            "reliability": qos.reliability,
            "durability": qos.durability,
            "deadline": FOREVER.copy(),
            "lifespan": FOREVER.copy(),
            "liveliness": "automatic",
            "liveliness_lease_duration": FOREVER.copy(),
            "avoid_ros_namespace_conventions": False,
        }


@dataclass(frozen=True)
class FrameIds:
    """What the coordinate frames are called: `world` the world's, `camera` the pictures', `scan` the scanner's and
    `lidar` the lidar's."""

    world: str = "world"
    camera: str = "mirage_camera_optical_frame"
    scan: str = "mirage_scan_frame"
    lidar: str = "mirage_lidar_frame"


@dataclass(frozen=True)
class Topic:
    """One row of the table.

    Attributes:
        name: relative to the node's namespace, or absolute.
        type_name: such as "sensor_msgs/msg/Image".
        qos: that is offered.
        fields: of the message made of a frame; None where a class in ros/ makes the message.
        part: the attribute of Frame that is read back from the message, "" for none.
        per_camera: each camera of a rig publishes it, below the camera's prefix.
        on_demand: made only while somebody subscribes, and by nothing that only looks around.
        recorded: EVERYWHERE, BY_NODE or NOWHERE.
        sensor: what the worker measures for its subscribers alone, "" for nothing; of a topic of every frame
            the attribute of Frame.
    """

    name: str
    type_name: str
    qos: Qos
    fields: Callable[[Frame, FrameIds], Fields] | None = None
    part: str = ""
    per_camera: bool = False
    on_demand: bool = False
    recorded: str = "everywhere"
    sensor: str = ""


# By `mirage record` and by the node itself; by the node's own recording alone; by neither.
EVERYWHERE, BY_NODE, NOWHERE = "everywhere", "by node", "nowhere"
COLOR, COLOR_INFO, OBSERVED = "color/image_raw", "color/camera_info", "observed/image"
DEPTH, DEPTH_INFO = "depth/image_rect", "depth/camera_info"
COMPRESSED_COLOR, COMPRESSED_DEPTH = f"{COLOR}/compressed", f"{DEPTH}/compressedDepth"
POINTS, DELTAS, MARKERS, STATUS = "cache/points", "cache/deltas", "markers", "status"
SCAN, MAP, IMU, LIDAR, LABELS = "scan", "map", "imu", "lidar/points", "labels/image"
CONTACTS, OBSTACLES = "contacts", "obstacles"
SURFACE_POINT = np.dtype([(name, "<f4") for name in ("x", "y", "z", "normal_x", "normal_y", "normal_z")]
                         + [("body", "<i4"), ("label", "<i4")])  # fmt: skip
RING_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("ring", "<u2"), ("time", "<f4")])
TF, TF_STATIC = "/tf", "/tf_static"


def stamp_fields(stamp_ns: int) -> Fields:
    """builtin_interfaces/Time. Raises MirageError below 0 or beyond int32 seconds."""
    seconds, nanoseconds = divmod(int(stamp_ns), SECOND_NS)
    if not 0 <= seconds < 2**31:
        raise MirageError(f"The stamp {stamp_ns} ns does not fit a ROS message; give 0 to 2^31 seconds.")
    return {"sec": seconds, "nanosec": nanoseconds}


def header_fields(stamp_ns: int, frame_id: str) -> Fields:
    """std_msgs/Header."""
    return {"stamp": stamp_fields(stamp_ns), "frame_id": frame_id}


def transform_fields(
    parent_from_child: Float[np.ndarray, "4 4"], parent: str, child: str, stamp_ns: int
) -> Fields:
    """geometry_msgs/TransformStamped of a rigid map."""
    x, y, z = (float(value) for value in parent_from_child[:3, 3])
    return {
        "header": header_fields(stamp_ns, parent),
        "child_frame_id": child,
        "transform": {
            "translation": {"x": x, "y": y, "z": z},
            "rotation": quaternion_fields(parent_from_child[:3, :3]),
        },
    }


def quaternion_fields(rotation: Float[np.ndarray, "3 3"]) -> Fields:
    """geometry_msgs/Quaternion."""
    w, x, y, z = (float(value) for value in mat2quat(rotation))
    return {"x": x, "y": y, "z": z, "w": w}


def camera_info_fields(camera: Camera, stamp_ns: int, frame_id: str) -> Fields:
    """sensor_msgs/CameraInfo of an ideal camera: plumb_bob with 5 zeros, R = I, P = [K 0]."""
    matrix = np.asarray(camera.intrinsics, np.float64)
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": camera.size[0],
        "width": camera.size[1],
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": matrix.reshape(-1),
        "r": np.eye(3).reshape(-1),
        "p": np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
        "binning_x": 0,
        "binning_y": 0,
        "roi": {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False},
    }


def image_fields(pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Fields:
    """sensor_msgs/Image of (h, w) or (h, w, c) pixels; the encoding must fit their type."""
    pixels = np.ascontiguousarray(pixels)
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "encoding": encoding,
        "is_bigendian": int(sys.byteorder == "big"),
        "step": pixels.strides[0],
        "data": pixels.reshape(-1).view(np.uint8),
    }


def cloud_fields(points: np.ndarray, stamp_ns: int, frame_id: str, is_dense: bool = True) -> Fields:
    """sensor_msgs/PointCloud2 of a structured array, (n,) or organised (h, w), of numbers as in DATATYPES."""
    height, width = points.shape if points.ndim == 2 else (1, len(points))
    size = points.dtype.itemsize
    return {
        "header": header_fields(stamp_ns, frame_id),
        "height": height,
        "width": width,
        "fields": [
            {"name": name, "offset": offset, "datatype": DATATYPES[kind.str], "count": 1}
            for name, (kind, offset) in points.dtype.fields.items()
        ],
        "is_bigendian": False,
        "point_step": size,
        "row_step": size * width,
        "data": np.ascontiguousarray(points).reshape(-1).view(np.uint8),
        "is_dense": is_dense,
    }


def map_fields(plan: FloorPlan, stamp_ns: int, frame_id: str) -> Fields:
    """nav_msgs/OccupancyGrid: 0 free, 100 occupied, -1 unknown; rows along y."""
    (x, y), (height, width) = (float(value) for value in plan.origin_m), plan.cells.shape
    position = {"x": x, "y": y, "z": 0.0}
    return {
        "header": header_fields(stamp_ns, frame_id),
        "info": {
            "map_load_time": stamp_fields(stamp_ns),
            "resolution": plan.resolution_m,
            "width": width,
            "height": height,
            "origin": {"position": position, "orientation": quaternion_fields(np.eye(3))},
        },
        "data": plan.cells.reshape(-1),
    }


def imu_fields(sample: ImuSample, rotation: Float[np.ndarray, "3 3"], stamp_ns: int, frame_id: str) -> Fields:
    """sensor_msgs/Imu; the orientation is the planned one and has no covariance."""
    turning, force = ((float(x), float(y), float(z)) for x, y, z in (sample.angular_velocity, sample.acceleration))
    return {
        "header": header_fields(stamp_ns, frame_id),
        "orientation": quaternion_fields(rotation),
        "orientation_covariance": np.zeros(9),
        "angular_velocity": dict(zip("xyz", turning, strict=True)),
        "angular_velocity_covariance": sample.gyro_std**2 * np.eye(3).reshape(-1),
        "linear_acceleration": dict(zip("xyz", force, strict=True)),
        "linear_acceleration_covariance": sample.accel_std**2 * np.eye(3).reshape(-1),
    }


def packed_colours(rgb: UInt8[np.ndarray, "*shape 3"]) -> UInt32[np.ndarray, "*shape"]:
    """0x00RRGGBB, as the field `rgb` of clouds holds colours."""
    wide = np.asarray(rgb).astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def depth_metres(depth_m: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Pixels of 32FC1: metres, NaN invalid, +inf beyond range (REP 117, 118)."""
    return np.asarray(depth_m, np.float32)


def mask_pixels(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Pixels of mono8: 255 where True, 0 elsewhere."""
    return np.where(mask, np.uint8(255), np.uint8(0))


def _pose(frame: Frame, ids: FrameIds) -> Fields:
    poses = {ids.camera: frame.camera.world_from_camera}
    if frame.scan is not None:
        poses[ids.scan] = frame.scan.world_from_scan
    if frame.lidar is not None:
        poses[ids.lidar] = frame.lidar.world_from_lidar
    return {"transforms": [transform_fields(p, ids.world, child, frame.stamp_ns) for child, p in poses.items()]}


def _info(frame: Frame, ids: FrameIds) -> Fields:
    return camera_info_fields(frame.camera, frame.stamp_ns, ids.camera)


def _color(frame: Frame, ids: FrameIds) -> Fields:
    return image_fields(np.asarray(frame.rgb, np.uint8), "rgb8", frame.stamp_ns, ids.camera)


def _depth(frame: Frame, ids: FrameIds) -> Fields:
    return image_fields(depth_metres(frame.depth_m), "32FC1", frame.stamp_ns, ids.camera)


def _observed(frame: Frame, ids: FrameIds) -> Fields:
    return image_fields(mask_pixels(frame.observed), "mono8", frame.stamp_ns, ids.camera)


def _labels(frame: Frame, ids: FrameIds) -> Fields:
    """32SC1: the number of the entity that each pixel shows, 0 for the world."""
    labels = np.zeros(frame.depth_m.shape, np.int32) if frame.labels is None else frame.labels
    return image_fields(labels, "32SC1", frame.stamp_ns, ids.camera)


def _depth_millimetres(frame: Frame, ids: FrameIds) -> Fields:
    """16UC1 in millimetres, as OpenNI gives depth; 0 where it is invalid, below or beyond 16 bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        millimetres = np.rint(frame.depth_m * 1000)
    known = (millimetres > 0) & (millimetres <= np.iinfo(np.uint16).max)
    pixels = np.where(known, millimetres, 0).astype(np.uint16)
    return image_fields(pixels, "16UC1", frame.stamp_ns, ids.camera)


def _color_points(frame: Frame, ids: FrameIds) -> Fields:
    """Every pixel as a coloured point in the camera's optical frame, organised as the picture is.

    x y z are NaN where the depth is invalid or beyond range.
    """
    (fx, _, cx), (_, fy, cy), _ = frame.camera.intrinsics
    height, width = frame.depth_m.shape
    z = np.where(np.isfinite(frame.depth_m), frame.depth_m, np.nan)
    points = np.empty((height, width), COLOR_POINT)
    points["x"] = (np.arange(width) - cx) / fx * z
    points["y"] = ((np.arange(height) - cy) / fy)[:, None] * z
    points["z"] = z
    points["rgb"] = packed_colours(frame.rgb)
    return cloud_fields(points, frame.stamp_ns, ids.camera, is_dense=False)


def _scan(frame: Frame, ids: FrameIds) -> Fields:
    """All beams at once: no time passes from one to the next."""
    scan = frame.scan
    return {
        "header": header_fields(frame.stamp_ns, ids.scan),
        "angle_min": scan.angle_min_rad,
        "angle_max": scan.angle_min_rad + scan.angle_step_rad * (len(scan.ranges_m) - 1),
        "angle_increment": scan.angle_step_rad,
        "time_increment": 0.0,
        "scan_time": 0.0,
        "range_min": scan.range_min_m,
        "range_max": scan.range_max_m,
        "ranges": np.asarray(scan.ranges_m, np.float32),
        "intensities": np.zeros(0, np.float32),
    }


def _lidar(frame: Frame, ids: FrameIds) -> Fields:
    """Organised, a row for each ring; x y z are NaN without a return. All is of one instant: time is 0."""
    measured = frame.lidar.points_m
    points = np.zeros(measured.shape[:2], RING_POINT)
    points["x"], points["y"], points["z"] = np.moveaxis(measured, -1, 0)
    points["ring"] = np.arange(len(points))[:, None]
    return cloud_fields(points, frame.stamp_ns, ids.lidar, is_dense=False)


def _surface_points(frame: Frame, ids: FrameIds, part: str) -> Fields:
    found = getattr(frame, part)
    rows = np.column_stack([found.points_m, found.normals]).view(np.int32)
    points = np.column_stack([rows, found.bodies, found.labels]).astype(np.int32).view(SURFACE_POINT)[:, 0]
    return cloud_fields(points, frame.stamp_ns, ids.world)


def _picture(name: str, type_name: str, fields: Callable, part: str = "") -> Topic:
    """Published of every frame and recorded."""
    return Topic(name, type_name, Qos(), fields, part, per_camera=True)


def _on_demand(name: str, type_name: str, fields: Callable | None = None, sensor: str = "", per_camera=True) -> Topic:
    """Made of a frame while somebody subscribes; volatile, because a latched topic is always made."""
    return Topic(name, type_name, Qos(durability="volatile"), fields, "", per_camera, True, NOWHERE, sensor)


def _queued(depth: int | None) -> Qos:
    return Qos(depth, "reliable", "volatile")


LATCHED = Qos(1, "reliable", "transient_local")

# In the order in which what belongs to one frame is published: TF first, so that whoever receives
# a picture can place it at once.
TOPICS = (
    Topic(TF, TRANSFORMS, _queued(100), _pose),
    _picture(COLOR_INFO, INFO, _info, part="camera"),
    _picture(DEPTH_INFO, INFO, _info),
    _picture(COLOR, IMAGE, _color, part="rgb"),
    _picture(DEPTH, IMAGE, _depth, part="depth_m"),
    _picture(OBSERVED, IMAGE, _observed, part="observed"),
    _on_demand(COMPRESSED_COLOR, COMPRESSED),
    _on_demand(COMPRESSED_DEPTH, COMPRESSED),
    _on_demand("depth/image_raw", IMAGE, _depth_millimetres),
    _on_demand("depth/color/points", CLOUD, _color_points),
    _on_demand(LABELS, IMAGE, _labels),
    _on_demand(SCAN, LASER, _scan, sensor="scan"),
    _on_demand(LIDAR, CLOUD, _lidar, sensor="lidar"),
    _on_demand(IMU, "sensor_msgs/msg/Imu"),
    Topic(MARKERS, "visualization_msgs/msg/MarkerArray", _queued(5), per_camera=True, on_demand=True,
          recorded=NOWHERE),
    Topic(POINTS, CLOUD, LATCHED),
    Topic(DELTAS, CLOUD, _queued(100), on_demand=True, recorded=BY_NODE),
    _on_demand(CONTACTS, CLOUD, partial(_surface_points, part=CONTACTS), CONTACTS, per_camera=False),
    _on_demand(OBSTACLES, CLOUD, partial(_surface_points, part=OBSTACLES), OBSTACLES, per_camera=False),
    Topic(MAP, GRID, LATCHED, on_demand=True, recorded=NOWHERE, sensor="map"),
    Topic(STATUS, "mirage_ros/msg/RolloutStatus", _queued(None)),
    Topic(TF_STATIC, TRANSFORMS, LATCHED),
    Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", _queued(10)),
    Topic("/clock", "rosgraph_msgs/msg/Clock", LATCHED, recorded=BY_NODE),
)  # fmt: skip
BY_NAME = {topic.name: topic for topic in TOPICS}
# The names of what `mirage record` keeps, and of the messages that make a recorded frame complete.
RECORDED = tuple(topic.name for topic in TOPICS if topic.recorded == EVERYWHERE)
PICTURES = tuple(name for name in RECORDED if BY_NAME[name].per_camera)
# Name -> attribute of Frame, of the messages that a frame is read back from.
PARTS = {topic.name: topic.part for topic in TOPICS if topic.part}

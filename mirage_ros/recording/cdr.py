"""Frames as serialised ROS 2 messages without a ROS install: the bytes that the node publishes.

The message types, their definitions and hashes come from `rosbags`. The order of a quaternion
changes here because it is a message that is written; `ros/conversions.py` does the same for
live messages, and a test holds both to the same bytes.

Depth as 12-bit codes, as LeRobot's depth videos hold it.

Codes step evenly in the logarithm of (depth + shift), so that near depth is fine and far
depth coarse: 1.4 mm at 1 m and 4 mm at 10 m for a range of 40 m. The two outermost codes are
kept for what has no number: 0 is invalid (NaN), the last is beyond range (+inf). A reader that
knows nothing of this sees the nearest and the farthest depth there.

Formula and defaults: `lerobot.datasets.depth_utils` of LeRobot 0.6.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, UInt16
from rosbags.typesys import Stores, get_typestore
from transforms3d.quaternions import mat2quat

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame
from mirage_ros.recording.recorder import RecordingConfig

LAST_CODE = (1 << 12) - 1


@dataclass(frozen=True)
class DepthCodes:
    """The map between metres and codes.

    Attributes:
        near_m, far_m: depths of the first and the last code.
        shift_m: added before the logarithm is taken.
    """

    near_m: float = 0.01
    far_m: float = 40.0
    shift_m: float = 3.5

    def encode(self, depth_m: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
        """Codes of metres; NaN and what is not above 0 give 0, beyond `far_m` the last one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = (np.log(depth_m.astype(np.float64) + self.shift_m) - self._first) / self._step
        codes = np.clip(np.nan_to_num(np.rint(steps), posinf=LAST_CODE), 1, LAST_CODE - 1)
        codes[depth_m > self.far_m] = LAST_CODE
        codes[~(depth_m > 0)] = 0
        return codes.astype(np.uint16)

    def decode(self, codes: UInt16[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Metres, with NaN for invalid and +inf for beyond range."""
        special = self.table_m.copy()
        special[0], special[LAST_CODE] = np.nan, np.inf
        return special[codes]

    @cached_property
    def table_m(self) -> Float[np.ndarray, "codes"]:
        """Depth of every code as a plain reader of the format computes it."""
        values = np.exp(np.arange(LAST_CODE + 1) * self._step + self._first) - self.shift_m
        return np.clip(values, self.near_m, self.far_m).astype(np.float32)

    @property
    def _first(self) -> float:
        return float(np.log(self.near_m + self.shift_m))

    @property
    def _step(self) -> float:
        return float(np.log(self.far_m + self.shift_m) - self._first) / LAST_CODE


IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
ARRAYS = {
    "float32": "std_msgs/msg/Float32MultiArray",
    "float64": "std_msgs/msg/Float64MultiArray",
    "int64": "std_msgs/msg/Int64MultiArray",
    "bool": "std_msgs/msg/UInt8MultiArray",
}
SECOND_NS = 1_000_000_000


@lru_cache(maxsize=1)
def store():
    """The message types of ROS 2 Kilted."""
    return get_typestore(Stores.ROS2_KILTED)


@lru_cache(maxsize=64)
def definition(type_name: str) -> tuple[str, str]:
    """The .msg text of a type with its dependencies, and its RIHS01 hash."""
    text, _ = store().generate_msgdef(type_name, ros_version=2)
    return text, store().hash_rihs01(type_name)


def frame_messages(frame: Frame, config: RecordingConfig) -> Iterator[tuple[str, str, bytes]]:
    """(relative topic, type, bytes) of a frame, in the order in which the node publishes."""
    header = _header(frame.stamp_ns, config.camera_frame)
    info = _bytes(INFO, **_pinhole(frame.camera), header=header)
    mask = np.where(frame.observed, np.uint8(255), np.uint8(0))
    depth = np.asarray(frame.depth_m, np.float32)
    yield "/tf", TRANSFORMS, _transform(frame, config)
    yield "color/camera_info", INFO, info
    yield "depth/camera_info", INFO, info
    yield "color/image_raw", IMAGE, _image(frame.rgb, "rgb8", header)
    yield "depth/image_rect", IMAGE, _image(depth, "32FC1", header)
    yield "observed/image", IMAGE, _image(mask, "mono8", header)


def value_messages(
    values: Mapping[str, np.ndarray], config: RecordingConfig
) -> Iterator[tuple[str, str, bytes]]:
    """(relative topic, type, bytes) of what comes with a frame: one array each, named inside."""
    for name, value in values.items():
        feature = config.features[name]
        numbers = value.astype(np.uint8) if feature.dtype == "bool" else value
        label = ",".join(feature.names) or name
        dimension = _make("std_msgs/msg/MultiArrayDimension", label=label, size=len(value),
                          stride=len(value))  # fmt: skip
        layout = _make("std_msgs/msg/MultiArrayLayout", dim=[dimension], data_offset=0)
        kind = ARRAYS[feature.dtype]
        yield name.replace(".", "/"), kind, _bytes(kind, layout=layout, data=numbers)


def _make(type_name: str, **fields: object):
    return store().types[type_name](**fields)


def _bytes(type_name: str, **fields: object) -> bytes:
    return bytes(store().serialize_cdr(_make(type_name, **fields), type_name))


def _header(stamp_ns: int, frame_id: str):
    seconds, nanoseconds = divmod(int(stamp_ns), SECOND_NS)
    stamp = _make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return _make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def _image(pixels: np.ndarray, encoding: str, header) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    return _bytes(
        IMAGE,
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=pixels.strides[0],
        data=pixels.reshape(-1).view(np.uint8),
    )


def _pinhole(camera: Camera) -> dict[str, object]:
    matrix = np.asarray(camera.intrinsics, np.float64)
    region = _make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0,
                   do_rectify=False)  # fmt: skip
    return {
        "height": camera.size[0],
        "width": camera.size[1],
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": matrix.reshape(-1),
        "r": np.eye(3).reshape(-1),
        "p": np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
        "binning_x": 0,
        "binning_y": 0,
        "roi": region,
    }


def _transform(frame: Frame, config: RecordingConfig) -> bytes:
    matrix = frame.camera.world_from_camera
    x, y, z = (float(value) for value in matrix[:3, 3])
    qw, qx, qy, qz = (float(value) for value in mat2quat(matrix[:3, :3]))
    transform = _make(
        "geometry_msgs/msg/Transform",
        translation=_make("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
        rotation=_make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )
    stamped = _make(
        "geometry_msgs/msg/TransformStamped",
        header=_header(frame.stamp_ns, config.world_frame),
        child_frame_id=config.camera_frame,
        transform=transform,
    )
    return _bytes(TRANSFORMS, transforms=[stamped])

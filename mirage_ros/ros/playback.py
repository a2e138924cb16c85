"""What a recording holds: what it says of its types (message definitions, QoS profiles), and frames out of its messages,
put together as they arrive, or read back from MCAP.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Float, UInt8
from mcap.reader import make_reader
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.protocol import STAGES, Frame
from mirage_ros.recording.topics import (
    COLOR,
    COLOR_INFO,
    FOREVER,
    PARTS,
    PICTURES,
    POINTS,
    STATUS,
    TF,
)
from mirage_ros.ros.image_messages import depth_from_ros, mask_from_ros, picture_from_ros
from mirage_ros.ros.messages import (
    camera_from_ros,
    cloud_from_ros,
    message_class,
    stamp_from_ros,
    transform_from_ros,
)

SEPARATOR = "=" * 80
PRIMITIVES = {
    "bool", "byte", "char", "float32", "float64", "string", "wstring",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}  # fmt: skip
FIELD_TYPE = re.compile(r"^\s*([A-Za-z][\w/]*)")


def message_definition(type_name: str) -> str:
    """The .msg text of a type, followed by those of all types it is made of.

    Raises:
        MirageError: a package's share/<package>/msg folder is not installed.
    """
    texts: dict[str, str] = {}
    waiting = [type_name]
    while waiting:
        name = waiting.pop(0)
        if name not in texts:
            texts[name] = _read_definition(name)
            waiting += _parts(texts[name], name.split("/")[0])
    parts = [texts.pop(type_name)]
    parts += [f"{SEPARATOR}\nMSG: {_short(name)}\n{text}" for name, text in texts.items()]
    return "\n".join(parts)


def offered_qos(node: Node, topic: str) -> tuple[str, str]:
    """rosbag2's YAML of the QoS that a topic's publishers offer, and the type's hash."""
    infos = node.get_publishers_info_by_topic(topic)
    profiles = [_qos_to_dict(info.qos_profile) for info in infos]
    type_hash = str(infos[0].topic_type_hash) if infos else ""
    return yaml.safe_dump(profiles, sort_keys=False), type_hash


def _parts(text: str, package: str) -> list[str]:
    """Full names of the composed types that a definition uses."""
    names = []
    for line in text.splitlines():
        match = FIELD_TYPE.match(line.split("#")[0])
        if not match or match[1] in PRIMITIVES:
            continue
        pieces = match[1].split("/")
        names.append(f"{pieces[0] if len(pieces) > 1 else package}/msg/{pieces[-1]}")
    return names


def _read_definition(type_name: str) -> str:
    package, _, name = type_name.partition("/msg/")
    for prefix in _prefixes(package):
        path = prefix / "share" / package / "msg" / f"{name}.msg"
        if path.is_file():
            return path.read_text()
    raise MirageError(
        f"The definition of {type_name} is not installed; the package {package} must install "
        f"share/{package}/msg/{name}.msg."
    )


def _prefixes(package: str) -> list[Path]:
    """Where ament packages may be installed: the environment's, the package's own, Python's."""
    prefixes = [Path(part) for part in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if part]
    origin = getattr(import_module(f"{package}.msg"), "__file__", None)
    return [*prefixes, *(Path(origin).parents if origin else ()), Path(sys.prefix)]


def _short(type_name: str) -> str:
    return type_name.replace("/msg/", "/")


def _qos_to_dict(profile: QoSProfile) -> dict:
    return {
        "history": _history(profile),
        "depth": profile.depth,
        "reliability": profile.reliability.name.lower(),
        "durability": profile.durability.name.lower(),
        "deadline": _span(profile.deadline),
        "lifespan": _span(profile.lifespan),
        "liveliness": profile.liveliness.name.lower(),
        "liveliness_lease_duration": _span(profile.liveliness_lease_duration),
        "avoid_ros_namespace_conventions": profile.avoid_ros_namespace_conventions,
    }


def _history(profile: QoSProfile) -> str:
    # Discovery does not carry the history policy; rosbag2 writes "unknown" then and so do we.
    return profile.history.name.lower()


def _span(duration: Duration) -> dict[str, int]:
    nanoseconds = duration.nanoseconds
    if nanoseconds >= 9223372036854775807 or nanoseconds <= 0:
        return dict(FOREVER)
    return {"sec": nanoseconds // 10**9, "nsec": nanoseconds % 10**9}


WAITING = 2000
# By the attribute of Frame: how its message is read back; a camera needs its pose as well.
READERS = {"rgb": picture_from_ros, "depth_m": depth_from_ros, "observed": mask_from_ros}


class FrameAssembler:
    """Frames in the order of their stamps, each once all of its messages are here."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[str, object]] = {}
        # By stamp and child frame, of everybody: others plan on /tf far ahead of what is rendered.
        self._poses: dict[int, dict[str, np.ndarray]] = {}

    def add(self, name: str, type_name: str, data: bytes) -> Iterator[Frame]:
        """Takes one serialised message; yields the frame that it completes."""
        if name not in PARTS and name != TF:
            return
        message = deserialize_message(data, message_class(type_name))
        stamps = self._add_poses(message) if name == TF else self._add_picture(name, message)
        for stamp_ns in stamps:
            if (frame := self._frame(stamp_ns)) is not None:
                # Frames are published in order: what is older lacks something for good.
                self._pieces = {key: kept for key, kept in self._pieces.items() if key > stamp_ns}
                yield frame

    def _add_poses(self, message: TFMessage) -> list[int]:
        """The transforms' stamps. One that cannot be read is somebody else's, and no frame's pose."""
        stamps = []
        for transform in message.transforms:
            try:
                stamp_ns, pose = stamp_from_ros(transform.header.stamp), transform_from_ros(transform)
            except MirageError:
                continue
            # At the end, as the newest.
            self._poses[stamp_ns] = {**self._poses.pop(stamp_ns, {}), transform.child_frame_id: pose}
            if len(self._poses) > WAITING:
                del self._poses[next(iter(self._poses))]
            stamps.append(stamp_ns)
        return stamps

    def _add_picture(self, name: str, message: Image | CameraInfo) -> list[int]:
        stamp_ns = stamp_from_ros(message.header.stamp)
        self._pieces.setdefault(stamp_ns, {})[name] = message
        if len(self._pieces) > WAITING:
            del self._pieces[min(self._pieces)]
        return [stamp_ns]

    def _frame(self, stamp_ns: int) -> Frame | None:
        pieces = self._pieces.get(stamp_ns, {})
        if len(pieces) < len(PARTS):
            return None
        pose = self._poses.get(stamp_ns, {}).get(pieces[COLOR].header.frame_id)
        if pose is None:
            return None
        try:
            return frame_of(stamp_ns, pieces, pose)
        except MirageError as error:
            raise MirageError(f"A frame of the node cannot be recorded: {error}") from error


def frame_of(
    stamp_ns: int, messages: Mapping[str, Any], world_from_camera: Float[np.ndarray, "4 4"]
) -> Frame:
    """The frame that messages of the topics in PARTS hold. Raises MirageError."""
    values = {
        part: READERS[part](messages[name]) for name, part in PARTS.items() if part in READERS
    }
    camera = camera_from_ros(messages[COLOR_INFO], world_from_camera)
    return Frame(stamp_ns, camera, **values)


@dataclass(frozen=True)
class RecordedFrame:
    """One frame of which every picture topic was recorded."""

    stamp_ns: int
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    observed: Bool[np.ndarray, "h w"]
    arrival_ns: int


@dataclass
class Recording:
    """What a recording of the node's topics holds.

    Attributes:
        frames: in stamp order.
        stamps_ns: of each picture topic and of the rendered camera's TF, in order of arrival.
        cloud: fields of the newest cloud (see `cloud_from_ros`), None without one.
        statuses: one dict per RolloutStatus.
    """

    frames: list[RecordedFrame] = field(default_factory=list)
    stamps_ns: dict[str, list[int]] = field(default_factory=dict)
    cloud: dict[str, np.ndarray] | None = None
    statuses: list[dict] = field(default_factory=list)


# Name -> attribute of a frame and how it is read, of the messages that hold pixels.
PIXELS = {name: (part, READERS[part]) for name, part in PARTS.items() if part in READERS}
STAGES_S = (*(f"{stage}_s" for stage in STAGES), "total_s")
STATUS_FIELDS = (*STAGES_S, "frames", "frames_per_s", "cache_tokens", "cache_bytes",
                 "observed_fraction")  # fmt: skip


def read_recording(
    path: Path, namespace: str = "", rendered_frame: str = "mirage_camera_optical_frame"
) -> Recording:
    """Decode a recording made by `run_recorder`; all of its pictures are held in memory."""
    prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
    recording = Recording(stamps_ns={name: [] for name in (*PICTURES, "tf")})
    pictures: dict[str, dict[int, np.ndarray]] = {part: {} for part, _ in PIXELS.values()}
    arrivals: dict[int, int] = {}
    try:
        with path.open("rb") as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                name = channel.topic.removeprefix(prefix)
                value = deserialize_message(message.data, message_class(schema.name))
                if name in PIXELS:
                    stamp_ns = stamp_from_ros(value.header.stamp)
                    part, read = PIXELS[name]
                    pictures[part][stamp_ns] = read(value)
                    arrivals[stamp_ns] = message.log_time
                    recording.stamps_ns[name].append(stamp_ns)
                else:
                    _note(recording, name, value, rendered_frame)
    except (OSError, EOFError) as error:
        raise MirageError(
            f"The recording {path} cannot be read ({error}); record it again."
        ) from error
    for stamp_ns in sorted(set.intersection(*(set(found) for found in pictures.values()))):
        parts = {part: found[stamp_ns] for part, found in pictures.items()}
        recording.frames.append(RecordedFrame(stamp_ns, arrival_ns=arrivals[stamp_ns], **parts))
    return recording


def _note(recording: Recording, name: str, value, rendered_frame: str) -> None:
    """Keep what matters of a message that is no picture."""
    if name in PICTURES:
        recording.stamps_ns[name].append(stamp_from_ros(value.header.stamp))
    elif name == "tf":
        recording.stamps_ns["tf"] += [
            stamp_from_ros(transform.header.stamp)
            for transform in value.transforms
            if transform.child_frame_id == rendered_frame
        ]
    elif name == POINTS:
        recording.cloud = cloud_from_ros(value)
    elif name == STATUS:
        recording.statuses.append({key: getattr(value, key) for key in STATUS_FIELDS})

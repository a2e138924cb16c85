"""Reads a recorded rollout back from MCAP into plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.cloud_conversions import cloud_from_ros
from mirage_ros.ros.conversions import stamp_from_ros
from mirage_ros.ros.image_conversions import depth_from_ros, mask_from_ros, picture_from_ros
from mirage_ros.ros.message_text import message_class


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


PICTURES = {
    "color/image_raw": picture_from_ros,
    "depth/image_rect": depth_from_ros,
    "observed/image": mask_from_ros,
}
INFOS = ("color/camera_info", "depth/camera_info")
STAGES = ("read_s", "generate_s", "decode_s", "perceive_s", "write_s", "total_s")
STATUS_FIELDS = (*STAGES, "frames", "frames_per_s", "cache_tokens", "cache_bytes",
                 "observed_fraction")  # fmt: skip


def read_recording(
    path: Path, namespace: str = "", rendered_frame: str = "mirage_camera_optical_frame"
) -> Recording:
    """Decode a recording made by `run_recorder`; all of its pictures are held in memory."""
    prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
    recording = Recording(stamps_ns={name: [] for name in (*PICTURES, *INFOS, "tf")})
    pictures: dict[str, dict[int, np.ndarray]] = {name: {} for name in PICTURES}
    arrivals: dict[int, int] = {}
    try:
        with path.open("rb") as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                name = channel.topic.removeprefix(prefix)
                value = deserialize_message(message.data, message_class(schema.name))
                if name in pictures:
                    stamp_ns = stamp_from_ros(value.header.stamp)
                    pictures[name][stamp_ns] = PICTURES[name](value)
                    arrivals[stamp_ns] = message.log_time
                    recording.stamps_ns[name].append(stamp_ns)
                else:
                    _note(recording, name, value, rendered_frame)
    except (OSError, EOFError) as error:
        raise MirageError(
            f"The recording {path} cannot be read ({error}); record it again."
        ) from error
    for stamp_ns in sorted(set.intersection(*(set(found) for found in pictures.values()))):
        rgb, depth_m, observed = (pictures[name][stamp_ns] for name in PICTURES)
        recording.frames.append(RecordedFrame(stamp_ns, rgb, depth_m, observed, arrivals[stamp_ns]))
    return recording


def _note(recording: Recording, name: str, value, rendered_frame: str) -> None:
    """Keep what matters of a message that is no picture."""
    if name in INFOS:
        recording.stamps_ns[name].append(stamp_from_ros(value.header.stamp))
    elif name == "tf":
        recording.stamps_ns["tf"] += [
            stamp_from_ros(transform.header.stamp)
            for transform in value.transforms
            if transform.child_frame_id == rendered_frame
        ]
    elif name == "cache/points":
        recording.cloud = cloud_from_ros(value)
    elif name == "status":
        recording.statuses.append({key: getattr(value, key) for key in STATUS_FIELDS})

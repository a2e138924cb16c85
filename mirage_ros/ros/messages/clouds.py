"""The memory's points and a chunk's figures as messages."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from sensor_msgs.msg import PointCloud2

from mirage_ros.errors import MirageError
from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import Chunk
from mirage_ros.recording.topics import SECOND_NS, cloud_fields, packed_colours
from mirage_ros.ros.messages.conversions import stamp_to_ros
from mirage_ros.ros.messages.definitions import message_of

MOST_PENDING = 2**32 - 1
STAGES = ("read", "generate", "decode", "perceive", "write")
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


def cloud_to_ros(
    xyz: Float[np.ndarray, "n 3"],
    rgb: UInt8[np.ndarray, "n 3"],
    confidence: Float[np.ndarray, "n"],
    birth_ns: Int[np.ndarray, "n"],
    stamp_ns: int,
    frame_id: str,
) -> PointCloud2:
    """A dense cloud: x y z in metres, packed rgb, confidence, age in seconds before the stamp."""
    points = np.zeros(len(xyz), POINT)
    points["x"], points["y"], points["z"] = np.asarray(xyz, np.float32).T
    points["rgb"] = packed_colours(rgb)
    points["confidence"] = confidence
    points["age"] = (int(stamp_ns) - np.asarray(birth_ns, np.int64)) / SECOND_NS
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

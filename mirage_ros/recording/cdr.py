"""Messages as the bytes that the node would publish, without a ROS install.

Layouts are not written by hand: `rosbags` brings the message packages' own definitions and generates
serialisers, schema texts and type hashes from them; fields of `recording/topics.py` are filled in.
The other library, `mcap-ros2-support`, knows no type hashes and takes lists where rosbags takes
arrays; for the six messages of a 240x320 frame it needs 0.34 ms, rosbags 0.29 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from mirage_ros.protocol import Frame
from mirage_ros.recording.recorder import RecordingConfig
from mirage_ros.recording.topics import EVERYWHERE, TOPICS, Fields, FrameIds

ARRAYS = {
    "float32": "std_msgs/msg/Float32MultiArray",
    "float64": "std_msgs/msg/Float64MultiArray",
    "int64": "std_msgs/msg/Int64MultiArray",
    "bool": "std_msgs/msg/UInt8MultiArray",
}


@lru_cache(maxsize=1)
def store():
    """The message types of ROS 2 Kilted."""
    return get_typestore(Stores.ROS2_KILTED)


@lru_cache(maxsize=64)
def definition(type_name: str) -> tuple[str, str]:
    """The .msg text of a type with its dependencies, and its RIHS01 hash."""
    text, _ = store().generate_msgdef(type_name, ros_version=2)
    return text, store().hash_rihs01(type_name)


def serialize(type_name: str, fields: Fields) -> bytes:
    """Little-endian CDR of a message of these fields, all of which must be given."""
    return bytes(store().serialize_cdr(_message(type_name, fields), type_name))


def frame_messages(frame: Frame, config: RecordingConfig) -> Iterator[tuple[str, str, bytes]]:
    """(relative topic, type, bytes) of a frame, in the order in which the node publishes."""
    ids = FrameIds(config.world_frame, config.camera_frame)
    for topic in TOPICS:
        if topic.fields is not None and topic.recorded == EVERYWHERE:
            yield topic.name, topic.type_name, serialize(topic.type_name, topic.fields(frame, ids))


def value_messages(
    values: Mapping[str, np.ndarray], config: RecordingConfig
) -> Iterator[tuple[str, str, bytes]]:
    """(relative topic, type, bytes) of what comes with a frame: one array each, named inside."""
    for name, value in values.items():
        feature = config.features[name]
        numbers = value.astype(np.uint8) if feature.dtype == "bool" else value
        label = ",".join(feature.names) or name
        dimension = {"label": label, "size": len(value), "stride": len(value)}
        kind = ARRAYS[feature.dtype]
        fields = {"layout": {"dim": [dimension], "data_offset": 0}, "data": numbers}
        yield name.replace(".", "/"), kind, serialize(kind, fields)


@lru_cache(maxsize=64)
def _nested(type_name: str) -> dict[str, tuple[str, bool]]:
    """Of the fields that are messages: their type, and whether there are several of them."""
    found = {}
    for name, (node, detail) in store().fielddefs[type_name][1]:
        if node == Nodetype.NAME:
            found[name] = (detail, False)
        elif node in (Nodetype.ARRAY, Nodetype.SEQUENCE) and detail[0][0] == Nodetype.NAME:
            found[name] = (detail[0][1], True)
    return found


def _message(type_name: str, fields: Fields):
    """rosbags' object of a type, whose fields it checks when it is serialised."""
    values = dict(fields)
    for name, (nested, several) in _nested(type_name).items():
        value = values[name]
        values[name] = [_message(nested, item) for item in value] if several else _message(nested, value)
    return store().types[type_name](**values)

"""Frames as the bytes of the messages that the node would publish, without a ROS install; and episodes of them in MCAP.

Layouts are not written by hand: `rosbags` brings the message packages' own definitions and generates
serialisers, schema texts and type hashes from them; fields of `recording/topics.py` are filled in.
The other library, `mcap-ros2-support`, knows no type hashes and takes lists where rosbags takes
arrays; for the six messages of a 240x320 frame it needs 0.34 ms, rosbags 0.29 ms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from mirage_ros.protocol import Frame
from mirage_ros.recording import NOTHING, RecordingConfig
from mirage_ros.recording.episodes import Episode
from mirage_ros.recording.mcap import McapRecorder
from mirage_ros.recording.topics import BY_NAME, EVERYWHERE, TOPICS, Fields, FrameIds, Qos

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


class McapEpisode(Episode):
    """A `.mcap` file or rosbag2's folder; log times are the frames' planned stamps.

    Values that come with a frame lie on topics of their own, `observation.state` on
    `observation/state`, as arrays of numbers.
    """

    def __init__(
        self,
        target: Path,
        config: RecordingConfig,
        task: str = "",
        info: Mapping = NOTHING,
        flush_s: float | None = None,
    ) -> None:
        """`flush_s` is the longest time a frame may wait in memory, see `McapRecorder`."""
        super().__init__(target, config, task, info)
        self._bag = McapRecorder(target, flush_s=flush_s, partial=self.partial)

    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        namespace = self.config.namespace.strip("/")
        prefix = f"/{namespace}/" if namespace else "/"
        for messages in (frame_messages(frame, self.config), value_messages(values, self.config)):
            for name, type_name, data in messages:
                topic = name if name.startswith("/") else prefix + name
                if topic not in self._bag.counts:
                    text, type_hash = definition(type_name)
                    qos = BY_NAME[name].qos if name in BY_NAME else Qos()
                    profiles = yaml.safe_dump([qos.rosbag_profile()], sort_keys=False)
                    self._bag.channel(topic, type_name, text, profiles, type_hash)
                self._bag.write(topic, data, frame.stamp_ns)

    def _complete(self) -> None:
        info = json.dumps(self.info, sort_keys=True)
        self._bag.note("mirage_ros", {"task": self.task, "info": info})
        self._bag.finish()

    def _abandon(self) -> None:
        self._bag.abandon()

    def _let_go(self) -> None:
        self._bag.let_go()

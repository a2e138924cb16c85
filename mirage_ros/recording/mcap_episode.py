"""One episode as an MCAP recording of the messages that the node would publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from mirage_ros.core.frames import Frame
from mirage_ros.recording.cdr import definition, frame_messages, value_messages
from mirage_ros.recording.episodes import Episode
from mirage_ros.recording.mcap_writer import McapRecorder
from mirage_ros.recording.recorder import NOTHING, RecordingConfig

FOREVER = {"sec": 9223372036, "nsec": 854775807}
PICTURE_DEPTH, TF_DEPTH = 16, 100


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
        for messages in (
            frame_messages(frame, self.config),
            value_messages(values, self.config),
        ):
            for name, type_name, data in messages:
                topic = name if name.startswith("/") else prefix + name
                if topic not in self._bag.counts:
                    text, type_hash = definition(type_name)
                    qos = offered_qos(TF_DEPTH if name == "/tf" else PICTURE_DEPTH)
                    self._bag.channel(topic, type_name, text, qos, type_hash)
                self._bag.write(topic, data, frame.stamp_ns)

    def _complete(self) -> None:
        info = json.dumps(self.info, sort_keys=True)
        self._bag.note("mirage_ros", {"task": self.task, "info": info})
        self._bag.finish()

    def _abandon(self) -> None:
        self._bag.abandon()

    def _let_go(self) -> None:
        self._bag.let_go()


def offered_qos(depth: int) -> str:
    """rosbag2's YAML of a reliable publisher that keeps the last `depth` messages."""
    profile = {
        "history": "keep_last",
        "depth": depth,
        "reliability": "reliable",
        "durability": "volatile",
        "deadline": FOREVER.copy(),
        "lifespan": FOREVER.copy(),
        "liveliness": "automatic",
        "liveliness_lease_duration": FOREVER.copy(),
        "avoid_ros_namespace_conventions": False,
    }
    return yaml.safe_dump([profile], sort_keys=False)

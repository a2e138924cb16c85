"""A recording that the node makes of itself: it listens to its own topics.

What it keeps is what went out, to the byte: a second serialisation would not be, because the
middleware leaves the gaps between a message's fields as they are in memory.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from mirage_ros.core.errors import MirageError
from mirage_ros.recording.formats import guess_format
from mirage_ros.recording.queued import Background
from mirage_ros.resources import user_path
from mirage_ros.ros.message_text import message_class
from mirage_ros.ros.recorder import (
    PICTURES,
    TOPICS,
    RecorderConfig,
    Source,
    Tally,
    header_stamp_ns,
    open_sink,
    recorder_qos,
    written,
)

TYPES = {
    "diagnostic_msgs/msg/DiagnosticArray",
    "mirage_ros/msg/RolloutStatus",
    "rosgraph_msgs/msg/Clock",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/PointCloud2",
    "tf2_msgs/msg/TFMessage",
}
WAITING = 1000
DRAIN_S = 2.0
MATCH_S = 1.0


class FrameRecording:
    """Runs from its making to `leave`, which `finish` follows.

    A bounded queue stands before the disk: when it is full, the executor's thread waits, and so
    does what is published next. Nothing is dropped.

    Attributes:
        path: that is written; its ending says the format, see `guess_format`.
        tally: what arrived of the first camera.
    """

    def __init__(self, node: Node, path: str | Path) -> None:
        """Raises MirageError when nothing can be written there."""
        if not str(path):
            raise MirageError("A recording got no path; give a file such as /tmp/walk.mcap.")
        self.path, self.tally = user_path(path).absolute(), Tally()
        self._node = node
        prefix = node.output.cameras[0].prefix
        # As the table of topics has them, where they are of the first camera.
        self._names = {
            node.resolve_topic_name(prefix + name if name in PICTURES else name): name
            for name in TOPICS
        }
        format = guess_format(self.path)
        config = RecorderConfig(self.path, format=format, rate_hz=node.config.frame_rate_hz)
        self._sink = open_sink(config)
        self._tf_topic = node.resolve_topic_name("/tf")
        self._background = Background(WAITING)
        self._error: Exception | None = None
        self._listeners = [
            self._listen(topic, types[0])
            for topic, types in own_topics(node)
            if types[0] in TYPES
        ]
        self._wait_for_matches()

    def leave(self, drain_s: float = DRAIN_S) -> None:
        """Takes what is still under way, then listens no more. On the executor's thread.

        Args:
            drain_s: to wait at most for what was published but has not arrived.
        """
        # After Ctrl-C, ROS is gone before the node is.
        if self._node.context.ok():
            self._drain(drain_s)
            for listener in self._listeners:
                self._node.destroy_subscription(listener)

    def finish(self) -> str:
        """Writes what waits and the end, on any thread.

        Returns:
            A sentence with the frames and bytes that are there.

        Raises:
            MirageError: anything failed, or a format of frames got none.
        """
        try:
            if self._error is None:
                self._background.wait()
        except Exception as error:  # noqa: BLE001 - told below, after the file is closed
            self._error = error
        self._background.stop()
        self._sink.__exit__(type(self._error) if self._error else None, self._error, None)
        if self._error is not None:
            raise MirageError(f"The recording ended early: {self._error}") from self._error
        return written(self._sink, self.tally, self.path, self._tf_topic)

    def _wait_for_matches(self) -> None:
        """What is published before the two ends know each other would be missing."""
        deadline_s = time.monotonic() + MATCH_S
        while not all(listener.get_publisher_count() for listener in self._listeners):
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.005)

    def _listen(self, topic: str, type_name: str):
        infos = self._node.get_publishers_info_by_topic(topic)
        latched = any(
            info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in infos
        )
        qos = recorder_qos(latched, _reliability(infos))
        source = Source(self._names.get(topic, topic), topic, type_name)

        def on_bytes(data: bytes, info: dict) -> None:
            self._take(source, data, info)

        return self._node.create_subscription(
            message_class(type_name), topic, on_bytes, qos, raw=True
        )

    def _take(self, source: Source, data: bytes, info: dict) -> None:
        if self._error is not None:
            return
        if source.name in PICTURES:
            self.tally.add(source.name, header_stamp_ns(data))
        try:
            self._background.put(
                functools.partial(self._sink.take, self._node, source, data, info)
            )
        except Exception as error:  # noqa: BLE001 - a recording that fails must not end the node
            self._error = error
            self._node.get_logger().error(f"The recording ended early: {error}")

    def _drain(self, drain_s: float) -> None:
        """Takes what was published already but not delivered to the executor yet."""
        deadline_s = time.monotonic() + drain_s
        while True:
            for listener in self._listeners:
                self._take_waiting(listener)
            if not self.tally.incomplete or time.monotonic() > deadline_s:
                return
            time.sleep(0.01)

    def _take_waiting(self, listener) -> None:
        while True:
            with listener.handle:
                taken = listener.handle.take_message(listener.msg_type, listener.raw)
            if taken is None:
                return
            listener.callback(*taken)


def own_topics(node: Node) -> list[tuple[str, list[str]]]:
    """Topics that the node publishes, with their types."""
    return node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace())


def _reliability(infos) -> ReliabilityPolicy:
    """Best effort where that is all a publisher offers."""
    reliable = all(info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in infos)
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT

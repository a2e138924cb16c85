"""Listens to a ROS graph for a while and keeps what `mirage doctor` judges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.conversions import stamp_from_ros
from mirage_ros.ros.tf_buffer import Buffer

# Types whose header names a frame that consumers look up, and that cost little to hear.
PLACED = {"sensor_msgs/msg/CameraInfo": CameraInfo, "sensor_msgs/msg/PointCloud2": PointCloud2}
SCAN_S = 0.25
NAME = "mirage_doctor"


@dataclass(frozen=True)
class Endpoint:
    """A publisher or subscription: whose it is and its QoS."""

    node: str
    qos: QoSProfile


@dataclass
class Graph:
    """What was seen.

    Attributes:
        nodes: full names; one stands here as often as nodes bear it.
        publishers, subscriptions: by topic, the doctor's own left out.
        buffer: the transforms.
        parents: child frame -> the parents that it was published under.
        bad_transforms: why transforms could not be used, each once.
        clock_jumps: pairs of /clock readings, in ns, of which the second is before the first.
        frames: topic -> frame id of its newest message.
        errors: name -> message of diagnostics at ERROR.
    """

    nodes: list[str] = field(default_factory=list)
    publishers: dict[str, list[Endpoint]] = field(default_factory=dict)
    subscriptions: dict[str, list[Endpoint]] = field(default_factory=dict)
    buffer: Buffer = field(default_factory=Buffer)
    parents: dict[str, set[str]] = field(default_factory=dict)
    bad_transforms: list[str] = field(default_factory=list)
    clock_jumps: list[tuple[int, int]] = field(default_factory=list)
    frames: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class GraphWatch:
    """Subscribes to /tf, /clock, /diagnostics and whatever is placed; fills a Graph."""

    def __init__(self, node: Node) -> None:
        self.graph = Graph()
        self._node = node
        self._heard: set[str] = set()
        self._clock_ns = 0
        latched = QoSProfile(depth=200, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        lossy = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(TFMessage, "/tf", self._on_transforms(False), lossy)
        node.create_subscription(TFMessage, "/tf_static", self._on_transforms(True), latched)
        node.create_subscription(Clock, "/clock", self._on_clock, lossy)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, lossy)

    def watch(self, seconds: float, spin: Callable[[float], None]) -> Graph:
        """Listens for so long; `spin(timeout_s)` runs the callbacks."""
        end_s, scan_s = time.monotonic() + seconds, 0.0
        while (now_s := time.monotonic()) < end_s:
            if now_s >= scan_s:
                self._listen_to_placed()
                scan_s = now_s + SCAN_S
            spin(min(0.05, SCAN_S))
        self._list_endpoints()
        return self.graph

    def _listen_to_placed(self) -> None:
        for topic, kinds in self._node.get_topic_names_and_types():
            kind = next((PLACED[name] for name in kinds if name in PLACED), None)
            offered = self._node.get_publishers_info_by_topic(topic) if kind else []
            if not offered or topic in self._heard:
                continue
            self._heard.add(topic)
            qos = QoSProfile(
                depth=1,
                reliability=offered[0].qos_profile.reliability,
                durability=offered[0].qos_profile.durability,
            )
            self._node.create_subscription(kind, topic, self._on_placed(topic), qos)

    def _list_endpoints(self) -> None:
        graph, node = self.graph, self._node
        graph.nodes = [
            _full_name(name, namespace)
            for name, namespace in node.get_node_names_and_namespaces()
            if name != node.get_name()
        ]
        for topic, _ in node.get_topic_names_and_types():
            for found, infos in (
                (graph.publishers, node.get_publishers_info_by_topic(topic)),
                (graph.subscriptions, node.get_subscriptions_info_by_topic(topic)),
            ):
                found[topic] = [
                    Endpoint(_full_name(info.node_name, info.node_namespace), info.qos_profile)
                    for info in infos
                    if info.node_name != node.get_name()
                ]

    def _on_transforms(self, static: bool):
        def callback(message: TFMessage) -> None:
            buffer = self.graph.buffer
            for transform in message.transforms:
                child, parent = transform.child_frame_id, transform.header.frame_id
                self.graph.parents.setdefault(child, set()).add(parent)
                try:
                    if static:
                        buffer.set_transform_static(transform)
                    else:
                        buffer.set_transform(transform)
                except MirageError as error:
                    if str(error) not in self.graph.bad_transforms:
                        self.graph.bad_transforms.append(str(error))

        return callback

    def _on_clock(self, message: Clock) -> None:
        now_ns = stamp_from_ros(message.clock)
        if now_ns < self._clock_ns:
            self.graph.clock_jumps.append((self._clock_ns, now_ns))
        self._clock_ns = now_ns

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.level == DiagnosticStatus.ERROR:
                self.graph.errors[status.name] = status.message
            else:
                self.graph.errors.pop(status.name, None)

    def _on_placed(self, topic: str):
        def callback(message: CameraInfo | PointCloud2) -> None:
            self.graph.frames[topic] = message.header.frame_id

        return callback


def _full_name(name: str, namespace: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"

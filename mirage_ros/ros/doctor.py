"""What `mirage doctor` runs: it listens to a ROS graph for a while and judges what it heard.

Nodes, QoS, clocks, transforms and diagnostics are checked, and the machine (see mirage_ros.machine).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.machine import FAULT, OK, WARN, Finding, check_gpu, check_shared_memory
from mirage_ros.recording.topics import CLOUD, INFO, TF, TF_STATIC, TOPICS
from mirage_ros.ros.messages import stamp_from_ros
from mirage_ros.ros.tf import Buffer

# Types whose header names a frame that consumers look up, and that cost little to hear.
PLACED = {INFO: CameraInfo, CLOUD: PointCloud2}
# To hear these would have them made.
ON_DEMAND = tuple(f"/{topic.name}" for topic in TOPICS if topic.on_demand)
SCAN_S = 0.25
# Participants announce themselves every 3 s (Fast DDS): on a busy machine the first ones are lost.
DISCOVERY_S = 10.0
# A graph that grew within so long may not be known whole.
SETTLED_S = 1.0
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

    @property
    def size(self) -> int:
        """How many nodes and endpoints of them there are."""
        ends = (*self.publishers.values(), *self.subscriptions.values())
        return len(self.nodes) + sum(map(len, ends))


class GraphWatch:
    """Subscribes to /tf, /clock, /diagnostics and whatever is placed; fills a Graph."""

    def __init__(self, node: Node) -> None:
        self.graph = Graph()
        self._node = node
        self._heard: set[str] = set()
        self._clock_ns = 0
        latched = QoSProfile(depth=200, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        lossy = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(TFMessage, TF, self._on_transforms(False), lossy)
        node.create_subscription(TFMessage, TF_STATIC, self._on_transforms(True), latched)
        node.create_subscription(Clock, "/clock", self._on_clock, lossy)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, lossy)

    def watch(self, seconds: float, spin: Callable[[float], None]) -> Graph:
        """Listens; `spin(timeout_s)` runs the callbacks.

        Args:
            seconds: how long from when another node is seen. It gets at most DISCOVERY_S longer:
                where nobody is seen yet, or the graph still grows.
        """
        begin_s = time.monotonic()
        end_s, size = begin_s + DISCOVERY_S, 0
        while (now_s := time.monotonic()) < end_s:
            self._listen_to_placed()
            self._list_endpoints()
            if self.graph.size != size:
                latest_s = begin_s + seconds + DISCOVERY_S
                end_s = min(max((end_s if size else now_s + seconds), now_s + SETTLED_S), latest_s)
                size = self.graph.size
            while time.monotonic() < min(now_s + SCAN_S, end_s):
                spin(0.05)
        return self.graph

    def _listen_to_placed(self) -> None:
        for topic, kinds in self._node.get_topic_names_and_types():
            kind = next((PLACED[name] for name in kinds if name in PLACED), None)
            if kind is None or topic in self._heard or topic.endswith(ON_DEMAND):
                continue
            offered = self._node.get_publishers_info_by_topic(topic)
            if not offered:
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
        graph.publishers, graph.subscriptions = {}, {}
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


CLOCK = "/clock"
# What each policy of QoS is called in rclpy's reasons, and the advice that goes with it.
QOS_ADVICE = {
    "best effort": "Publish {topic} RELIABLE in {publisher}, or subscribe BEST_EFFORT (sensor_data)"
    " in {subscriber}.",
    "volatile": "Publish {topic} TRANSIENT_LOCAL in {publisher}, or subscribe VOLATILE in "
    "{subscriber}.",
}


def check_nodes(graph: Graph, domain: str) -> list[Finding]:
    """Whether anybody is there, under a name of his own."""
    if not graph.nodes:
        advice = "Start the nodes, or set their ROS_DOMAIN_ID and discovery range here."
        return [Finding("nodes", WARN, f"No other node is in ROS domain {domain}.", advice)]
    twins = [name for name, count in Counter(graph.nodes).items() if count > 1]
    findings = [
        Finding(
            "nodes", WARN, f"{graph.nodes.count(name)} nodes are called {name}.",
            "Start one with another name: `--ros-args -r __node:=...`.",
        )
        for name in twins
    ]  # fmt: skip
    return findings or [Finding("nodes", OK, f"{len(graph.nodes)} in ROS domain {domain}.")]


def check_qos(graph: Graph) -> list[Finding]:
    """Every publisher against every subscription of its topic."""
    findings, pairs = [], 0
    for topic, publishers in sorted(graph.publishers.items()):
        for publisher in publishers:
            for subscriber in graph.subscriptions.get(topic, []):
                pairs += 1
                level, reason = qos_check_compatible(publisher.qos, subscriber.qos)
                if level == QoSCompatibility.ERROR:
                    findings.append(_mismatch(topic, publisher.node, subscriber.node, reason))
    return findings or [Finding("qos", OK, f"{pairs} connections match.")]


def _mismatch(topic: str, publisher: str, subscriber: str, reason: str) -> Finding:
    why = reason.removeprefix("ERROR: ").rstrip("; ")
    advice = next((text for key, text in QOS_ADVICE.items() if key in why.lower()), None)
    advice = advice or "Give {topic} the same QoS in {publisher} and {subscriber}."
    return Finding(
        "qos",
        FAULT,
        f"{topic}: {subscriber} receives nothing from {publisher}: {why}.",
        advice.format(topic=topic, publisher=publisher, subscriber=subscriber),
    )


def check_clock(graph: Graph) -> list[Finding]:
    """At most one clock, one where it is followed, and never backwards."""
    owners = [endpoint.node for endpoint in graph.publishers.get(CLOCK, [])]
    followers = [endpoint.node for endpoint in graph.subscriptions.get(CLOCK, [])]
    if len(owners) > 1:
        found = f"{len(owners)} publishers of {CLOCK}: {', '.join(sorted(owners))}."
        advice = "Leave one: end the others, or switch off their clock (mirage: time_mode stream)."
        return [Finding("clock", FAULT, found, advice)]
    if followers and not owners:
        found = f"{', '.join(sorted(set(followers))[:3])} follow {CLOCK}, which nobody publishes."
        advice = "Start the simulator that owns time, or set use_sim_time to false."
        return [Finding("clock", FAULT, found, advice)]
    if graph.clock_jumps:
        before_ns, after_ns = graph.clock_jumps[0]
        found = f"{CLOCK} jumped back from {before_ns / 1e9:.3f} s to {after_ns / 1e9:.3f} s."
        return [Finding("clock", WARN, found, "Normal after a reset; else end a looping bag.")]
    if owners:
        return [Finding("clock", OK, f"{owners[0]} owns time.")]
    return [Finding("clock", OK, "Wall time; nobody publishes or follows a clock.")]


def check_tf(graph: Graph, world_frame: str, frames: Sequence[str]) -> list[Finding]:
    """Every frame that data comes in, and those asked for, reach the world's.

    Args:
        frames: frames to look for beside those that messages name.
    """
    findings = [
        Finding("tf", FAULT, text, "Mend the node that publishes this transform.")
        for text in graph.bad_transforms
    ]
    findings += [
        Finding(
            "tf", FAULT,
            f"'{child}' is published under {len(parents)} parents: {', '.join(sorted(parents))}.",
            "Let one node publish it; a frame has one parent.",
        )
        for child, parents in sorted(graph.parents.items())
        if len(parents) > 1
    ]  # fmt: skip
    users: dict[str, list[str]] = {frame: [] for frame in frames}
    for topic, frame in sorted(graph.frames.items()):
        users.setdefault(frame, []).append(topic)
    findings += filter(None, (_reach(graph, world_frame, *item) for item in users.items()))
    if findings:
        return findings
    count = len(set(graph.parents) | {name for names in graph.parents.values() for name in names})
    return [Finding("tf", OK, f"{count} frames; {len(users)} in use reach '{world_frame}'.")]


def _reach(graph: Graph, world_frame: str, frame: str, topics: list[str]) -> Finding | None:
    if frame == world_frame:
        return None
    user = f"{topics[0]} is in '{frame}'" if topics else f"'{frame}' is wanted"
    if not frame:
        advice = "Fill header.frame_id where it is published."
        return Finding("tf", FAULT, f"{topics[0]} names no frame.", advice)
    try:
        graph.buffer.chain(world_frame, frame)
    except MirageError as error:
        advice = f"Publish the missing transform, on /tf_static if it is fixed, so that '{frame}' "\
            f"hangs on '{world_frame}'."  # fmt: skip
        return Finding("tf", FAULT, f"{user}, but {_lowered(str(error))}", advice)
    return None


def _lowered(text: str) -> str:
    return text if text.startswith("TF") else text[0].lower() + text[1:]


def check_diagnostics(graph: Graph) -> list[Finding]:
    """What nodes themselves report as errors."""
    findings = [
        Finding("diagnostics", FAULT, f"{name}: {text}", "Do what the message says.")
        for name, text in sorted(graph.errors.items())
    ]
    return findings or [Finding("diagnostics", OK, "No node reports an error.")]


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at.

    Attributes:
        listen_s: how long to listen to the graph.
        world_frame: the frame that all others must reach.
        frames: frames that must be on TF even if no message names them.
        need_shm_mib: least free shared memory, MiB.
        need_gpu_mib: least free memory of a GPU, MiB.
    """

    listen_s: float = 5.0
    world_frame: str = "world"
    frames: Sequence[str] = ()
    need_shm_mib: float = 64.0
    need_gpu_mib: float = 1024.0


def examine(config: DoctorConfig) -> list[Finding]:
    """All findings, in a fixed order of checks.

    Raises:
        MirageError: no time to listen, or ROS does not start.
    """
    # Nobody is heard in no time, and a graph that nobody heard looks sound.
    if not 0 < config.listen_s < np.inf:
        raise MirageError(
            f"The doctor got {config.listen_s} s to listen; give more than 0, 2 or more to hear "
            "what is published once a second."
        )
    graph = _watch(config.listen_s)
    return [
        *check_nodes(graph, os.environ.get("ROS_DOMAIN_ID", "0")),
        *check_qos(graph),
        *check_clock(graph),
        *check_tf(graph, config.world_frame, config.frames),
        *check_diagnostics(graph),
        *check_shared_memory(config.need_shm_mib),
        *check_gpu(config.need_gpu_mib),
    ]


def _watch(listen_s: float):
    context = Context()
    try:
        rclpy.init(context=context)
    except Exception as error:  # noqa: BLE001 - rcl's errors have no public class of their own
        reason = " ".join(str(error).split())
        raise MirageError(f"ROS did not start ({reason}); check ROS_DOMAIN_ID and RMW.") from None
    try:
        # Without parameter services the doctor adds as little as it can to what it looks at.
        node = Node(NAME, context=context, start_parameter_services=False, enable_rosout=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        return GraphWatch(node).watch(listen_s, lambda timeout_s: executor.spin_once(timeout_s))
    except ExternalShutdownException:
        raise KeyboardInterrupt from None
    finally:
        rclpy.try_shutdown(context=context)

"""Judges a watched ROS graph: nodes, QoS, clocks, transforms, diagnostics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rclpy.qos import QoSCompatibility, qos_check_compatible

from mirage_ros.core.errors import MirageError
from mirage_ros.doctor.findings import FAULT, OK, WARN, Finding
from mirage_ros.ros.graph_watch import Graph

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

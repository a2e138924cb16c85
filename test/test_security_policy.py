"""config/sros2: the schema's structure, and exactly what the running nodes publish and serve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import rclpy
from make_seed import write_seed
from rclpy.context import Context
from ros_client import NodeProcess
from terminal import Pty

ROOT = Path(__file__).parents[1]
POLICY = ElementTree.parse(ROOT / "config/sros2/mirage.policy.xml").getroot()
# sros2/policy/schemas/policy.xsd, version 0.2.0: element -> children, required and optional
# attributes.
SCHEMA = {
    "policy": ({"enclaves"}, {"version"}, set()),
    "enclaves": ({"enclave"}, set(), set()),
    "enclave": ({"profiles"}, {"path"}, set()),
    "profiles": ({"profile", "metadata"}, set(), {"type"}),
    "profile": ({"topics", "services", "actions"}, {"ns", "node"}, set()),
    "topics": ({"topic"}, set(), {"publish", "subscribe"}),
    "services": ({"service"}, set(), {"request", "reply"}),
    "actions": ({"action"}, set(), {"call", "execute"}),
}
NODES = ("mirage_node", "mirage_base", "mirage_wander", "mirage_teleop")
PATIENCE_S = 60.0


def complaints(element: ElementTree.Element) -> list[str]:
    """What breaks the schema at and below an element."""
    if element.tag in ("topic", "service", "action"):
        text = (element.text or "").strip()
        return [] if text and not len(element) else [f"an empty or nested {element.tag}"]
    children, required, optional = SCHEMA[element.tag]
    found = []
    if not len(element):
        found.append(f"{element.tag} is empty")
    if not required <= set(element.attrib) <= required | optional:
        found.append(f"{element.tag} has {sorted(element.attrib)}")
    if optional and element.tag != "profiles":
        if not element.attrib or not set(element.attrib.values()) <= {"ALLOW", "DENY"}:
            found.append(f"{element.tag} rules nothing")
    for child in element:
        found += complaints(child) if child.tag in children else [f"{child.tag} in {element.tag}"]
    return found


def test_the_policy_keeps_the_schema():
    assert POLICY.tag == "policy" and POLICY.get("version") == "0.2.0"
    assert complaints(POLICY) == []


def test_a_broken_policy_is_found():
    for text in (
        "<policy><enclaves/></policy>",
        '<profile ns="/" node="a"><topics publish="MAYBE"><topic>x</topic></topics></profile>',
        '<profile ns="/" node="a"><services reply="ALLOW"><topic>x</topic></services></profile>',
        '<profile ns="/"><topics publish="ALLOW"><topic>x</topic></topics></profile>',
        '<topics publish="ALLOW"><topic> </topic></topics>',
    ):
        assert complaints(ElementTree.fromstring(text)), text


def allowed(node: str, tag: str, right: str) -> set[str]:
    """Full names that the policy gives a node a right on."""
    (profile,) = (item for item in POLICY.iter("profile") if item.get("node") == node)
    names = [
        name.text.strip()
        for group in profile
        if group.get(right) == "ALLOW"
        for name in group.iter(tag)
    ]
    return {
        name if name[0] == "/" else name.replace("~", f"/{node}") if name[0] == "~" else f"/{name}"
        for name in names
    }


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A probe beside a closed loop of real nodes, once all is up."""
    folder = tmp_path_factory.mktemp("policy")
    seed = str(write_seed(folder / "box"))
    node = NodeProcess(folder, "--params", str(ROOT / "config/lockstep.yaml"), "--seed", seed)
    node.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "mirage_ros.cli", *words], env=node.environment,
            stderr=subprocess.DEVNULL,
        )
        for words in (["base", "--seed", seed], ["wander"])
    ]  # fmt: skip
    teleop = Pty([sys.executable, "-m", "mirage_ros.cli", "teleop"], node.environment)
    context = Context()
    rclpy.init(context=context, domain_id=node.domain)
    probe = rclpy.create_node("probe", context=context)
    try:
        deadline = time.monotonic() + PATIENCE_S
        node.wait_for("New world")
        while not {"/cmd_vel", "/odom", "/cache/deltas"} <= {
            name for name, _ in probe.get_topic_names_and_types()
        } or not set(NODES) <= set(probe.get_node_names()):
            assert time.monotonic() < deadline, probe.get_topic_names_and_types()
            time.sleep(0.2)
        time.sleep(1.0)
        yield probe
    finally:
        for process in others:
            process.kill()
            process.wait()
        teleop.close()
        node.close()
        rclpy.shutdown(context=context)


def names(found) -> set[str]:
    """Without what an action is made of."""
    return {name for name, _ in found if "/_action/" not in name}


@pytest.mark.parametrize("node", NODES)
def test_a_node_may_do_what_it_does_and_no_more(graph, node):
    published = names(graph.get_publisher_names_and_types_by_node(node, "/"))
    assert published == allowed(node, "topic", "publish")
    heard = names(graph.get_subscriber_names_and_types_by_node(node, "/"))
    may_hear = allowed(node, "topic", "subscribe")
    # Time is heard by nodes that are told to use it; recording hears the node's own topics.
    assert heard <= may_hear and may_hear - heard <= published | {"/clock"}
    served = names(graph.get_service_names_and_types_by_node(node, "/"))
    assert served == allowed(node, "service", "reply")


def test_actions_are_allowed(graph):
    import rclpy.action

    found = rclpy.action.get_action_server_names_and_types_by_node(graph, "mirage_node", "/")
    assert {name for name, _ in found} == allowed("mirage_node", "action", "execute")

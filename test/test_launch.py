"""What the launch file starts, and that config/ says what the node does."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mirage_ros.errors import MirageError

ROOT = Path(__file__).parents[1]
LAUNCH_FILE = ROOT / "launch/mirage.launch.py"
CLOSED_LOOP = ROOT / "launch/closed_loop.launch.py"
NAV2 = ROOT / "launch/nav2.launch.py"
ROBOTS = ROOT / "launch/robots.launch.py"
PARAMETERS = ROOT / "config/mirage.yaml"
has_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch_ros is not installed (it comes with a ROS install, not from PyPI)",
)
RUN_LAUNCH_FILE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

source = PythonLaunchDescriptionSource(sys.argv[1])
arguments = [tuple(argument.split(":=")) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


def test_parameter_file_holds_every_default():
    parameters = pytest.importorskip("mirage_ros.ros.parameters", exc_type=ImportError)
    stated = yaml.safe_load(PARAMETERS.read_text())["/**"]["ros__parameters"]
    assert stated == asdict(parameters.NodeConfig())
    assert {key: type(value) for key, value in stated.items()} == {
        key: type(value) for key, value in asdict(parameters.NodeConfig()).items()
    }


@pytest.mark.parametrize("name", ["mirage", "stream", "lockstep", "rig", "drive"])
def test_every_parameter_in_the_file_has_a_comment(name):
    lines = (ROOT / f"config/{name}.yaml").read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if re.match(r"    \w+: ", line) and "image_height" not in line:
            assert before.strip().startswith("# "), line


@pytest.mark.parametrize("name", ["stream", "lockstep", "rig", "drive"])
def test_each_use_sets_parameters_that_exist_to_what_they_may_be(name):
    parameters = pytest.importorskip("mirage_ros.ros.parameters", exc_type=ImportError)
    stated = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())["/**"]["ros__parameters"]
    defaults = asdict(parameters.NodeConfig())
    assert set(stated) <= set(defaults)
    assert all(type(value) is type(defaults[key]) for key, value in stated.items())
    parameters.check(parameters.NodeConfig(**stated))


def test_rviz_shows_topics_that_the_node_publishes():
    view = yaml.safe_load((ROOT / "config/rviz/mirage.rviz").read_text())["Visualization Manager"]
    topics = {item["Topic"]["Value"]: item["Topic"] for item in view["Displays"] if "Topic" in item}
    source = "\n".join(path.read_text() for path in (ROOT / "mirage_ros").glob("r*/*.py"))
    assert set(topics) == {
        "cache/points", "color/image_raw", "depth/image_rect", "observed/image", "markers", "plan",
        "planned_path",
    }  # fmt: skip
    assert all(re.search(rf'"(\{{\w+\}})?{topic}"', source) for topic in topics)
    latched = {name for name, topic in topics.items() if "Local" in topic["Durability Policy"]}
    assert latched == {"cache/points", "planned_path"}
    assert view["Global Options"]["Fixed Frame"] == "world"


def test_the_shipped_rig_is_three_cameras():
    rig_config = pytest.importorskip("mirage_ros.ros.cameras", exc_type=ImportError)
    front, left, right = rig_config.read_rig("three")
    assert (front.name, left.name, right.name) == ("front", "left", "right")
    # Optical axes: the left camera looks to the left, so its z axis points along -x.
    assert left.planned_from_camera[0, 2] < -0.8 and right.planned_from_camera[0, 2] > 0.8
    with pytest.raises(MirageError, match="does not come with"):
        rig_config.read_rig("seven")


@has_launch
@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (LAUNCH_FILE, {"seed", "config", "namespace", "use_sim_time", "model", "rviz"}),
        (CLOSED_LOOP, {"seed", "config", "namespace", "policy", "model", "rviz"}),
        (NAV2, {"seed", "config", "params_file", "slam", "model", "rviz"}),
        (ROBOTS, {"seed", "config", "robots", "model", "rviz"}),
    ],
)
def test_launch_arguments_are_described(path: Path, wanted: set[str]):
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(path))
    arguments = [item for item in description.entities if isinstance(item, DeclareLaunchArgument)]
    assert wanted <= {argument.name for argument in arguments}
    assert all(len(argument.description) > 20 for argument in arguments)


@contextmanager
def launched(path: Path, *arguments: str):
    """Runs a launch file until the end of the block; yields a function that gives its output."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_LAUNCH_FILE, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output: list[str] = []

    def end() -> str:
        if not output:
            # A terminal's Ctrl-C goes to the nodes as well; launch counts on that.
            os.killpg(process.pid, signal.SIGINT)
            output.append(process.communicate(timeout=60)[0])
        return output[0]

    try:
        yield end
    finally:
        end()


def need_packages(*names: str) -> None:
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    for name in names:
        try:
            get_package_prefix(name)
        except PackageNotFoundError as error:
            pytest.skip(f"a sourced colcon build of {', '.join(names)} is needed: {error}")


@has_launch
def test_launch_starts_the_node_and_ends_it(ros_domain: int):
    need_packages("mirage_ros", "tf2_ros")
    arguments = ("namespace:=sim", "camera_link:=camera_link", "seed:=room")
    with launched(LAUNCH_FILE, *arguments) as end:
        nodes, clouds, mounts = _see(wait_s=120)
        output = end()
    assert ("mirage", "/sim") in nodes and ("camera_mount", "/sim") in nodes, output
    assert clouds and mounts, output
    mount = mounts[0].transforms[0]
    assert mount.header.frame_id == "camera_link"
    assert mount.child_frame_id == "camera_color_optical_frame"
    assert not re.search("has died|Traceback|failed to terminate", output), output


@has_launch
def test_the_closed_loop_drives(ros_domain: int):
    need_packages("mirage_ros")
    with launched(CLOSED_LOOP, "namespace:=sim", "seed:=room") as end:
        nodes, odometry = _watch_drive(wait_s=240)
        output = end()
    assert {(name, "/sim") for name in ("mirage", "mirage_base", "mirage_wander")} <= set(nodes), \
        output  # fmt: skip
    assert len(odometry) >= 8, output
    speeds = [message.twist.twist.linear.x for message in odometry]
    assert max(speeds) > 0, "it drives"
    assert not re.search("has died|Traceback|failed to terminate", output), output


@has_launch
@pytest.mark.parametrize("slam", ["false", "true"])
def test_nav2_is_started_beside_the_world_and_its_base(slam: str):
    need_packages("nav2_bringup", *["slam_toolbox"] * (slam == "true"))
    from launch import LaunchContext
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch_ros.actions import Node

    context = LaunchContext()
    description = get_launch_description_from_python_launch_file(str(NAV2))
    started = []
    for item in description.entities:
        started += item.visit(context) or []
        context.launch_configurations["slam"] = slam
    programs = [action.node_executable for action in started if isinstance(action, Node)]
    assert programs == ["mirage_node", "mirage", *["static_transform_publisher"] * (2 - (slam == "true"))]
    assert sum(isinstance(action, IncludeLaunchDescription) for action in started) == 1 + (slam == "true")


@contextmanager
def watcher():
    """A node beside what was launched."""
    import rclpy

    rclpy.init()
    node = rclpy.create_node("watcher")
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.shutdown()


def spin(node, until, wait_s: float) -> None:
    """Until something is the case, or for so long."""
    import rclpy

    end = time.monotonic() + wait_s
    while not until() and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.2)


def _watch_drive(wait_s: float):
    """Waits until the base was told to move; returns the nodes and the odometry."""
    from nav_msgs.msg import Odometry

    odometry = []
    with watcher() as node:
        node.create_subscription(Odometry, "/sim/odom", odometry.append, 50)
        spin(node, lambda: len(odometry) >= 8 and odometry[-1].twist.twist.linear.x > 0, wait_s)
        return node.get_node_names_and_namespaces(), odometry


def _see(wait_s: float):
    """Waits for the node's latched cloud and the camera's mount; also returns the nodes."""
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import PointCloud2
    from tf2_msgs.msg import TFMessage

    clouds, mounts = [], []
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    with watcher() as node:
        node.create_subscription(PointCloud2, "/sim/cache/points", clouds.append, latched)
        node.create_subscription(TFMessage, "/tf_static", mounts.append, latched)
        spin(node, lambda: clouds and mounts, wait_s)
        return node.get_node_names_and_namespaces(), clouds, mounts

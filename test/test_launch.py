"""What the launch file starts, and that config/ says what the node does."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH_FILE = ROOT / "launch/mirage.launch.py"
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


def test_every_parameter_in_the_file_has_a_comment():
    lines = PARAMETERS.read_text().splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if re.match(r"    \w+: ", line) and "image_height" not in line:
            assert before.strip().startswith("# "), line


def test_rviz_shows_topics_that_the_node_publishes():
    view = yaml.safe_load((ROOT / "config/rviz/mirage.rviz").read_text())["Visualization Manager"]
    topics = {item["Topic"]["Value"]: item["Topic"] for item in view["Displays"] if "Topic" in item}
    source = "\n".join(path.read_text() for path in (ROOT / "mirage_ros/ros").glob("*.py"))
    assert set(topics) == {"cache/points", "color/image_raw", "depth/image_rect", "observed/image"}
    assert all(f'"{topic}"' in source for topic in topics)
    assert topics["cache/points"]["Durability Policy"] == "Transient Local"
    assert view["Global Options"]["Fixed Frame"] == "world"


@has_launch
def test_launch_arguments_are_described():
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH_FILE))
    arguments = [item for item in description.entities if isinstance(item, DeclareLaunchArgument)]
    names = {argument.name for argument in arguments}
    assert {"seed", "config", "namespace", "use_sim_time", "model", "rviz"} <= names
    assert all(len(argument.description) > 20 for argument in arguments)


@has_launch
def test_launch_starts_the_node_and_ends_it(ros_domain: int):
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix("mirage_ros")
        get_package_prefix("tf2_ros")
    except PackageNotFoundError as error:
        pytest.skip(f"a sourced colcon build of mirage_ros and tf2_ros is needed: {error}")
    arguments = ["namespace:=sim", "camera_link:=camera_link", "seed:=room"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_LAUNCH_FILE, str(LAUNCH_FILE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        nodes, clouds, mounts = _see(wait_s=120)
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert ("mirage", "/sim") in nodes and ("camera_mount", "/sim") in nodes, output
    assert clouds and mounts, output
    mount = mounts[0].transforms[0]
    assert mount.header.frame_id == "camera_link"
    assert mount.child_frame_id == "camera_color_optical_frame"
    assert "has died" not in output and "Traceback" not in output, output


def _see(wait_s: float):
    """Waits for the node's latched cloud and the camera's mount; also returns the nodes."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import PointCloud2
    from tf2_msgs.msg import TFMessage

    rclpy.init()
    node = rclpy.create_node("watcher")
    clouds, mounts = [], []
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(PointCloud2, "/sim/cache/points", clouds.append, latched)
    node.create_subscription(TFMessage, "/tf_static", mounts.append, latched)
    end = time.monotonic() + wait_s
    while not (clouds and mounts) and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.2)
    nodes = node.get_node_names_and_namespaces()
    node.destroy_node()
    rclpy.shutdown()
    return nodes, clouds, mounts

"""Launch several robots in one generated world: the node, and a live base for each robot that has one.

    ros2 launch mirage_ros robots.launch.py robots:=three seed:=room
    ros2 launch mirage_ros robots.launch.py robots:=/data/fleet.yaml seed:=/data/hall.png

A robot whose file says `base: none` is moved by whoever publishes its TF. When the node ends, so does all; when a base ends, its
robot stands where it was and the others go on.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from mirage_ros.files import share_path
from mirage_ros.ros.robots import ELSEWHERE, read_robots

ARGUMENTS = {
    "config": (str(share_path("config", "drive.yaml")), "Parameter file of the node."),
    "robots": ("three", "The robots: a YAML file, or a shipped name (three)."),
    "seed": ("room", "What the world starts from: a shipped name, a seed folder or a picture."),
    "model": ("mini", "Checkpoint: a shipped name (mini), a folder or a hub id."),
    "rviz": ("false", "Open RViz on the remembered cloud."),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_robots)])


def _robots(context: LaunchContext) -> list[Node]:
    """The node and the bases."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    text = {name: ParameterValue(value[name], value_type=str) for name in ("seed", "model", "robots")}
    started = [
        Node(
            package="mirage_ros",
            executable="mirage_node",
            name="mirage",
            parameters=[value["config"], text],
            output="screen",
            on_exit=EmitEvent(event=Shutdown(reason="the world ended")),
        )
    ]
    for robot in read_robots(value["robots"]):
        if robot.base != ELSEWHERE:
            words = ["base", "--live", "--robot", value["robots"], robot.namespace]
            started.append(Node(package="mirage_ros", executable="mirage", name=f"{robot.namespace}_base", arguments=words, output="screen"))
    if value["rviz"].lower() == "true":
        view = ["-d", str(share_path("config", "rviz", "mirage.rviz"))]
        started.append(Node(package="rviz2", executable="rviz2", arguments=view))
    return started

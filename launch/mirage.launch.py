"""Launch the generated world: the node, where its camera is mounted, and RViz if asked for.

A value given here wins over the parameter file; an argument left empty leaves it to the file.

    ros2 launch mirage_ros mirage.launch.py seed:=room rviz:=true
    ros2 launch mirage_ros mirage.launch.py seed:=/data/street.png namespace:=sim
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from mirage_ros.files import share_path

# Rotation of an optical frame (z forward, y down) in a camera link (x forward, z up): REP 103.
OPTICAL_IN_LINK = ["--qx", "-0.5", "--qy", "0.5", "--qz", "-0.5", "--qw", "0.5"]

ARGUMENTS = {
    "config": (str(share_path("config", "mirage.yaml")), "Parameter file of the node."),
    "seed": (
        "",
        "What the world starts from: a shipped name, a seed folder or a picture file. "
        "(A parameter file with an empty seed makes the node wait for seed/image.)",
    ),
    "model": ("", "Checkpoint: a shipped name (mini), a folder or a hub id."),
    "namespace": ("", "Namespace of the node and all its topics."),
    "use_sim_time": ("false", "Follow /clock instead of the wall clock."),
    "camera_link": (
        "",
        "TF frame (x forward, z up) that carries the camera: mounts camera_frame on it with a "
        "static transform. Leave empty when a URDF or the planner publishes the optical frame.",
    ),
    "camera_frame": (
        "camera_color_optical_frame",
        "Optical frame to mount on camera_link and to render; no effect without camera_link.",
    ),
    "rviz": ("false", "Open RViz on the pictures and the remembered cloud."),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_simulator), _rviz()])


def _simulator(context: LaunchContext) -> list[Node]:
    """The node and, with a camera_link, the camera's mount."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    wins = ["seed", "model"] + (["camera_frame"] if value["camera_link"] else [])
    given = {name: ParameterValue(value[name], value_type=str) for name in wins if value[name]}
    simulator = Node(
        package="mirage_ros",
        executable="mirage_node",
        name="mirage",
        namespace=value["namespace"],
        parameters=[value["config"], given | _use_sim_time()],
        output="screen",
    )
    if not value["camera_link"]:
        return [simulator]
    frames = ["--frame-id", value["camera_link"], "--child-frame-id", value["camera_frame"]]
    mount = Node(
        package="tf2_ros",
        executable="static_transform_publisher",
        name="camera_mount",
        namespace=value["namespace"],
        arguments=[*frames, *OPTICAL_IN_LINK],
    )
    return [simulator, mount]


def _rviz() -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", str(share_path("config", "rviz", "mirage.rviz"))],
        parameters=[_use_sim_time()],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def _use_sim_time() -> dict[str, ParameterValue]:
    return {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}

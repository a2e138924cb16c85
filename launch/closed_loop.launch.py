"""Launch a closed loop: the generated world in lockstep, a kinematic base, and a policy that
wanders by the depth pictures alone.

    ros2 launch mirage_ros closed_loop.launch.py seed:=room rviz:=true
    ros2 launch mirage_ros closed_loop.launch.py policy:=none    # drive it yourself: cmd_vel

The node owns /clock, so nothing here follows the wall clock but the base, which waits for it.
"""

from __future__ import annotations

from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction
from launch.conditions import IfCondition
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from mirage_ros.files import share_path

ARGUMENTS = {
    "config": (
        str(share_path("config", "lockstep.yaml")),
        "Parameter file of the node; time_mode has to be lockstep in it.",
    ),
    "seed": ("room", "What the world starts from: a shipped name, a seed folder or a picture."),
    "model": ("mini", "Checkpoint: a shipped name (mini), a folder or a hub id."),
    "world_seed": ("0", "Seed of the noise: the same seed and drive give the same world."),
    "frame_rate_hz": ("5.0", "Frames per second of simulated time, for node and base alike."),
    "step_frames": ("4", "Frames of one decision: the model's chunk."),
    "namespace": ("", "Namespace of all nodes and topics."),
    "policy": (
        "wander",
        "Who drives: wander, or none to publish stamped commands on cmd_vel yourself; each has to "
        "bear the stamp of the newest picture.",
    ),
    "speed": ("0.6", "Fastest speed of the wandering policy, m/s."),
    "rviz": ("false", "Open RViz on the pictures, the cloud, the camera and the base's way."),
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_loop), _rviz()])


def _loop(context: LaunchContext) -> list[Node]:
    """Node, base and policy. When one of them ends, so do the others."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    text = {name: ParameterValue(value[name], value_type=str) for name in ("seed", "model")}
    timing = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in (("frame_rate_hz", float), ("step_frames", int), ("world_seed", int))
    }
    common = {
        "package": "mirage_ros",
        "namespace": value["namespace"],
        "output": "screen",
        "on_exit": EmitEvent(event=Shutdown(reason="a part of the closed loop ended")),
    }
    simulator = Node(
        executable="mirage_node",
        name="mirage",
        parameters=[value["config"], text | timing],
        **common,
    )
    pace = ["--rate", value["frame_rate_hz"], "--step-frames", value["step_frames"]]
    base = Node(
        executable="mirage",
        name="mirage_base",
        arguments=["base", "--seed", value["seed"], *pace],
        **common,
    )
    if value["policy"] == "none":
        return [simulator, base]
    policy = Node(
        executable="mirage",
        name="mirage_wander",
        arguments=["wander", "--speed", value["speed"]],
        **common,
    )
    return [simulator, base, policy]


def _rviz() -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", str(share_path("config", "rviz", "mirage.rviz"))],
        parameters=[{"use_sim_time": True}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )

"""Launch Nav2 in a generated world: the node, a live base, and Nav2's own navigation_launch.py.

    ros2 launch mirage_ros nav2.launch.py seed:=room rviz:=true         the map is the world's own
    ros2 launch mirage_ros nav2.launch.py slam:=true                    slam_toolbox makes it from scan

Nav2 is asked for with its own parameters (`params_file`). Frames: map -> world -> odom -> base_link -> base_footprint. The
base knows its way exactly, so map -> world is the identity, or what slam_toolbox finds. Nav2 publishes /plan for people to
look at; the node would take that for poses of its camera, so its own plan is /mirage/plan here.
"""

from __future__ import annotations

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import DeclareLaunchArgument, EmitEvent, IncludeLaunchDescription, OpaqueFunction
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription
from mirage_ros.files import share_path

ARGUMENTS = {
    "config": (str(share_path("config", "drive.yaml")), "Parameter file of the node."),
    "seed": ("room", "What the world starts from: a shipped name, a seed folder or a picture."),
    "model": ("mini", "Checkpoint: a shipped name (mini), a folder or a hub id."),
    "kind": ("diff", "What the base is: diff or omni. Its limits have to be those of params_file."),
    "params_file": ("", "Parameters of Nav2; empty is nav2_bringup's own nav2_params.yaml."),
    "slam": ("false", "Make the map by slam_toolbox from scan, in place of the world's own map."),
    "rviz": ("false", "Open RViz with Nav2's own view."),
}
# Nav2 and slam_toolbox publish under these names, too.
PLAN, MAP = ("plan", "mirage/plan"), ("map", "mirage/map")


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_navigation)])


def _navigation(context: LaunchContext) -> list:
    """Node, base, the frames between Nav2's and ours, and Nav2. When node or base ends, so do the others."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    slam = value["slam"].lower() == "true"
    bringup = _share_of("nav2_bringup", "navigation2 and nav2-bringup")
    common = {
        "package": "mirage_ros",
        "output": "screen",
        "on_exit": EmitEvent(event=Shutdown(reason="the world or its base ended")),
    }
    text = {name: ParameterValue(value[name], value_type=str) for name in ("seed", "model")}
    simulator = Node(
        executable="mirage_node",
        name="mirage",
        parameters=[value["config"], text],
        remappings=[PLAN, MAP] if slam else [PLAN],
        **common,
    )
    base = Node(
        executable="mirage",
        name="mirage_base",
        arguments=["base", "--live", "--seed", value["seed"], "--kind", value["kind"]],
        **common,
    )
    parameters = value["params_file"] or f"{bringup}/params/nav2_params.yaml"
    nav2 = _included(
        f"{bringup}/launch/navigation_launch.py",
        use_sim_time="false",
        params_file=parameters,
        use_keepout_zones="False",
        use_speed_zones="False",
    )
    view = _included(f"{bringup}/launch/rviz_launch.py", use_sim_time="false")
    world = _slam() if slam else _same("map", "world")
    started = [simulator, base, world, _same("base_link", "base_footprint"), nav2]
    return [*started, view] if value["rviz"].lower() == "true" else started


def _slam() -> IncludeLaunchDescription:
    """slam_toolbox, to which the exact way of the base is odometry in `world`."""
    from nav2_common.launch import RewrittenYaml

    shared = _share_of("slam_toolbox", "slam-toolbox")
    source = f"{shared}/config/mapper_params_online_async.yaml"
    parameters = RewrittenYaml(source_file=source, param_rewrites={"odom_frame": "world"}, convert_types=True)
    return _included(f"{shared}/launch/online_async_launch.py", use_sim_time="false", slam_params_file=parameters)


def _same(parent: str, child: str) -> Node:
    return Node(
        package="tf2_ros",
        executable="static_transform_publisher",
        name=f"{child}_is_{parent}",
        arguments=["--frame-id", parent, "--child-frame-id", child],
    )


def _included(path: str, **arguments) -> IncludeLaunchDescription:
    return IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=arguments.items())


def _share_of(package: str, debians: str) -> str:
    try:
        return get_package_share_directory(package)
    except PackageNotFoundError as error:
        raise RuntimeError(f"{package} is not installed; apt install {debians} of your ROS, ros-DISTRO-...") from error

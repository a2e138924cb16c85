"""Runs the base and the wandering policy as processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from mirage_ros.ros.base_node import BaseConfig, BaseNode
from mirage_ros.ros.ending import told_to_end
from mirage_ros.ros.wander_node import WanderNode, WanderNodeConfig
from mirage_ros.seeds import load_seed


def run_base(config: BaseConfig, ros_arguments: Sequence[str] = ()) -> None:
    """Until Ctrl-C or SIGTERM. MirageError without the seed, or when its camera lies down."""
    pose = load_seed(config.seed, config.hfov_deg).camera.world_from_camera
    _spin(lambda: BaseNode(pose, config), ros_arguments)


def run_wander(config: WanderNodeConfig, ros_arguments: Sequence[str] = ()) -> None:
    """Until Ctrl-C or SIGTERM."""
    _spin(lambda: WanderNode(config), ros_arguments)


def _spin(make: Callable[[], Node], ros_arguments: Sequence[str]) -> None:
    rclpy.init(args=["mirage", *(["--ros-args", *ros_arguments] if ros_arguments else [])])
    # To be told to end is how these nodes end: it is no failure.
    try:
        with suppress(KeyboardInterrupt, ExternalShutdownException), told_to_end():
            rclpy.spin(make())
    finally:
        rclpy.try_shutdown()

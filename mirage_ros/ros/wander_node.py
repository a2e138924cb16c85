"""Runs the base and the wandering policy as processes of their own.

The wandering policy as a node: depth pictures and odometry in, stamped velocity commands out.

Each command bears the stamp of the picture it was decided on. Pictures and odometry of one stamp
belong together; either may come first. Nothing of the simulator's memory is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.loop.base import BasePose, Command
from mirage_ros.loop.wander import WanderConfig, Wanderer
from mirage_ros.recording.topics import DEPTH, DEPTH_INFO, TF_STATIC
from mirage_ros.ros.base_node import BaseConfig, BaseNode
from mirage_ros.ros.callbacks import told_to_end
from mirage_ros.ros.messages.conversions import (
    camera_from_ros,
    pose_from_ros,
    stamp_from_ros,
    stamp_to_ros,
)
from mirage_ros.ros.messages.images import depth_from_ros
from mirage_ros.ros.tf_buffer import Buffer

# Kept by the publishers and given to a policy that comes (back) later.
KEPT = QoSProfile(depth=64, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STREAMED = QoSProfile(depth=64)
MOST_WAITING = 64


@dataclass(frozen=True)
class WanderNodeConfig:
    """Names, and how it drives.

    Attributes:
        kept_pictures: ask for the pictures that were published before this node came; needs a
            simulator with image_durability transient_local.
    """

    wander: WanderConfig = WanderConfig()
    base_frame: str = "base_link"
    camera_frame: str = "camera_color_optical_frame"
    namespace: str = ""
    kept_pictures: bool = True


class WanderNode(Node):
    """Subscribes to depth/image_rect, depth/camera_info, odom and /tf_static."""

    def __init__(self, config: WanderNodeConfig = WanderNodeConfig()) -> None:
        super().__init__("mirage_wander", namespace=config.namespace)
        self.config = config
        self.decisions = 0
        self._policy: Wanderer | None = None
        self._buffer = Buffer()
        self._waiting: dict[str, dict[int, object]] = {"depth": {}, "info": {}, "odom": {}}
        self._command = self.create_publisher(TwistStamped, "cmd_vel", QoSProfile(depth=50))
        pictures = KEPT if config.kept_pictures else STREAMED
        for kind, message_type, topic, qos in (
            ("depth", Image, DEPTH, pictures),
            ("info", CameraInfo, DEPTH_INFO, pictures),
            ("odom", Odometry, "odom", KEPT),
        ):
            self.create_subscription(message_type, topic, self._on_message(kind), qos)
        self.create_subscription(TFMessage, TF_STATIC, self._on_static, KEPT)

    def _on_static(self, message: TFMessage) -> None:
        for transform in message.transforms:
            try:
                self._buffer.set_transform_static(transform)
            except MirageError as error:
                self.get_logger().warning(str(error))
        self._decide()

    def _on_message(self, kind: str) -> Callable:
        def callback(message: Image | CameraInfo | Odometry) -> None:
            waiting = self._waiting[kind]
            stamp_ns = stamp_from_ros(message.header.stamp)
            if waiting and stamp_ns < max(waiting) and kind == "odom":
                self._begin_anew()
            waiting[stamp_ns] = message
            while len(waiting) > MOST_WAITING:
                del waiting[min(waiting)]
            self._decide()

        return callback

    def _begin_anew(self) -> None:
        """Time jumped back: a new world, where the old map is worth nothing."""
        self._policy = None
        for waiting in self._waiting.values():
            waiting.clear()

    def _decide(self) -> None:
        """Works off every instant of which all has come, in order."""
        while ready := self._instants():
            stamp_ns = ready[0]
            depth, info, odom = (
                self._waiting[kind][stamp_ns] for kind in ("depth", "info", "odom")
            )
            if self._policy is None and not self._make_policy():
                return
            for waiting in self._waiting.values():
                for old in [key for key in waiting if key <= stamp_ns]:
                    del waiting[old]
            try:
                command = self._judge(depth, info, odom)
            except MirageError as error:
                self.get_logger().warning(f"A picture cannot be used: {error}")
                command = Command()
            self._publish(command, stamp_ns)

    def _instants(self) -> list[int]:
        return sorted(set.intersection(*(set(waiting) for waiting in self._waiting.values())))

    def _make_policy(self) -> bool:
        """Once TF tells where the camera is mounted."""
        try:
            mount = self._buffer.matrix(self.config.base_frame, self.config.camera_frame, 0)
        except MirageError:
            return False
        self._policy = Wanderer(mount, self.config.wander)
        return True

    def _judge(self, depth: Image, info: CameraInfo, odom: Odometry) -> Command:
        pose, last = base_from_odometry(odom)
        self._policy.look(depth_from_ros(depth), camera_from_ros(info), pose)
        return self._policy.decide(last)

    def _publish(self, command: Command, stamp_ns: int) -> None:
        message = TwistStamped()
        message.header.stamp = stamp_to_ros(stamp_ns)
        message.header.frame_id = self.config.base_frame
        message.twist.linear.x = float(command.speed_mps)
        message.twist.angular.z = float(command.turn_rps)
        self._command.publish(message)
        self.decisions += 1


def base_from_odometry(message: Odometry) -> tuple[BasePose, Command]:
    """Where the base stands, and the command that it carries out. MirageError for a bad pose."""
    frame_from_base = pose_from_ros(message.pose.pose, "The odometry")
    yaw = float(np.arctan2(frame_from_base[1, 0], frame_from_base[0, 0]))
    pose = BasePose(float(frame_from_base[0, 3]), float(frame_from_base[1, 3]), yaw)
    return pose, Command(message.twist.twist.linear.x, message.twist.twist.angular.z)


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

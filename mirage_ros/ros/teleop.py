"""`mirage teleop`: drives a live base from the terminal and shows what its camera sees."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from mirage_ros.errors import MirageError
from mirage_ros.loop.teleop import Gamepad, Keys, Terminal
from mirage_ros.ros.callbacks import ending_with_ros
from mirage_ros.ros.image_messages import picture_from_ros
from mirage_ros.ros.messages import pose_from_ros, twist_to_ros

TICK_S = 0.02
COMMAND_S = 0.05
DRAW_S = 0.05
STATUS_S = 0.25
RATE_WINDOW_S = 3.0
# A picture that is lost is no harm, and the node must never wait for who only looks.
NEWEST = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class TeleopConfig:
    """What is published, and what is looked at.

    Attributes:
        speed_mps, turn_rps: at full deflection, before + and -.
        stamped: publish TwistStamped in place of Twist.
        image: topic of the pictures; '' draws none.
        gamepad: path of a device; None takes the first there is.
        base_frame: of stamped commands.
        waiting: what the status says until the first picture comes.

    Raises:
        MirageError: a speed that is not finite and above 0.
    """

    speed_mps: float = 0.5
    turn_rps: float = 0.8
    stamped: bool = False
    image: str = "color/image_raw"
    gamepad: str | None = None
    base_frame: str = "base_link"
    namespace: str = ""
    waiting: str = "no picture yet"

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.speed_mps, self.turn_rps)):
            raise MirageError(
                f"The speeds are {self.speed_mps} m/s and {self.turn_rps} rad/s; give finite numbers above 0."
            )


class TeleopNode(Node):
    """Publishes cmd_vel; subscribes to odom and the pictures, of which it keeps the newest."""

    def __init__(self, config: TeleopConfig) -> None:
        super().__init__("mirage_teleop", namespace=config.namespace)
        self.config = config
        self.picture: Image | None = None
        self._seen_s: deque[float] = deque()
        self._odometry: Odometry | None = None
        self._commanded = False
        self._commands = self.create_publisher(TwistStamped if config.stamped else Twist, "cmd_vel", 10)
        self.create_subscription(Odometry, "odom", self._on_odometry, NEWEST)
        if config.image:
            self.create_subscription(Image, config.image, self._on_picture, NEWEST)

    def _on_odometry(self, message: Odometry) -> None:
        self._odometry = message

    def _on_picture(self, message: Image) -> None:
        self.picture = message
        self._seen_s.append(time.monotonic())

    def command(self, twist: np.ndarray) -> None:
        """Publishes while something is held, and one zero when nothing is any more."""
        if twist.any() or self._commanded:
            self._commanded = bool(twist.any())
            message = TwistStamped() if self.config.stamped else Twist()
            filled = twist_to_ros(twist[:3], twist[3:])
            if self.config.stamped:
                message.header.stamp = self.get_clock().now().to_msg()
                message.header.frame_id = self.config.base_frame
                message.twist = filled
            else:
                message = filled
            self._commands.publish(message)

    def status(self, scale: float, now_s: float) -> str:
        """Speed, pose and pictures per second in a line."""
        while self._seen_s and self._seen_s[0] < now_s - RATE_WINDOW_S:
            self._seen_s.popleft()
        words = []
        if self.config.image:
            rate = len(self._seen_s) / RATE_WINDOW_S
            words.append(self.config.waiting if self.picture is None else f"{rate:.1f} frames/s")
        words += ["no odometry yet"] if self._odometry is None else _words_of(self._odometry)
        return " | ".join([*words, f"keys {self.config.speed_mps * scale:.2f} m/s"])


def _words_of(odometry: Odometry) -> list[str]:
    """Speed and pose."""
    linear, turn = odometry.twist.twist.linear, odometry.twist.twist.angular
    speed = math.hypot(linear.x, linear.y, linear.z)
    try:
        pose = pose_from_ros(odometry.pose.pose, "The odometry")
    except MirageError:
        return ["odometry that is no pose"]
    yaw_deg = math.degrees(math.atan2(pose[1, 0], pose[0, 0]))
    x, y, z = pose[:3, 3]
    return [f"{speed:.2f} m/s {turn.z:+.2f} rad/s", f"x {x:.2f} y {y:.2f} z {z:.2f} {yaw_deg:.0f} deg"]


def run_teleop(
    config: TeleopConfig, ros_arguments: Sequence[str] = (), check: Callable[[], None] = lambda: None
) -> None:
    """Until Esc, Ctrl-C, SIGTERM, or the end of the terminal, which is as it was afterwards.

    Args:
        check: called again and again; what it raises ends the drive.

    Raises:
        MirageError: no terminal, no such gamepad, or what `check` says.
    """
    terminal, gamepad = Terminal(screen=bool(config.image)), Gamepad(config.gamepad)
    rclpy.init(args=["mirage", *(["--ros-args", *ros_arguments] if ros_arguments else [])])
    try:
        with ending_with_ros():
            _drive(TeleopNode(config), terminal, gamepad, check)
    except ExternalShutdownException:
        pass
    finally:
        gamepad.close()
        rclpy.try_shutdown()


def _drive(node: TeleopNode, terminal: Terminal, gamepad: Gamepad, check: Callable[[], None]) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    keys, full = Keys(), np.array([node.config.speed_mps] * 3 + [node.config.turn_rps] * 3)
    command_s, draw_s, commanded = 0.0, 0.0, np.zeros(6)
    message, rgb = None, None
    with terminal:
        while rclpy.ok() and not keys.ended and not terminal.ended:
            check()
            executor.spin_once(timeout_sec=TICK_S)
            now_s = time.monotonic()
            keys.feed(terminal.read(), now_s)
            twist = np.clip(keys.held(now_s) + gamepad.held(), -1, 1) * full * keys.scale
            # What has changed goes out at once.
            if now_s - command_s >= COMMAND_S or not np.array_equal(twist, commanded):
                node.command(twist)
                command_s, commanded = now_s, twist
            fresh = node.picture is not message and now_s - draw_s >= DRAW_S
            if fresh:
                message = node.picture
                rgb = _picture(node, message)
            if fresh or now_s - draw_s >= STATUS_S:
                terminal.draw(rgb, node.status(keys.scale, now_s))
                draw_s = now_s
        if rclpy.ok():
            node.command(np.zeros(6))


def _picture(node: TeleopNode, message: Image) -> np.ndarray | None:
    try:
        return picture_from_ros(message)
    except MirageError as error:
        node.get_logger().warning(str(error), once=True)
        return None

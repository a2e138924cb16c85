"""Who drives a running node from a terminal: `mirage plan`, a path of poses on TF; `mirage teleop`, keys as velocities.

The planner stamps its poses ahead of time and sends them a few seconds at once. It knows the node only by its topics:
what was rendered so far is the stamp of the newest color/camera_info. Teleop moves a live base and shows what its
camera sees.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.data.seeds import load_seed, plan_tour
from mirage_ros.errors import MirageError
from mirage_ros.files import write_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop.teleop import Gamepad, Keys, Terminal
from mirage_ros.recording.topics import COLOR_INFO, TF
from mirage_ros.ros.callbacks import ending_with_ros
from mirage_ros.ros.image_messages import picture_from_ros
from mirage_ros.ros.messages import SECOND_NS, pose_from_ros, stamp_from_ros, transform_to_ros, twist_to_ros

TELEOP_TICK_S = 0.02
COMMAND_S = 0.05
DRAW_S = 0.05
STATUS_S = 0.25
RATE_WINDOW_S = 3.0
# A picture that is lost is no harm, and the node must never wait for who only looks.
NEWEST = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
PLANNER_TICK_S = 0.05
START_DELAY_NS = SECOND_NS // 2
TF_DEPTH = 200


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
            executor.spin_once(timeout_sec=TELEOP_TICK_S)
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


@dataclass(frozen=True)
class PlannerConfig:
    """What to plan and how to offer it.

    Attributes:
        seed, hfov_deg: the view to start from, see `load_seed`.
        frames, rate_hz: length of the path and poses per second of planned time.
        scene_depth_m: assumed distance of a photograph's scene; None measures or assumes 3 m.
        ahead_s: how much of the plan is published ahead of what was rendered.
        listeners: subscriptions to /tf to wait for, so that nobody misses the beginning.
        wait_s: how long to wait for them, and for the node's pictures at the end.
        log: JSON file that gets the stamps and poses of the plan, or None.
    """

    seed: str = "room"
    hfov_deg: float | None = None
    frames: int = 72
    rate_hz: float = 10.0
    scene_depth_m: float | None = None
    world_frame: str = "world"
    camera_frame: str = "camera_color_optical_frame"
    namespace: str = ""
    ahead_s: float = 3.0
    listeners: int = 1
    wait_s: float = 120.0
    log: Path | None = None


class Planner(Node):
    """Publishes `cameras` at `stamps_ns`; `done` once the last one was rendered."""

    def __init__(self, cameras: Camera, config: PlannerConfig) -> None:
        super().__init__("mirage_planner", namespace=config.namespace)
        self.cameras, self.config = cameras, config
        self.stamps_ns: list[int] = []
        self.sent = 0
        self.rendered_ns = 0
        self.done = False
        self._tf = self.create_publisher(TFMessage, TF, TF_DEPTH)
        self.create_subscription(
            CameraInfo,
            COLOR_INFO,
            self._on_rendered,
            QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE),
        )

    def missing(self) -> str:
        """Who is not there yet, empty when everybody listens."""
        if self._tf.get_subscription_count() < self.config.listeners:
            return f"{self.config.listeners} subscriptions to /tf"
        if not self.count_publishers(COLOR_INFO):
            return f"a publisher of {self.resolve_topic_name(COLOR_INFO)}"
        return ""

    def start(self) -> None:
        """Fix the plan's stamps: half a second from now, on whole frame periods."""
        period_ns = round(SECOND_NS / self.config.rate_hz)
        begin_ns = self.get_clock().now().nanoseconds + START_DELAY_NS
        begin_ns -= begin_ns % period_ns
        self.stamps_ns = [begin_ns + index * period_ns for index in range(len(self.cameras))]
        if self.config.log is not None:
            _write_log(self.config.log, self.cameras, self.stamps_ns, self.config)
        self.create_timer(PLANNER_TICK_S, self._publish_due)

    def _publish_due(self) -> None:
        horizon_ns = max(self.rendered_ns, self.stamps_ns[0])
        horizon_ns += int(self.config.ahead_s * SECOND_NS)
        message = TFMessage()
        while self.sent < len(self.stamps_ns) and self.stamps_ns[self.sent] <= horizon_ns:
            pose = self.cameras[self.sent].world_from_camera
            stamp_ns = self.stamps_ns[self.sent]
            frames = (self.config.world_frame, self.config.camera_frame)
            message.transforms.append(transform_to_ros(pose, *frames, stamp_ns))
            self.sent += 1
        if message.transforms:
            self._tf.publish(message)
        self.done = self.rendered_ns >= self.stamps_ns[-1]

    def _on_rendered(self, info: CameraInfo) -> None:
        self.rendered_ns = max(self.rendered_ns, stamp_from_ros(info.header.stamp))


def run_planner(config: PlannerConfig) -> None:
    """Plan, wait for listeners, publish, and return once the last pose was rendered.

    Raises:
        MirageError: nobody listens, or the node stops rendering, for `wait_s`.
    """
    seed = load_seed(config.seed, config.hfov_deg)
    cameras = plan_tour(seed.camera, config.frames, seed.depth_m, config.scene_depth_m)
    rclpy.init()
    try:
        with ending_with_ros():
            planner = Planner(cameras, config)
            _spin_until(planner, lambda: not planner.missing(), planner.missing, config.wait_s)
            planner.start()
            _spin_while_rendering(planner)
    except ExternalShutdownException:
        raise KeyboardInterrupt from None
    finally:
        rclpy.try_shutdown()


def _spin_until(planner: Planner, ready, what, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not ready():
        if time.monotonic() > deadline:
            raise MirageError(
                f"The planner waited {wait_s:.0f} s for {what()}; start `mirage node` in the same "
                "ROS domain and namespace."
            )
        rclpy.spin_once(planner, timeout_sec=PLANNER_TICK_S)


def _spin_while_rendering(planner: Planner) -> None:
    newest_ns, since = 0, time.monotonic()
    while not planner.done:
        rclpy.spin_once(planner, timeout_sec=PLANNER_TICK_S)
        if planner.rendered_ns > newest_ns:
            newest_ns, since = planner.rendered_ns, time.monotonic()
        elif time.monotonic() - since > planner.config.wait_s:
            raise MirageError(
                f"No new picture came for {planner.config.wait_s:.0f} s after {planner.sent} poses"
                "; look at the node's log and /diagnostics."
            )


def _write_log(path: Path, cameras: Camera, stamps_ns: list[int], config: PlannerConfig) -> None:
    values = {
        "world_frame": config.world_frame,
        "camera_frame": config.camera_frame,
        "size": cameras.size,
        "intrinsics": cameras.intrinsics[0].tolist(),
        "stamps_ns": stamps_ns,
        "world_from_camera": cameras.world_from_camera.tolist(),
        "started_ns": time.time_ns(),
    }
    write_file(path, json.dumps(values))

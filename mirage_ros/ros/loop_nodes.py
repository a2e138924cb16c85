"""The nodes of a closed loop beside the simulator and the base: the wandering policy and the monitor.

The policy takes depth pictures and odometry in and gives stamped velocity commands out. Each
command bears the stamp of the picture it was decided on. Pictures and odometry of one stamp belong
together; either may come first. Nothing of the simulator's memory is looked at.

The monitor keeps a drive's trace: pictures, odometry and the memory's cloud. It stands between the
policy and the base and passes a command on once it has all pictures that the command was decided
on, so the loop is never faster than its record. `LoopWatch` gives it a ROS context of its own, for
a process that is not otherwise a ROS one.
"""

from __future__ import annotations

import bisect
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from jaxtyping import Float
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.loop import BASE_FROM_OPTICAL, BasePose, Command, Footprint
from mirage_ros.loop.drive import Snap, Trace, clearances_m
from mirage_ros.loop.wander import WanderConfig, Wanderer
from mirage_ros.recording.topics import BY_NAME, DEPTH, DEPTH_INFO, PARTS, POINTS, TF, TF_STATIC
from mirage_ros.ros.base_node import BaseConfig, BaseNode, LiveBaseNode
from mirage_ros.ros.callbacks import ending_with_ros
from mirage_ros.ros.image_messages import depth_from_ros
from mirage_ros.ros.messages import (
    camera_from_ros,
    cloud_from_ros,
    message_class,
    pose_from_ros,
    stamp_from_ros,
    stamp_to_ros,
    transform_from_ros,
)
from mirage_ros.ros.playback import frame_of
from mirage_ros.ros.robots import ELSEWHERE, Robot
from mirage_ros.ros.tf import Buffer

# Kept by the publishers and given to a policy that comes (back) later.
KEPT = QoSProfile(depth=64, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STREAMED = QoSProfile(depth=64)
COMMANDS = QoSProfile(depth=50)
MOST_WAITING = 64
SETTLE_S = 1.0
REPEAT_S = 1.0
# What the policy publishes in place of cmd_vel where the monitor records the drive.
DECIDED = "decided/cmd_vel"


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
        self._command = self.create_publisher(TwistStamped, "cmd_vel", COMMANDS)
        self._last: TwistStamped | None = None
        # The base may be found after a command went out, and time waits for it.
        self.create_timer(REPEAT_S, self._repeat)
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
        self._policy = self._last = None
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
        """Once TF says where the camera is mounted."""
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
        self._last = message
        self.decisions += 1

    def _repeat(self) -> None:
        if self._last is not None:
            self._command.publish(self._last)


def base_from_odometry(message: Odometry) -> tuple[BasePose, Command]:
    """Where the base stands, and the command that it carries out. MirageError for a bad pose."""
    frame_from_base = pose_from_ros(message.pose.pose, "The odometry")
    yaw = float(np.arctan2(frame_from_base[1, 0], frame_from_base[0, 0]))
    pose = BasePose(float(frame_from_base[0, 3]), float(frame_from_base[1, 3]), yaw)
    return pose, Command(message.twist.twist.linear.x, message.twist.twist.angular.z)


class LoopMonitor(Node):
    """Keeps every message by its stamp; `trace` puts them together.

    Start it before the simulator, which must keep its last pictures (image_durability transient_local).

    Args:
        step_frames: frames that follow one command.
    """

    def __init__(
        self,
        footprint: Footprint,
        step_frames: int,
        rendered_frame: str = "mirage_camera_optical_frame",
        **kwargs,
    ) -> None:
        super().__init__("mirage_loop_monitor", **kwargs)
        self._footprint, self._step = footprint, step_frames
        self._rendered = rendered_frame
        self._got: dict[str, dict[int, object]] = {name: {} for name in [*PARTS, "odom", "tf"]}
        self._stamps: list[int] = []
        self._decision: TwistStamped | None = None
        self._clouds: dict[int, PointCloud2] = {}
        self._command = self.create_publisher(TwistStamped, "cmd_vel", COMMANDS)
        self.create_subscription(TwistStamped, DECIDED, self._on_decision, COMMANDS)
        for name in PARTS:
            kind = message_class(BY_NAME[name].type_name)
            self.create_subscription(kind, name, self._keep(name), KEPT)
        self.create_subscription(Odometry, "odom", self._keep("odom"), KEPT)
        self.create_subscription(PointCloud2, POINTS, self._on_cloud, KEPT)
        self.create_subscription(TFMessage, TF, self._on_tf, QoSProfile(depth=1000))

    def _keep(self, name: str):
        def callback(message) -> None:
            self._take(name, stamp_from_ros(message.header.stamp), message)

        return callback

    def _take(self, name: str, stamp_ns: int, value: object) -> None:
        known = stamp_ns in self._got[name]
        self._got[name][stamp_ns] = value
        if not known and all(stamp_ns in found for found in self._got.values()):
            bisect.insort(self._stamps, stamp_ns)
            self._pass_on()

    def _on_decision(self, message: TwistStamped) -> None:
        self._decision = message
        self._pass_on()

    def _pass_on(self) -> None:
        """The policy's command, once all pictures of its step are here."""
        if self._decision is None:
            return
        stamp_ns = stamp_from_ros(self._decision.header.stamp)
        count = bisect.bisect_right(self._stamps, stamp_ns)
        if count and count % self._step == 0 and self._stamps[count - 1] == stamp_ns:
            self._command.publish(self._decision)
            self._decision = None

    def _on_cloud(self, message: PointCloud2) -> None:
        self._clouds[stamp_from_ros(message.header.stamp)] = message

    def _on_tf(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._rendered:
                stamp_ns = stamp_from_ros(transform.header.stamp)
                self._take("tf", stamp_ns, transform_from_ros(transform))

    def instants(self) -> list[int]:
        """Stamps (ns) of which all has come, in order."""
        return list(self._stamps)

    def way_m(self) -> float:
        """Length of the way so far."""
        odometry = self._got["odom"]
        places = [base_from_odometry(odometry[stamp])[0] for stamp in sorted(odometry)]
        return math.fsum(_apart_m(a, b) for a, b in zip(places, places[1:], strict=False))

    def trace(self) -> Trace:
        """The drive as far as it was heard, in whole steps."""
        odometry, stamps = self._got["odom"], self.instants()
        begin_ns = min(odometry)
        trace = Trace(base_from_odometry(odometry[begin_ns])[0])
        for first in range(0, len(stamps) - self._step + 1, self._step):
            chunk = stamps[first : first + self._step]
            self._add_step(trace, chunk, stamps[first - 1] if first else begin_ns)
        if self._clouds:
            newest = cloud_from_ros(self._clouds[max(self._clouds)])
            trace.points, trace.colours = newest["xyz"], newest["rgb"]
        return trace

    def _add_step(self, trace: Trace, chunk: list[int], decided_ns: int) -> None:
        snaps = [self._snap(stamp_ns) for stamp_ns in chunk]
        trace.commands.append(base_from_odometry(self._got["odom"][chunk[0]])[1])
        trace.snaps += snaps
        held = [stamp for stamp in self._clouds if stamp <= decided_ns]
        places = trace.positions_xy[-len(snaps) :]
        points = cloud_from_ros(self._clouds[max(held)])["xyz"] if held else trace.points
        trace.clear_m += clearances_m(self._footprint, points, places).tolist()

    def _snap(self, stamp_ns: int) -> Snap:
        got = {name: found[stamp_ns] for name, found in self._got.items()}
        frame, (base, _) = frame_of(stamp_ns, got, got["tf"]), base_from_odometry(got["odom"])
        return Snap(stamp_ns, base, frame.camera, frame.rgb, frame.depth_m, frame.observed)


def _apart_m(first, second) -> float:
    return ((first.x_m - second.x_m) ** 2 + (first.y_m - second.y_m) ** 2) ** 0.5


class LoopWatch:
    """Context manager: a LoopMonitor with its own ROS context, in a child's ROS domain.

    Args:
        environment: of the children that are watched.
    """

    def __init__(self, environment: dict[str, str], footprint: Footprint, step: int) -> None:
        key = "ROS_AUTOMATIC_DISCOVERY_RANGE"
        os.environ[key] = environment.get(key, "LOCALHOST")
        self._context = Context()
        rclpy.init(context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self._monitor = LoopMonitor(footprint, step, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._monitor)

    def __enter__(self) -> LoopWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        self._monitor.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        """Takes in messages for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def settle(self) -> None:
        """Lets the last messages arrive."""
        self.spin(SETTLE_S)

    def way_m(self) -> float:
        return self._monitor.way_m()

    def frames(self) -> int:
        return len(self._monitor.instants())

    def trace(self) -> Trace:
        return self._monitor.trace()


def run_base(config: BaseConfig, live: bool = False, ros_arguments: Sequence[str] = (), robot: Robot | None = None) -> None:
    """Until Ctrl-C or SIGTERM, in lockstep or live. MirageError without the seed, or when its camera lies down.

    Args:
        robot: what the base is; None is one that carries the seed's camera.
    """
    if robot is None:
        pose = load_seed(config.seed, config.hfov_deg).camera.world_from_camera
    else:
        config, pose = of_robot(config, robot)
    kind = LiveBaseNode if live else BaseNode
    _spin(lambda: kind(pose, config), ros_arguments)


def of_robot(config: BaseConfig, robot: Robot) -> tuple[BaseConfig, Float[np.ndarray, "4 4"]]:
    """The config of a robot's base, and a camera that stands upright right above where it starts, as high as the first of its own.

    Raises MirageError for a robot whose poses come from elsewhere.
    """
    if robot.base == ELSEWHERE:
        raise MirageError(f"The robot '{robot.namespace}' has no base to run: its file says {ELSEWHERE}, so that others publish its TF.")
    mounts = {c.frame: c.planned_from_camera for c in robot.cameras if c.planned_from_camera is not None}
    above = robot.start @ BASE_FROM_OPTICAL
    if robot.base != "free":
        above[2, 3] += next(iter(mounts.values()), np.eye(4))[2, 3]
    names = {"odom_frame": robot.odom_frame, "base_frame": robot.base_frame, "namespace": robot.namespace, "mounts": mounts}
    return replace(config, live=replace(config.live, kind=robot.base), **names), above


def run_wander(config: WanderNodeConfig, ros_arguments: Sequence[str] = ()) -> None:
    """Until Ctrl-C or SIGTERM."""
    _spin(lambda: WanderNode(config), ros_arguments)


def _spin(make: Callable[[], Node], ros_arguments: Sequence[str]) -> None:
    rclpy.init(args=["mirage", *(["--ros-args", *ros_arguments] if ros_arguments else [])])
    # A signal is how these nodes end: it is no failure.
    try:
        with suppress(KeyboardInterrupt, ExternalShutdownException), ending_with_ros():
            rclpy.spin(make())
    finally:
        rclpy.try_shutdown()

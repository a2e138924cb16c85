"""Kinematic bases, in lockstep and live: velocity commands in; odometry and TF out.

`BaseNode`, for policies, moves in lockstep with the simulator. It plans a chunk of frame times ahead, as many as the simulator makes in one step, and waits
for /clock to get there. Then it takes the command that was decided on that chunk's last picture:
the TwistStamped whose stamp is that picture's. So who drives it may be as slow as it likes, die and
come back: time waits. A command without a stamp (0) is for the next step, whichever that is: who
drives by hand needs no stamps, but such a drive is not the same twice. Other stamps decide nothing.

`LiveBaseNode`, for people and navigation stacks, moves while ROS time passes. It heeds Twist and
TwistStamped when they come, whatever their stamps, and publishes poses of the present alone: a
command can change everything that is not published yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped, Twist, TwistStamped
from jaxtyping import Float
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.loop import (
    BasePose,
    Command,
    Footprint,
    LiveBase,
    LiveBaseConfig,
    Obstacles,
    base_under,
    live_base_under,
)
from mirage_ros.recording.topics import OBSTACLES
from mirage_ros.ros.messages import (
    COMMAND_TYPES,
    SECOND_NS,
    command_publishers,
    pose_to_ros,
    stamp_from_ros,
    stamp_to_ros,
    transform_to_ros,
    twist_from_ros,
    twist_to_ros,
    xyz_from_ros,
)
from mirage_ros.world.collision import ABOVE_M, REACH_M

LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
KEPT_ODOMETRY = QoSProfile(depth=64, durability=DurabilityPolicy.TRANSIENT_LOCAL)
REPEAT_S = 1.0
UNSTAMPED_NS = 0
COMMAND_DEPTH = 10
OBSTACLE_DEPTH = 4
FASTEST_TF_HZ = 200.0
WATCH_S = 0.2
# (1 mm)^2, (1 mrad)^2 and the same per second: exact, but filters invert these matrices.
COVARIANCE = np.diag([1e-6] * 6).ravel()


@dataclass(frozen=True)
class BaseConfig:
    """What the base is called and how it moves.

    Attributes:
        seed, hfov_deg: the view that the simulator starts from, see `load_seed`: the base stands
            under its camera and carries it from then on.
        frame_rate_hz, step_frames: the simulator's, for a base in lockstep.
        max_speed_mps, max_turn_rps: in lockstep, faster commands are cut down to these.
        live: how a live base moves.
        radius_m, low_m: of the body, which is as high as the camera: `obstacles` of the simulator stop it.
        tf_rate_hz: how often a live base tells its pose.
        mounts: base_from_camera by the frames of its cameras, where it stands below none of them; its own camera_frame is not published.
    """

    seed: str = "room"
    hfov_deg: float | None = None
    frame_rate_hz: float = 5.0
    step_frames: int = 4
    max_speed_mps: float = 1.0
    max_turn_rps: float = 1.5
    live: LiveBaseConfig = field(default_factory=LiveBaseConfig)
    radius_m: float = 0.2
    low_m: float = 0.1
    tf_rate_hz: float = 30.0
    world_frame: str = "world"
    odom_frame: str = "odom"
    base_frame: str = "base_link"
    camera_frame: str = "camera_color_optical_frame"
    namespace: str = ""
    mounts: Mapping[str, Float[np.ndarray, "4 4"]] | None = None

    def __post_init__(self) -> None:
        if not (0 < self.radius_m <= REACH_M / 2 and np.isfinite(self.low_m)):
            raise MirageError(
                f"The base's radius is {self.radius_m:g} m and its lower end {self.low_m:g} m; give a radius up to "
                f"{REACH_M / 2:g} m and a finite height."
            )


class Motion:
    """The base's planned way, without ROS.

    Args:
        start: where it stands when time begins, and again whenever time begins anew.
    """

    def __init__(self, start: BasePose, config: BaseConfig) -> None:
        if not config.frame_rate_hz > 0 or config.step_frames < 1:
            raise MirageError(
                f"The base got {config.frame_rate_hz} frames/s and {config.step_frames} frames a "
                "step; give the simulator's frame_rate_hz and its chunk."
            )
        self._start, self._config = start, config
        self.period_ns = round(SECOND_NS / config.frame_rate_hz)
        self.planned: dict[int, BasePose] = {}
        self.command = Command()
        self.horizon_ns = 0
        self.now_ns = self.began_ns = 0
        self._told_ns = -1
        self.obstacles: Obstacles | None = None
        self.obstacles_ns = 0

    @property
    def waiting(self) -> bool:
        """All that was planned has happened, and what stands there is known: the next command is due."""
        seen = self.obstacles is None or self.obstacles_ns >= self.horizon_ns
        return bool(self.planned) and self.now_ns >= self.horizon_ns and seen

    def why_ignored(self, stamp_ns: int) -> str:
        """Why a command of this stamp decides nothing; '' where it needs no word.

        A policy may answer every picture of a step, or say its last command again.
        """
        if not self.planned:
            return ""
        begin_ns = min(self.planned)
        if stamp_ns > self.horizon_ns:
            where = "a stamp after the last planned picture's, such as the wall clock's"
        elif stamp_ns < self.began_ns or (stamp_ns - begin_ns) % self.period_ns:
            where = "the stamp of no picture"
        else:
            return ""
        return (
            f"cmd_vel bears {stamp_ns / SECOND_NS:.3f} s, {where}, and is ignored: the base waits "
            f"for the command stamped {self.horizon_ns / SECOND_NS:.3f} s. Stamp each command as "
            "the picture that it was decided on, or leave the stamp 0 to drive the next step."
        )

    def tick(self, now_ns: int) -> bool:
        """Heeds the clock; True when time begins, for the first time or anew."""
        begins = not self.planned or now_ns < self.now_ns
        self.now_ns = now_ns
        if begins:
            self.planned, self.horizon_ns = {now_ns: self._start}, now_ns
            self.began_ns, self.obstacles = now_ns, None
            self._told_ns = -1
            self.follow(Command())
        return begins

    def passed(self) -> list[tuple[int, BasePose]]:
        """Planned poses whose time has come, each told once, in order."""
        due = [
            item for item in sorted(self.planned.items()) if self._told_ns < item[0] <= self.now_ns
        ]
        self._told_ns = due[-1][0] if due else self._told_ns
        return due

    def follow(self, command: Command) -> None:
        """Plans the next step from the horizon on."""
        self.command = Command(
            _limited(command.speed_mps, self._config.max_speed_mps),
            _limited(command.turn_rps, self._config.max_turn_rps),
        )
        start, begin_ns = self.planned[self.horizon_ns], self.horizon_ns
        how = self.command, self.period_ns / SECOND_NS, self._config.step_frames
        steps = start.along(*how) if self.obstacles is None else start.stopped(*how, self.obstacles)
        self.planned = {begin_ns: start}
        for index, pose in enumerate(steps, 1):
            self.planned[begin_ns + index * self.period_ns] = pose
        self.horizon_ns = max(self.planned)


class _Base(Node):
    """What both bases say: TF, the camera's mount, odometry."""

    def __init__(self, config: BaseConfig, base_from_camera: Float[np.ndarray, "4 4"]) -> None:
        super().__init__("mirage_base", namespace=config.namespace)
        self.config = config
        self._said: set[str] = set()
        self._tf = self.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))
        self._static = self.create_publisher(TFMessage, "/tf_static", LATCHED)
        self._odom = self.create_publisher(Odometry, "odom", KEPT_ODOMETRY)
        mounts = {config.camera_frame: base_from_camera} if config.mounts is None else config.mounts
        carried = [transform_to_ros(mount, config.base_frame, frame, 0) for frame, mount in mounts.items()]
        odom = transform_to_ros(np.eye(4), config.world_frame, config.odom_frame, 0)
        self._static.publish(TFMessage(transforms=[odom, *carried]))
        # Published while the simulator's physics are not off.
        self.create_subscription(PointCloud2, OBSTACLES, self._on_obstacles, OBSTACLE_DEPTH)

    def _on_obstacles(self, message: PointCloud2) -> None:
        try:
            stamp_ns, points = stamp_from_ros(message.header.stamp), xyz_from_ros(message)
        except MirageError as error:
            self._say_once("obstacles", f"obstacles are ignored: {error}")
            return
        self._meet(stamp_ns, points)

    def _meet(self, stamp_ns: int, points: Float[np.ndarray, "n 3"]) -> None:
        """Takes in what may stop the base."""
        raise NotImplementedError

    def _say_once(self, kind: str, text: str) -> None:
        """A warning, once of each kind."""
        if kind not in self._said:
            self._said.add(kind)
            self.get_logger().warning(text)

    def _transform(self, odom_from_base: np.ndarray, stamp_ns: int) -> TransformStamped:
        return transform_to_ros(odom_from_base, self.config.odom_frame, self.config.base_frame, stamp_ns)

    def _odometry(self, odom_from_base: np.ndarray, twist: np.ndarray, stamp_ns: int) -> Odometry:
        """Args: twist: vx vy vz wx wy wz in the base's own frame."""
        message = Odometry(child_frame_id=self.config.base_frame)
        message.header.frame_id = self.config.odom_frame
        message.header.stamp = stamp_to_ros(stamp_ns)
        message.pose.pose = pose_to_ros(odom_from_base)
        message.twist.twist = twist_to_ros(twist[:3], twist[3:])
        message.pose.covariance = message.twist.covariance = COVARIANCE
        return message


class BaseNode(_Base):
    """Publishes TF ahead of time and odometry as time comes; subscribes to cmd_vel and /clock.

    Raises:
        MirageError: the seed's camera does not stand upright.
    """

    def __init__(self, world_from_camera: Float[np.ndarray, "4 4"], config: BaseConfig) -> None:
        start, mount = base_under(world_from_camera)
        self._body = Footprint(config.radius_m, config.low_m, world_from_camera[2, 3] + ABOVE_M)
        super().__init__(config, mount)
        self.motion = Motion(start, config)
        self._command: Command | None = None
        self._path = self.create_publisher(PathMessage, "planned_path", LATCHED)
        self.create_subscription(TwistStamped, "cmd_vel", self._on_command, 50)
        self.create_subscription(Clock, "/clock", self._on_clock, LATCHED)
        # The simulator may start, or come back, after a plan went out; saying it again is cheap.
        self.create_timer(REPEAT_S, self._publish_plan)

    def _on_clock(self, message: Clock) -> None:
        now_ns = stamp_from_ros(message.clock)
        if self.motion.tick(now_ns):
            self._command = None
            self._said.clear()
            self._publish_plan()
            self.get_logger().info(f"Time begins at {now_ns / SECOND_NS:.3f} s.")
        for stamp_ns, pose in self.motion.passed():
            command = self.motion.command
            twist = np.array([command.speed_mps, 0, 0, 0, 0, command.turn_rps])
            self._odom.publish(self._odometry(pose.world_from_base, twist, stamp_ns))
        self._advance()

    def _meet(self, stamp_ns: int, points: np.ndarray) -> None:
        self.motion.obstacles, self.motion.obstacles_ns = Obstacles(points, self._body), stamp_ns
        self._advance()

    def _on_command(self, message: TwistStamped) -> None:
        try:
            stamp_ns = stamp_from_ros(message.header.stamp)
        except MirageError as error:
            self._say_once("wrong", f"cmd_vel is ignored: {error}")
            return
        if stamp_ns not in (UNSTAMPED_NS, self.motion.horizon_ns):
            reason = self.motion.why_ignored(stamp_ns)
            if reason:
                self._say_once("ignored", reason)
            return
        if stamp_ns == UNSTAMPED_NS:
            self._say_once(
                "unstamped",
                "cmd_vel bears no stamp: each command drives the next step, whenever it comes, so "
                "the same drive will not come twice; stamp it as the picture it was decided on.",
            )
        command = Command(message.twist.linear.x, message.twist.angular.z)
        if not np.isfinite([command.speed_mps, command.turn_rps]).all():
            self.get_logger().warning("cmd_vel holds NaN or infinity; the base stands still.")
            command = Command()
        self._command = command
        self._advance()

    def _advance(self) -> None:
        """Plans on with the command for the horizon, once both are there."""
        if self.motion.waiting and self._command is not None:
            command, self._command = self._command, None
            self.motion.follow(command)
            self._publish_plan()

    def _publish_plan(self) -> None:
        if not self.motion.planned:
            return
        planned = sorted(self.motion.planned.items())
        transforms = [self._transform(pose.world_from_base, stamp_ns) for stamp_ns, pose in planned]
        self._tf.publish(TFMessage(transforms=transforms))
        self._path.publish(self._path_of(planned))

    def _path_of(self, planned) -> PathMessage:
        """What RViz draws: the base's way of the next step."""
        message = PathMessage()
        message.header.frame_id = self.config.odom_frame
        message.header.stamp = stamp_to_ros(planned[0][0])
        for stamp_ns, pose in planned:
            stamped = PoseStamped(header=message.header, pose=pose_to_ros(pose.world_from_base))
            stamped.header.stamp = stamp_to_ros(stamp_ns)
            message.poses.append(stamped)
        return message


class LiveBaseNode(_Base):
    """Publishes TF and odometry of the present, at a steady rate in ROS time; subscribes to cmd_vel.

    Raises:
        MirageError: the seed's camera does not stand upright and the base is not free, or a bad rate.
    """

    def __init__(self, world_from_camera: Float[np.ndarray, "4 4"], config: BaseConfig) -> None:
        if not 1.0 <= config.tf_rate_hz <= FASTEST_TF_HZ:
            raise MirageError(f"The base's TF rate is {config.tf_rate_hz}; give 1 to {FASTEST_TF_HZ:g} poses/s.")
        start, mount = live_base_under(world_from_camera, config.live.kind)
        self._body = Footprint(config.radius_m, config.low_m, world_from_camera[2, 3] + ABOVE_M)
        super().__init__(config, mount)
        self.base = LiveBase(start, config.live)
        # DDS takes one type of a topic in a process, so what is published decides which is heard.
        self._heard = ""
        self._commands: Subscription | None = None
        self._listen_for("geometry_msgs/msg/Twist")
        self.create_timer(WATCH_S, self._watch, clock=RosClock(clock_type=ClockType.STEADY_TIME))
        self.create_timer(1 / config.tf_rate_hz, self._publish)

    def _meet(self, stamp_ns: int, points: np.ndarray) -> None:
        self.base.obstacles = Obstacles(points, self._body, self.config.live.kind == "free")

    def _listen_for(self, type_name: str) -> None:
        if self._commands is not None:
            self.destroy_subscription(self._commands)
        kind = COMMAND_TYPES[type_name]
        callback = self._on_twist if kind is Twist else lambda message: self._on_twist(message.twist)
        self._commands = self.create_subscription(kind, "cmd_vel", callback, COMMAND_DEPTH)
        self._heard = type_name

    def _watch(self) -> None:
        """Changes over to the type that is published; says which is heeded where both are."""
        publishers = command_publishers(self, self.resolve_topic_name("cmd_vel"))
        published = list(publishers)
        if len(published) > 1:
            (other,) = (name for name in published if name != self._heard)
            self._say_once(
                "types",
                f"cmd_vel is published as {self._heard} (by {', '.join(publishers[self._heard])}) and as {other} "
                f"(by {', '.join(publishers[other])}); the former alone is heeded as long as it is there.",
            )
        elif published and published[0] != self._heard:
            self._listen_for(published[0])
            self.get_logger().info(f"cmd_vel is published as {self._heard} now, which is heeded.")

    def _on_twist(self, twist: Twist) -> None:
        values = np.concatenate(twist_from_ros(twist))
        if not self.base.command(values, self.get_clock().now().nanoseconds):
            self._say_once("nan", "cmd_vel holds NaN or infinity; the base stops for such commands.")

    def _publish(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        self.base.advance(now_ns)
        pose = self.base.odom_from_base
        self._tf.publish(TFMessage(transforms=[self._transform(pose, now_ns)]))
        self._odom.publish(self._odometry(pose, self.base.twist, now_ns))


def _limited(value: float, limit: float) -> float:
    return float(np.clip(value, -limit, limit))

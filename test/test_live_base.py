"""A base in real time: alone, and over DDS with all that drives and stops it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from make_seed import write_seed
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_client import PROGRAM, Client, NodeProcess
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import exp
from mirage_ros.loop import BASE_FROM_OPTICAL, LiveBase, LiveBaseConfig, live_base_under
from mirage_ros.protocol import SECOND_NS
from mirage_ros.recording.topics import SURFACE_POINT, cloud_fields
from mirage_ros.ros.messages import message_of, pose_from_ros, stamp_from_ros, stamp_to_ros, transform_from_ros

AT_ONCE = {"acceleration_mps2": 1e9, "turn_acceleration_rps2": 1e9}
BEGIN_NS = 10 * SECOND_NS


def live(**config) -> LiveBase:
    base = LiveBase(np.eye(4), LiveBaseConfig(**config))
    base.advance(BEGIN_NS)
    return base


def at(seconds: float) -> int:
    return BEGIN_NS + round(seconds * SECOND_NS)


@pytest.mark.parametrize("kind", ["diff", "omni", "free"])
def test_a_constant_twist_is_integrated_exactly_however_often(kind):
    twist = np.array([0.5, -0.2, 0.1, 0.2, 0.1, 0.7])
    able = {"diff": [1, 0, 0, 0, 0, 1], "omni": [1, 1, 0, 0, 0, 1], "free": [1] * 6}[kind]
    for count in (1, 7):
        base = live(kind=kind, timeout_s=5.0, **AT_ONCE)
        base.command(twist, at(0))
        for index in range(1, count + 1):
            base.advance(at(2.0 * index / count))
        assert np.allclose(base.odom_from_base, exp(twist * able * 2.0), atol=1e-6)
        assert np.allclose(base.twist, twist * able)


def test_the_limits_keep_the_direction_and_ramp_up_and_down():
    base = live(kind="omni", max_speed_mps=0.5, max_turn_rps=0.3, acceleration_mps2=1.0, turn_acceleration_rps2=1.0)
    base.command(np.array([3.0, 4.0, 9.0, 9.0, 0.0, -7.0]), at(0))
    base.advance(at(0.25))
    assert np.allclose(base.twist[:3], [0.15, 0.2, 0.0])
    base.advance(at(0.5))
    assert np.allclose(base.twist, [0.3, 0.4, 0.0, 0.0, 0.0, -0.3])
    base.advance(at(0.75))
    assert np.allclose(np.linalg.norm(base.twist[:3]), 0.25), "too old a command: it brakes"
    base.advance(at(60.0))
    rest = base.odom_from_base.copy()
    assert not base.twist.any()
    base.advance(at(120.0))
    assert np.array_equal(base.odom_from_base, rest)


def test_a_base_that_was_not_asked_for_long_still_stops_in_time():
    base = live(**AT_ONCE)
    base.command(np.array([1.0, 0, 0, 0, 0, 0]), at(0))
    base.advance(at(30.0))
    assert base.odom_from_base[0, 3] == pytest.approx(0.5, abs=1e-6)


def test_nan_stops_it_and_time_that_jumps_back_moves_nothing():
    base = live(**AT_ONCE)
    assert base.command(np.array([1.0, 0, 0, 0, 0, 0]), at(0))
    assert not base.command(np.array([1.0, 0, 0, 0, 0, math.nan]), at(0.1))
    base.advance(at(0.4))
    assert base.odom_from_base[0, 3] == pytest.approx(0.1, abs=1e-6)
    assert base.command(np.array([1.0, 0, 0, 0, 0, 0]), at(0.5))
    where = base.odom_from_base.copy()
    base.advance(at(-5.0))
    assert np.array_equal(base.odom_from_base, where) and not base.twist.any()
    base.advance(at(-4.0))
    assert np.array_equal(base.odom_from_base, where)
    assert base.command(np.array([math.inf, 0, 0, 0, 0, 0]), at(-3.9)) is False


@pytest.mark.parametrize(
    "config", [{"kind": "boat"}, {"max_speed_mps": 0.0}, {"timeout_s": math.nan}, {"acceleration_mps2": -1.0}]
)
def test_bad_options_of_a_base_are_refused(config):
    with pytest.raises(MirageError, match=f"The base's {next(iter(config))} is"):
        LiveBaseConfig(**config)


def test_a_free_base_stands_at_its_camera_and_needs_no_floor():
    upright = np.eye(4)
    upright[:3, :3], upright[:3, 3] = BASE_FROM_OPTICAL[:3, :3], (1.0, 2.0, 1.5)
    for kind, height_m in (("diff", 0.0), ("free", 1.5)):
        base, mount = live_base_under(upright, kind)
        assert np.allclose(base @ mount, upright) and base[2, 3] == height_m
    lying = np.eye(4)
    base, mount = live_base_under(lying, "free")
    assert np.allclose(base @ mount, lying)
    with pytest.raises(MirageError, match="stands upright"):
        live_base_under(lying, "omni")


class Driver(Client):
    """Beside a live base: everything that it says, and commands for it."""

    def __init__(self, process: NodeProcess) -> None:
        super().__init__(process)
        self.odometry: list[Odometry] = []
        self.static: list = []
        kept = QoSProfile(depth=64, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(Odometry, "odom", self.odometry.append, 100)
        self.node.create_subscription(TFMessage, "/tf_static", self.static.append, kept)

    def speed(self) -> float:
        return self.odometry[-1].twist.twist.linear.x if self.odometry else math.nan

    def drive(self, publisher, message, until, patience_s: float = 20.0) -> None:
        """Says a command every 50 ms until something holds."""
        deadline = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < deadline, self.process.text()
            publisher.publish(message)
            self.spin_for(0.05)


@pytest.fixture
def driver(tmp_path):
    process = NodeProcess(tmp_path, "base", "--live", "--seed", str(write_seed(tmp_path / "box")), program=PROGRAM)
    client = Driver(process)
    client.spin(lambda: client.odometry and client.static)
    yield client
    client.close()
    process.close()


def twist_as_teleop_twist_keyboard_sends_it(stamped: bool):
    """As its `vels` loop fills them: a Twist, or a TwistStamped with the clock's stamp and an empty frame."""
    message = TwistStamped() if stamped else Twist()
    twist = message.twist if stamped else message
    twist.linear.x, twist.linear.y, twist.linear.z = 1 * 0.5, 0 * 0.5, 0 * 0.5
    twist.angular.x, twist.angular.y, twist.angular.z = 0.0, 0.0, 0 * 1.0
    if stamped:
        message.header.stamp = rclpy.clock.Clock().now().to_msg()
        message.header.frame_id = ""
    return message


def test_twist_and_twist_stamped_drive_the_base_whoever_comes_and_goes(driver):
    plain = driver.node.create_publisher(Twist, "cmd_vel", 10)
    driver.drive(plain, twist_as_teleop_twist_keyboard_sends_it(False), lambda: driver.speed() == 0.5)
    driver.spin(lambda: driver.speed() == 0.0, 10.0)
    other = rclpy.create_node("other", context=driver.context)
    # A process of its own in DDS's eyes: one participant knows one type of a topic.
    driver.node.destroy_publisher(plain)
    stamped = other.create_publisher(TwistStamped, "cmd_vel", 10)
    message = twist_as_teleop_twist_keyboard_sends_it(True)
    driver.drive(stamped, message, lambda: driver.speed() == 0.5)
    assert "geometry_msgs/msg/TwistStamped now, which is heeded" in driver.process.text()
    driver.spin(lambda: driver.speed() == 0.0, 10.0)
    message.header.stamp = stamp_to_ros(1)
    driver.drive(stamped, message, lambda: driver.speed() == 0.5)
    other.destroy_publisher(stamped)
    plain = driver.node.create_publisher(Twist, "cmd_vel", 10)
    driver.spin(lambda: driver.speed() == 0.0, 10.0)
    driver.drive(plain, twist_as_teleop_twist_keyboard_sends_it(False), lambda: driver.speed() == 0.5)
    message = twist_as_teleop_twist_keyboard_sends_it(False)
    message.linear.x = math.nan
    driver.drive(plain, message, lambda: driver.speed() == 0.0)
    driver.drive(plain, message, lambda: "cmd_vel holds NaN" in driver.process.text())
    assert driver.process.text().count("cmd_vel holds NaN") == 1
    other.destroy_node()


def test_both_types_at_once_are_told_and_the_first_is_heeded(driver, tmp_path):
    plain = driver.node.create_publisher(Twist, "cmd_vel", 10)
    driver.drive(plain, twist_as_teleop_twist_keyboard_sends_it(False), lambda: driver.speed() == 0.5)
    (tmp_path / "second").mkdir()
    context = rclpy.context.Context()
    rclpy.init(context=context, domain_id=driver.process.domain)
    other = rclpy.create_node("other", context=context)
    stamped = other.create_publisher(TwistStamped, "cmd_vel", 10)
    driver.spin(lambda: "the former alone is heeded" in driver.process.text(), 20.0)
    message = twist_as_teleop_twist_keyboard_sends_it(True)
    for _ in range(10):
        stamped.publish(message)
        driver.spin_for(0.05)
    assert driver.speed() == 0.0
    driver.node.destroy_publisher(plain)
    driver.drive(stamped, message, lambda: driver.speed() == 0.5)
    assert driver.process.text().count("the former alone") == 1
    rclpy.shutdown(context=context)


def test_it_tells_poses_of_the_present_at_twenty_hertz_with_covariances(driver):
    driver.clear()
    driver.spin_for(2.0)
    moving = [item for message in driver.got["/tf"] for item in message.transforms]
    stamps = [stamp_from_ros(item.header.stamp) for item in moving]
    assert {(item.header.frame_id, item.child_frame_id) for item in moving} == {("odom", "base_link")}
    assert len(stamps) >= 40 and (np.diff(stamps) > 0).all() and stamps[-1] <= time.time_ns()
    odometry = driver.odometry[-1]
    covariance = np.reshape(odometry.pose.covariance, (6, 6))
    assert (np.diag(covariance) > 0).all() and (np.diag(np.reshape(odometry.twist.covariance, (6, 6))) > 0).all()
    static = {(item.header.frame_id, item.child_frame_id): transform_from_ros(item)
              for message in driver.static for item in message.transforms}  # fmt: skip
    assert np.array_equal(static["world", "odom"], np.eye(4))
    camera = pose_from_ros(odometry.pose.pose) @ static["base_link", "camera_color_optical_frame"]
    assert np.allclose(camera[:3, 3], (-1.5, -2.5, 1.2), atol=1e-6)


def test_what_the_simulator_says_stands_there_stops_the_base(driver):
    """A wall of points a metre ahead, 0.1 m of which the body of 0.2 m reaches over."""
    plain = driver.node.create_publisher(Twist, "cmd_vel", 10)
    walls = driver.node.create_publisher(PointCloud2, "obstacles", 4)
    driver.spin(lambda: walls.get_subscription_count() and plain.get_subscription_count())
    start = pose_from_ros(driver.odometry[-1].pose.pose)
    points = np.zeros(41, SURFACE_POINT)
    for axis, name in enumerate("xyz"):
        points[name] = start[axis, 3] + start[axis, 0] + np.linspace(-0.4, 0.4, 41) * start[axis, 1]
    points["z"] = 0.6
    walls.publish(message_of(PointCloud2, cloud_fields(points, SECOND_NS, "world")))
    twist = twist_as_teleop_twist_keyboard_sends_it(False)

    def gone_m() -> float:
        return float(np.linalg.norm(pose_from_ros(driver.odometry[-1].pose.pose)[:3, 3] - start[:3, 3]))

    driver.drive(plain, twist, lambda: gone_m() > 0.7)
    driver.drive(plain, twist, lambda: abs(driver.speed()) < 0.05)
    assert gone_m() == pytest.approx(0.8, abs=0.02)
    twist.linear.x = -0.5
    driver.drive(plain, twist, lambda: gone_m() < 0.6)

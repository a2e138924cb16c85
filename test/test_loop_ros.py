"""The closed loop over DDS: node in lockstep, base and policy in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TwistStamped
from make_seed import write_seed
from rclpy.context import Context
from ros_client import FAKE_NODE, PATIENCE_S, PROGRAM, Client, NodeProcess
from rosgraph_msgs.msg import Clock

from mirage_ros.apps.loop import LoopConfig, base_arguments, node_arguments, policy_arguments, run_loop
from mirage_ros.errors import MirageError
from mirage_ros.loop import BasePose, Command
from mirage_ros.loop.drive import DriveConfig
from mirage_ros.machine import Children, mirage_command, private_environment
from mirage_ros.ros.base_node import LATCHED, BaseConfig, Motion
from mirage_ros.ros.loop_nodes import LoopWatch
from mirage_ros.ros.messages import stamp_from_ros, stamp_to_ros

PERIOD_NS = 200_000_000
DECISIONS = 4
NODE = (sys.executable, *FAKE_NODE)


def motion(**config) -> Motion:
    return Motion(BasePose(), BaseConfig(**config))


def test_motion_plans_a_step_ahead_and_waits_for_time():
    base = motion(step_frames=4)
    assert not base.waiting and base.tick(10**9)
    assert sorted(base.planned) == [10**9 + index * PERIOD_NS for index in range(5)]
    assert base.passed() == [(10**9, BasePose())] and base.passed() == []
    assert not base.tick(10**9 + 2 * PERIOD_NS) and not base.waiting
    assert [stamp for stamp, _ in base.passed()] == [10**9 + PERIOD_NS, 10**9 + 2 * PERIOD_NS]
    base.tick(10**9 + 4 * PERIOD_NS)
    assert base.waiting
    base.follow(Command(0.5, 0.0))
    assert not base.waiting and base.planned[base.horizon_ns].x_m == pytest.approx(0.4)


def test_motion_begins_anew_when_time_does():
    base = motion()
    base.tick(10**9)
    base.follow(Command(0.5, 0.3))
    base.tick(10**9 + PERIOD_NS)
    assert base.tick(10**9) and base.command == Command()
    assert set(base.planned.values()) == {BasePose()}


@pytest.mark.parametrize(
    ("stamp_s", "reason"),
    [
        (1_795_893_280.3, "such as the wall clock's"),
        (1.81, "such as the wall clock's"),
        (0.9, "the stamp of no picture"),
        (1.5, "the stamp of no picture"),
        (1.0, ""),
        (1.6, ""),
    ],
)
def test_a_command_that_decides_nothing_is_told_why(stamp_s, reason):
    base = motion()
    base.tick(10**9)
    said = base.why_ignored(round(stamp_s * 1e9))
    assert reason in said and bool(said) == bool(reason)
    assert not said or "waits for the command stamped 1.800 s" in said


def test_motion_limits_commands_and_refuses_nonsense():
    base = motion(max_speed_mps=0.4, max_turn_rps=0.5)
    base.tick(10**9)
    base.follow(Command(3.0, -9.0))
    assert base.command == Command(0.4, -0.5)
    with pytest.raises(MirageError, match="frame_rate_hz"):
        motion(frame_rate_hz=0.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LoopConfig:
    folder = tmp_path_factory.mktemp("loop")
    seed = write_seed(folder / "box")
    drive = DriveConfig(length_m=50.0, decisions=DECISIONS)
    return LoopConfig([str(seed)], folder / "out", drive, node_command=NODE)


@pytest.fixture(scope="module")
def whole(config) -> dict:
    """An undisturbed run's report, path and hashes."""
    report = run_loop(config)
    (folder,) = (path for path in config.out.iterdir() if path.is_dir())
    return {"report": report, "path": json.loads((folder / "path.json").read_text()),
            "files": sorted(path.name for path in folder.iterdir())}  # fmt: skip


def test_the_loop_reports_a_drive(whole, config):
    (run,) = whole["report"]["runs"].values()
    own = run["generated"]
    assert own["decisions"] > DECISIONS, "the first step stands still"
    assert own["frames"] == 4 * own["decisions"] and own["length_m"] > 0.2
    assert own["frames_inside_a_held_surface"] == 0 and own["points_held"] > 50
    assert not whole["report"]["summary"]["passed"], "50 m were asked for"
    assert {"above.png", "drive.mp4", "path.json", "logs"} <= set(whole["files"])
    assert (config.out / "report.json").is_file()
    stamps = whole["path"]["stamps_ns"]
    assert np.diff(stamps).tolist() == [PERIOD_NS] * (len(stamps) - 1)
    assert whole["path"]["commands_speed_turn"][0] == [0.0, 0.0]


def drive_with_deaths(config: LoopConfig, folder) -> list:
    """The same drive, but the policy is killed after every other step. Returns its trace."""
    (seed,) = config.worlds
    environment = private_environment()
    with LoopWatch(environment, config.drive.wander.footprint, 4) as watch, Children(folder, environment) as children:
        children.start("node", node_arguments(config, seed))
        children.start("base", base_arguments(config, seed))
        policy = children.start("wander", policy_arguments())
        deadline, killed_at = time.monotonic() + 200, 0
        while watch.frames() < 4 * (DECISIONS + 1):
            assert time.monotonic() < deadline, watch.frames()
            watch.spin(0.02)
            if watch.frames() >= killed_at + 8:
                killed_at = watch.frames()
                policy.kill()
                policy.wait()
                watch.spin(0.3)
                policy = children.start("wander", policy_arguments())
        watch.settle()
        return watch.trace(), killed_at


def test_a_policy_that_dies_and_comes_back_loses_nothing(config, whole, tmp_path):
    trace, killed_at = drive_with_deaths(config, tmp_path)
    assert killed_at >= 8
    path = whole["path"]
    count = min(len(path["stamps_ns"]), len(trace.snaps))
    assert count >= 4 * (DECISIONS + 1)
    assert [snap.stamp_ns for snap in trace.snaps][:count] == path["stamps_ns"][:count]
    assert [snap.sha256 for snap in trace.snaps][:count] == path["frames_sha256"][:count]
    poses = [[snap.pose.x_m, snap.pose.y_m, snap.pose.yaw_rad] for snap in trace.snaps]
    np.testing.assert_allclose(poses[:count], path["poses_x_y_yaw"][1 : count + 1], atol=1e-9)


def test_the_loop_is_never_faster_than_its_record(config, tmp_path):
    """A record that stops taking messages in for a while stops the drive, and misses no frame of it."""
    (seed,) = config.worlds
    environment = private_environment()
    with LoopWatch(environment, config.drive.wander.footprint, 4) as watch, Children(tmp_path, environment) as children:
        children.start("node", node_arguments(config, seed))
        children.start("base", base_arguments(config, seed))
        children.start("wander", policy_arguments())
        deadline = time.monotonic() + 200
        while watch.frames() < 12:
            assert time.monotonic() < deadline, watch.frames()
            watch.spin(0.02)
            time.sleep(0.5)
        before = watch.frames()
        time.sleep(3)
        watch.settle()
        stamps = [snap.stamp_ns for snap in watch.trace().snaps]
    assert len(stamps) >= before and np.diff(stamps).tolist() == [PERIOD_NS] * (len(stamps) - 1)
    assert stamps[0] == 10**9 + PERIOD_NS, "the first picture counts as well"


def test_the_base_heeds_only_the_command_of_its_picture(tmp_path):
    """Without a node: this test is the clock."""
    process = NodeProcess(
        tmp_path, "base", "--seed", str(write_seed(tmp_path / "box")),
        program=PROGRAM,
    )  # fmt: skip
    client = Client(process)
    clock = client.node.create_publisher(Clock, "/clock", LATCHED)
    command = client.node.create_publisher(TwistStamped, "cmd_vel", 10)

    def planned_until() -> int:
        transforms = [item for message in client.got["/tf"] for item in message.transforms]
        return max((stamp_from_ros(item.header.stamp) for item in transforms), default=0)

    def say(stamp_ns: int) -> None:
        message = TwistStamped()
        message.header.stamp = stamp_to_ros(stamp_ns)
        message.twist.linear.x = 0.5
        command.publish(message)

    try:
        client.spin(lambda: clock.get_subscription_count() and command.get_subscription_count())
        start, end = 10**9, 10**9 + 4 * PERIOD_NS
        clock.publish(Clock(clock=stamp_to_ros(start)))
        client.spin(lambda: planned_until() == end)
        clock.publish(Clock(clock=stamp_to_ros(end)))
        say(end - PERIOD_NS)
        client.spin_for(0.5)
        assert planned_until() == end, "that picture was not the step's last"
        assert "cmd_vel" not in process.text(), "a policy may answer every picture"
        for _ in range(2):
            say(time.time_ns())
            say(10**8)
        process.wait_for("such as the wall clock's, and is ignored: the base waits for the command")
        client.spin_for(0.3)
        assert process.text().count("cmd_vel") == 1 and planned_until() == end
        say(end)
        client.spin(lambda: planned_until() == end + 4 * PERIOD_NS)
        clock.publish(Clock(clock=stamp_to_ros(end + 4 * PERIOD_NS)))
        say(0)
        client.spin(lambda: planned_until() == end + 8 * PERIOD_NS)
        say(0)
        clock.publish(Clock(clock=stamp_to_ros(end + 8 * PERIOD_NS)))
        client.spin(lambda: planned_until() == end + 12 * PERIOD_NS)
        assert process.text().count("cmd_vel bears no stamp") == 1
        clock.publish(Clock(clock=stamp_to_ros(start)))
        client.clear()
        client.spin(lambda: planned_until() == end)
    finally:
        client.close()
        process.close()


def wait_for_nodes(names: list[str], domain: int) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    probe = rclpy.create_node("probe", context=context)
    deadline = time.monotonic() + PATIENCE_S
    while sorted(found := probe.get_node_names()) != sorted([*names, "probe"]):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    probe.destroy_node()
    rclpy.shutdown(context=context)


def test_base_and_policy_end_well(tmp_path):
    seed = str(write_seed(tmp_path / "box"))
    environment = private_environment()
    children = [
        subprocess.Popen(mirage_command(*words), env=environment)
        for words in (["base", "--seed", seed], ["wander"]) * 2
    ]
    wait_for_nodes(["mirage_base", "mirage_wander"] * 2, int(environment["ROS_DOMAIN_ID"]))
    for child, number in zip(children, [signal.SIGINT] * 2 + [signal.SIGTERM] * 2, strict=True):
        child.send_signal(number)
    assert [child.wait(20) for child in children] == [0] * 4

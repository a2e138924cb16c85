"""The plan, or the time that it is in, changes while chunks are made: stream mode over DDS.

The model waits at a gate, so that it is known which chunks are made when the change comes.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from gate import Gate
from plans import PERIOD, START, expect_the_plan, sideways, stamps
from ros_client import CAMERA, GATED_NODE, Client, NodeProcess
from rosgraph_msgs.msg import Clock

from mirage_ros.ros.messages import stamp_from_ros, stamp_to_ros

CHUNK = 4


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = Gate(tmp_path_factory.mktemp("gate"))
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def connected(tmp_path_factory, folder, gate):
    arguments = ("--ros-args", "-p", f"seed:={folder}", "-p", "plan_idle_s:=0.3")
    program = (*GATED_NODE, str(gate.path))
    process = NodeProcess(tmp_path_factory.mktemp("log"), *arguments, program=program)
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()
    process.close()


@pytest.fixture
def client(connected, gate):
    """The world at its seed, and a gate that lets one chunk through."""
    gate.open()
    connected.reset()
    gate.shut()
    gate.let(1)
    return connected


def taken_back(client: Client) -> int:
    return int(client.fresh_diagnostic("plan")["chunks_taken_back"])


def test_a_changed_plan_replaces_chunks_that_are_not_at_work_yet(client, folder, gate):
    planned, poses = stamps(40), sideways(folder, 40, 0.005)
    aside = [pose.copy() for pose in poses]
    for pose in aside:
        pose[2, 3] += 0.3
    before = taken_back(client)
    client.send_tf(planned, poses)
    client.wait_for_frames(CHUNK)
    client.wait_for_queue(2)
    client.send_tf(planned[CHUNK:], aside[CHUNK:])
    client.spin(lambda: taken_back(client) > before)
    changed_s = time.monotonic()
    gate.let(1)
    client.wait_for_frames(2 * CHUNK)
    kept_s = time.monotonic() - changed_s
    gate.open()
    expect_the_plan(client, planned)
    heights = np.array([t.transform.translation.z for t in client.rendered_poses()])
    moved = heights > poses[0][2, 3] + 0.2
    assert moved.tolist() == [False] * 2 * CHUNK + [True] * (40 - 2 * CHUNK)
    told_s = float(client.fresh_diagnostic("plan")["plan_to_first_frame_s"])
    assert told_s > kept_s, "that frame was planned before the change"


def test_a_changed_plan_of_the_base_that_carries_the_camera_is_heard_too(client, folder, gate):
    planned, poses = stamps(16), sideways(folder, 16, 0.005)
    mount = poses[0].copy()
    mount[:2, 3] = 0
    bases = [pose @ np.linalg.inv(mount) for pose in poses]
    before = taken_back(client)
    client.send_static(mount, CAMERA, "base_link")
    client.spin_for(0.2)
    client.send_tf(planned, bases, child="base_link")
    client.wait_for_frames(CHUNK)
    client.wait_for_queue(2)
    aside = [base.copy() for base in bases]
    for base in aside:
        base[2, 3] += 0.3
    client.send_tf(planned[CHUNK:], aside[CHUNK:], child="base_link")
    client.spin(lambda: taken_back(client) > before, patience_s=20)
    gate.open()
    expect_the_plan(client, planned)
    heights = np.array([t.transform.translation.z for t in client.rendered_poses()])
    moved = heights > poses[0][2, 3] + 0.2
    assert moved.tolist() == [False] * 2 * CHUNK + [True] * (16 - 2 * CHUNK)


def test_a_new_plan_is_timed_until_its_first_frame(client, folder, gate):
    gate.shut()
    client.send_tf(stamps(8), sideways(folder, 8))
    client.wait_for_queue(2)
    came_s = time.monotonic()
    client.spin_for(0.5)
    kept_s = time.monotonic() - came_s
    gate.open()
    expect_the_plan(client, stamps(8))
    client.spin(lambda: client.got["status"])
    assert client.got["status"][-1].plan_to_first_frame_s > kept_s



@pytest.mark.parametrize("late_plan", ["all", "skip"])
def test_where_rendering_is_slower_than_the_plan(client, folder, gate, late_plan):
    """Eight poses come while four frames are made."""
    assert client.set_parameter("late_plan", late_plan) == (True, "")
    gate.shut()
    ticks, first, lags_s = 6, 10**18, []  # a clock of the past
    planned, poses = stamps(8 * ticks, first), sideways(folder, 8 * ticks, 0.002)
    skipped = int(client.fresh_diagnostic("plan")["frames_skipped"])
    for tick in range(ticks):
        now = slice(8 * tick, 8 * tick + 8)
        client.send_tf(planned[now], poses[now])
        newest = str(planned[now][-1])
        client.spin(lambda: client.fresh_diagnostic("plan")["planned_until_ns"] == newest)  # noqa: B023
        if tick == 0:
            client.wait_for_queue(1 if late_plan == "skip" else 2)
            continue
        gate.let(1)
        client.wait_for_frames(CHUNK * tick)
        told = client.fresh_diagnostic("plan")
        lags_s.append((planned[now][-1] - client.stamps("color/image_raw")[-1]) / 1e9)
        assert float(told["lag_s"]) == pytest.approx(lags_s[-1])
        assert float(told["latency_s"]) > 0
    skipped = int(told["frames_skipped"]) - skipped
    came = client.stamps("color/image_raw")
    if late_plan == "all":
        assert came == planned[: len(came)] and skipped == 0
        assert lags_s == pytest.approx([1.2, 1.6, 2.0, 2.4, 2.8])
    else:
        # The first ones are taken as they come.
        newest = [stamp for index, stamp in enumerate(planned) if index % 8 >= 4]
        assert came[CHUNK:] == newest[CHUNK : len(came)]
        assert skipped >= 4 * (ticks - 1)
        assert lags_s[1:] == pytest.approx([0.8] * 4), "what comes while a chunk is made"
    gate.open()
    client.set_parameter("late_plan", "all")


def test_when_time_jumps_back_the_plan_starts_over_and_nothing_old_comes(client, folder, gate):
    clock = client.node.create_publisher(Clock, "/clock", 10)
    late, early = START + 10**13, START + 10**12
    before = client.process.text().count("jump back in time")

    def tell(now_ns: int) -> None:
        """Until the node has heard it: its diagnostics are stamped with its time."""
        told, deadline = client.got["/diagnostics"], time.monotonic() + 60
        while not told or stamp_from_ros(told[-1].header.stamp) != now_ns:
            assert time.monotonic() < deadline
            # Again and again: the node may not have discovered this publisher yet.
            clock.publish(Clock(clock=stamp_to_ros(now_ns)))
            client.spin_for(0.5)

    try:
        client.spin(lambda: client.set_parameter("use_sim_time", True)[0])
        client.spin(clock.get_subscription_count)
        tell(late)
        client.send_tf(stamps(40, late + PERIOD), sideways(folder, 40))
        client.wait_for_frames(CHUNK)
        tell(early)
        client.clear()
        gate.open()
        wanted = stamps(8, early + PERIOD)
        client.send_tf(wanted, sideways(folder, 8))
        expect_the_plan(client, wanted)
        assert client.process.text().count("Time jumped back") == 1
        assert client.process.text().count("jump back in time") == before
    finally:
        client.set_parameter("use_sim_time", False)
        client.node.destroy_publisher(clock)

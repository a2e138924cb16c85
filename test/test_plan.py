"""Planned poses at frame times: interpolation, gaps, ends, and how the worker is fed with them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message
from tf2_msgs.msg import TFMessage
from transforms3d.euler import euler2mat

from mirage_ros.errors import MirageError
from mirage_ros.ros import NodeConfig, plan_intake
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.messages import pose_to_ros, stamp_to_ros, transform_to_ros
from mirage_ros.ros.plan import Missing, Plan, PlanConfig
from mirage_ros.ros.plan_intake import PlanIntake, Reactions
from mirage_ros.ros.tf import Buffer, StampedPoses, path_from_bytes

SECOND = 1_000_000_000
PERIOD = SECOND // 10
START = 1_763_000_000 * SECOND + 123_456_789


def pose_at(x: float, yaw: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = euler2mat(0, 0, yaw)
    pose[0, 3] = x
    return pose


def feed(buffer: Buffer, stamps_ns, parent="world", child="camera", speed=1.0, turn=0.0) -> None:
    """A frame that moves along x at `speed` m/s and turns about z at `turn` rad/s."""
    for stamp_ns in stamps_ns:
        seconds = (stamp_ns - START) / SECOND
        pose = pose_at(speed * seconds, turn * seconds)
        buffer.set_transform(transform_to_ros(pose, parent, child, stamp_ns))


def stamps(count: int, first: int = START, step: int = PERIOD) -> list[int]:
    return [first + index * step for index in range(count)]


def make_plan(buffer: Buffer, **config) -> Plan:
    return Plan(PlanConfig("world", "camera", **config), buffer)


class Heard:
    """A plan's intake, and what came of what it got: `logged`, `replanned`, `restarts`, `paths`."""

    def __init__(self, **config) -> None:
        self.buffer = Buffer(history_s=300.0)
        self.plan = make_plan(self.buffer)
        self.logged, self.replanned, self.restarts, self.paths = [], [], [], []
        self.published_ns = None
        health = Health(self.logged.append, self.logged.append)
        reactions = Reactions(
            published_ns=lambda: self.published_ns,
            replan=lambda: self.replanned.append(1),
            take_back=lambda: None,
            path_came=self.paths.append,
            start_over=self._start_over,
            go_on=lambda: self.intake.work_off(),
        )
        config = NodeConfig(camera_frame="camera", **config)
        self.intake = PlanIntake(self.buffer, self.plan, health, config, reactions)

    def _start_over(self, reason: str) -> bool:
        self.restarts.append(reason)
        self.buffer.clear()
        self.plan.forget()
        return True

    def move(self, *stamps_ns: int, child: str = "camera", y: float = 0.0) -> None:
        pose = pose_at(0.0)
        pose[1, 3] = y
        self.intake.moving(in_bytes([transform_to_ros(pose, "world", child, s) for s in stamps_ns]))

    def fix(self, base_from_camera: np.ndarray) -> None:
        pose = transform_to_ros(base_from_camera, "base", "camera", 0)
        self.intake.static(in_bytes([pose]))


def in_bytes(transforms: list) -> bytes:
    """As /tf brings them."""
    return bytes(serialize_message(TFMessage(transforms=transforms)))


def drain(plan: Plan, count: int = 4) -> list[int]:
    """All frame times that the plan hands out now."""
    times = []
    while (planned := plan.peek(count)) is not None:
        times += planned.stamps_ns
        plan.commit(planned)
    return times


def test_frames_start_at_the_first_pose_and_have_the_plan_s_stamps():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(10))
    planned = plan.peek(4)
    assert planned.stamps_ns == tuple(stamps(4))
    np.testing.assert_allclose(planned.world_from_camera[3], pose_at(0.3), atol=1e-9)
    assert plan.pending() == 10
    assert drain(plan) == stamps(10)
    assert plan.pending() == 0


def test_poses_faster_than_frames_are_interpolated_on_the_grid():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(21, step=PERIOD // 7))
    assert drain(plan) == stamps(20 * (PERIOD // 7) // PERIOD + 1)


def test_a_gap_is_not_filled_and_the_grid_starts_anew_behind_it():
    buffer = Buffer()
    plan = make_plan(buffer, gap_s=1.0)
    later = START + 30 * SECOND + 12_345
    feed(buffer, stamps(3))
    feed(buffer, stamps(3, first=later))
    assert drain(plan) == stamps(3) + stamps(3, first=later)


def test_each_frame_comes_once_while_the_plan_grows():
    buffer = Buffer()
    plan = make_plan(buffer)
    times = []
    for index in range(12):
        feed(buffer, [START + index * PERIOD])
        times += drain(plan, count=2)
    assert times == stamps(12)


def test_poses_of_the_past_are_not_rendered_again():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(5))
    drain(plan)
    feed(buffer, stamps(5))
    assert drain(plan) == []
    assert plan.is_past(START) and not plan.is_past(START + 5 * PERIOD)


def test_a_plan_told_again_changes_nothing_and_a_changed_one_is_heard():
    heard = Heard()
    heard.move(*stamps(5))
    drain(heard.plan)
    heard.move(*stamps(5))
    assert not heard.replanned and not heard.logged, "its frames are on their way"
    heard.published_ns = stamps(5)[-1]
    heard.move(*stamps(5))
    assert not heard.replanned and "jump back" in heard.logged[0], "it has been rendered already"
    heard.move(*stamps(5), y=1.0)
    assert heard.replanned and not heard.restarts


def test_asking_what_comes_next_changes_nothing():
    buffer = Buffer()
    plan = make_plan(buffer)
    late, after_gap = stamps(3, first=START - 10 * PERIOD), stamps(3, first=START + 5 * SECOND + 7)
    feed(buffer, stamps(3))
    assert plan.pending() == 3 and plan.peek(4).stamps_ns == tuple(stamps(3))
    feed(buffer, late)
    assert drain(plan) == [*late, *stamps(7, first=late[-1] + PERIOD), *stamps(3)]
    feed(buffer, after_gap)
    assert plan.peek(4).stamps_ns == tuple(after_gap)
    feed(buffer, stamps(10, first=START + 3 * PERIOD))
    assert plan.pending()
    assert drain(plan) == stamps(10, first=START + 3 * PERIOD) + after_gap
    mark = plan.mark()
    feed(buffer, [START + 60 * SECOND])
    plan.commit(plan.peek(4))
    plan.rewind(mark)
    assert plan.mark() == mark, "taken back, the grid is where it was"


def test_a_camera_moves_with_what_carries_it():
    heard = Heard()
    plan = heard.plan
    heard.fix(pose_at(0.2))
    heard.move(*stamps(8), child="base")
    heard.replanned.clear()
    planned = plan.peek(4)
    plan.commit(planned)
    heard.move(*stamps(8), child="base")
    heard.move(*stamps(8), child="somebody_else", y=5.0)
    assert not heard.replanned
    assert np.array_equal(plan.resolved(planned).world_from_camera, planned.world_from_camera)
    heard.move(*stamps(8), child="base", y=1.0)
    assert heard.replanned
    assert plan.resolved(planned).world_from_camera[:, 1, 3] == pytest.approx(1.0)
    raised = pose_at(0.2)
    raised[2, 3] = 0.5
    heard.fix(raised)
    assert plan.resolved(planned).world_from_camera[:, 2, 3] == pytest.approx(0.5)


LAST = (2**31 - 1) * SECOND


@pytest.mark.parametrize("time_mode", ["stream", "lockstep"])
def test_one_pose_at_the_end_of_time_is_left_out(time_mode):
    heard = Heard(time_mode=time_mode)
    heard.move(*stamps(4))
    heard.move(LAST)
    heard.move(*stamps(4, first=START + 4 * PERIOD))
    heard.move(LAST)
    assert drain(heard.plan) == stamps(8)
    assert "plan_horizon_s (300 s)" in heard.logged[0] and len(heard.logged) == 1
    heard.move(*stamps(4, first=START + 8 * PERIOD))
    assert drain(heard.plan) == stamps(4, first=START + 8 * PERIOD)


def test_several_poses_in_a_row_beyond_the_horizon_are_the_plan():
    heard, later = Heard(), START + 10_000 * SECOND
    heard.move(*stamps(4))
    drain(heard.plan)
    heard.move(later)
    heard.move(START + 4 * PERIOD)
    heard.move(*stamps(2, first=later))
    assert drain(heard.plan) == [START + 4 * PERIOD], "there is no third one in a row"
    heard.move(later + 2 * PERIOD)
    assert drain(heard.plan) == stamps(3, first=later)


def live(heard: Heard, stamps_ns: list[int], child: str, pace_s: float = 0.01) -> list[int]:
    """Poses one by one, each followed by a slip; what is rendered meanwhile, as it is planned."""
    rendered = []
    for stamp_ns in stamps_ns:
        heard.move(stamp_ns, child=child)
        if heard.published_ns:
            heard.move(LAST, child=child)
        rendered += drain(heard.plan)
        heard.published_ns = heard.plan.cursor_ns
        time.sleep(pace_s)
    return rendered


@pytest.mark.parametrize("child", ["camera", "base"])
def test_a_bag_that_begins_anew_is_heard_and_nothing_of_it_is_lost(monkeypatch, child):
    monkeypatch.setattr(plan_intake, "RETURN_S", 0.1)
    heard = Heard()
    if child == "base":
        heard.fix(pose_at(0.2))
    for _ in range(3):
        heard.restarts.clear()
        assert live(heard, stamps(40), child) == stamps(40)
    assert len(heard.restarts) == 1 and f"'{child}' on /tf jumped back" in heard.restarts[0]


def test_a_plan_that_is_told_again_and_again_is_no_new_one(monkeypatch):
    monkeypatch.setattr(plan_intake, "RETURN_S", 0.1)
    heard = Heard()
    for _ in range(20):
        heard.move(*stamps(40))
        drain(heard.plan)
        heard.published_ns = heard.plan.cursor_ns
        time.sleep(0.02)
    assert not heard.restarts


@pytest.mark.parametrize("first", [LAST, START + 200 * SECOND])
def test_who_begins_with_a_slip_is_heard_as_soon_as_it_is_plain(monkeypatch, first):
    monkeypatch.setattr(plan_intake, "RETURN_S", 0.1)
    heard = Heard()
    heard.move(first)
    assert drain(heard.plan) == [first]
    assert live(heard, stamps(40), "camera") == stamps(40)


def test_in_lockstep_time_does_not_go_back(monkeypatch):
    monkeypatch.setattr(plan_intake, "RETURN_S", 0.1)
    heard = Heard(time_mode="lockstep")
    assert live(heard, stamps(20), "camera") == stamps(20)
    assert live(heard, stamps(20), "camera") == []
    assert not heard.restarts and any("jump back in time" in line for line in heard.logged)


def test_paths_out_of_place_are_left_out_until_they_go_on_from_there(monkeypatch):
    monkeypatch.setattr(plan_intake, "RETURN_S", 0.1)
    heard, later = Heard(), START + 10_000 * SECOND

    def send(first: int, count: int = 4, step: int = PERIOD) -> list[int]:
        heard.intake.path(path_bytes(stamps(count, first, step)))
        return drain(heard.plan)

    assert send(START) == stamps(4)
    assert send(LAST - SECOND, 1) == send(later) == []
    assert send(START + 4 * PERIOD) == stamps(4, first=START + 4 * PERIOD)
    assert send(START + SECOND, 2, 301 * SECOND) == [] and "301 s apart" in heard.logged[-1]
    assert send(later) == send(later + PERIOD) == []
    assert send(later + 2 * PERIOD) == stamps(4, first=later + 2 * PERIOD)
    assert send(START) == send(START + PERIOD) == [] and not heard.restarts
    assert send(START + 2 * PERIOD) == stamps(4, first=START + 2 * PERIOD) and heard.restarts
    assert send(START) == send(START) == [], "no new one"
    time.sleep(0.12)
    assert send(START) == []


def test_what_the_history_dropped_is_skipped():
    buffer = Buffer(history_s=1.0)
    plan = make_plan(buffer)
    feed(buffer, stamps(2))
    assert len(drain(plan)) == 2
    feed(buffer, stamps(40, first=START + 2 * PERIOD))
    assert drain(plan) == stamps(11, first=START + 31 * PERIOD)


def path(stamps_ns, frame="world") -> StampedPoses:
    return path_from_bytes(path_bytes(stamps_ns, frame))


def path_bytes(stamps_ns, frame="world") -> bytes:
    message = Path()
    message.header.frame_id = frame
    for stamp_ns in stamps_ns:
        pose = PoseStamped(pose=pose_to_ros(pose_at((stamp_ns - START) / SECOND)))
        pose.header.stamp = stamp_to_ros(stamp_ns)
        message.poses.append(pose)
    return bytes(serialize_message(message))


def test_a_path_goes_before_tf_and_tf_goes_on_after_it():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(10), speed=-1.0)
    plan.set_path(path(stamps(5)))
    planned = plan.peek(5)
    assert planned.stamps_ns == tuple(stamps(5))
    assert planned.world_from_camera[4][0, 3] == pytest.approx(0.4)
    plan.commit(planned)
    planned = plan.peek(5)
    assert planned.stamps_ns == tuple(stamps(10)[5:])
    assert planned.world_from_camera[0][0, 3] == pytest.approx(-0.5)


def test_a_sparse_path_is_interpolated():
    plan = make_plan(Buffer())
    plan.set_path(path([START, START + 3 * SECOND]))
    assert drain(plan) == stamps(31)


def test_a_path_in_another_frame_is_brought_into_the_world():
    buffer = Buffer()
    plan = make_plan(buffer)
    with pytest.raises(MirageError, match="no frame 'map' or 'world'"):
        plan.set_path(path(stamps(2), frame="map"))
    buffer.set_transform_static(transform_to_ros(pose_at(5.0), "world", "map", 0))
    plan.set_path(path(stamps(2), frame="map"))
    assert plan.peek(2).world_from_camera[1][0, 3] == pytest.approx(5.1)


def test_a_path_in_a_frame_that_moves_is_placed_pose_by_pose():
    buffer, times = Buffer(), stamps(300, step=PERIOD // 7)
    plan = make_plan(buffer)
    feed(buffer, stamps(60), "world", "map", speed=2.0, turn=0.7)
    buffer.set_transform_static(transform_to_ros(pose_at(0.3, 1.0), "world", "room", 0))
    for target in ("world", "room"):
        expected = [buffer.matrix(target, "map", stamp) for stamp in times]
        found = buffer.matrices(target, "map", np.array(times))
        np.testing.assert_allclose(found, expected, atol=1e-9)
    plan.set_path(path(times, "map"))
    at = plan.peek(8).stamps_ns[-1]
    pose = pose_at((at - START) / SECOND)
    expected = buffer.matrix("world", "map", at) @ pose
    np.testing.assert_allclose(plan.peek(8).world_from_camera[-1], expected, atol=1e-3)
    with pytest.raises(MirageError, match="not at"):
        plan.set_path(path([START, START + 100 * SECOND], "map"))


def test_a_path_told_again_is_known():
    plan = make_plan(Buffer())
    plan.set_path(path(stamps(8)))
    drain(plan)
    assert plan.knows(path(stamps(8))) and not plan.knows(path(stamps(7)))
    plan.forget()
    assert not plan.knows(path(stamps(8)))


def test_a_path_of_the_past_is_refused_and_the_old_one_goes_on():
    plan = make_plan(Buffer())
    plan.set_path(path(stamps(8)))
    plan.commit(plan.peek(4))
    with pytest.raises(MirageError, match="back in time"):
        plan.set_path(path(stamps(3)))
    assert drain(plan) == stamps(8)[4:]


@pytest.mark.parametrize(("policy", "x_m"), [("hold", 0.2), ("extrapolate", 0.5)])
def test_beyond_the_plan_frames_are_made_up_only_for_the_time_that_passed(policy, x_m):
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(3), turn=1.0)
    drain(plan)
    assert plan.peek(8, Missing("wait", 10 * SECOND)) is None
    planned = plan.peek(8, Missing(policy, elapsed_ns=3 * PERIOD))
    assert planned.stamps_ns == tuple(stamps(3, first=START + 3 * PERIOD))
    expected = pose_at(x_m, 0.5 if policy == "extrapolate" else 0.2)
    np.testing.assert_allclose(planned.world_from_camera[-1], expected, atol=1e-9)


def test_late_frames_are_left_out_while_a_chunk_of_later_ones_is_planned():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(20))
    assert plan.peek(4).skipped == 0
    for late_ns, first in ((START, 0), (START + 1, 1), (START + 7 * PERIOD, 7), (LAST, 16)):
        planned = plan.peek(4, late_before_ns=late_ns)
        assert planned.stamps_ns == tuple(stamps(20)[first : first + 4])
        assert planned.skipped == first
    plan.commit(plan.peek(4, late_before_ns=START + 18 * PERIOD))
    assert plan.peek(4, late_before_ns=LAST) is None
    feed(buffer, stamps(2, first=START + 20 * PERIOD))
    assert plan.peek(4, late_before_ns=LAST).stamps_ns == tuple(stamps(2, first=START + 20 * PERIOD))


def test_extrapolation_has_a_limit():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(3))
    drain(plan)
    planned = plan.peek(100, Missing("extrapolate", 10 * SECOND, limit_ns=2 * PERIOD))
    assert len(planned) == 2

"""What a plan takes in: plans published again, slips in time, and bags that begin anew."""

from __future__ import annotations

import time

import numpy as np
import pytest
from fed_plans import LAST, PERIOD, SECOND, START, drain, make_plan, path_bytes, pose_at, stamps
from rclpy.serialization import serialize_message
from tf2_msgs.msg import TFMessage

from mirage_ros.ros import NodeConfig, plan_intake
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.messages import transform_to_ros
from mirage_ros.ros.plan_intake import PlanIntake, Reactions
from mirage_ros.ros.tf import Buffer


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

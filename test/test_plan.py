"""Planned poses at frame times: interpolation, gaps, ends, and how the worker is fed with them."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message
from tf2_msgs.msg import TFMessage
from transforms3d.euler import euler2mat

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.conversions import (
    pose_to_ros,
    stamp_to_ros,
    transform_to_ros,
)
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.plan import Missing, Plan, PlanConfig
from mirage_ros.ros.serialized import StampedPoses, path_from_bytes
from mirage_ros.ros.tf_buffer import Buffer
from mirage_ros.ros.tf_intake import TfIntake

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
    buffer, logged, replanned, published = Buffer(), [], [], [None]
    plan, config = make_plan(buffer), NodeConfig(camera_frame="camera")
    health = Health(logged.append, logged.append)
    intake = TfIntake(
        buffer, plan, health, config, published_ns=lambda: published[-1],
        replan=lambda: replanned.append(1), go_on=lambda: intake.work_off(),
    )  # fmt: skip

    def told(x: float) -> bytes:
        times = stamps(5)
        return in_bytes([transform_to_ros(pose_at(x * s), "world", "camera", s) for s in times])

    intake.moving(told(1e-12))
    drain(plan)
    intake.moving(told(1e-12))
    assert not replanned and not logged, "its frames are on their way"
    published.append(stamps(5)[-1])
    intake.moving(told(1e-12))
    assert not replanned and "jump back" in logged[0], "it has been rendered already"
    intake.moving(told(2e-12))
    assert replanned


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
    buffer, replanned = Buffer(), []
    plan, config = make_plan(buffer), NodeConfig(camera_frame="camera")
    health = Health(lambda text: None, lambda text: None)
    intake = TfIntake(
        buffer, plan, health, config, published_ns=lambda: None,
        replan=lambda: replanned.append(1), go_on=lambda: intake.work_off(),
    )  # fmt: skip

    def told(y: float, child: str = "base") -> bytes:
        pose = pose_at(0.0)
        pose[1, 3] = y
        transforms = [transform_to_ros(pose, "world", child, s) for s in stamps(8)]
        return in_bytes(transforms)

    intake.static(in_bytes([transform_to_ros(pose_at(0.2), "base", "camera", 0)]))
    intake.moving(told(0.0))
    replanned.clear()
    planned = plan.peek(4)
    plan.commit(planned)
    intake.moving(told(0.0))
    intake.moving(told(5.0, "somebody_else"))
    assert not replanned
    assert np.array_equal(plan.resolved(planned).world_from_camera, planned.world_from_camera)
    intake.moving(told(1.0))
    assert replanned
    assert plan.resolved(planned).world_from_camera[:, 1, 3] == pytest.approx(1.0)
    raised = pose_at(0.2)
    raised[2, 3] = 0.5
    intake.static(in_bytes([transform_to_ros(raised, "base", "camera", 0)]))
    assert plan.resolved(planned).world_from_camera[:, 2, 3] == pytest.approx(0.5)


def test_what_the_history_dropped_is_skipped():
    buffer = Buffer(history_s=1.0)
    plan = make_plan(buffer)
    feed(buffer, stamps(2))
    assert len(drain(plan)) == 2
    feed(buffer, stamps(40, first=START + 2 * PERIOD))
    assert drain(plan) == stamps(11, first=START + 31 * PERIOD)


def path(stamps_ns, frame="world") -> StampedPoses:
    message = Path()
    message.header.frame_id = frame
    for stamp_ns in stamps_ns:
        pose = PoseStamped(pose=pose_to_ros(pose_at((stamp_ns - START) / SECOND)))
        pose.header.stamp = stamp_to_ros(stamp_ns)
        message.poses.append(pose)
    return path_from_bytes(serialize_message(message))


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


def test_extrapolation_has_a_limit():
    buffer = Buffer()
    plan = make_plan(buffer)
    feed(buffer, stamps(3))
    drain(plan)
    planned = plan.peek(100, Missing("extrapolate", 10 * SECOND, limit_ns=2 * PERIOD))
    assert len(planned) == 2

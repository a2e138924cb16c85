"""Planned poses at frame times: interpolation, gaps, ends, and paths."""

from __future__ import annotations

import numpy as np
import pytest
from fed_plans import LAST, PERIOD, SECOND, START, drain, feed, make_plan, path_bytes, pose_at, stamps

from mirage_ros.errors import MirageError
from mirage_ros.ros.messages import transform_to_ros
from mirage_ros.ros.plan import Missing
from mirage_ros.ros.tf import Buffer, StampedPoses, path_from_bytes


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


def test_what_the_history_dropped_is_skipped():
    buffer = Buffer(history_s=1.0)
    plan = make_plan(buffer)
    feed(buffer, stamps(2))
    assert len(drain(plan)) == 2
    feed(buffer, stamps(40, first=START + 2 * PERIOD))
    assert drain(plan) == stamps(11, first=START + 31 * PERIOD)


def path(stamps_ns, frame="world") -> StampedPoses:
    return path_from_bytes(path_bytes(stamps_ns, frame))


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

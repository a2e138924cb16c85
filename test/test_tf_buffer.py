"""The project's own TF buffer, and the one on tf2_ros where a ROS install brings that: one meaning."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest
from fed_plans import PERIOD, SECOND, START, feed, pose_at, stamps
from rclpy.time import Time

from mirage_ros.ros.messages import stamp_to_ros, transform_from_ros, transform_to_ros
from mirage_ros.ros.tf import Buffer, make_buffer
from mirage_ros.ros.tracks import ConnectivityException, ExtrapolationException, LookupException, Pose

has_tf2 = pytest.mark.skipif(
    importlib.util.find_spec("tf2_ros") is None,
    reason="tf2_ros is not installed (it comes with a ROS install, not from PyPI)",
)


@pytest.fixture(params=[Buffer, pytest.param(make_buffer, marks=has_tf2)], ids=["own", "tf2_ros"])
def make(request):
    return request.param


def test_between_stamps_position_is_lerp_and_rotation_slerp(make):
    buffer = make(60.0)
    feed(buffer, stamps(3, step=SECOND), speed=2.0, turn=0.8)
    for share in (0.0, 0.25, 0.5, 1.0, 1.7):
        matrix = buffer.matrix("world", "camera", START + round(share * SECOND))
        np.testing.assert_allclose(matrix, pose_at(2 * share, 0.8 * share), atol=1e-6)


def test_chains_with_static_frames_in_both_directions(make):
    buffer = make(60.0)
    feed(buffer, stamps(5), "world", "base", turn=0.5)
    base_from_camera = pose_at(0.3, 1.0)
    buffer.set_transform_static(transform_to_ros(base_from_camera, "base", "camera", 0))
    stamp_ns = START + PERIOD * 3 // 2
    expected = pose_at(0.15, 0.075) @ base_from_camera
    there = transform_from_ros(
        buffer.lookup_transform("world", "camera", Time(nanoseconds=stamp_ns))
    )
    back = transform_from_ros(
        buffer.lookup_transform("camera", "world", Time(nanoseconds=stamp_ns))
    )
    np.testing.assert_allclose(there, expected, atol=1e-6)
    np.testing.assert_allclose(back @ there, np.eye(4), atol=1e-6)


def test_the_buffer_says_what_is_missing_and_does_not_extrapolate(make):
    buffer = make(60.0)
    feed(buffer, stamps(3))
    feed(buffer, stamps(3), "map", "robot")
    with pytest.raises(LookupException, match="no frame 'arm'"):
        buffer.matrix("world", "arm", START)
    with pytest.raises(ConnectivityException, match="'world'.*'robot'"):
        buffer.matrix("world", "robot", START)
    for stamp_ns in (START - 1, START + 2 * PERIOD + 1):
        with pytest.raises(ExtrapolationException, match=str(stamp_ns)):
            buffer.matrix("world", "camera", stamp_ns)
        assert not buffer.can_transform("world", "camera", Time(nanoseconds=stamp_ns))
    latest = buffer.lookup_transform("world", "camera", Time())
    assert latest.header.stamp == stamp_to_ros(START + 2 * PERIOD)


def test_the_buffer_is_bounded_by_time(make):
    buffer = make(history_s=1.0)
    feed(buffer, stamps(100))
    assert buffer.span("world", "camera") == (START + 89 * PERIOD, START + 99 * PERIOD)


def test_poses_out_of_order_are_sorted_in(make):
    buffer = make(60.0)
    order = stamps(6)
    feed(buffer, [order[i] for i in (0, 3, 1, 5, 2, 4, 3)])
    assert buffer.tracks["camera"].stamps == order


def test_a_changed_pose_takes_the_old_one_s_place_between_stamps_too(make):
    buffer = make(60.0)
    feed(buffer, stamps(5))
    feed(buffer, stamps(5)[2:], speed=3.0)
    for index, x in ((1, 0.1), (1.5, 0.35), (2, 0.6), (2.5, 0.75), (4, 1.2)):
        matrix = buffer.matrix("world", "camera", START + round(index * PERIOD))
        np.testing.assert_allclose(matrix, pose_at(x), atol=1e-6)
    buffer.clear()
    feed(buffer, stamps(5), speed=2.0)
    matrix = buffer.matrix("world", "camera", START + PERIOD // 2)
    np.testing.assert_allclose(matrix, pose_at(0.1), atol=1e-6)
    assert not buffer.tracks["camera"].rewritten


def test_static_frames_stay_when_what_moves_is_forgotten(make):
    buffer = make(60.0)
    buffer.set_transform_static(transform_to_ros(pose_at(0.3, 1.0), "base", "camera", 0))
    feed(buffer, stamps(2), "world", "base")
    buffer.clear()
    np.testing.assert_allclose(buffer.matrix("base", "camera", START), pose_at(0.3, 1.0), atol=1e-6)
    with pytest.raises(LookupException, match="no frame 'world'"):
        buffer.matrix("world", "camera", START)


def test_a_failed_look_up_costs_no_more_with_thousands_of_frames():
    """It is made whenever the node looks for something to render."""

    def seconds(frames: int) -> float:
        buffer = Buffer(60.0)
        for index in range(frames):
            buffer.add_static(Pose("world", f"shelf_{index}", 0, np.zeros(3), np.array([1.0, 0, 0, 0])))
        since_s = time.process_time()
        for _ in range(500):
            with pytest.raises(LookupException, match="no frame 'camera'"):
                buffer.matrix("world", "camera", START)
        return time.process_time() - since_s

    assert seconds(9000) < 5 * seconds(9)


def test_frames_that_move_to_another_parent_leave_their_old_one():
    buffer = Buffer(60.0)
    for parent in ("table", "shelf", "table"):
        buffer.set_transform_static(transform_to_ros(pose_at(0.0), parent, "cup", 0))
    with pytest.raises(LookupException, match=r"no frame 'shelf' \(known: cup, table\)"):
        buffer.matrix("shelf", "cup", START)

"""GenerateRollout: poses in, frames and a recording out, or a refusal at once."""

from __future__ import annotations

import array
import math
import time

from action_msgs.msg import GoalStatus
from plans import sideways
from sim_client import OK, PERIOD, START, flat

from mirage_ros.action import GenerateRollout
from mirage_ros.ros.playback import read_recording


def test_a_rollout_renders_every_pose_records_it_and_tells_how_far_it_is(sim, folder, tmp_path):
    recording = str(tmp_path / "rollout.mcap")
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 10)), recording=recording)
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_SUCCEEDED and done.result.success
    result = done.result
    assert (result.frames, result.first_stamp_ns) == (10, START + PERIOD)
    assert result.last_stamp_ns == START + 10 * PERIOD and result.recording == recording
    recorded = read_recording(tmp_path / "rollout.mcap")
    assert [frame.stamp_ns for frame in recorded.frames] == [
        START + PERIOD * (1 + index) for index in range(10)
    ]
    sim.spin(lambda: len(feedback) == 10)
    assert [f.frames_done for f in feedback] == list(range(1, 11))
    sim.wait_for_frames(10)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(10)]


def test_a_rollout_of_a_million_poses_is_taken_at_once_and_canceled_at_once(sim, folder):
    pose = flat(sideways(folder, 1))
    goal = GenerateRollout.Goal(poses=array.array("d", pose * 1_000_000))
    began = time.monotonic()
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    taken_s = time.monotonic() - began
    sim.spin(lambda: len(feedback) >= 4)
    began = time.monotonic()
    sim.spin(handle.cancel_goal_async().done)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_CANCELED and not done.result.success
    sim.spin(lambda: len(feedback) == done.result.frames)
    print(f"taken in {taken_s:.2f} s, canceled in {time.monotonic() - began:.2f} s")
    assert taken_s < 10 and time.monotonic() - began < 10
    assert sim.step().result == OK


def test_rollouts_that_cannot_be_are_refused_at_once(sim, folder):
    pose = flat(sideways(folder, 1))
    nan = [math.nan, *pose[1:]]
    cases = [
        ({"poses": []}, "give 7 for each pose"),
        ({"poses": pose[:5]}, "give 7 for each pose"),
        ({"poses": pose + nan}, "Pose 1"),
        ({"poses": pose[:3] + [0.0, 0.0, 0.0, 2.0]}, "unit quaternions"),
        ({"poses": pose * 2, "stamps_ns": [1]}, "one stamp for each"),
        ({"poses": pose * 2, "stamps_ns": [5, 5]}, "increase"),
        ({"poses": pose, "stamps_ns": [START]}, "later stamps"),
        ({"poses": pose, "recording": "/proc/no/such.mcap"}, "/proc/no"),
    ]
    for fields, words in cases:
        handle, _ = sim.send_goal(
            GenerateRollout, "generate_rollout", GenerateRollout.Goal(**fields)
        )
        done = sim.result_of(handle)
        assert done.status == GoalStatus.STATUS_ABORTED, fields
        assert not done.result.success and words in done.result.message
        assert done.result.message and done.result.frames == 0
    assert sim.step().result == OK

"""World, time or state change while something runs: who waits is told, and nothing old comes after.

The node's model is slow, so that a chunk is always at work.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from lifecycle_msgs.msg import Transition
from make_seed import write_seed
from ros_client import TESTS
from rosgraph_msgs.msg import Clock
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Result
from test_lifecycle import change, worker_pid
from test_node import sideways
from test_node_life import set_parameter
from test_simulator import (
    LOCKSTEP,
    OK,
    PAUSED,
    PERIOD,
    PLAYING,
    START,
    entity_state,
    flat,
    reset,
    simulated,
)

from mirage_ros.action import GenerateRollout
from mirage_ros.ros.conversions import stamp_from_ros, stamp_to_ros

SLOW_NODE = (str(TESTS / "slow_node.py"),)
CHUNK_S = 0.4
ENDLESS = 10_000
TIME_ALONE = srv.ResetSimulation.Request.SCOPE_TIME


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


def connect(tmp_path_factory, folder, *arguments: str):
    arguments += ("-p", f"seed:={folder}")
    yield from simulated(tmp_path_factory.mktemp("log"), *arguments, program=SLOW_NODE)


@pytest.fixture(scope="module")
def connected(tmp_path_factory, folder):
    yield from connect(tmp_path_factory, folder, *LOCKSTEP)


@pytest.fixture(scope="module")
def streaming(tmp_path_factory, folder):
    yield from connect(tmp_path_factory, folder, "-p", "plan_idle_s:=0.3")


@pytest.fixture
def sim(connected, folder):
    """Active and paused at the start, the seed's world loaded."""
    change(connected, Transition.TRANSITION_ACTIVATE)
    assert connected.load(str(folder)).result.result == OK
    if connected.state() != PAUSED:
        connected.set_state(PAUSED)
    connected.spin_for(0.2)
    connected.clear()
    connected.clock.clear()
    return connected


def now_ns(sim) -> int:
    return stamp_from_ros(entity_state(sim).state.header.stamp)


def plan(sim, folder, frames: int) -> None:
    sim.send_tf([START + PERIOD * (1 + i) for i in range(frames)], sideways(folder, frames))


def play(sim, folder, frames: int = 60) -> None:
    plan(sim, folder, frames)
    assert sim.set_state(PLAYING).result == OK
    sim.wait_for_frames(1)


def test_a_load_that_fails_leaves_time_and_plan_as_they_were(sim, folder, tmp_path):
    (tmp_path / "world.json").write_text("{")
    plan(sim, folder, 9)
    assert sim.step(8).result == OK
    assert sim.load(str(tmp_path)).result.result == srv.LoadWorld.Response.RESOURCE_PARSE_ERROR
    assert now_ns(sim) == START + 8 * PERIOD
    assert sim.step().result == OK and now_ns(sim) == START + 9 * PERIOD
    there = sideways(folder, 9)[-1]
    sim.spin(lambda: len(sim.rendered_poses()) == 9)
    assert sim.rendered_poses()[-1].transform.translation.x == pytest.approx(there[0, 3])


def unload(sim) -> str:
    assert sim.ask(srv.UnloadWorld, "unload_world").result.result == OK
    return "unloaded"


def deactivate(sim) -> str:
    assert change(sim, Transition.TRANSITION_DEACTIVATE)
    return "deactivated"


def start_over(sim) -> str:
    assert reset(sim, 0).result == OK
    return "reset"


def begin_time_again(sim) -> str:
    assert reset(sim, TIME_ALONE).result == OK
    return "Time was reset"


ENDS = (unload, deactivate, start_over, begin_time_again)


@pytest.mark.parametrize("end", ENDS)
def test_steps_are_answered_when_what_they_run_in_ends(sim, end):
    assert sim.step().result == OK
    future = sim._services["step_simulation"].call_async(srv.StepSimulation.Request(steps=ENDLESS))
    sim.wait_for_frames(4)
    words = end(sim)
    sim.spin(future.done, patience_s=20)
    answer = future.result().result
    assert answer.result == Result.RESULT_OPERATION_FAILED and words in answer.error_message


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ["simulate_steps", "generate_rollout"])
def test_goals_are_aborted_when_what_they_run_in_ends(sim, folder, name, end):
    if name == "simulate_steps":
        kind, goal = SimulateSteps, SimulateSteps.Goal(steps=ENDLESS)
    else:
        kind = GenerateRollout
        goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)) * ENDLESS)
    handle, feedback = sim.send_goal(kind, name, goal)
    sim.spin(lambda: feedback)
    words = end(sim)
    future = handle.get_result_async()
    sim.spin(future.done, patience_s=20)
    done = future.result()
    told = done.result.message if kind is GenerateRollout else done.result.result.error_message
    assert done.status == GoalStatus.STATUS_ABORTED and words in told


def test_a_rollout_whose_recording_was_ended_by_hand_is_answered(sim, folder, tmp_path):
    from mirage_ros.srv import Record

    poses = flat(sideways(folder, 8))
    goal = GenerateRollout.Goal(poses=poses, recording=str(tmp_path / "walk.mcap"))
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    sim.spin(lambda: feedback)
    assert sim.ask(Record, "record", start=False).success
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_ABORTED and "No recording" in done.result.message


def test_beside_another_clock_nothing_is_stepped_rolled_out_or_activated(sim, folder):
    other = sim.node.create_publisher(Clock, "/clock", 1)
    try:
        sim.spin(lambda: sim.step().result != OK, patience_s=10)
        refused = sim.step()
        assert refused.result == Result.RESULT_OPERATION_FAILED
        assert sim.node.get_name() in refused.error_message
        goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)))
        handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
        done = sim.result_of(handle)
        assert done.status == GoalStatus.STATUS_ABORTED
        assert sim.node.get_name() in done.result.message
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            assert change(sim, transition)
        sim.spin_for(0.2)
        sim.clock.clear()
        assert change(sim, Transition.TRANSITION_CONFIGURE)
        assert not change(sim, Transition.TRANSITION_ACTIVATE)
        sim.spin_for(0.3)
        assert not sim.clock, "the node tells the time beside another clock"
    finally:
        sim.node.destroy_publisher(other)
    sim.spin(lambda: change(sim, Transition.TRANSITION_ACTIVATE), patience_s=10)
    sim.spin(lambda: sim.clock == [START], patience_s=5)


def test_a_step_under_way_ends_when_another_clock_appears(sim):
    assert sim.step().result == OK
    future = sim._services["step_simulation"].call_async(srv.StepSimulation.Request(steps=ENDLESS))
    sim.wait_for_frames(2)
    other = sim.node.create_publisher(Clock, "/clock", 1)
    sim.spin(future.done, patience_s=20)
    sim.node.destroy_publisher(other)
    assert sim.node.get_name() in future.result().result.error_message
    sim.spin(lambda: sim.step().result == OK, patience_s=20)


def test_after_a_pause_is_answered_nothing_comes_and_a_step_counts_its_own_frames(sim, folder):
    play(sim, folder)
    assert sim.set_state(PAUSED).result == OK
    paused_ns = now_ns(sim)
    sim.spin_for(3 * CHUNK_S)
    assert now_ns(sim) == paused_ns and sim.clock[-1] == paused_ns
    assert sim.stamps("color/image_raw")[-1] == paused_ns
    assert sim.step(2).result == OK
    assert now_ns(sim) == paused_ns + 2 * PERIOD


def test_steps_after_canceled_ones_count_their_own_frames(sim):
    handle, feedback = sim.send_goal(
        SimulateSteps, "simulate_steps", SimulateSteps.Goal(steps=ENDLESS)
    )
    sim.spin(lambda: len(feedback) >= 4)
    sim.spin(handle.cancel_goal_async().done)
    before_ns = now_ns(sim)
    assert sim.step(2).result == OK
    # The chunk that was at work, and two frames more.
    assert now_ns(sim) - before_ns == 6 * PERIOD


def test_time_that_is_reset_while_playing_stays_reset(sim, folder):
    play(sim, folder)
    assert reset(sim, TIME_ALONE).result == OK
    sim.spin_for(3 * CHUNK_S)
    assert sim.clock[-1] == START and sim.clock.count(START) == 1
    sim.clear()
    plan(sim, folder, 8)
    sim.wait_for_frames(8)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(8)]


def test_more_resets_than_the_queue_holds_are_all_answered(sim, folder):
    assert reset(sim, TIME_ALONE).result == OK
    play(sim, folder)
    client = sim._services["reset_simulation"]
    wanted = srv.ResetSimulation.Request(scope=TIME_ALONE)
    futures = []
    for _ in range(10):
        futures.append(client.call_async(wanted))
        sim.spin_for(0.01)
    sim.spin(lambda: all(future.done() for future in futures), patience_s=20)
    told = {future.result().result.error_message for future in futures}
    assert "" in told and any("commands wait" in text for text in told)


def test_a_node_that_was_reset_while_inactive_sends_nothing_of_the_world_before(sim, folder):
    play(sim, folder)
    assert change(sim, Transition.TRANSITION_DEACTIVATE)
    sim.spin_for(3 * CHUNK_S)
    assert reset(sim, 0).result == OK
    sim.spin_for(0.2)
    sim.clear()
    sim.clock.clear()
    assert change(sim, Transition.TRANSITION_ACTIVATE)
    sim.spin_for(3 * CHUNK_S)
    assert sim.clock == [START] and not sim.stamps("color/image_raw")
    sim.spin(lambda: sim.got["cache/points"], patience_s=5)


def test_a_world_that_cannot_be_kept_for_the_next_worker_is_told_and_comes_back(sim):
    """A file lies where the snapshots' folder was."""
    descriptors = Path(f"/proc/{sim.process.process.pid}/fd")
    locks = [os.readlink(path) for path in descriptors.iterdir() if path.exists()]
    (scratch,) = [Path(lock).parent for lock in locks if "/mirage-" in lock]
    scratch.rename(aside := scratch.with_name(scratch.name + ".aside"))
    try:
        scratch.touch()
        assert sim.step().result == OK
        words = "cannot be kept for the case that the inference worker is lost"
        sim.spin(lambda: words in sim.problems(), patience_s=10)
        assert sim.step(10).result == OK
        assert sim.process.text().count(words) == 1, "told more than once"
        os.kill(worker_pid(sim), signal.SIGKILL)
        before_ns = now_ns(sim)
        assert sim.step().result == OK and now_ns(sim) == before_ns + PERIOD
    finally:
        scratch.unlink()
        aside.rename(scratch)


def test_a_rollout_begins_where_the_frames_end_that_are_at_work(sim, folder):
    play(sim, folder)
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 4)))
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_SUCCEEDED
    found = sim.stamps("color/image_raw")
    assert done.result.first_stamp_ns in found
    assert found == [START + PERIOD * (1 + i) for i in range(len(found))]


def test_a_plan_told_again_after_a_reset_is_no_jump_back(sim, folder):
    assert sim.step(12).result == OK
    assert reset(sim, 0).result == OK
    play_again = [START + PERIOD * (1 + i) for i in range(8)]
    plan(sim, folder, 8)
    assert sim.set_state(PLAYING).result == OK
    for _ in range(4):
        sim.spin_for(0.05)
        plan(sim, folder, 8)
    sim.spin(lambda: play_again[-1] in sim.stamps("color/image_raw"), patience_s=20)
    assert "jump back in time" not in sim.process.text()


def test_when_time_jumps_back_nothing_of_the_time_before_comes_after(streaming, folder):
    client, poses = streaming, sideways(folder, 40)
    clock = client.node.create_publisher(Clock, "/clock", 10)
    client.spin(lambda: set_parameter(client, "use_sim_time", True)[0])
    client.spin(clock.get_subscription_count)
    late, early = START + 10**13, START + 10**12
    clock.publish(Clock(clock=stamp_to_ros(late)))
    client.spin_for(0.3)
    client.send_tf([late + PERIOD * (1 + i) for i in range(40)], poses)
    client.wait_for_frames(1)
    clock.publish(Clock(clock=stamp_to_ros(early)))
    client.spin(lambda: "Time jumped back" in client.process.text(), patience_s=10)
    client.spin_for(0.2)
    client.clear()
    wanted = [early + PERIOD * (1 + i) for i in range(8)]
    client.send_tf(wanted, poses[:8])
    client.wait_for_frames(8)
    assert client.stamps("color/image_raw") == wanted
    assert "jump back in time" not in client.process.text()
    client.node.destroy_publisher(clock)

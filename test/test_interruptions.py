"""World, time or state change while something runs: who waits is told, and nothing old comes after.

The model waits at a gate, so that a chunk is surely at work when the test wants one to be.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from gate import Gate
from geometry_msgs.msg import Twist, Vector3
from lifecycle_msgs.msg import Transition
from mirage_ros.action import GenerateRollout
from mirage_ros.srv import ForkWorld, Record
from plans import sideways
from ros_client import GATED_NODE
from rosgraph_msgs.msg import Clock
from sim_client import (
    LOCKSTEP,
    OK,
    PAUSED,
    PERIOD,
    PLAYING,
    START,
    STOPPED,
    change,
    entity_state,
    flat,
    reset,
    simulated,
    start_again,
    worker_pid,
)
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Resource, Result, SimulationState
from test_sim_spawning import spawn

from mirage_ros.ros.messages import pose_from_ros, stamp_from_ros

CHUNK = 4
ENDLESS = 10_000
# Chunks that are enough for what ends the endless to come about, and not enough for the endless.
FEW = 100
TIME_ALONE = srv.ResetSimulation.Request.SCOPE_TIME


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = Gate(tmp_path_factory.mktemp("gate"))
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def connected(tmp_path_factory, folder, gate):
    arguments = (*LOCKSTEP, "-p", f"seed:={folder}")
    program = (*GATED_NODE, str(gate.path))
    yield from simulated(tmp_path_factory.mktemp("log"), *arguments, program=program)


@pytest.fixture
def sim(connected, folder, gate):
    """Active and paused at the start, the seed's world loaded, the gate open."""
    gate.open()
    change(connected, Transition.TRANSITION_ACTIVATE)
    start_again(connected, folder)
    return connected


@pytest.fixture
def halted(sim, gate):
    """The same, but one chunk is made and the next one stays at work until the gate opens."""
    gate.shut()
    gate.let(1)
    return sim


def now_ns(sim) -> int:
    return stamp_from_ros(entity_state(sim).state.header.stamp)


def plan(sim, folder, frames: int) -> None:
    sim.send_tf([START + PERIOD * (1 + i) for i in range(frames)], sideways(folder, frames))


def play(sim, folder, frames: int = 60) -> None:
    """Until the first chunk's frames are here, one is at work and one waits."""
    plan(sim, folder, frames)
    assert sim.set_state(PLAYING).result == OK
    sim.wait_for_frames(CHUNK)
    sim.wait_for_queue(2)


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


def load_again(sim) -> str:
    uri = sim.ask(srv.GetCurrentWorld, "get_current_world").world.world_resource.uri
    assert sim.load(uri).result.result == OK
    return "reset"


ENDS = (unload, deactivate, start_over, begin_time_again, load_again)


@pytest.mark.parametrize("end", ENDS)
def test_steps_are_answered_when_what_they_run_in_ends(halted, gate, end):
    sim = halted
    future = sim.begin(srv.StepSimulation, "step_simulation", steps=ENDLESS)
    sim.wait_for_frames(CHUNK)
    gate.let(FEW)
    words = end(sim)
    sim.spin(future.done, patience_s=20)
    answer = future.result().result
    assert answer.result == Result.RESULT_OPERATION_FAILED and words in answer.error_message


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ["simulate_steps", "generate_rollout"])
def test_goals_are_aborted_when_what_they_run_in_ends(halted, folder, gate, name, end):
    sim = halted
    if name == "simulate_steps":
        kind, goal = SimulateSteps, SimulateSteps.Goal(steps=ENDLESS)
    else:
        kind = GenerateRollout
        goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)) * ENDLESS)
    handle, feedback = sim.send_goal(kind, name, goal)
    sim.spin(lambda: feedback)
    gate.let(FEW)
    words = end(sim)
    future = handle.get_result_async()
    sim.spin(future.done, patience_s=20)
    done = future.result()
    told = done.result.message if kind is GenerateRollout else done.result.result.error_message
    assert done.status == GoalStatus.STATUS_ABORTED and words in told


def test_while_a_world_is_loading_nothing_is_set_or_stepped(halted, folder, gate):
    """It waits for the chunk at work."""
    sim = halted
    play(sim, folder)
    resource = Resource(uri=str(folder))
    future = sim.begin(srv.LoadWorld, "load_world", world_resource=resource)
    sim.spin(lambda: sim.state() == SimulationState.STATE_LOADING_WORLD)
    for refused in (sim.set_state(PAUSED), sim.step()):
        assert refused.result == Result.RESULT_INCORRECT_STATE
        assert "being loaded" in refused.error_message
    gate.open()
    sim.spin(future.done)
    assert future.result().result.result == OK and sim.state() == STOPPED


def test_a_rollout_whose_recording_was_ended_by_hand_is_answered(halted, folder, gate, tmp_path):
    sim = halted
    poses = flat(sideways(folder, 8))
    goal = GenerateRollout.Goal(poses=poses, recording=str(tmp_path / "walk.mcap"))
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    sim.spin(lambda: feedback)
    assert sim.ask(Record, "record", start=False).success
    gate.open()
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_ABORTED and "No recording" in done.result.message


def test_beside_another_clock_nothing_is_stepped_rolled_out_or_activated(sim, folder):
    other = sim.node.create_publisher(Clock, "/clock", 1)
    try:
        sim.spin(lambda: sim.step().result != OK, patience_s=10)
        # Its topic may be met before its name.
        sim.spin(lambda: sim.node.get_name() in sim.step().error_message, patience_s=10)
        assert sim.step().result == Result.RESULT_OPERATION_FAILED
        goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)))
        handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
        done = sim.result_of(handle)
        assert done.status == GoalStatus.STATUS_ABORTED
        assert sim.node.get_name() in done.result.message
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            assert change(sim, transition)
        sim.clock.clear()
        assert change(sim, Transition.TRANSITION_CONFIGURE)
        assert not change(sim, Transition.TRANSITION_ACTIVATE)
        sim.spin_for(0.3)
        assert not sim.clock, "the node tells the time beside another clock"
    finally:
        sim.node.destroy_publisher(other)
    sim.spin(lambda: change(sim, Transition.TRANSITION_ACTIVATE), patience_s=10)
    sim.spin(lambda: sim.clock == [START], patience_s=5)


def test_a_step_under_way_ends_when_another_clock_appears(halted, gate):
    sim = halted
    future = sim.begin(srv.StepSimulation, "step_simulation", steps=ENDLESS)
    sim.wait_for_frames(CHUNK)
    other = sim.node.create_publisher(Clock, "/clock", 1)
    sim.spin(future.done, patience_s=20)
    sim.node.destroy_publisher(other)
    gate.open()
    assert sim.node.get_name() in future.result().result.error_message
    sim.spin(lambda: sim.step().result == OK, patience_s=20)


def test_after_a_pause_is_answered_nothing_comes_and_a_step_counts_its_own_frames(
    halted, folder, gate
):
    sim = halted
    play(sim, folder)
    wanted = SimulationState(state=PAUSED)
    future = sim.begin(srv.SetSimulationState, "set_simulation_state", state=wanted)
    sim.spin(lambda: sim.state() == PAUSED)
    assert not future.done(), "answered while a chunk is at work"
    gate.open()
    sim.spin(future.done)
    paused_ns = START + 2 * CHUNK * PERIOD
    assert future.result().result.result == OK and now_ns(sim) == paused_ns
    assert sim.step(2).result == OK and now_ns(sim) == paused_ns + 2 * PERIOD
    sim.wait_for_frames(10)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(10)]


def test_steps_after_canceled_ones_count_their_own_frames(halted, gate):
    sim = halted
    goal = SimulateSteps.Goal(steps=ENDLESS)
    handle, feedback = sim.send_goal(SimulateSteps, "simulate_steps", goal)
    sim.spin(lambda: len(feedback) >= CHUNK)
    sim.wait_for_queue(2)
    sim.spin(handle.cancel_goal_async().done)
    assert sim.result_of(handle).status == GoalStatus.STATUS_CANCELED
    assert now_ns(sim) == START + CHUNK * PERIOD
    gate.open()
    assert sim.step(2).result == OK
    # The chunk that was at work, and two frames more.
    assert now_ns(sim) == START + (2 * CHUNK + 2) * PERIOD


def test_time_that_is_reset_while_playing_stays_reset(halted, folder, gate):
    sim = halted
    play(sim, folder)
    future = sim.begin(srv.ResetSimulation, "reset_simulation", scope=TIME_ALONE)
    sim.spin_for(0.2)
    gate.open()
    sim.spin(future.done)
    assert future.result().result.result == OK and now_ns(sim) == START
    sim.spin_for(1.0)
    assert sim.clock[-1] == START and sim.clock.count(START) == 1
    sim.clear()
    plan(sim, folder, 8)
    sim.wait_for_frames(8)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(8)]


def test_more_resets_than_the_queue_holds_are_all_answered(halted, folder, gate):
    sim = halted
    play(sim, folder)
    futures = [
        sim.begin(srv.ResetSimulation, "reset_simulation", scope=TIME_ALONE) for _ in range(10)
    ]
    sim.spin(lambda: any(future.done() for future in futures))
    gate.open()
    sim.spin(lambda: all(future.done() for future in futures))
    told = {future.result().result.error_message for future in futures}
    assert "" in told and any("commands wait" in text for text in told)


def test_a_node_that_was_reset_while_inactive_sends_nothing_of_the_world_before(
    halted, folder, gate
):
    sim = halted
    play(sim, folder)
    assert change(sim, Transition.TRANSITION_DEACTIVATE)
    gate.open()
    sim.wait_for_queue(0)
    state = entity_state(sim).state
    assert stamp_from_ros(state.header.stamp) == START + CHUNK * PERIOD
    shown = sideways(folder, CHUNK)[-1]
    np.testing.assert_allclose(pose_from_ros(state.pose), shown, atol=1e-6, err_msg="not shown yet")
    assert reset(sim, 0).result == OK
    sim.clear()
    sim.clock.clear()
    assert change(sim, Transition.TRANSITION_ACTIVATE)
    sim.spin(lambda: sim.clock)
    sim.spin_for(1.0)
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
        words = "cannot be kept for the case that the inference worker is lost"
        sim.spin(lambda: sim.step().result == OK and words in sim.problems(), patience_s=20)
        assert sim.step(10).result == OK
        assert sim.process.text().count(words) == 1, "told more than once"
        os.kill(worker_pid(sim), signal.SIGKILL)
        before_ns = now_ns(sim)
        assert sim.step().result == OK and now_ns(sim) == before_ns + PERIOD
    finally:
        scratch.unlink()
        aside.rename(scratch)


def test_a_rollout_begins_where_the_frames_end_that_are_at_work(halted, folder, gate):
    sim = halted
    play(sim, folder)
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 4)))
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    gate.open()
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_SUCCEEDED
    assert done.result.first_stamp_ns == START + (2 * CHUNK + 1) * PERIOD
    sim.spin(lambda: done.result.last_stamp_ns in sim.stamps("color/image_raw"))
    found = sim.stamps("color/image_raw")
    assert found == [START + PERIOD * (1 + i) for i in range(len(found))]


def test_a_plan_told_again_after_a_reset_is_no_jump_back(sim, folder, gate):
    assert sim.step(12).result == OK
    assert reset(sim, 0).result == OK
    gate.shut()
    plan(sim, folder, 8)
    assert sim.set_state(PLAYING).result == OK
    sim.wait_for_queue(2)
    for _ in range(4):
        plan(sim, folder, 8)
    sim.clear()
    gate.open()
    sim.wait_for_frames(8)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(8)]
    assert "jump back in time" not in sim.process.text()


@pytest.mark.parametrize("calls", [1, 12])
def test_a_node_that_is_cleaned_up_answers_everybody_and_bodies_are_driven_afterwards(halted, gate, calls):
    """While a body's command is with the worker and the next one waits; 12 calls are more than the queue holds."""
    sim, ahead = halted, Twist(linear=Vector3(x=1.0))
    drive = sim.node.create_publisher(Twist, "entities/cart/cmd_vel", 10)
    assert spawn(sim, "cart").result.result == OK
    sim.spin(drive.get_subscription_count)
    sim.begin(srv.StepSimulation, "step_simulation", steps=2 * CHUNK)
    sim.wait_for_queue(1)
    drive.publish(ahead)
    sim.wait_for_queue(2)
    drive.publish(ahead)
    sim.spin_for(0.5)
    futures = [sim.begin(ForkWorld, "fork", name="one") for _ in range(calls)]
    sim.spin_for(2.0)  # until the node has met them, on a busy machine too
    assert change(sim, Transition.TRANSITION_DEACTIVATE) and change(sim, Transition.TRANSITION_CLEANUP)
    sim.spin(lambda: all(future.done() for future in futures), patience_s=20)
    assert "The node was cleaned up." in {future.result().message for future in futures}
    gate.open()
    assert change(sim, Transition.TRANSITION_CONFIGURE) and change(sim, Transition.TRANSITION_ACTIVATE)
    assert spawn(sim, "cart").result.result == OK
    sim.spin(drive.get_subscription_count)
    drive.publish(ahead)
    sim.spin(lambda: entity_state(sim, "cart").state.twist.linear == ahead.linear, patience_s=20)
    sim.node.destroy_publisher(drive)

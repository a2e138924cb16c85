"""State, steps and resets of the simulation, each with its promise and its refusal."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from action_msgs.msg import GoalStatus
from plans import sideways
from ros_client import PICTURES
from sim_client import (
    LOCKSTEP,
    OK,
    PAUSED,
    PERIOD,
    PLAYING,
    START,
    STOPPED,
    entity_state,
    move,
    reset,
    simulated,
)
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Result, SimulationState

from mirage_ros.ros.messages import pose_from_ros, stamp_from_ros


def test_a_step_is_answered_after_its_frames_and_time_moves_with_them(sim):
    assert sim.step().result == OK
    sim.spin(lambda: sim.clock)
    assert sim.clock == [START + PERIOD]
    assert sim.step(5).result == OK
    sim.wait_for_frames(6)
    wanted = [START + PERIOD * (1 + index) for index in range(6)]
    for name in PICTURES:
        assert sim.stamps(name) == wanted, name
    sim.spin(lambda: sim.clock[-1] == wanted[-1])
    assert sim.clock == sorted(set(sim.clock))
    sim.spin_for(0.5)
    assert len(sim.got["color/image_raw"]) == 6, "paused, and yet time went on"


def test_a_step_while_playing_or_of_a_world_that_is_gone_is_refused(sim):
    assert sim.set_state(PLAYING).result == OK
    refused = sim.step()
    assert refused.result == Result.RESULT_OPERATION_FAILED and "pause it" in refused.error_message
    assert sim.set_state(PAUSED).result == OK
    assert sim.ask(srv.UnloadWorld, "unload_world").result.result == OK
    refused = sim.step()
    assert refused.result == Result.RESULT_INCORRECT_STATE
    assert "load_world" in refused.error_message


def test_states_change_as_they_are_set_and_wrong_changes_are_refused(sim):
    answer = srv.SetSimulationState.Response
    assert sim.set_state(PAUSED).result == answer.ALREADY_IN_TARGET_STATE
    assert sim.set_state(PLAYING).result == OK and sim.state() == PLAYING
    assert sim.set_state(STOPPED).result == OK and sim.state() == STOPPED
    refused = sim.step()
    assert refused.result == Result.RESULT_OPERATION_FAILED and "stopped" in refused.error_message
    assert sim.set_state(PAUSED).result == OK and sim.state() == PAUSED
    for state in (SimulationState.STATE_NO_WORLD, SimulationState.STATE_LOADING_WORLD, 77):
        refused = sim.set_state(state)
        assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED and str(state) in (
            refused.error_message
        )
    sim.ask(srv.UnloadWorld, "unload_world")
    assert sim.state() == SimulationState.STATE_NO_WORLD
    assert sim.set_state(PLAYING).result == Result.RESULT_INCORRECT_STATE


def test_a_simulator_that_is_told_to_quit_ends_what_runs_and_then_itself(tmp_path, folder):
    with contextmanager(simulated)(tmp_path, *LOCKSTEP, "-p", f"seed:={folder}") as sim:
        step = sim.begin(srv.StepSimulation, "step_simulation", steps=100_000)
        sim.wait_for_frames(1)
        wanted = SimulationState(state=SimulationState.STATE_QUITTING)
        answer = sim.begin(srv.SetSimulationState, "set_simulation_state", state=wanted)
        for future in (answer, step):
            sim.executor.spin_until_future_complete(future, timeout_sec=20.0)
        assert answer.result().result.result == OK
        told = step.result().result
        assert told.result == Result.RESULT_OPERATION_FAILED and "stopped" in told.error_message
        assert sim.process.process.wait(20) == 0 and "Traceback" not in sim.process.text()


def steps_goal(steps: int):
    return SimulateSteps.Goal(steps=steps)


def test_steps_as_an_action_tell_how_far_they_are(sim):
    handle, feedback = sim.send_goal(SimulateSteps, "simulate_steps", steps_goal(9))
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_SUCCEEDED and done.result.result.result == OK
    sim.spin(lambda: len(feedback) == 9)
    assert [f.completed_steps for f in feedback] == list(range(1, 10))
    assert [f.remaining_steps for f in feedback] == list(range(8, -1, -1))
    sim.wait_for_frames(9)


def test_steps_can_be_canceled_and_are_refused_while_playing(sim):
    handle, feedback = sim.send_goal(SimulateSteps, "simulate_steps", steps_goal(100_000))
    sim.spin(lambda: feedback)
    second, _ = sim.send_goal(SimulateSteps, "simulate_steps", steps_goal(1))
    busy = sim.result_of(second)
    assert busy.status == GoalStatus.STATUS_ABORTED
    assert "under way" in busy.result.result.error_message
    sim.spin(handle.cancel_goal_async().done)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_CANCELED
    assert done.result.result.result == Result.RESULT_OPERATION_FAILED
    # Answered after its frame, so what was at work before is published, too.
    assert sim.step().result == OK
    now_ns = stamp_from_ros(entity_state(sim).state.header.stamp)
    sim.spin(lambda: sim.stamps("color/image_raw")[-1:] == [now_ns])
    sim.spin_for(0.5)
    assert sim.stamps("color/image_raw")[-1] == now_ns, "canceled, and yet time went on"
    assert sim.set_state(PLAYING).result == OK
    handle, _ = sim.send_goal(SimulateSteps, "simulate_steps", steps_goal(1))
    refused = sim.result_of(handle).result.result
    assert refused.result == Result.RESULT_OPERATION_FAILED and "pause" in refused.error_message


def test_a_reset_starts_over_what_its_scope_names(sim, folder):
    start = sideways(folder, 1)[0]
    there = start.copy()
    there[:3, 3] += [0.2, 0.1, 0.0]

    def walk() -> None:
        assert move(sim, there).result == OK and sim.step(4).result == OK

    walk()
    assert reset(sim, srv.ResetSimulation.Request.SCOPE_TIME).result == OK
    state = entity_state(sim).state
    assert stamp_from_ros(state.header.stamp) == START
    np.testing.assert_allclose(pose_from_ros(state.pose), there, atol=1e-6)
    walk()
    now = entity_state(sim).state.header.stamp
    assert reset(sim, srv.ResetSimulation.Request.SCOPE_STATE).result == OK
    state = entity_state(sim).state
    assert state.header.stamp == now
    np.testing.assert_allclose(pose_from_ros(state.pose), start, atol=1e-6)
    walk()
    assert reset(sim, srv.ResetSimulation.Request.SCOPE_DEFAULT).result == OK
    state = entity_state(sim).state
    assert stamp_from_ros(state.header.stamp) == START
    np.testing.assert_allclose(pose_from_ros(state.pose), start, atol=1e-6)
    sim.clear()
    assert sim.step(2).result == OK
    sim.wait_for_frames(2)
    assert sim.stamps("color/image_raw") == [START + PERIOD, START + 2 * PERIOD]


def test_a_reset_of_nothing_known_or_without_a_world_is_refused(sim):
    refused = reset(sim, 8)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED and refused.error_message
    sim.ask(srv.UnloadWorld, "unload_world")
    assert reset(sim, 0).result == Result.RESULT_INCORRECT_STATE

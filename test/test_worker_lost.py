"""No inference worker can be started any more: nobody waits for it, and the node begins again."""

from __future__ import annotations

import os
import signal

import pytest
from action_msgs.msg import GoalStatus
from gate import Gate
from lifecycle_msgs.msg import State, Transition
from plans import PERIOD, sideways
from ros_client import GATED_NODE
from sim_client import LOCKSTEP, OK, START, change, flat, simulated, state, worker_pid
from simulation_interfaces import srv
from simulation_interfaces.msg import Result, SimulationState
from std_srvs.srv import Trigger

from mirage_ros.action import GenerateRollout
from mirage_ros.srv import EraseRegion, ForkWorld, RestoreWorld, SaveWorld

WORDS = "Inference has ended"


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = Gate(tmp_path_factory.mktemp("gate"))
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def lost(tmp_path_factory, folder, gate):
    """The worker was killed in a step, and the next one cannot load its model."""
    arguments = (*LOCKSTEP, "-p", f"seed:={folder}")
    program = (*GATED_NODE, str(gate.path))
    for sim in simulated(tmp_path_factory.mktemp("log"), *arguments, program=program):
        pid = worker_pid(sim)
        gate.shut()
        sim.under_way = sim.begin(srv.StepSimulation, "step_simulation", steps=9)
        sim.wait_for_queue(2)
        gate.path.rename(gate.path.with_name("away"))
        os.kill(pid, signal.SIGKILL)
        sim.spin(lambda: WORDS in sim.step().error_message)
        yield sim


def test_who_waits_is_told(lost):
    lost.spin(lost.under_way.done)
    told = lost.under_way.result().result
    assert told.result == Result.RESULT_OPERATION_FAILED and "FileNotFoundError" in told.error_message
    assert "FileNotFoundError" in lost.problems() and "/gate" in lost.problems()


def test_the_world_is_gone_and_nothing_is_begun(lost, folder):
    assert lost.state() == SimulationState.STATE_NO_WORLD
    gone = lost.ask(srv.GetCurrentWorld, "get_current_world").result
    assert gone.result == srv.GetCurrentWorld.Response.NO_WORLD_LOADED
    for refused in (
        lost.load(str(folder)).result,
        lost.step(),
        lost.set_state(SimulationState.STATE_PLAYING),
        lost.ask(srv.ResetSimulation, "reset_simulation").result,
        lost.ask(srv.UnloadWorld, "unload_world").result,
        lost.ask(srv.GetEntities, "get_entities").result,
    ):
        assert refused.result == Result.RESULT_INCORRECT_STATE and WORDS in refused.error_message
    for refused in (
        lost.ask(SaveWorld, "save_world", path="/tmp/never"),
        lost.ask(EraseRegion, "erase_region"),
        lost.ask(ForkWorld, "fork", name="one"),
        lost.ask(RestoreWorld, "restore", name="one"),
        lost.ask(Trigger, "reset"),
    ):
        assert not refused.success and WORDS in refused.message
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)))
    handle, _ = lost.send_goal(GenerateRollout, "generate_rollout", goal)
    done = lost.result_of(handle)
    assert done.status == GoalStatus.STATUS_ABORTED and WORDS in done.result.message


def test_it_begins_again_when_it_is_cleaned_up_and_configured(lost, gate):
    gate.path.with_name("away").rename(gate.path)
    gate.open()
    assert change(lost, Transition.TRANSITION_DEACTIVATE)
    assert change(lost, Transition.TRANSITION_CLEANUP)
    assert change(lost, Transition.TRANSITION_CONFIGURE)
    assert change(lost, Transition.TRANSITION_ACTIVATE)
    assert state(lost) == State.PRIMARY_STATE_ACTIVE
    lost.clear()
    assert lost.step(2).result == OK
    lost.wait_for_frames(2)
    assert lost.stamps("color/image_raw") == [START + PERIOD, START + 2 * PERIOD]

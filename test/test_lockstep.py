"""Lockstep: the same seed, plan and steps give the same frames, and nobody else tells the time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from rclpy.qos import QoSProfile
from ros_client import PICTURES, TESTS
from rosgraph_msgs.msg import Clock
from sim_client import (
    LOCKSTEP,
    NODE,
    OK,
    PAUSED,
    PERIOD,
    PLAYING,
    START,
    entity_state,
    play,
    simulated,
    worker_pid,
)
from simulation_interfaces import srv

from mirage_ros.ros.messages import stamp_from_ros

SEED = "room"
FRAMES = 12


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The node as it ships, with the mini model."""
    arguments = (*LOCKSTEP, "-p", f"seed:={SEED}")
    yield from simulated(tmp_path_factory.mktemp("log"), *arguments, program=NODE)


def test_three_runs_of_one_plan_are_the_same_to_the_last_bit(shipped):
    """One in one piece, one pose by pose, one whose worker is killed; `play` checks the clock."""
    first = play(shipped, SEED, FRAMES, FRAMES)
    assert len(set(first)) == FRAMES, "the camera moves, and so should the pictures"
    assert play(shipped, SEED, FRAMES, 1) == first
    assert play(shipped, SEED, FRAMES, 5, killing(shipped)) == first
    shipped.spin(lambda: "ended by SIGKILL" in shipped.process.text())


def killing(client):
    """Kills the worker that is at work now."""
    pid = worker_pid(client)
    return lambda: os.kill(pid, signal.SIGKILL)


def test_the_same_plan_gives_the_same_frames_however_it_arrives_and_whoever_dies(sim, folder):
    first = play(sim, folder, 24, 24)
    assert play(sim, folder, 24, 1) == first
    assert play(sim, folder, 24, 5, killing(sim)) == first
    sim.spin(lambda: "ended by SIGKILL" in sim.process.text())


def test_a_policy_that_is_killed_and_restarted_loses_nothing(sim, folder):
    assert sim.set_state(PLAYING).result == OK
    environment = sim.process.environment
    command = [sys.executable, str(TESTS / "lockstep_policy.py"), str(folder)]
    started = subprocess.Popen([*command, "400"], env=environment)
    sim.wait_for_frames(8)
    started.kill()
    started.wait()
    frames = (stamp_from_ros(entity_state(sim).state.header.stamp) - START) // PERIOD + 16
    assert frames < 400, "the policy had done all of its work"
    subprocess.run([*command, str(frames)], env=environment, check=True, timeout=60)
    sim.wait_for_frames(frames)
    wanted = [START + PERIOD * (1 + index) for index in range(frames)]
    for name in PICTURES:
        assert sim.stamps(name) == wanted, name
    assert all(later > earlier for earlier, later in zip(sim.clock, sim.clock[1:], strict=False))


def test_a_second_clock_stops_time_and_is_named(sim, folder):
    assert sim.set_state(PLAYING).result == OK
    other = sim.node.create_publisher(Clock, "/clock", 1)
    sim.spin(lambda: sim.state() == PAUSED, patience_s=20)
    sim.spin(lambda: "/clock is also published by" in sim.problems())
    assert sim.node.get_name() in sim.problems()
    refused = sim.set_state(PLAYING)
    assert refused.result == srv.SetSimulationState.Response.STATE_TRANSITION_ERROR
    assert sim.node.get_name() in refused.error_message
    sim.node.destroy_publisher(other)
    sim.spin(lambda: sim.set_state(PLAYING).result == OK, patience_s=20)


def test_many_calls_at_once_are_all_answered(sim):
    """A node that is busy for a second keeps what is asked meanwhile."""
    kept = QoSProfile(depth=1000)
    client = sim.node.create_client(srv.GetSimulationState, "mirage_node/get_simulation_state", qos_profile=kept)
    sim.spin(client.service_is_ready)
    answers = [client.call_async(srv.GetSimulationState.Request()) for _ in range(200)]
    sim.spin(lambda: all(answer.done() for answer in answers))
    sim.node.destroy_client(client)

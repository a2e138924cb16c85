"""Lockstep with the model that ships: the same seed, plan and steps give the same frames."""

from __future__ import annotations

import os
import signal

import pytest
from ros_client import NodeProcess
from test_lifecycle import NODE
from test_simulator import LOCKSTEP, SimClient, play

SEED = "room"
FRAMES = 12


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    arguments = ("--ros-args", *LOCKSTEP, "-p", f"seed:={SEED}")
    process = NodeProcess(tmp_path_factory.mktemp("log"), *arguments, program=NODE)
    client = SimClient(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()
    process.close()


def test_three_runs_of_one_plan_are_the_same_to_the_last_bit(sim):
    """One in one piece, one pose by pose, one whose worker is killed; `play` checks the clock."""
    first = play(sim, SEED, FRAMES, FRAMES)
    assert len(set(first)) == FRAMES, "the camera moves, and so should the pictures"
    assert play(sim, SEED, FRAMES, 1) == first
    os.kill(int(sim.diagnostic("worker")["pid"]), signal.SIGKILL)
    assert play(sim, SEED, FRAMES, 5) == first
    sim.spin(lambda: "ended by SIGKILL" in sim.process.text())

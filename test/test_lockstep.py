"""Lockstep with the model that ships: the same seed, plan and steps give the same frames."""

from __future__ import annotations

import os
import signal

import pytest
from test_lifecycle import NODE
from test_simulator import LOCKSTEP, play, simulated

SEED = "room"
FRAMES = 12


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    arguments = (*LOCKSTEP, "-p", f"seed:={SEED}")
    yield from simulated(tmp_path_factory.mktemp("log"), *arguments, program=NODE)


def test_three_runs_of_one_plan_are_the_same_to_the_last_bit(sim):
    """One in one piece, one pose by pose, one whose worker is killed; `play` checks the clock."""
    first = play(sim, SEED, FRAMES, FRAMES)
    assert len(set(first)) == FRAMES, "the camera moves, and so should the pictures"
    assert play(sim, SEED, FRAMES, 1) == first
    os.kill(int(sim.diagnostic("worker")["pid"]), signal.SIGKILL)
    assert play(sim, SEED, FRAMES, 5) == first
    sim.spin(lambda: "ended by SIGKILL" in sim.process.text())

"""Hostile messages over every topic, service, action and parameter of a live node, in rounds with legal work between.

MIRAGE_FUZZ says which are sent, "SEED:FIRST-LAST"; a failure names the range that repeats it. MIRAGE_FUZZ_NODE=mini
sends them to the node as it ships, not to one with a small stand-in for its model.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hostile_ground import lay_out, spoil_saved
from hostile_trial import Pinger, Trial, kind_of
from lifecycle_msgs.msg import State
from ros_client import FAKE_NODE, NodeProcess
from sim_client import NODE, SimClient, state

from mirage_ros.srv import SaveWorld

SEED, _, RANGE = os.environ.get("MIRAGE_FUZZ", "2026:0-299").partition(":")
FIRST, LAST = map(int, RANGE.split("-"))
MINI = os.environ.get("MIRAGE_FUZZ_NODE") == "mini"
ROUND = 25
MODES = ("stream", "lockstep")
P99_S = 0.1


def rounds_of(mode: str) -> dict[int, list[int]]:
    """Indices of the messages that a node of this mode gets, by round."""
    found: dict[int, list[int]] = {}
    for index in range(FIRST, LAST + 1):
        if (index // ROUND) % 2 == MODES.index(mode):
            found.setdefault(index // ROUND, []).append(index)
    return found


@pytest.fixture
def trial(request, tmp_path):
    """A node of a mode with everything that it may be led to; both are gone afterwards."""
    ground = lay_out(tmp_path / "ground")
    parameters = {"time_mode": request.param, "seed": ground.seed, "on_missing_plan": "hold", "plan_idle_s": 0.3}
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    program = NODE if MINI else FAKE_NODE
    process = NodeProcess(tmp_path, "--ros-args", *arguments, program=program, home=ground.folder)
    client = SimClient(process)
    try:
        client.connect()
        process.wait_for("New world")
        client.spin(lambda: state(client) == State.PRIMARY_STATE_ACTIVE)
        assert client.ask(SaveWorld, "save_world", path=str(ground.saved)).success
        spoil_saved(ground)
        yield Trial(client, ground, int(SEED), request.param == "lockstep")
    finally:
        client.close()
        process.close()


@pytest.fixture
def pinger(trial):
    pinger = Pinger(trial.client.process)
    yield pinger
    pinger.close()


@pytest.mark.alone
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("mode", "trial"), [(mode, mode) for mode in MODES], ids=MODES, indirect=["trial"])
def test_hostile_messages_end_nothing_and_change_nothing(mode, trial, pinger):
    rounds = rounds_of(mode)
    if not rounds:
        pytest.skip("none of these messages goes to this mode")
    trial.settle()
    before = trial.frames(8)
    assert not trial.unheard()
    for number, indices in rounds.items():
        try:
            trial.round(number, indices)
        except Exception as error:
            trial.find(repr(error)[:500])
            log, last = trial.client.process.text()[-3000:], "\n  ".join(trial.last)
            pytest.fail(f"{trial.report()}\n{SEED}:{indices[0]}-{indices[-1]} ({kind_of(number)}):\n  {last}\n{log}")
    trial.settle()
    assert trial.frames(8) == before, "a planned path is not rendered as before"
    restarts, calls = trial.restarts(), pinger.end()
    calls = calls[calls[:, 0] >= trial.begun[0][0]]
    p99_s = float(np.percentile(calls[:, 1], 99, method="higher"))
    print(f"{mode}: {trial.tally}; {restarts} deaths of the worker; {len(calls)} calls, p99 {p99_s * 1e3:.1f} ms; "
          f"the slowest:\n{trial.slowest(calls)}")  # fmt: skip
    for path, content in trial.ground.precious.items():
        assert path.read_bytes() == content, f"{path} was touched"
    assert not trial.findings, f"{trial.report()}\nrepeat one with MIRAGE_FUZZ={SEED}:INDEX-INDEX"
    assert not restarts
    assert p99_s <= P99_S

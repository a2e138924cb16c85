"""Streaming for as long as MIRAGE_SOAK_S says: nothing missing, nothing wrong, nothing growing."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from plans import PERIOD, START
from ros_client import PICTURES
from sim_client import NODE, simulated, worker_pid
from simulation_interfaces import srv
from test_rig import turned

from mirage_ros.ros.messages import pose_from_ros

SOAK_S = float(os.environ.get("MIRAGE_SOAK_S", "10"))
AHEAD = 24
LOOP = 96
# A short run ends before caches and pools have filled.
GROWTH = 0.02 if SOAK_S >= 600 else 0.2


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    arguments = ("-p", "seed:=room", "-p", "plan_idle_s:=1.0")
    yield from simulated(tmp_path_factory.mktemp("log"), *arguments, program=NODE)


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def around(start: np.ndarray, index: int) -> np.ndarray:
    """A way that comes back to where it began."""
    phase = 2 * np.pi * index / LOOP
    return turned(start, 0.4 * np.sin(phase), 0.3 * np.sin(2 * phase))


def settled(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians over a tenth of the samples: after the first fifth, and at the end.

    One sample tells little: a chunk at work takes 2 % more for a moment.
    """
    tenth = -(-len(sizes) // 10)
    early, late = sizes[2 * tenth : 3 * tenth, 1:], sizes[-tenth:, 1:]
    return np.median(early, axis=0), np.median(late, axis=0)


def test_it_streams_for_long_without_a_gap_an_error_or_growth(streaming):
    client, sent, sizes, stamps = streaming, 0, [], {name: [] for name in PICTURES}
    answer = client.ask(srv.GetEntityState, "get_entity_state", entity="camera")
    start = pose_from_ros(answer.state.pose)
    pids = (client.process.process.pid, worker_pid(client))
    errors: set[str] = set()
    client.clear()
    began = time.monotonic()
    while time.monotonic() - began < SOAK_S or len(stamps["color/image_raw"]) < 2 * AHEAD:
        done = len(stamps["color/image_raw"])
        if sent - done < AHEAD:
            ahead = range(sent, sent + AHEAD)
            times = [START + PERIOD * index for index in ahead]
            client.send_tf(times, [around(start, index) for index in ahead])
            sent += AHEAD
        client.spin_for(0.2)
        for name in PICTURES:
            stamps[name] += client.stamps(name)
        for message in client.got["/diagnostics"]:
            errors |= {s.message for s in message.status if s.level == b"\2"}
        client.clear()
        sizes.append((time.monotonic() - began, *map(resident_bytes, pids)))
    for name in PICTURES:
        found = np.array(stamps[name])
        assert found[0] == START and (np.diff(found) == PERIOD).all(), name
    assert not errors and "ERROR" not in client.process.text()
    early, late = settled(np.array(sizes))
    growth, frames = late / early - 1, len(stamps["color/image_raw"])
    print(f"{sizes[-1][0]:.0f} s, {frames} frames, resident memory of node and worker "
          f"{late / 2**20} MiB, grown by {growth * 100} %")  # fmt: skip
    assert (growth < GROWTH).all()

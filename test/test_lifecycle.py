"""The managed life cycle, the worker killed while it streams, and answers while it works."""

from __future__ import annotations

import importlib
import itertools
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from make_seed import write_seed
from mirage_ros.srv import EraseRegion, ForkWorld, Record, RestoreWorld, SaveWorld
from plans import PERIOD, START, expect_the_plan, sideways, stamps
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    ListParameters,
    SetParameters,
)
from ros_client import PICTURES, NodeProcess
from sim_client import NODE, PAUSED, PLAYING, SimClient, change, state, worker_pid
from simulation_interfaces import srv
from simulation_interfaces.msg import Result

from mirage_ros.ros.messages import pose_from_ros

KILLS = int(os.environ.get("MIRAGE_KILLS", "3"))
CALLS = int(os.environ.get("MIRAGE_CALLS", "200"))
RESUME_S = 10.0
ENDLESS = 4000
CHUNK = 4


@pytest.fixture(scope="module")
def managed(tmp_path_factory, folder):
    """A node that waits to be configured."""
    arguments = ("--ros-args", "-p", f"seed:={folder}", "-p", "autostart:=false", "-p",
                 "plan_idle_s:=0.3")  # fmt: skip
    process = NodeProcess(tmp_path_factory.mktemp("log"), *arguments)
    client = SimClient(process)
    client.connect()
    yield client
    client.close()
    process.close()


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    """The node as it ships, with the mini model, at work on a plan that does not end."""
    arguments = ("--ros-args", "-p", "seed:=room", "-p", "plan_idle_s:=0.3", "-p", "plan_history_s:=600.0")
    process = NodeProcess(tmp_path_factory.mktemp("log"), *arguments, program=NODE)
    client = SimClient(process)
    client.connect()
    process.wait_for("New world")
    pose = client.ask(srv.GetEntityState, "get_entity_state", entity="camera").state.pose
    client.send_tf(stamps(ENDLESS, START + 10**13), [pose_from_ros(pose)] * ENDLESS)
    client.wait_for_frames(1)
    yield client
    client.close()
    process.close()


@pytest.fixture
def active(managed):
    """The same node, streaming."""
    for now, transition in (
        (State.PRIMARY_STATE_UNCONFIGURED, Transition.TRANSITION_CONFIGURE),
        (State.PRIMARY_STATE_INACTIVE, Transition.TRANSITION_ACTIVATE),
    ):
        if state(managed) == now:
            assert change(managed, transition)
    return managed


def test_configure_loads_activate_streams_deactivate_keeps_cleanup_frees(managed, folder):
    poses = sideways(folder, 8)
    assert state(managed) == State.PRIMARY_STATE_UNCONFIGURED
    refused = managed.ask(srv.StepSimulation, "step_simulation", steps=1).result
    assert refused.result == Result.RESULT_INCORRECT_STATE and "configure" in refused.error_message
    assert not change(managed, Transition.TRANSITION_ACTIVATE)
    assert worker_pid(managed) == 0
    assert change(managed, Transition.TRANSITION_CONFIGURE)
    assert state(managed) == State.PRIMARY_STATE_INACTIVE and "New world" in managed.process.text()
    pid = worker_pid(managed)
    managed.send_tf(stamps(4), poses[:4])
    managed.spin_for(1.0)
    assert not managed.got["color/image_raw"], "frames before the node is active"
    assert change(managed, Transition.TRANSITION_ACTIVATE)
    expect_the_plan(managed, stamps(4))
    assert managed.state() == PLAYING
    assert change(managed, Transition.TRANSITION_DEACTIVATE)
    assert managed.state() == PAUSED
    refused = managed.set_state(PLAYING)
    assert refused.result == srv.SetSimulationState.Response.STATE_TRANSITION_ERROR
    assert "not active" in refused.error_message
    managed.clear()
    later = stamps(4, START + 4 * PERIOD)
    managed.send_tf(later, poses[:4][::-1])
    managed.spin_for(1.0)
    assert not managed.got["color/image_raw"] and worker_pid(managed) == pid
    assert change(managed, Transition.TRANSITION_ACTIVATE)
    expect_the_plan(managed, later)
    assert managed.state() == PLAYING
    managed.spin(lambda: managed.got["status"])
    assert managed.got["status"][-1].observed_fraction > 0.9
    assert change(managed, Transition.TRANSITION_DEACTIVATE)
    assert change(managed, Transition.TRANSITION_CLEANUP)
    assert worker_pid(managed) == 0 and not Path(f"/proc/{pid}").exists()
    assert change(managed, Transition.TRANSITION_CONFIGURE)
    assert change(managed, Transition.TRANSITION_ACTIVATE)
    managed.clear()
    managed.send_tf(stamps(4, START + 9 * PERIOD), poses[:4])
    expect_the_plan(managed, stamps(4, START + 9 * PERIOD))


def test_a_first_world_that_cannot_be_loaded_fails_to_configure_and_says_why(tmp_path):
    (tmp_path / "world").mkdir()
    (tmp_path / "world/world.json").write_text("{")
    arguments = ("--ros-args", "-p", f"seed:={tmp_path / 'world'}", "-p", "autostart:=false")
    process = NodeProcess(tmp_path, *arguments)
    client = SimClient(process)
    try:
        client.connect()
        assert not change(client, Transition.TRANSITION_CONFIGURE)
        assert state(client) == State.PRIMARY_STATE_UNCONFIGURED and worker_pid(client) == 0
        words = f"No world from {tmp_path / 'world'}"
        assert words in client.problems() and process.text().count(words) == 1
        refused = client.load("room").result
        assert refused.result == Result.RESULT_INCORRECT_STATE
        (tmp_path / "world/world.json").unlink()
        write_seed(tmp_path / "world")
        assert change(client, Transition.TRANSITION_CONFIGURE)
        assert change(client, Transition.TRANSITION_ACTIVATE)
    finally:
        client.close()
        process.close()


def test_a_node_that_is_shut_down_while_it_loads_answers_who_asked_to_configure(tmp_path):
    process = NodeProcess(tmp_path, "--ros-args", "-p", "seed:=room", "-p", "autostart:=false", program=NODE)
    client = SimClient(process)
    try:
        client.spin(lambda: state(client) == State.PRIMARY_STATE_UNCONFIGURED)
        configure = Transition(id=Transition.TRANSITION_CONFIGURE)
        futures = [client.begin(ChangeState, "change_state", transition=configure) for _ in range(2)]
        assert change(client, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        client.spin(lambda: all(future.done() for future in futures), patience_s=20)
        assert not any(future.result().success for future in futures)
        assert state(client) == State.PRIMARY_STATE_FINALIZED and worker_pid(client) == 0
    finally:
        client.close()
        process.close()


def test_worlds_that_cannot_be_saved_or_are_another_model_s_are_refused(active, tmp_path):
    answer = active.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    assert answer.success and answer.tokens > 0 and answer.path == str(tmp_path / "kept")
    assert not active.ask(SaveWorld, "save_world", path="").success
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/thesis.txt").write_text("mine")
    refused = active.ask(SaveWorld, "save_world", path=str(tmp_path / "busy"))
    assert not refused.success and "no saved world" in refused.message
    refused = active.ask(SaveWorld, "save_world", path="/dev/full/world")
    assert not refused.success and "cannot be written" in refused.message
    world = tmp_path / "kept/world.json"
    world.write_text(world.read_text().replace("pixel-fake", "other-model"))
    refused = active.load(str(tmp_path / "kept")).result
    assert refused.result == srv.LoadWorld.Response.RESOURCE_PARSE_ERROR
    assert "other-model" in refused.error_message and "pixel-fake" in refused.error_message


def test_a_full_disk_costs_the_copy_and_not_the_world(active, tmp_path):
    """The worker may write files of 4 KiB and no more: writing fails as on a full disk."""
    kept = active.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    before = sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir())
    pid = worker_pid(active)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
    refused = active.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    assert not refused.success and "cannot be written" in refused.message
    assert sorted(path.read_bytes() for path in (tmp_path / "kept").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"], "half a world was left behind"
    os.kill(pid, signal.SIGKILL)
    again = active.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    assert again.success and again.tokens == kept.tokens


def test_regions_are_erased_and_worlds_forked_and_restored(active):
    fork = active.ask(ForkWorld, "fork", name="before")
    assert fork.success and list(fork.names) == ["before"]
    refused = active.ask(ForkWorld, "fork", name="../before")
    assert not refused.success and "'../before'" in refused.message
    request = EraseRegion.Request()
    request.min.x = request.min.y = request.min.z = -50.0
    request.max.x = request.max.y = request.max.z = 50.0
    erased = active.ask(EraseRegion, "erase_region", min=request.min, max=request.max)
    assert erased.success and erased.erased > 0 and erased.tokens == 0
    refused = active.ask(EraseRegion, "erase_region", min=request.max, max=request.min)
    assert not refused.success and "min <= max" in refused.message
    request.min.x = float("nan")
    refused = active.ask(EraseRegion, "erase_region", min=request.min, max=request.max)
    assert not refused.success and "finite" in refused.message
    restored = active.ask(RestoreWorld, "restore", name="before")
    assert restored.success and restored.tokens == erased.erased
    refused = active.ask(RestoreWorld, "restore", name="after")
    assert not refused.success and "known: before" in refused.message


# Every service that does not wait for the worker to have done something, and how a call is refused
# that would: a node that plays refuses steps at once, for instance.
CALLS_OF_ALL_KINDS = {
    "get_state": GetState.Request(),
    "get_parameters": GetParameters.Request(names=["seed", "plan_idle_s"]),
    "list_parameters": ListParameters.Request(),
    "describe_parameters": DescribeParameters.Request(names=["on_missing_plan"]),
    "set_parameters": SetParameters.Request(),
    "get_simulator_features": srv.GetSimulatorFeatures.Request(),
    "get_simulation_state": srv.GetSimulationState.Request(),
    "get_entities": srv.GetEntities.Request(),
    "get_entities_states": srv.GetEntitiesStates.Request(),
    "get_entity_state": srv.GetEntityState.Request(entity="camera"),
    "get_named_poses": srv.GetNamedPoses.Request(),
    "get_current_world": srv.GetCurrentWorld.Request(),
    "get_available_worlds": srv.GetAvailableWorlds.Request(),
    "set_entity_state": srv.SetEntityState.Request(entity="camera", set_pose=True),
    "step_simulation": srv.StepSimulation.Request(steps=1),
    "save_world": SaveWorld.Request(),
    "record": Record.Request(start=False),
}


def answer_times(client: SimClient, calls: int, frames: int) -> dict[str, np.ndarray]:
    """Seconds until the answer, one call after the other, of one service after the other.

    At least so many calls, while at least so many frames come.
    """
    services = {
        name: client.node.create_client(service_of(request), f"mirage_node/{name}")
        for name, request in CALLS_OF_ALL_KINDS.items()
    }
    for service in services.values():
        client.spin(service.service_is_ready)
    seconds = {name: [] for name in services}
    client.clear()
    for count, name in enumerate(itertools.cycle(services)):
        if count >= calls and len(client.got["color/image_raw"]) >= frames:
            break
        began = time.perf_counter()
        future = services[name].call_async(CALLS_OF_ALL_KINDS[name])
        while not future.done():
            client.executor.spin_once(timeout_sec=1.0)
        seconds[name].append(time.perf_counter() - began)
    return {name: np.array(found) for name, found in seconds.items()}


def service_of(request) -> type:
    """The service type of a request."""
    kind = type(request)
    return getattr(importlib.import_module(kind.__module__.rpartition(".")[0]),
                   kind.__name__.removesuffix("_Request"))  # fmt: skip


@pytest.mark.alone
def test_services_are_answered_at_once_while_a_chunk_is_generated(streaming):
    seconds = answer_times(streaming, CALLS, 4 * CHUNK)
    for name, found in sorted(seconds.items(), key=lambda item: -item[1].max()):
        middle, p99 = np.quantile(found, [0.5, 0.99]) * 1e3
        print(f"{name:24} {len(found):4} calls: median {middle:5.1f} ms, p99 {p99:5.1f} ms")
        assert middle < 100, name
    every = np.concatenate(list(seconds.values()))
    middle, p99 = np.quantile(every, [0.5, 0.99]) * 1e3
    most = every.max() * 1e3
    print(f"{len(every)} calls: median {middle:.1f} ms, p99 {p99:.1f} ms, most {most:.1f} ms")
    assert p99 < 100


def test_a_worker_killed_at_random_moments_is_followed_and_no_stamp_is_missing_or_twice(streaming):
    client, rng = streaming, np.random.default_rng(KILLS)
    client.clear()
    client.wait_for_frames(8)
    waited = []
    for _ in range(KILLS):
        pid = worker_pid(client)
        client.spin_for(float(rng.uniform(0, 1.0)))
        os.kill(pid, signal.SIGKILL)
        killed, back = time.monotonic(), client.process.text().count("is back after")
        client.spin(lambda back=back: client.process.text().count("is back after") > back)
        count = len(client.got["color/image_raw"])
        client.spin(lambda count=count: len(client.got["color/image_raw"]) > count, patience_s=60)
        waited.append(time.monotonic() - killed)
    print(f"{KILLS} kills, frames again after {np.median(waited):.1f} s (median), "
          f"{max(waited):.1f} s at most")  # fmt: skip
    for name in PICTURES:
        found = np.array(client.stamps(name))
        assert (np.diff(found) == PERIOD).all(), (name, np.unique(np.diff(found)))
    assert client.process.text().count("ended by SIGKILL") >= 1
    assert "without all of the world" not in client.process.text()
    assert max(waited) < RESUME_S

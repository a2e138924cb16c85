"""The standard simulator services, each with its promise and its refusal, in lockstep over DDS."""

from __future__ import annotations

import array
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from make_seed import write_seed
from rclpy.action import ActionClient
from ros_client import PICTURES, Client, NodeProcess
from rosgraph_msgs.msg import Clock
from simulation_interfaces import srv
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import (
    Bounds,
    EntityCategory,
    Resource,
    Result,
    SimulationState,
    SimulatorFeatures,
)
from test_node import sideways

from mirage_ros.action import GenerateRollout
from mirage_ros.ros.conversions import (
    pose_from_ros,
    pose_to_ros,
    stamp_from_ros,
    transform_from_ros,
)
from mirage_ros.ros.playback import read_recording
from mirage_ros.srv import SaveWorld

SECOND = 1_000_000_000
PERIOD = SECOND // 10
START = SECOND
PLAYING, PAUSED, STOPPED = 1, 2, 0
OK = Result.RESULT_OK
LOCKSTEP = ("-p", "time_mode:=lockstep", "-p", "start_paused:=true", "-p", "on_missing_plan:=hold",
            "-p", "plan_idle_s:=0.3")  # fmt: skip


class Feedback(Sequence):
    """What was told of one goal, of all that is told."""

    def __init__(self, told: list, goal_id) -> None:
        self._told, self._goal_id = told, goal_id

    def _own(self) -> list:
        return [feedback for goal_id, feedback in self._told if goal_id == self._goal_id]

    def __len__(self) -> int:
        return len(self._own())

    def __getitem__(self, index):
        return self._own()[index]


class SimClient(Client):
    """A client of the simulator's services, too; it also hears the clock."""

    def __init__(self, process: NodeProcess) -> None:
        super().__init__(process)
        self.clock: list[int] = []
        self.node.create_subscription(
            Clock, "/clock", lambda message: self.clock.append(stamp_from_ros(message.clock)), 100
        )
        self._services: dict[str, object] = {}

    def ask(self, kind: type, service: str, **fields):
        if service not in self._services:
            self._services[service] = self.node.create_client(kind, f"mirage_node/{service}")
        return self.call(self._services[service], kind.Request(**fields))

    def state(self) -> int:
        answer = self.ask(srv.GetSimulationState, "get_simulation_state")
        assert answer.result.result == OK
        return answer.state.state

    def set_state(self, state: int) -> Result:
        wanted = SimulationState(state=state)
        return self.ask(srv.SetSimulationState, "set_simulation_state", state=wanted).result

    def step(self, steps: int = 1) -> Result:
        return self.ask(srv.StepSimulation, "step_simulation", steps=steps).result

    def load(self, uri: str, **fields):
        resource = Resource(uri=uri, **fields)
        return self.ask(srv.LoadWorld, "load_world", world_resource=resource)

    def send_goal(self, kind: type, name: str, goal):
        """The goal's handle, and the list that its feedback goes to.

        An ActionClient drops feedback that it takes after the result, though it was sent before.
        """
        feedback, told = [], lambda message: feedback.append((message.goal_id, message.feedback))
        topic = f"mirage_node/{name}/_action/feedback"
        self.node.create_subscription(kind.Impl.FeedbackMessage, topic, told, 200)
        client = ActionClient(self.node, kind, f"mirage_node/{name}")
        self.spin(client.server_is_ready)
        future = client.send_goal_async(goal)
        self.spin(future.done)
        handle = future.result()
        assert handle.accepted
        return handle, Feedback(feedback, handle.goal_id)

    def result_of(self, handle):
        future = handle.get_result_async()
        self.spin(future.done)
        return future.result()


def simulated(log_folder, *arguments: str, **options):
    """Yields a client of a node of its own, whose world is there; ends both."""
    process = NodeProcess(log_folder, "--ros-args", *arguments, **options)
    client = SimClient(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()
    process.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def process(tmp_path_factory, folder):
    worlds = folder.parent
    arguments = ("-p", f"seed:={folder}", "-p", f"worlds_folder:={worlds}")
    log = tmp_path_factory.mktemp("log")
    node = NodeProcess(log, "--ros-args", *LOCKSTEP, *arguments)
    yield node
    node.close()


@pytest.fixture(scope="module")
def connected(process):
    client = SimClient(process)
    client.connect()
    process.wait_for("New world")
    client.spin(lambda: client.state() == PAUSED)
    yield client
    client.close()


@pytest.fixture
def sim(connected, folder):
    """Paused at the start, the seed's world loaded."""
    connected.load(str(folder))
    if connected.state() != PAUSED:
        connected.set_state(PAUSED)
    assert connected.state() == PAUSED
    connected.spin_for(0.1)
    connected.clear()
    connected.clock.clear()
    return connected


def test_features_are_those_that_the_tests_here_prove(sim):
    features = sim.ask(srv.GetSimulatorFeatures, "get_simulator_features").features
    names = {
        getattr(SimulatorFeatures, name): name
        for name in dir(SimulatorFeatures)
        if name.isupper() and isinstance(getattr(SimulatorFeatures, name), int)
    }
    assert {names[feature] for feature in features.features} == {
        "NAMED_POSES",
        "ENTITY_STATE_GETTING",
        "ENTITY_STATE_SETTING",
        "SIMULATION_RESET",
        "SIMULATION_RESET_TIME",
        "SIMULATION_RESET_STATE",
        "SIMULATION_STATE_GETTING",
        "SIMULATION_STATE_SETTING",
        "SIMULATION_STATE_PAUSE",
        "STEP_SIMULATION_SINGLE",
        "STEP_SIMULATION_MULTIPLE",
        "STEP_SIMULATION_ACTION",
        "WORLD_LOADING",
        "WORLD_TAGS",
        "WORLD_UNLOADING",
        "WORLD_INFO_GETTING",
        "AVAILABLE_WORLDS",
    }
    assert "lockstep" in features.custom_info and not features.spawn_formats


def test_a_step_is_answered_after_its_frames_and_time_moves_with_them(sim):
    assert sim.step().result == OK
    sim.spin(lambda: len(sim.got["color/image_raw"]) >= 1 and sim.clock)
    assert sim.clock[-1] == START + PERIOD
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
    refused = sim.set_state(SimulationState.STATE_QUITTING)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED and refused.error_message
    sim.ask(srv.UnloadWorld, "unload_world")
    assert sim.state() == SimulationState.STATE_NO_WORLD
    assert sim.set_state(PLAYING).result == Result.RESULT_INCORRECT_STATE


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
    sim.spin_for(1.0)
    sim.clear()
    sim.spin_for(0.5)
    assert not sim.got["color/image_raw"]
    assert sim.set_state(PLAYING).result == OK
    handle, _ = sim.send_goal(SimulateSteps, "simulate_steps", steps_goal(1))
    refused = sim.result_of(handle).result.result
    assert refused.result == Result.RESULT_OPERATION_FAILED and "pause" in refused.error_message


def reset(sim, scope: int) -> Result:
    return sim.ask(srv.ResetSimulation, "reset_simulation", scope=scope).result


def entity_state(sim, entity: str = "camera"):
    return sim.ask(srv.GetEntityState, "get_entity_state", entity=entity)


def move(sim, pose: np.ndarray, entity: str = "camera", frame: str = "", **flags) -> Result:
    request = srv.SetEntityState.Request(entity=entity, set_pose=True, **flags)
    request.state.pose = pose_to_ros(pose)
    request.state.header.frame_id = frame
    answer = sim.ask(
        srv.SetEntityState,
        "set_entity_state",
        **{name: getattr(request, name) for name in request.get_fields_and_field_types()},
    )
    return answer.result


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


def test_a_reset_of_what_is_spawned_or_without_a_world_is_refused(sim):
    refused = reset(sim, srv.ResetSimulation.Request.SCOPE_SPAWNED)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED and refused.error_message
    sim.ask(srv.UnloadWorld, "unload_world")
    assert reset(sim, 0).result == Result.RESULT_INCORRECT_STATE


def test_worlds_are_listed_loaded_named_and_unloaded(sim, folder, tmp_path):
    saved = sim.ask(SaveWorld, "save_world", path=str(tmp_path / "kept"))
    assert saved.success, saved.message
    listed = sim.ask(
        srv.GetAvailableWorlds, "get_available_worlds", additional_sources=[str(tmp_path)]
    )
    assert listed.result.result == OK
    worlds = {world.name: world for world in listed.worlds}
    assert {"room", "hall", "yard", folder.name, "kept"} <= set(worlds)
    assert list(worlds["kept"].tags) == ["saved"] and list(worlds["room"].tags) == ["seed"]
    loaded = sim.load(worlds["kept"].world_resource.uri)
    assert loaded.result.result == OK and loaded.world.name == "kept"
    current = sim.ask(srv.GetCurrentWorld, "get_current_world")
    assert (current.result.result, current.world) == (OK, loaded.world)
    sim.clear()
    assert sim.step().result == OK
    sim.wait_for_frames(1)
    assert sim.stamps("color/image_raw") == [START + PERIOD]
    assert sim.ask(srv.UnloadWorld, "unload_world").result.result == OK
    gone = sim.ask(srv.GetCurrentWorld, "get_current_world").result
    assert gone.result == srv.GetCurrentWorld.Response.NO_WORLD_LOADED and gone.error_message
    again = sim.ask(srv.UnloadWorld, "unload_world").result
    assert again.result == srv.UnloadWorld.Response.NO_WORLD_LOADED and again.error_message


def test_available_worlds_are_filtered_and_a_missing_source_is_told(sim, folder):
    request = srv.GetAvailableWorlds.Request()
    request.filter.tags = ["saved"]
    answer = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", filter=request.filter)
    assert answer.result.result == OK and not [w for w in answer.worlds if "seed" in w.tags]
    fields = {"additional_sources": ["/no/such/folder"]}
    refused = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", **fields)
    assert refused.result.result == Result.RESULT_NOT_FOUND
    assert "/no/such/folder" in refused.result.error_message
    fields["continue_on_error"] = True
    answer = sim.ask(srv.GetAvailableWorlds, "get_available_worlds", **fields)
    assert answer.result.result == OK and "/no/such/folder" in answer.result.error_message
    assert folder.name in [world.name for world in answer.worlds]


def test_worlds_that_cannot_be_loaded_are_refused_and_the_world_stays(sim, folder, tmp_path):
    kinds = srv.LoadWorld.Response
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/world.json").write_text("{")
    cases = [
        ("", {}, kinds.NO_RESOURCE, "uri"),
        ("", {"resource_string": "<sdf/>"}, kinds.UNSUPPORTED_FORMAT, "string"),
        ("http://somewhere/room", {}, kinds.UNSUPPORTED_FORMAT, "http"),
        (str(tmp_path / "notes.txt"), {}, kinds.UNSUPPORTED_FORMAT, "no picture"),
        ("/no/such/world", {}, Result.RESULT_NOT_FOUND, "/no/such/world"),
        (str(tmp_path / "half"), {}, kinds.RESOURCE_PARSE_ERROR, "world.json"),
    ]
    for uri, fields, code, words in cases:
        refused = sim.load(uri, **fields).result
        assert refused.result == code and words in refused.error_message, (uri, refused)
    current = sim.ask(srv.GetCurrentWorld, "get_current_world")
    assert current.world.name == folder.name
    assert sim.step().result == OK


def test_the_camera_is_the_entity_and_stands_where_it_is_put(sim, folder):
    entities = sim.ask(srv.GetEntities, "get_entities")
    assert entities.result.result == OK and list(entities.entities) == ["camera"]
    for expression, found in (("c.*ra", ["camera"]), ("robot", [])):
        filters = srv.GetEntities.Request().filters
        filters.filter = expression
        entities = sim.ask(srv.GetEntities, "get_entities", filters=filters)
        assert entities.result.result == OK and list(entities.entities) == found
    start = sideways(folder, 1)[0]
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == OK and [pose.name for pose in poses.poses] == ["start"]
    np.testing.assert_allclose(pose_from_ros(poses.poses[0].pose), start, atol=1e-6)
    there = start.copy()
    there[:3, 3] += [0.3, 0.0, 0.1]
    assert move(sim, there).result == OK
    assert sim.step(3).result == OK
    sim.spin(lambda: len(sim.rendered_poses()) >= 3)
    for transform in sim.rendered_poses():
        np.testing.assert_allclose(transform_from_ros(transform), there, atol=1e-6)
    state = entity_state(sim)
    assert state.result.result == OK and state.state.header.frame_id == "world"
    np.testing.assert_allclose(pose_from_ros(state.state.pose), there, atol=1e-6)


def test_wrong_questions_about_entities_are_refused(sim, folder):
    start = sideways(folder, 1)[0]
    assert entity_state(sim, "robot").result.result == Result.RESULT_NOT_FOUND
    assert move(sim, start, "robot").result == Result.RESULT_NOT_FOUND
    refused = move(sim, start, set_twist=True)
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED
    assert move(sim, start, frame="nowhere").result == Result.RESULT_NOT_FOUND
    request = srv.SetEntityState.Request(entity="camera", set_pose=True)
    request.state.pose.orientation.w = math.nan
    fields = {"entity": "camera", "set_pose": True, "state": request.state}
    refused = sim.ask(srv.SetEntityState, "set_entity_state", **fields).result
    assert refused.result == srv.SetEntityState.Response.INVALID_POSE and refused.error_message
    filters = srv.GetEntities.Request().filters
    filters.categories = [EntityCategory()]
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert (
        refused.result == Result.RESULT_FEATURE_UNSUPPORTED
        and "categories" in refused.error_message
    )
    filters = srv.GetEntities.Request().filters
    filters.bounds.type = Bounds.TYPE_BOX
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED
    filters = srv.GetEntities.Request().filters
    filters.filter = "("
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert refused.result == Result.RESULT_OPERATION_FAILED
    sim.ask(srv.UnloadWorld, "unload_world")
    assert entity_state(sim).result.result == Result.RESULT_INCORRECT_STATE
    poses = sim.ask(srv.GetNamedPoses, "get_named_poses")
    assert poses.result.result == Result.RESULT_INCORRECT_STATE


def test_the_camera_cannot_be_moved_against_its_plan(sim, folder):
    poses = sideways(folder, 4)
    sim.send_tf([START + PERIOD * (1 + index) for index in range(4)], poses)
    sim.spin(lambda: move(sim, poses[0]).result == Result.RESULT_OPERATION_FAILED, patience_s=10)
    assert "plan" in move(sim, poses[0]).error_message
    assert sim.step(4).result == OK


def hashes(sim) -> list[str]:
    pictures = zip(sim.got["color/image_raw"], sim.got["depth/image_rect"], strict=True)
    return [
        hashlib.sha256(bytes(rgb.data) + bytes(depth.data)).hexdigest() for rgb, depth in pictures
    ]


def play(sim, folder, frames: int, size: int) -> list[str]:
    """Plays a plan that arrives in pieces of some size; hashes of all pictures and depths."""
    assert reset(sim, 0).result == OK
    if sim.state() != PLAYING:
        assert sim.set_state(PLAYING).result == OK
    sim.spin_for(0.2)
    sim.clear()
    sim.clock.clear()
    planned = [START + PERIOD * (1 + index) for index in range(frames)]
    poses = sideways(folder, frames)
    for first in range(0, frames, size):
        sim.send_tf(planned[first : first + size], poses[first : first + size])
        sim.spin_for(0.02)
    sim.wait_for_frames(frames)
    for name in PICTURES:
        assert sim.stamps(name) == planned, name
    sim.spin(lambda: sim.clock and sim.clock[-1] == planned[-1])
    assert all(later > earlier for earlier, later in zip(sim.clock, sim.clock[1:], strict=False))
    return hashes(sim)


def test_the_same_plan_gives_the_same_frames_however_it_arrives_and_whoever_dies(
    sim, folder, process
):
    first = play(sim, folder, 24, 24)
    assert play(sim, folder, 24, 1) == first
    worker = int(sim.diagnostic("worker")["pid"])
    os.kill(worker, signal.SIGKILL)
    assert play(sim, folder, 24, 5) == first
    sim.spin(lambda: "ended by SIGKILL" in process.text())


def test_a_policy_that_is_killed_and_restarted_loses_nothing(sim, folder, process):
    assert reset(sim, 0).result == OK
    assert sim.set_state(PLAYING).result == OK
    sim.spin_for(0.2)
    sim.clear()
    sim.clock.clear()
    policy = os.path.join(os.path.dirname(__file__), "lockstep_policy.py")
    command = [sys.executable, policy, str(folder), "24"]
    started = subprocess.Popen(command, env=process.environment)
    sim.wait_for_frames(8)
    started.kill()
    started.wait()
    sim.spin_for(0.5)
    subprocess.run(command, env=process.environment, check=True, timeout=60)
    sim.wait_for_frames(24)
    wanted = [START + PERIOD * (1 + index) for index in range(24)]
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


def flat(poses: list[np.ndarray]) -> list[float]:
    values = []
    for pose in poses:
        message = pose_to_ros(pose)
        values += [message.position.x, message.position.y, message.position.z]
        turn = message.orientation
        values += [turn.x, turn.y, turn.z, turn.w]
    return values


def test_a_rollout_renders_every_pose_records_it_and_tells_how_far_it_is(sim, folder, tmp_path):
    recording = str(tmp_path / "rollout.mcap")
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 10)), recording=recording)
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_SUCCEEDED and done.result.success
    result = done.result
    assert (result.frames, result.first_stamp_ns) == (10, START + PERIOD)
    assert result.last_stamp_ns == START + 10 * PERIOD and result.recording == recording
    recorded = read_recording(tmp_path / "rollout.mcap")
    assert [frame.stamp_ns for frame in recorded.frames] == [
        START + PERIOD * (1 + index) for index in range(10)
    ]
    sim.spin(lambda: len(feedback) == 10)
    assert [f.frames_done for f in feedback] == list(range(1, 11))
    sim.wait_for_frames(10)
    assert sim.stamps("color/image_raw") == [START + PERIOD * (1 + i) for i in range(10)]


def test_a_rollout_of_a_million_poses_is_taken_at_once_and_canceled_at_once(sim, folder):
    pose = flat(sideways(folder, 1))
    goal = GenerateRollout.Goal(poses=array.array("d", pose * 1_000_000))
    began = time.monotonic()
    handle, feedback = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    taken_s = time.monotonic() - began
    sim.spin(lambda: len(feedback) >= 4)
    began = time.monotonic()
    sim.spin(handle.cancel_goal_async().done)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_CANCELED and not done.result.success
    sim.spin(lambda: len(feedback) == done.result.frames)
    print(f"taken in {taken_s:.2f} s, canceled in {time.monotonic() - began:.2f} s")
    assert taken_s < 10 and time.monotonic() - began < 10
    assert sim.step().result == OK


def test_rollouts_that_cannot_be_are_refused_at_once(sim, folder):
    pose = flat(sideways(folder, 1))
    nan = [math.nan, *pose[1:]]
    cases = [
        ({"poses": []}, "give 7 for each pose"),
        ({"poses": pose[:5]}, "give 7 for each pose"),
        ({"poses": pose + nan}, "Pose 1"),
        ({"poses": pose[:3] + [0.0, 0.0, 0.0, 2.0]}, "unit quaternions"),
        ({"poses": pose * 2, "stamps_ns": [1]}, "one stamp for each"),
        ({"poses": pose * 2, "stamps_ns": [5, 5]}, "increase"),
        ({"poses": pose, "stamps_ns": [START]}, "later stamps"),
        ({"poses": pose, "recording": "/proc/no/such.mcap"}, "/proc/no"),
    ]
    for fields, words in cases:
        handle, _ = sim.send_goal(
            GenerateRollout, "generate_rollout", GenerateRollout.Goal(**fields)
        )
        done = sim.result_of(handle)
        assert done.status == GoalStatus.STATUS_ABORTED, fields
        assert not done.result.success and words in done.result.message
        assert done.result.message and done.result.frames == 0
    assert sim.step().result == OK

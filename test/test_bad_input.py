"""What nobody should send, sent to the real node: it lives, says what was wrong, and answers."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point
from mirage_ros.action import GenerateRollout
from mirage_ros.srv import EraseRegion, ForkWorld, Record, SaveWorld
from plans import PERIOD, sideways
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import serialize_message
from ros_client import NodeProcess, make_path
from sensor_msgs.msg import CameraInfo, Image
from sim_client import (
    LOCKSTEP,
    OK,
    PAUSED,
    START,
    SimClient,
    flat,
    move,
    reset,
    simulated,
    start_again,
    worker_pid,
)
from simulation_interfaces import srv
from simulation_interfaces.msg import Result
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.ros.messages import transform_to_ros


@pytest.fixture(scope="module")
def sim(tmp_path_factory, folder):
    """Paused at the start, the seed's world loaded; it has to outlive all of this file."""
    yield from simulated(tmp_path_factory.mktemp("log"), *LOCKSTEP, "-p", f"seed:={folder}")


@pytest.mark.parametrize("kind", ["image", "camera_info", "depth"])
@pytest.mark.parametrize("topic", ["observe", "seed"])
def test_a_negative_stamp_is_told_and_the_node_goes_on(sim, topic, kind):
    message_type = CameraInfo if kind == "camera_info" else Image
    message = message_type()
    message.header.stamp.sec = -5
    publisher = sim.node.create_publisher(message_type, f"{topic}/{kind}", 5)
    sim.spin(publisher.get_subscription_count)
    sim.clear()
    publisher.publish(message)
    sim.spin(lambda: "stamped -5 s" in sim.problems(), patience_s=10)
    sim.node.destroy_publisher(publisher)
    assert sim.step().result == OK


def test_a_path_as_long_as_time_itself_is_refused(sim, folder):
    sim.send_path(make_path([START + 10**9, 2**31 * 10**9 - 1], sideways(folder, 2)))
    sim.spin(lambda: "more than plan_horizon_s (300 s)" in sim.problems(), patience_s=10)
    assert sim.step().result == OK
    start_again(sim, folder)


@pytest.fixture
def asker(sim):
    """A node that hears nothing of what the test sends, and what spins it."""
    context = Context()
    rclpy.init(context=context, domain_id=sim.process.domain)
    node = Node("asker", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield node, executor
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def answer_seconds(asker, send, seconds: float, calls: int = 300) -> np.ndarray:
    """How long one call after the other took, while something is sent twice a second.

    So many calls at least, for so long at least.
    """
    node, executor = asker
    asked = node.create_client(srv.GetSimulationState, "mirage_node/get_simulation_state")
    assert asked.wait_for_service(30.0)
    found, due_s = [], time.monotonic()
    end_s = due_s + seconds
    while time.monotonic() < end_s or len(found) < calls:
        if time.monotonic() >= due_s:
            send()
            due_s = time.monotonic() + 0.5
        future, began_s = asked.call_async(srv.GetSimulationState.Request()), time.monotonic()
        while not future.done():
            executor.spin_once(timeout_sec=1.0)
        found.append(time.monotonic() - began_s)
    return np.array(found)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["path", "tf"])
def test_services_are_answered_while_very_many_poses_come(sim, asker, folder, kind):
    poses = sideways(folder, 1) * 1000
    if kind == "path":
        message, topic = make_path([START + 10**7 * i for i in range(1000)], poses), "plan"
        message.poses *= 100
    else:
        pose = transform_to_ros(poses[0], "world", "somebody", START)
        message, topic = TFMessage(transforms=[pose] * 10_000), "/tf"
    data = bytearray(serialize_message(message))
    if kind == "path":
        # Rising stamps, without the seconds that it takes to build 100,000 messages.
        rows = np.frombuffer(data, np.uint8, offset=len(data) - 99_999 * 72).reshape(-1, 72)
        rows[:, :8].view(np.int32)[:, 0] = 2 + np.arange(99_999)
    publisher = asker[0].create_publisher(type(message), topic, 10)
    sim.spin(publisher.get_subscription_count)
    seconds = answer_seconds(asker, lambda: publisher.publish(bytes(data)), 3.0)
    p99_ms = np.quantile(seconds, 0.99) * 1e3
    print(f"{kind}: {len(seconds)} calls, p99 {p99_ms:.1f} ms, most {seconds.max() * 1e3:.1f} ms")
    assert p99_ms < 100
    if kind == "path":
        sim.spin(lambda: "Got a plan of 100000 poses" in sim.process.text(), patience_s=10)
    start_again(sim, folder)


def test_a_path_that_does_not_say_when_is_told_once_and_is_no_error(sim, folder):
    poses = sideways(folder, 5)
    nav2, unstamped = make_path([START] * 5, poses), make_path([0] * 5, poses)
    sim.send_path(make_path([START, START + PERIOD], poses[:2]))  # ends what was wrong with a plan before
    sim.spin_for(6.0)  # and what was wrong is not shown any more
    sim.clear()
    for index in range(12):
        nav2.poses[0].pose.position.x += 0.01
        sim.send_path(unstamped if index % 2 else nav2)
        sim.spin_for(0.25)
    assert "the same stamp or none" in sim.problems()
    told = [status for message in sim.got["/diagnostics"] for status in message.status]
    levels = {status.level for status in told if status.name.endswith(": plan")}
    assert DiagnosticStatus.ERROR not in levels
    assert sim.process.text().count("the same stamp or none") == 1
    assert sim.step().result == OK


NO_PATHS = [
    ("file://[oops", "names the machine"),
    ("/" + "a" * 5000, "too long"),
    ("/tmp/" + "a" * 256, "too long"),
    ("file:///tmp/a%00b", "NUL"),
    ("~nobody-at-all/world", "names no known user"),
    ("http://somewhere/world", "scheme 'http'"),
]


@pytest.mark.parametrize(("uri", "words"), [*NO_PATHS, ("/dev/null", "/dev/null is a device")])
def test_a_world_that_cannot_even_be_looked_up_is_refused(sim, uri, words):
    refused = sim.load(uri).result
    assert refused.result not in (OK, 0) and refused.error_message
    assert words in refused.error_message and len(refused.error_message) < 1000
    assert sim.step().result == OK


@pytest.mark.parametrize(("path", "words"), NO_PATHS)
def test_what_is_no_path_is_refused_alike_by_all_that_write(sim, path, words):
    for kind, name, fields in (
        (SaveWorld, "save_world", {"path": path}),
        (Record, "record", {"path": path, "start": True}),
    ):
        refused = sim.ask(kind, name, **fields)
        assert not refused.success and words in refused.message, name
        assert len(refused.message) < 1000 and "report" not in refused.message


def test_home_uri_and_relative_paths_mean_the_same_everywhere(sim, tmp_path):
    """The node works in this process's folder and has its home."""
    relative = os.path.relpath(tmp_path / "one")
    home = os.path.relpath(tmp_path / "two", Path.home())
    for words, name in ((relative, "one"), (f"~/{home}", "two"),
                        (f"file://{tmp_path}/th%72ee", "three")):  # fmt: skip
        saved = sim.ask(SaveWorld, "save_world", path=words)
        assert saved.success and os.path.samefile(saved.path, tmp_path / name), saved
        assert os.path.isabs(saved.path)
        assert sim.load(words).result.result == OK, words
        assert sim.set_state(PAUSED).result == OK
    for words in (os.path.relpath(tmp_path), f"~/{os.path.relpath(tmp_path, Path.home())}"):
        listed = sim.ask(
            srv.GetAvailableWorlds, "get_available_worlds", additional_sources=[words]
        )
        assert {"one", "two", "three"} <= {world.name for world in listed.worlds}
    started = sim.ask(Record, "record", start=True, path=f"~/{home}.mcap")
    assert started.success and os.path.realpath(started.path) == str(tmp_path / "two.mcap")
    assert sim.step().result == OK
    ended = sim.ask(Record, "record", start=False)
    assert ended.success, ended.message


def test_only_scopes_that_mean_something_here_are_reset(sim):
    for scope in (*range(8), 255):
        assert reset(sim, scope).result == OK, scope
    for scope in (8, 99, 128, 254):
        refused = reset(sim, scope)
        assert refused.result == Result.RESULT_FEATURE_UNSUPPORTED, scope
        assert f"The scope {scope}" in refused.error_message


@pytest.mark.parametrize("length", [101, 300])
def test_a_fork_s_name_that_no_file_can_have_is_refused(sim, length):
    refused = sim.ask(ForkWorld, "fork", name="n" * length)
    assert not refused.success and "at most 100" in refused.message


def test_sources_of_worlds_that_cannot_be_read_are_told(sim, tmp_path):
    shut = tmp_path / "shut"
    shut.mkdir()
    shut.chmod(0)
    sources = ["file://[oops", "/" + "a" * 5000]
    if os.geteuid():
        sources.append(str(shut))
    for source in sources:
        answer = sim.ask(
            srv.GetAvailableWorlds, "get_available_worlds", additional_sources=[source]
        )
        assert answer.result.result == Result.RESULT_NOT_FOUND, source
    shut.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("far", [1e39, -1e300])
def test_positions_that_no_world_reaches_are_refused_and_kill_nobody(sim, folder, far):
    words, pid = "up to 10,000,000 m", worker_pid(sim)
    pose = np.eye(4)
    pose[1, 3] = far
    goal = GenerateRollout.Goal(poses=flat([pose]))
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    assert words in sim.result_of(handle).result.message
    refused = sim.ask(EraseRegion, "erase_region", max=Point(x=far), min=Point(x=far))
    assert not refused.success and words in refused.message
    assert words in move(sim, pose).error_message
    sim.clear()
    sim.send_path(make_path([START + PERIOD], [pose]))
    sim.spin(lambda: words in sim.problems(), patience_s=10)
    sim.send_tf([START + PERIOD], [pose])
    sim.spin(lambda: "TF world -> camera" in sim.problems(), patience_s=10)
    assert sim.step().result == OK and worker_pid(sim) == pid


@pytest.mark.parametrize(
    "expression", ["a{99999999999}", "(" * 400, "(", "x" * 1_000_000, "(a|b)" * 60_000]
)
def test_a_filter_that_nobody_can_take_is_refused(sim, expression):
    filters = srv.GetEntities.Request().filters
    filters.filter = expression
    refused = sim.ask(srv.GetEntities, "get_entities", filters=filters).result
    assert refused.result == Result.RESULT_OPERATION_FAILED
    assert "regular expression" in refused.error_message


@pytest.mark.parametrize("kind", [SetParameters, SetParametersAtomically])
def test_a_parameter_of_an_unknown_type_is_refused_before_others_are_set(sim, kind):
    fitting = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=7.5)
    wanted = [
        Parameter(name="cloud_period_s", value=fitting),
        Parameter(name="plan_idle_s", value=ParameterValue(type=77)),
    ]
    name = "set_parameters" if kind is SetParameters else "set_parameters_atomically"
    answer = sim.ask(kind, name, parameters=wanted)
    results = answer.results if kind is SetParameters else [answer.result]
    assert len(results) == (2 if kind is SetParameters else 1)
    assert all(not one.successful and "type 77" in one.reason for one in results)
    assert sim.get_parameter("cloud_period_s").double_value == 1.0


def test_a_parameter_without_a_name_is_refused(sim):
    value = ParameterValue(type=ParameterType.PARAMETER_BOOL)
    (result,) = sim.ask(SetParameters, "set_parameters", parameters=[Parameter(value=value)]).results
    assert not result.successful and "no name" in result.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_no_number_is_refused(sim, value):
    taken, reason = sim.set_parameter("plan_idle_s", value)
    assert not taken and reason
    assert sim.get_parameter("plan_idle_s").double_value == 0.3


def test_what_a_sentence_repeats_is_cut_and_escaped(sim):
    entity = "\x1b[2J" + "x" * 2_000_000 + "y"
    answer = sim.ask(srv.GetEntityState, "get_entity_state", entity=entity).result
    assert len(answer.error_message) <= 1000 and "\\x1b[2J" in answer.error_message
    assert answer.error_message.endswith("there are camera.")
    error = MirageError(f"There is no {'z' * 5000}; give another.")
    assert len(str(error)) <= 1000 and str(error).endswith("z; give another.")


def test_poses_of_before_a_world_was_unloaded_are_not_for_the_next(sim, folder):
    sim.send_tf([START + 10**9, START + 10**10], sideways(folder, 2))
    assert sim.step().result == OK
    assert sim.ask(srv.UnloadWorld, "unload_world").result.result == OK
    assert sim.load(str(folder)).result.result == OK
    assert sim.fresh_diagnostic("plan")["frames_pending"] == "0"
    start_again(sim, folder)


def test_a_recording_of_nobody_is_refused(sim, folder):
    path, words = "~nobody-at-all/x.mcap", "names no known user"
    refused = sim.ask(Record, "record", start=True, path=path)
    assert not refused.success and words in refused.message
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)), recording=path)
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_ABORTED and words in done.result.message
    assert sim.step().result == OK


@pytest.mark.parametrize("stamp_ns", [2**62, 2**31 * 10**9])
def test_a_rollout_beyond_the_end_of_time_is_refused(sim, folder, stamp_ns):
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)), stamps_ns=[stamp_ns])
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    done = sim.result_of(handle)
    assert done.status == GoalStatus.STATUS_ABORTED and "2^31 seconds" in done.result.message
    assert sim.step().result == OK


def test_steps_end_where_time_ends_and_say_so(sim, folder):
    last_ns = 2**31 * 10**9 - 1
    goal = GenerateRollout.Goal(poses=flat(sideways(folder, 1)), stamps_ns=[last_ns])
    handle, _ = sim.send_goal(GenerateRollout, "generate_rollout", goal)
    assert sim.result_of(handle).status == GoalStatus.STATUS_SUCCEEDED
    refused = sim.step()
    assert refused.result != OK and "2^31 seconds" in refused.error_message
    start_again(sim, folder)


def test_a_prompt_that_the_model_cannot_read_is_in_the_diagnostics(sim):
    publisher = sim.node.create_publisher(String, "prompt", 5)
    sim.spin(publisher.get_subscription_count)
    publisher.publish(String(data="rain"))
    sim.spin(lambda: "reads no text" in sim.problems(), patience_s=10)


def test_a_recording_that_cannot_begin_is_in_the_diagnostics(tmp_path, folder):
    path = "/proc/no/such.mcap"
    process = NodeProcess(tmp_path, "--ros-args", "-p", f"seed:={folder}", "-p", f"record:={path}")
    client = SimClient(process)
    try:
        client.connect()
        client.spin(lambda: path in client.problems(), patience_s=30)
    finally:
        client.close()
        process.close()

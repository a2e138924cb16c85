"""The node's parameters, bad transforms, a model that is not there, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from make_seed import write_seed
from plans import START, expect_the_plan, sideways, stamps
from rcl_interfaces.srv import DescribeParameters
from rclpy.context import Context
from rclpy.node import Node
from ros_client import CAMERA, FAKE_NODE, LOCAL, PATIENCE_S, PICTURES, Client, NodeProcess, new_domain

from mirage_ros.errors import MirageError
from mirage_ros.ros import parameters
from mirage_ros.ros.messages import transform_to_ros
from mirage_ros.ros.node import main


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def process(tmp_path_factory, seed_folder):
    arguments = ("--ros-args", "-p", f"seed:={seed_folder}", "-p", "plan_idle_s:=0.3", "-p",
                 "misspelt:=1")  # fmt: skip
    node = NodeProcess(tmp_path_factory.mktemp("log"), *arguments)
    yield node
    node.close()


@pytest.fixture(scope="module")
def lost(tmp_path_factory, seed_folder):
    """The node as it ships, with a checkpoint that is not there."""
    arguments = ("--ros-args", "-p", f"seed:={seed_folder}", "-p", "model:=/no/such/checkpoint")
    program = ("-m", "mirage_ros.ros.node")
    node = NodeProcess(tmp_path_factory.mktemp("lost"), *arguments, program=program)
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(process, lost):  # both start up at the same time
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("on_missing_plan", "panic", "wait, hold, extrapolate"),
        ("plan_idle_s", -1.0, "range"),
        ("plan_idle_s", "soon", "type"),
        ("model", "other", "read-only"),
        ("frame_rate_hz", 20.0, "read-only"),
    ],
)
def test_wrong_parameters_are_refused_with_a_reason(client, name, value, words):
    before = client.get_parameter(name)
    accepted, reason = client.set_parameter(name, value)
    assert not accepted and words in reason
    assert client.get_parameter(name) == before


def test_every_parameter_is_described_and_misspelt_ones_are_told(client, process):
    names = list(parameters.TABLE)
    service = client.node.create_client(DescribeParameters, "mirage_node/describe_parameters")
    described = client.call(service, DescribeParameters.Request(names=names)).descriptors
    assert all(descriptor.description for descriptor in described)
    live = {descriptor.name for descriptor in described if not descriptor.read_only}
    live_ones = {"on_missing_plan", "late_plan", "plan_idle_s", "max_extrapolation_s"}
    assert live == live_ones | {"cloud_period_s", "entity_timeout_s", "entity_speed_mps"}
    assert "no parameter 'misspelt'" in process.text()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("frame_rate_hz:=0.0", "frame_rate_hz is 0.0; set a float from 0.1 to 240"),
        ("device:=tpu", "device is 'tpu'; set one of auto, cpu, cuda"),
        ("image_width:=64", "set both"),
        ("max_memory_mb:=many", "max_memory_mb is 'many'"),
        ("forget_moving:=often", "forget_moving is 'often'; set one of imagined, all, none"),
        ("max_dynamic_share:=1.0", "max_dynamic_share is 1.0; set a float from 0 to 0.99"),
        (f"rendered_camera_frame:={CAMERA}", "a frame of its own"),
    ],
)
def test_a_wrong_parameter_at_the_start_is_one_sentence(argument, words):
    context = Context()
    rclpy.init(context=context)
    arguments = ["--ros-args", "-p", argument]
    node = Node("tried", context=context, cli_args=arguments, use_global_arguments=False)
    with pytest.raises(MirageError, match=words):
        parameters.declare(node)
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_parameter_file_that_is_not_there_is_exit_code_2(capsys):
    assert main(["--params", "/nowhere.yaml"]) == 2
    assert "no parameter file /nowhere.yaml" in capsys.readouterr().err


def test_before_there_is_a_plan_diagnostics_name_the_missing_frame(client, process):
    client.spin(lambda: CAMERA in client.problems())
    client.send_static(np.eye(4), "lamp")
    client.spin(lambda: f"no frame '{CAMERA}' (known: lamp, world)" in client.problems())
    lines = [line for line in process.text().splitlines() if "no frame" in line]
    assert lines and not [line for line in lines if "[ERROR]" in line], "nothing moves yet"


def test_bad_transforms_are_left_out_and_told(client, seed_folder, process):
    planned, poses = stamps(8), sideways(seed_folder, 8)
    transforms = [
        transform_to_ros(pose, "world", CAMERA, stamp_ns)
        for stamp_ns, pose in zip(planned, poses, strict=True)
    ]
    nan = transform_to_ros(poses[3], "world", CAMERA, planned[3] + 1)
    nan.transform.rotation.w = float("nan")
    double = transform_to_ros(poses[3], "world", CAMERA, planned[3] + 2)
    double.transform.rotation.x = 2.0
    nowhere = transform_to_ros(poses[3], "world", CAMERA, planned[3] + 3)
    nowhere.transform.translation.x = float("inf")
    client.clear()
    client.send_transforms(*transforms[:4], nan, double, nowhere, *transforms[4:])
    expect_the_plan(client, planned)
    for words in ("a quaternion with NaN", "a quaternion of length", "a position with NaN"):
        assert process.text().count(f"TF world -> {CAMERA} has {words}") == 1
    client.spin(lambda: f"TF world -> {CAMERA} has" in client.problems())


def test_a_tf_plan_that_jumps_back_is_left_out_and_told_once(client, seed_folder, process):
    client.clear()
    client.send_tf(stamps(6), sideways(seed_folder, 6))
    client.spin(lambda: "jump back in time" in client.problems())
    client.spin_for(0.5)
    assert not client.got["color/image_raw"]
    assert process.text().count("jump back in time") == 1
    later = stamps(4, START + 8 * 100_000_000)
    client.send_tf(later, sideways(seed_folder, 4))
    expect_the_plan(client, later)


def test_hold_goes_on_where_the_plan_ends(client):
    client.clear()
    assert client.set_parameter("on_missing_plan", "hold") == (True, "")
    client.wait_for_frames(4)
    assert client.set_parameter("on_missing_plan", "wait") == (True, "")
    first = START + 12 * 100_000_000
    for name in PICTURES:
        assert client.stamps(name)[:4] == stamps(4, first)


def test_diagnostics_carry_rate_latency_memory_and_queue(client):
    client.clear()
    client.spin(
        lambda: client.got["/diagnostics"] and client.diagnostic("inference")["queue"] == "0"
    )
    assert float(client.diagnostic("inference")["frames_per_s"]) > 0
    assert float(client.diagnostic("inference")["generate_s"]) > 0
    assert int(client.diagnostic("memory")["tokens"]) >= 80
    client.spin(lambda: client.diagnostic("plan")["starved"] == "True")


def test_sigterm_in_the_middle_of_a_plan_is_a_clean_end(client, seed_folder, process):
    client.clear()
    client.send_tf(stamps(60, START + 10**12), sideways(seed_folder, 60))
    client.wait_for_frames(1)
    code, seconds = process.end(signal.SIGTERM)
    assert (code, "Traceback" in process.text()) == (0, False), process.text()
    assert seconds < 3


def test_a_missing_checkpoint_is_told_and_the_node_stays_until_ctrl_c(lost):
    client = Client(lost)
    words = "No model at /no/such/checkpoint"
    client.spin(lambda: words in client.problems())
    code, seconds = lost.end(signal.SIGINT)
    client.close()
    assert (code, lost.text().count(words)) == (1, 1), lost.text()
    assert "Traceback" not in lost.text() and seconds < 3


def test_ctrl_c_in_a_terminal_is_silent_while_the_worker_is_starting():
    """It goes to every process that the terminal holds."""
    started = subprocess.Popen(
        [sys.executable, *FAKE_NODE],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **LOCAL, "ROS_DOMAIN_ID": str(new_domain())},
    )
    deadline = time.monotonic() + PATIENCE_S
    while not any(catches(child, signal.SIGINT) for child in forkservers(started.pid)):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGINT)
    text, _ = started.communicate(timeout=60)
    assert "Traceback" not in text and started.returncode == 0, text


def forkservers(pid: int) -> list[int]:
    """Processes that a process has started and that import what its workers need."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(word) for text in texts for word in text.split()]
    return [
        child for child in children if "forkserver" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def test_ctrl_c_while_the_node_is_still_starting_is_silent():
    started = subprocess.Popen(
        [sys.executable, "-m", "mirage_ros.ros.node"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **LOCAL, "ROS_DOMAIN_ID": str(new_domain())},
    )
    # Its own handlers are there, so Python itself has started; the imports take longer than that.
    deadline = time.monotonic() + PATIENCE_S
    while not catches(started.pid, signal.SIGTERM):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.001)
    started.send_signal(signal.SIGINT)
    text, _ = started.communicate(timeout=60)
    assert "Traceback" not in text and started.returncode in (0, -signal.SIGINT)

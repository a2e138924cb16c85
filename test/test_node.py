"""The node as a user meets it: another process, real DDS, a domain of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from make_seed import write_seed
from plans import PERIOD, START, expect_the_plan, sideways, stamps
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_client import PICTURES, RENDERED, TESTS, Client, NodeProcess, end, make_path
from sensor_msgs.msg import CameraInfo, Image
from simulation_interfaces.srv import GetNamedPoses
from tf2_msgs.msg import TFMessage

from mirage_ros.data.seeds import load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.image_messages import (
    depth_from_ros,
    image_to_ros,
    mask_from_ros,
    picture_from_ros,
)
from mirage_ros.ros.messages import (
    camera_from_ros,
    camera_info_to_ros,
    pose_from_ros,
    transform_from_ros,
)


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def process(tmp_path_factory, seed_folder):
    params = tmp_path_factory.mktemp("params") / "node.yaml"
    params.write_text(
        f"/**:\n  ros__parameters:\n    seed: {seed_folder}\n    plan_idle_s: 0.4\n"
        "    cloud_period_s: 0.2\n    misspelt: 1\n"
    )
    node = NodeProcess(tmp_path_factory.mktemp("log"), "--params", str(params))
    yield node
    node.close()


@pytest.fixture(scope="module")
def connected(process):
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()


@pytest.fixture
def client(connected):
    connected.reset()
    return connected


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def test_a_tf_plan_gives_frames_with_the_plan_s_stamps(client, seed_folder):
    planned, poses = stamps(10), sideways(seed_folder, 10)
    for index in range(10):
        client.send_tf(planned[index : index + 1], poses[index : index + 1])
    expect_the_plan(client, planned)
    for name in PICTURES:
        assert {message.header.frame_id for message in client.got[name]} == {RENDERED}
    for transform, pose in zip(client.rendered_poses(), poses, strict=True):
        np.testing.assert_allclose(transform_from_ros(transform), pose, atol=1e-6)
        assert transform.header.frame_id == "world"
    client.spin(lambda: sum(status.frames for status in client.got["status"]) == 10)
    # Where poses dawdle, what there is of a chunk is rendered.
    assert max(status.frames for status in client.got["status"]) <= 4
    assert all(status.model == "pixel-fake" for status in client.got["status"])
    assert client.got["status"][-1].frames_pending == 0


def test_the_first_frame_is_the_seed_with_its_depth(client, seed_folder):
    client.send_tf(stamps(4), sideways(seed_folder, 4))
    expect_the_plan(client, stamps(4))
    seed = load_seed(seed_folder)
    info = camera_from_ros(client.got["color/camera_info"][0])
    rgb = picture_from_ros(client.got["color/image_raw"][0])
    depth = depth_from_ros(client.got["depth/image_rect"][0])
    assert info.size == rgb.shape[:2] == depth.shape == (64, 80)
    np.testing.assert_allclose(info.intrinsics, seed.camera.resized((64, 80)).intrinsics, atol=1e-9)
    assert mask_from_ros(client.got["observed/image"][0]).mean() > 0.95
    import cv2

    expected = cv2.resize(seed.rgb, (80, 64), interpolation=cv2.INTER_AREA)
    assert psnr(rgb, expected) > 25
    expected = cv2.resize(seed.depth_m, (80, 64), interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.nanmedian(np.abs(cell_medians(depth) - cell_medians(expected))) < 0.05


def test_a_slip_of_the_plan_and_a_bag_played_again_do_not_silence_the_node(
    client, seed_folder, process
):
    planned, poses = stamps(30), sideways(seed_folder, 30)
    for played in range(2):
        client.clear()
        for index in range(30):
            client.send_tf(planned[index : index + 1], poses[index : index + 1])
            if index % 10 == 7:
                client.send_tf([(2**31 - 1) * 10**9], poses[:1])
            client.spin_for(0.06)
        expect_the_plan(client, planned)
        assert process.text().count("the plan starts over with them") == played
    assert "stamped 2147483647000000000 ns, more than plan_horizon_s" in process.text()


def cell_medians(depth_m: np.ndarray) -> np.ndarray:
    """One depth per 8 x 8 pixels: the fake model knows no more."""
    rows, columns = depth_m.shape
    cells = depth_m.reshape(rows // 8, 8, columns // 8, 8)
    return np.nanmedian(cells, axis=(1, 3))


def start_poses(client) -> list[np.ndarray]:
    """Poses of the world's start that come on /tf_static from now on."""
    found = []

    def take(message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == "mirage_start_optical_frame":
                assert transform.header.frame_id == "world"
                found.append(transform_from_ros(transform))

    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    client.node.create_subscription(TFMessage, "/tf_static", take, latched)
    return found


def test_where_the_world_starts_is_on_tf_static(client, seed_folder):
    """Also for who comes late, and the same as get_named_poses says."""
    found = start_poses(client)
    client.spin(lambda: found)
    np.testing.assert_allclose(found[-1], sideways(seed_folder, 1)[0], atol=1e-9)
    ask = client.node.create_client(GetNamedPoses, "mirage_node/get_named_poses")
    (named,) = client.call(ask, GetNamedPoses.Request()).poses
    np.testing.assert_allclose(pose_from_ros(named.pose), found[-1], atol=1e-9)


def test_a_plan_that_starts_far_off_is_told_once_with_the_distance(client, process, seed_folder):
    far, told = sideways(seed_folder, 12), "The plan starts 5.0 m from where the world does"
    for pose in far:
        pose[2, 3] += 5.0
    client.send_tf(stamps(12), far)
    client.wait_for_frames(12)
    client.spin(lambda: told in client.problems(), patience_s=10)
    assert process.text().count(told) == 1
    assert "'mirage_start_optical_frame' on /tf_static" in process.text()


def test_an_anchored_world_starts_where_the_camera_is(tmp_path, seed_folder):
    words = ("--seed", str(seed_folder), "--ros-args", "-p", "anchor:=tf", "-p", "plan_idle_s:=0.4")
    node = NodeProcess(tmp_path, *words)
    client = Client(node)
    try:
        client.connect()
        node.wait_for("New world")
        poses = sideways(seed_folder, 4)
        for pose in poses:
            pose[:3, 3] += 30.0, -4.0, 0.5
        client.send_tf(stamps(4), poses)
        client.wait_for_frames(4)
        found = start_poses(client)
        client.spin(lambda: found and np.allclose(found[-1], poses[0], atol=1e-6))
        assert mask_from_ros(client.got["observed/image"][0]).mean() > 0.9
        node.wait_for("The world was put where the plan starts: (28.50, -6.50, 1.70) m")
        assert "The plan starts" not in client.problems()
    finally:
        client.close()
        node.close()


def test_a_path_is_rendered_like_tf(client, seed_folder):
    planned = stamps(6, START + 50 * PERIOD)
    client.send_path(make_path(planned, sideways(seed_folder, 6)))
    expect_the_plan(client, planned)


def test_a_late_stranger_rebuilds_depth_from_the_latched_cloud(client, seed_folder, process):
    client.send_tf(stamps(8), sideways(seed_folder, 8))
    expect_the_plan(client, stamps(8))
    stranger = subprocess.Popen(
        [sys.executable, str(TESTS / "cloud_reader.py"), "8"],
        stdout=subprocess.PIPE,
        env=process.environment,
        text=True,
    )
    assert stranger.stdout.readline() == "cloud\n"
    client.clear()
    client.send_tf(stamps(1, START + 8 * PERIOD), sideways(seed_folder, 9)[8:])
    out, _ = stranger.communicate(timeout=60)
    assert stranger.returncode == 0
    report = json.loads(out)
    assert report["cloud_frame"] == "world" and report["points"] >= 80
    assert report["observed"] > 0.8 and report["covered"] > 0.9, report
    assert report["within_footprint"] > 0.9, report


def seed_messages(stamp_ns: int = START, size=(48, 60)) -> dict[str, Image | CameraInfo]:
    """A seed as a live camera sends it: bgr8 and millimetres."""
    rng = np.random.default_rng(7)
    bgr = np.kron(rng.integers(0, 256, (6, 6, 3), np.uint8), np.ones((8, 10, 1), np.uint8))
    camera = Camera.from_hfov(65.0, size)
    millimetres = np.full(size, 2000, np.uint16)
    return {
        "image": image_to_ros(bgr, "bgr8", stamp_ns, "live_camera"),
        "camera_info": camera_info_to_ros(camera, stamp_ns, "live_camera"),
        "depth": image_to_ros(millimetres, "16UC1", stamp_ns, "live_camera"),
    }


def send_seed(client: Client, messages: dict) -> None:
    for kind, message in messages.items():
        client.seed[kind].publish(message)


def test_a_live_camera_s_seed_makes_a_new_world(client, seed_folder):
    pose = sideways(seed_folder, 1)[0].copy()
    pose[:3, 3] += [10.0, 0.0, 1.0]
    client.send_static(pose, "live_camera")
    client.spin_for(0.3)
    messages = seed_messages()
    send_seed(client, messages)
    client.spin(lambda: client.got["cache/points"])
    client.send_tf(stamps(4, START + PERIOD), [pose] * 4)
    expect_the_plan(client, stamps(4, START + PERIOD))
    import cv2

    expected = cv2.resize(picture_from_ros(messages["image"]), (80, 64))
    assert psnr(picture_from_ros(client.got["color/image_raw"][0]), expected) > 20
    depth = depth_from_ros(client.got["depth/image_rect"][0])
    np.testing.assert_allclose(np.nanmedian(depth), 2.0, atol=0.02)
    np.testing.assert_allclose(transform_from_ros(client.rendered_poses()[0]), pose, atol=1e-6)


def spoilt(kind: str) -> dict:
    """A seed with one thing wrong."""
    messages = seed_messages()
    if kind == "zero-size picture":
        messages["image"] = Image(header=messages["image"].header, encoding="rgb8")
    elif kind == "picture cut off":
        messages["image"].data = messages["image"].data[:-10]
    elif kind == "uncalibrated":
        messages["camera_info"].k = np.zeros(9)
    elif kind == "distorted":
        messages["camera_info"].d[0] = 0.2
    elif kind == "info of another size":
        messages["camera_info"].width = 640
    elif kind == "depth of another size":
        messages["depth"] = seed_messages(size=(24, 30))["depth"]
    else:
        nothing = np.full((48, 60), np.nan, np.float32)
        messages["depth"] = image_to_ros(nothing, "32FC1", START, "live_camera")
    return messages


BAD_SEEDS = {
    "zero-size picture": "0 x 0",
    "picture cut off": "cut off",
    "uncalibrated": "uncalibrated",
    "distorted": "image_rect",
    "info of another size": "640 x 48",
    "depth of another size": "30 x 24",
    "depth all NaN": "no valid pixel",
}


def test_bad_seeds_are_refused_and_the_world_stays(client, seed_folder, process):
    client.send_tf(stamps(4), sideways(seed_folder, 4))
    expect_the_plan(client, stamps(4))
    for kind, words in BAD_SEEDS.items():
        client.clear()
        send_seed(client, spoilt(kind))
        client.spin(lambda words=words: words in client.problems(), patience_s=15)
        assert process.text().count(words) == 1, f"{kind}: not one log line"
    client.clear()
    client.send_tf(stamps(4, START + 4 * PERIOD), sideways(seed_folder, 4)[::-1])
    expect_the_plan(client, stamps(4, START + 4 * PERIOD))
    assert mask_from_ros(client.got["observed/image"][-1]).mean() > 0.95


def test_bad_plans_are_refused_and_the_good_one_goes_on(client, seed_folder):
    poses = sideways(seed_folder, 4)
    client.send_tf(stamps(4), poses)
    expect_the_plan(client, stamps(4))
    later = stamps(3, START + 10 * PERIOD)

    def nan(pose):
        pose.pose.orientation.w = float("nan")

    def long(pose):
        pose.pose.orientation.w += 3.0

    def frame(pose):
        pose.header.frame_id = "elsewhere"

    cases = [
        (later, [(1, nan)], "quaternion with NaN"),
        (later, [(2, long)], "quaternion of length"),
        (later[::-1], [], "Pose 1 of the plan jumps back in time"),
        (later, [(2, frame)], "'elsewhere'"),
        (stamps(3), [], "jumps back in time"),
        ([], [], "no poses"),
    ]
    for times, spoil, words in cases:
        client.clear()
        message = make_path(times, poses[: len(times)])
        for index, change in spoil:
            change(message.poses[index])
        client.send_path(message)
        client.spin(lambda words=words: words in client.problems(), patience_s=15)
    client.clear()
    client.send_path(make_path(later, poses[:3], frame="nowhere"))
    client.spin(lambda: "no frame 'nowhere'" in client.problems(), patience_s=15)
    client.clear()
    client.send_tf(stamps(4, START + 4 * PERIOD), poses)
    expect_the_plan(client, stamps(4, START + 4 * PERIOD))


# A process with one node: its name, and whether it publishes pictures.
STRANGER = """
import contextlib, sys, rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node(sys.argv[1])
publisher = node.create_publisher(Image, "color/image_raw", 10) if sys.argv[2:] else None
with contextlib.suppress(Exception):
    rclpy.spin(node)
"""


@pytest.mark.parametrize(
    ("words", "level", "told"),
    [
        (["mirage_node", "pictures"], b"\2", "2 nodes are called /mirage_node:"),
        (["bag", "pictures"], b"\1", "/color/image_raw are also published by /bag:"),
    ],
)
def test_a_second_node_of_the_name_or_the_pictures_is_told(client, process, words, level, told):
    def levels() -> set[bytes]:
        statuses = [status for m in client.got["/diagnostics"] for status in m.status]
        return {s.level for s in statuses if s.name.endswith(": node") and told in s.message}

    def settled() -> bool:
        return client.got["/diagnostics"] and not any(
            "nodes are called" in status.message or "also published" in status.message
            for status in client.got["/diagnostics"][-1].status
        )

    before = process.text().count(told)
    command = [sys.executable, "-c", STRANGER, *words]
    other = subprocess.Popen(command, env=process.environment)
    try:
        client.spin(levels, patience_s=20)
        assert levels() == {level}
        assert process.text().count(told) == before + 1
    finally:
        end(other)
    client.spin(settled, patience_s=20)

"""The large model through the node, as a user meets it: a tiny random checkpoint over real DDS."""

from __future__ import annotations

import json

import numpy as np
import pytest
from make_seed import write_seed
from ros_client import PICTURES, Client, NodeProcess, make_path
from std_msgs.msg import String

from mirage_ros.data.seeds import load_seed
from mirage_ros.models.wan.config import write_tiny_checkpoint
from mirage_ros.ros.image_messages import depth_from_ros, picture_from_ros

START, PERIOD = 2_000_000_000_987_654_321, 100_000_000
MIRAGE_NODE = ("-m", "mirage_ros.cli", "node")


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def process(tmp_path_factory, seed_folder):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")
    # A real user's folder of branch and settings would stand beside the published one.
    (folder / "mirage.json").write_text(json.dumps({"size": [64, 96], "steps": 4}))
    node = NodeProcess(
        tmp_path_factory.mktemp("log"), "--model", str(folder), "--seed", str(seed_folder),
        "--ros-args", "-p", "prompt:='a small room'", "-p", "model_settings:='{steps: 2}'",
        "-p", "image_depth:=200", "-p", "plan_idle_s:=0.4", program=MIRAGE_NODE,
    )  # fmt: skip
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(process):
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    yield client
    client.close()


def test_three_chunks_come_at_the_plans_times_without_a_seam(client, process, seed_folder):
    """The seed is the first of 33 frames; it is known already, so 32 + 32 + 32 are published."""
    start = load_seed(seed_folder).camera.world_from_camera
    stamps = [START + index * PERIOD for index in range(96)]
    poses = [start.copy() for _ in stamps]
    for index, pose in enumerate(poses):
        pose[:3, 3] += start[:3, 0] * 0.005 * index
    client.send_path(make_path(stamps, poses))
    client.wait_for_frames(96)
    client.spin(lambda: len(client.stamps("/tf")) >= 96 and len(client.got["status"]) >= 3)
    for name in (*PICTURES, "/tf"):
        assert client.stamps(name) == stamps, name
    assert [status.frames for status in client.got["status"]] == [32, 32, 32]
    assert {status.model for status in client.got["status"]} == {"tiny"}
    assert "96 x 64, chunks of 32" in process.text()
    assert "Memory plan at 64x96" in process.text()
    pictures = np.stack([picture_from_ros(m) for m in client.got["color/image_raw"]]).astype(int)
    assert pictures.shape == (96, 64, 96, 3)
    depth = np.stack([depth_from_ros(m) for m in client.got["depth/image_rect"]])
    assert depth.shape == (96, 64, 96) and np.isfinite(depth).any()
    change = np.abs(np.diff(pictures, axis=0)).mean((1, 2, 3))
    inside = np.delete(change, [31, 63])
    assert change[[31, 63]].max() <= 1.5 * inside.max(), "no jump between chunks"


def test_a_prompt_from_the_topic_is_read_for_what_follows(client, process):
    publisher = client.node.create_publisher(String, "prompt", 10)
    client.spin(lambda: publisher.get_subscription_count() > 0)
    publisher.publish(String(data="a blue hall"))
    client.spin(lambda: "The prompt is now 'a blue hall'." in process.text())
    assert "prompt" not in client.problems()


def test_a_plan_that_ends_inside_a_latent_goes_on_without_a_gap(client, seed_folder):
    client.reset()
    start = load_seed(seed_folder).camera.world_from_camera
    stamps = [START + index * PERIOD for index in range(45)]
    client.send_path(make_path(stamps[:6], [start] * 6))
    client.wait_for_frames(6)
    client.send_path(make_path(stamps[6:], [start] * 39))
    client.wait_for_frames(45)
    for name in PICTURES:
        assert client.stamps(name) == stamps, name

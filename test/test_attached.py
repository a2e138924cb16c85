"""The studio in the world of a running node, over DDS."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest
from fakes import pixel_model
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from ros_client import LOCAL, NodeProcess, new_domain
from studio_helpers import Notes, did, moved

from mirage_ros.apps.studio.bodies import place_ahead, spawnables
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import psnr_db, psnr_where
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Delete, Move
from mirage_ros.ros.attached import NAMES, AttachedWorld
from mirage_ros.ros.callbacks import Deferred, defer
from mirage_ros.srv import SaveWorld
from mirage_ros.world.world import World

DRIVE = ("step_frames:=1", "late_plan:=skip", "frame_rate_hz:=20.0", "plan_idle_s:=0.1")


def parameters(*given):
    return ["--ros-args", *(word for one in given for word in ("-p", one))]


@pytest.fixture(scope="module")
def node(tmp_path_factory, folder):
    process = NodeProcess(tmp_path_factory.mktemp("log"), *parameters(f"seed:={folder}", *DRIVE))
    process.wait_for("New world")
    yield process
    process.close()


@pytest.fixture
def joined(node, tmp_path, monkeypatch):
    """A walk in the node's world, and what it tells."""
    for name, value in {**LOCAL, "ROS_DOMAIN_ID": str(node.domain)}.items():
        monkeypatch.setenv(name, value)
    world = AttachedWorld(tmp_path / "begun", find_s=60.0)
    notes = Notes()
    walk = Walk(world, notes)
    walk.ask("join", walk.join)
    notes.wait(lambda: notes.sentences)
    assert notes.sentences == [(True, "Joined the running node.")], node.text()
    yield walk, notes
    walk.close()
    world.close()


def walked(walk, notes, pose):
    count = len(notes.views)
    walk.look(pose)
    notes.wait(lambda: len(notes.views) > count)
    return notes.views[-1]


def shows(frame, seed):
    """Whether a picture is the seed's, in the node's size."""
    small = cv2.resize(seed.rgb, frame.rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
    return psnr_db(frame.rgb, small) > 18


def test_a_pose_goes_out_on_tf_and_its_picture_comes_in(joined, folder):
    walk, notes = joined
    seed = load_seed(folder)
    start = notes.views[-1].frame
    assert np.allclose(start.camera.world_from_camera, seed.camera.world_from_camera, atol=1e-3)
    assert shows(start, seed)
    pose = moved(seed.camera.world_from_camera, 0.3, 0.2)
    view = walked(walk, notes, pose)
    assert np.allclose(view.frame.camera.world_from_camera, pose, atol=1e-3)
    assert view.state.memory.tokens > 0 and set(view.seconds) >= {"read", "generate", "decode"}
    world = World(pixel_model())
    world.reset(seed.rgb, seed.camera, seed.depth_m)
    camera = Camera(view.frame.camera.intrinsics, pose[None], view.frame.camera.size)
    alone = world.step(camera, np.array([10**9])).frames[0]
    shown = np.isfinite(alone.depth_m) & alone.observed & view.frame.observed
    assert shown.mean() > 0.5
    assert psnr_where(view.frame.rgb, alone.rgb, shown) > 24


def test_the_buttons_are_the_nodes_services(joined, folder, tmp_path):
    walk, notes = joined
    assert did(walk, notes, walk.keep) == (True, "Kept as moment 1.")
    kept = notes.views[-1]
    walked(walk, notes, moved(kept.frame.camera.world_from_camera, -0.5))
    assert did(walk, notes, lambda: walk.restore("1"))[0]
    assert np.array_equal(notes.views[-1].frame.rgb, kept.frame.rgb)
    good, sentence = did(walk, notes, lambda: walk.erase(-50 * np.ones(3), 50 * np.ones(3)))
    assert good and int(sentence.split()[0]) > 0
    good, sentence = did(walk, notes, lambda: walk.save(tmp_path / "saved"))
    assert good and (tmp_path / "saved" / "world.json").is_file()
    assert did(walk, notes, lambda: walk.load(tmp_path / "saved"))[0]
    good, sentence = did(walk, notes, lambda: walk.load(tmp_path))
    assert not good and "The node did not load" in sentence
    seed = load_seed(folder)
    assert did(walk, notes, lambda: walk.begin(seed))[0]
    assert shows(notes.views[-1].frame, seed)
    good, sentence = did(walk, notes, walk.dream_again)
    assert not good and "--world-seed" in sentence


def test_entities_are_the_nodes(joined, folder, tmp_path):
    walk, notes = joined
    seed = load_seed(folder)
    assert did(walk, notes, lambda: walk.begin(seed))[0]
    bare = notes.views[-1]
    place = place_ahead(bare)
    assert did(walk, notes, lambda: walk.spawn("box", spawnables(tmp_path)["box"], place)) == (True, "box")
    view = notes.views[-1]
    (body,) = view.state.entities
    assert body.state.name == "box" and np.ptp(body.state.bounds_m, axis=0) == pytest.approx([0.4, 0.4, 0.4], abs=1e-3)
    assert body.state.pose[2, 3] == pytest.approx(place[2, 3] + 0.2, abs=1e-3)
    nearer = view.frame.depth_m < bare.frame.depth_m - 0.1
    assert nearer.sum() > 50
    aside = body.state.pose.copy()
    aside[:3, 3] += 0.4 * seed.camera.world_from_camera[:3, 0]
    did(walk, notes, lambda: walk.change_entities((Move("box", aside),)) or "moved")
    moved_on = notes.views[-1].frame.depth_m < bare.frame.depth_m - 0.1
    assert np.nonzero(moved_on)[1].mean() > np.nonzero(nearer)[1].mean() + 3
    good, sentence = did(walk, notes, lambda: walk.change_entities((Delete("table"),)))
    assert not good and "The node refused" in sentence and "table" in sentence
    did(walk, notes, lambda: walk.change_entities((Delete("box"),)) or "deleted")
    assert notes.views[-1].state.entities == ()


class SilentNode:
    """As much of a node as the studio looks for, which never answers that it has saved."""

    def __init__(self, domain):
        self.context, self.asked = Context(), threading.Event()
        self.context.init(domain_id=domain)
        self.node = Node("mirage_node", context=self.context)
        for name in NAMES:
            self.node.declare_parameter(name, "stream" if name == "time_mode" else name)
        defer(self.node.create_service(SaveWorld, "~/save_world", self._save))
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def _save(self, _request, _response):
        self.asked.set()
        return Deferred()

    def close(self):
        self.executor.shutdown()
        self.thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.mark.parametrize("ends", ["the node", "the studio"])
def test_an_answer_is_not_waited_for_when_one_side_ends(ends, tmp_path, monkeypatch):
    domain = new_domain()
    for name, value in {**LOCAL, "ROS_DOMAIN_ID": str(domain)}.items():
        monkeypatch.setenv(name, value)
    node, notes = SilentNode(domain), Notes()
    world = AttachedWorld(tmp_path / "begun", find_s=60.0)
    walk = Walk(world, notes)
    try:
        walk.ask("save", lambda: walk.save(tmp_path / "saved"))
        assert node.asked.wait(30) and not notes.sentences
        begun_s = time.monotonic()
        if ends == "the node":
            node.close()
            notes.wait(lambda: notes.sentences)
        else:
            closer = threading.Thread(target=walk.close, daemon=True)
            closer.start()
            closer.join(20)
            assert not closer.is_alive()
        assert time.monotonic() - begun_s < 15
    finally:
        world.close()
        if ends == "the studio":
            node.close()
    words = {"the node": "did not answer save_world and is gone", "the studio": "The studio is ending."}
    assert len(notes.sentences) == 1 and words[ends] in notes.sentences[0][1]
    walk.close()


def test_without_a_node_that_streams_it_says_what_to_start(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    process = NodeProcess(tmp_path, *parameters(f"seed:={folder}", "time_mode:=lockstep"))
    try:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(process.domain))
        with pytest.raises(MirageError, match="There is no /nobody/mirage_node/get_parameters; start `mirage node"):
            AttachedWorld(tmp_path, "nobody", find_s=0.5)
        with pytest.raises(MirageError, match="runs in lockstep.*config/drive.yaml"):
            AttachedWorld(tmp_path, find_s=60.0)
    finally:
        process.close()

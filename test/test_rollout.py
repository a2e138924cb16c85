"""How the worker is fed: whole chunks, a bounded queue, seeds from topics, failures told."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from fakes import PixelModel, Stumbling, no_model
from fed_plans import PERIOD, START, feed, pose_at, stamps
from sensor_msgs.msg import Image

from mirage_ros.data.seeds import Seed, level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.chunk_timing import Pacing
from mirage_ros.ros.chunks import IN_FLIGHT, Rollout
from mirage_ros.ros.inputs import SeedInput
from mirage_ros.ros.messages import stamp_to_ros
from mirage_ros.ros.plan import Plan, PlanConfig
from mirage_ros.ros.tf import Buffer
from mirage_ros.ros.worker import Done, Failed, ModelReady, Reset, Step, WorkerConfig
from mirage_ros.ros.worker.robots import resized_frame


def image_message(stamp_ns: int, frame: str = "eye") -> Image:
    message = Image(encoding="rgb8")
    message.header.stamp, message.header.frame_id = stamp_to_ros(stamp_ns), frame
    return message


def no_pose(frame: str, stamp_ns: int) -> np.ndarray:
    raise MirageError("TF does not know.")


def test_seed_messages_are_matched_by_stamp_and_wait_for_depth():
    seeds = SeedInput()
    pose = pose_at(1.0)
    seeds.add("camera_info", image_message(1), 0.0)
    seeds.add("image", image_message(2), 0.0)
    assert seeds.poll(1.0, lambda frame, stamp: pose) is None
    assert seeds.unmatched(3.0) == "seed/image"
    seeds.add("camera_info", image_message(2), 3.0)
    messages, found = seeds.poll(3.1, lambda frame, stamp: pose)
    assert set(messages) == {"image", "camera_info"} and found is pose
    assert seeds.poll(3.2, lambda frame, stamp: pose) is None


def test_a_seed_stream_is_one_seed_until_it_rests():
    seeds = SeedInput()

    def shoot(stamp_ns: int, now_s: float):
        for kind in ("image", "camera_info", "depth"):
            seeds.add(kind, image_message(stamp_ns), now_s)
        return seeds.poll(now_s, lambda frame, stamp: pose_at(0.0))

    assert shoot(1, 0.0) is not None
    assert [shoot(2 + i, 0.1 * i) for i in range(40)] == [None] * 40
    assert shoot(100, 4.0 + SeedInput.QUIET_S) is not None


def test_a_seed_without_tf_is_given_without_a_pose_after_a_wait():
    seeds = SeedInput()
    for kind in ("image", "camera_info", "depth"):
        seeds.add(kind, image_message(1), 0.0)
    assert seeds.poll(0.0, no_pose) is None
    messages, pose = seeds.poll(0.0 + SeedInput.POSE_WAIT_S, no_pose)
    assert pose is None and len(messages) == 3


def test_seed_messages_that_wait_are_bounded():
    seeds = SeedInput()
    for stamp_ns in range(1, 100):
        seeds.add("image", image_message(stamp_ns), 0.0)
    seeds.add("camera_info", image_message(1), 0.0)
    assert seeds.poll(1.0, no_pose) is None


class Fed:
    """A Rollout on a real World with the fake model; results are collected by `run`."""

    def __init__(self, make_model=PixelModel, config: NodeConfig = NodeConfig()) -> None:  # noqa: B008
        self.buffer, self.config = Buffer(), config
        self.plan = Plan(PlanConfig("world", config.camera_frame), self.buffer)
        self.woken = threading.Event()
        self.pacing = Pacing(self.plan)
        self.rollout = Rollout(self.plan, make_model, WorkerConfig(), self.woken.set)
        self.results = []
        self.most_in_flight = 0

    def seed(self, seed: Seed | None = None) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
        camera = Camera.from_hfov(60.0, rgb.shape[:2], level_camera_pose())
        seed = seed or Seed("test", rgb, camera)
        self.rollout.submit(Reset(seed, None, "test"))

    def run(self, until, pump: bool = True) -> None:
        deadline = time.monotonic() + 60
        while not until(self):
            assert time.monotonic() < deadline, self.results
            self.woken.wait(0.02)
            self.woken.clear()
            while (result := self.rollout.take()) is not None:
                self.results.append(result)
            if pump:
                self.rollout.pump(self.pacing, self.config, time.monotonic(), time.time_ns())
            self.most_in_flight = max(self.most_in_flight, self.rollout.in_flight)

    def rendered(self) -> list[int]:
        done = [result for result in self.results if isinstance(result, Done)]
        steps = [result for result in done if isinstance(result.command, Step)]
        return [frame.stamp_ns for result in steps for frame in result.chunk.frames]


@pytest.fixture
def fed():
    made = []

    def make(*args, **kwargs) -> Fed:
        made.append(Fed(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        assert one.rollout.stop(5.0)


def test_all_that_is_planned_is_rendered_the_last_chunk_in_part(fed):
    one = fed(config=NodeConfig(camera_frame="camera", plan_idle_s=0.2))
    feed(one.buffer, stamps(10))
    one.seed()
    one.run(lambda fed: len(fed.rendered()) == 10)
    assert one.rendered() == stamps(10)
    assert one.most_in_flight <= IN_FLIGHT
    chunks = [r for r in one.results if isinstance(r, Done) and isinstance(r.command, Step)]
    assert [len(result.chunk.frames) for result in chunks] == [4, 4, 2]
    one.run(lambda fed: fed.pacing.waiting)
    assert "all of it is rendered" in one.pacing.waiting
    one.run(lambda fed: fed.results[-1].points is not None)


@pytest.mark.parametrize(("late_plan", "kept"), [("all", stamps(10)), ("skip", stamps(10)[-1:])])
def test_step_frames_are_a_chunk_in_stream_time_as_well(fed, late_plan, kept):
    one = fed(config=NodeConfig(camera_frame="camera", step_frames=1, late_plan=late_plan, plan_idle_s=60.0))
    feed(one.buffer, stamps(10))
    one.seed()
    one.run(lambda fed: len(fed.rendered()) == len(kept))
    assert one.rendered() == kept
    chunks = [r for r in one.results if isinstance(r, Done) and isinstance(r.command, Step)]
    assert [len(result.chunk.frames) for result in chunks] == [1] * len(kept)


def test_hold_goes_on_in_full_chunks_after_the_plan(fed):
    config = NodeConfig(camera_frame="camera", plan_idle_s=0.2, on_missing_plan="hold")
    one = fed(config=config)
    feed(one.buffer, stamps(4))
    one.seed()
    one.run(lambda fed: len(fed.rendered()) >= 12)
    assert one.rendered()[:12] == stamps(12)


def test_the_world_of_a_file_begins_just_before_its_first_frame(fed):
    one = fed(config=NodeConfig(camera_frame="camera", plan_idle_s=0.1))
    one.seed()
    feed(one.buffer, stamps(4))
    one.run(lambda fed: len(fed.rendered()) == 4)
    one.run(lambda fed: fed.results[-1].points is not None)
    assert one.results[-1].points.written_ns.min() == START - PERIOD


def test_a_bad_seed_leaves_the_world_and_the_worker_as_they_were(fed):
    one = fed(config=NodeConfig(camera_frame="camera", plan_idle_s=0.1))
    one.seed()
    one.run(lambda fed: fed.rollout.has_world)
    tokens = one.results[-1].chunk.tokens
    camera = Camera.from_hfov(60.0, (64, 80))
    depth_m = np.full(camera.size, np.nan, np.float32)
    one.seed(Seed("bad", np.zeros((64, 80, 3), np.uint8), camera, depth_m))
    one.run(lambda fed: isinstance(fed.results[-1], Failed))
    assert "no valid pixel" in one.results.pop().message
    feed(one.buffer, stamps(4), speed=0.0)
    one.run(lambda fed: len(fed.rendered()) == 4)
    assert one.results[-1].chunk.tokens >= tokens


def test_frames_of_another_size_keep_their_view_and_invent_no_depth():
    camera = Camera.from_hfov(60.0, (64, 80), level_camera_pose())
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (64, 80, 3), np.uint8)
    depth = rng.choice([1.0, 5.0, np.inf], (64, 80)).astype(np.float32)
    frame = resized_frame(Frame(7, camera, rgb, depth, depth > 2), (128, 160))
    assert frame.rgb.shape == (128, 160, 3) and frame.camera.size == (128, 160)
    np.testing.assert_array_equal(frame.depth_m, depth.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(frame.observed, frame.depth_m > 2)
    assert frame.camera.hfov_deg == pytest.approx(camera.hfov_deg)


def test_a_model_that_cannot_be_loaded_is_said_once(fed):
    one = fed(no_model)
    one.run(lambda fed: fed.results)
    assert one.results == [Failed(None, "No model at nowhere.")]


def test_a_step_that_fails_is_told_and_the_next_one_runs(fed):
    one = fed(Stumbling, NodeConfig(camera_frame="camera", plan_idle_s=0.1))
    one.seed()
    feed(one.buffer, stamps(8))
    one.run(lambda fed: len(fed.rendered()) == 4)
    failed = [result for result in one.results if isinstance(result, Failed)]
    assert len(failed) == 1 and "out of luck" in failed[0].message
    assert one.rendered() == stamps(8)[4:]
    assert any(isinstance(result, ModelReady) for result in one.results)

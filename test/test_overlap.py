"""Rollouts that generate while they decode: the same bits as one thread, really side by side."""

from concurrent.futures import Executor, Future
from threading import Event

import numpy as np
import pytest
import torch
from analytic import look
from fakes import PixelModel
from pixel_worlds import SIZE, NoisyModel, camera, frames, out_and_back, picture, same, started

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.models.wan.config import write_tiny_checkpoint
from mirage_ros.world.cycle import in_order
from mirage_ros.world.world import World, WorldConfig


class Inline(Executor):
    """Does the work at once, on the caller's thread."""

    def submit(self, work, *inputs):
        done = Future()
        done.set_result(work(*inputs))
        return done


def in_chunks(world, cameras, stamps):
    size = world.model.chunk_frames
    return [(cameras[i : i + size], stamps[i : i + size]) for i in range(0, len(stamps), size)]


def inlined(world, plans):
    """The chunks of an overlapped rollout whose work is done on one thread."""
    for state, chunk in in_order(world.cycle, world.snapshot(), plans, Inline()):
        world.restore(state)
        yield chunk


def test_two_threads_give_the_bits_of_one():
    cameras, stamps = out_and_back(22)
    inline, threads = started(), started(overlap_decode=True)
    plans = in_chunks(inline, cameras, stamps)
    one, other = frames(inlined(inline, plans)), frames(threads.rollout(cameras, stamps))
    assert len(other) == 22 and same(one, other)
    assert [frame.stamp_ns for frame in other] == stamps.tolist()
    for name in ("depth_m", "observed"):
        pairs = zip(one, other, strict=True)
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs)
    points, again = inline.memory.to_points(), threads.memory.to_points()
    assert np.array_equal(points.xyz, again.xyz) and np.array_equal(points.rgb, again.rgb)


class Meeting(NoisyModel):
    """Chunk 2 is generated only once chunk 1 is being decoded, and the other way round."""

    def __init__(self):
        super().__init__()
        self.generating, self.decoding, self.met = Event(), Event(), []

    def generate(self, *arguments):
        if len(self.calls) == 1:
            self.generating.set()
            self.met.append(self.decoding.wait(20))
        return super().generate(*arguments)

    def decode(self, latents):
        if len(self.calls) == 1:
            self.decoding.set()
            self.met.append(self.generating.wait(20))
        return super().decode(latents)


def test_a_chunk_is_decoded_while_the_next_is_generated():
    world = started(Meeting(), overlap_decode=True)
    assert len(list(world.rollout(*out_and_back(8)))) == 2
    assert world.model.met == [True, True]


class Watching(NoisyModel):
    """Notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.visible, self.anchors = [], []

    def generate(self, readout, *arguments):
        self.visible.append(readout.visible.copy())
        return super().generate(readout, *arguments)

    def perceive(self, rgb, cameras, anchor_depth_m):
        self.anchors.append(anchor_depth_m)
        return super().perceive(rgb, cameras, anchor_depth_m)


def test_memory_lags_by_one_chunk_in_what_is_shown_and_not_in_depth():
    """The camera turns to a new place and stays there for three chunks."""
    turned = np.tile(look((0, 0, 1), (1, 0, 1)), (12, 1, 1))
    plan = Camera(camera().intrinsics, turned, SIZE), np.arange(1, 13) * 100_000_000
    world = started(Watching(), overlap_decode=True)
    list(world.rollout(*plan))
    shares = [visible.mean() for visible in world.model.visible]
    assert max(shares[:2]) < 0.5 and shares[2] == 1.0
    known = [np.isfinite(anchor).mean() for anchor in world.model.anchors[1:] if anchor is not None]
    assert known[-2:] == [1.0, 1.0]
    preceding = [call[0] for call in world.model.calls]
    kept = world.snapshot().latents
    assert torch.equal(preceding[1], torch.stack([kept[3], kept[4]]).float())


def test_a_rollout_that_fails_or_ends_early_leaves_the_world_after_its_last_chunk():
    class Failing(NoisyModel):
        def generate(self, *arguments):
            if len(self.calls) == 2:
                raise MirageError("The third chunk cannot be.")
            return super().generate(*arguments)

    world, given = started(Failing(), overlap_decode=True), []
    with pytest.raises(MirageError, match="third chunk"):
        for chunk in world.rollout(*out_and_back(16)):
            given.append(chunk)
    assert len(given) == 2 and world.frames_seen == 9
    world, plan = started(overlap_decode=True), out_and_back(16)
    for _ in world.rollout(*plan):
        break
    assert world.frames_seen == 5
    assert len(world.step(plan[0][4:8], plan[1][4:8]).frames) == 4


def test_a_world_that_is_changed_meanwhile_is_told_so(tmp_path):
    world, plan = started(overlap_decode=True), out_and_back(16)
    chunks = world.rollout(*plan)
    next(chunks)
    world.save(tmp_path / "between")
    world.snapshot()
    assert len(next(chunks).frames) == 4
    world.reset(picture(1), camera())
    with pytest.raises(MirageError, match="overlap_decode"):
        next(chunks)


@pytest.mark.alone  # beside other tests it failed once in four runs; alone never, nor in 11 tries beside other work
def test_the_large_model_overlaps_with_its_own_bits(tmp_path):
    """33 + 32 + 32 frames of a tiny random checkpoint: stream decoder, perceiver and memory."""
    size = (64, 96)
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    model = load_model(str(folder), "cpu", {"size": list(size), "steps": 2})
    seed = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    start, runs = Camera.from_hfov(60.0, size), []
    poses = np.tile(np.eye(4), (96, 1, 1))
    poses[:, 0, 3] = 0.01 * np.arange(1, 97)
    cameras, stamps = Camera(start.intrinsics, poses, size), np.arange(1, 97) * 100_000_000
    for threads in (True, False):
        world = World(model, WorldConfig(overlap_decode=threads))
        shown = frames([world.reset(seed, start, np.full(size, 2.0, np.float32))])
        rollout = world.rollout(cameras, stamps) if threads else inlined(
            world, in_chunks(world, cameras, stamps))  # fmt: skip
        runs.append(shown + frames(rollout))
    assert len(runs[0]) == len(runs[1]) == 97
    assert [index for index, pair in enumerate(zip(*runs, strict=True)) if not same(*([one] for one in pair))] == []
    assert [frame.stamp_ns for frame in runs[0]] == [0, *stamps.tolist()]
    assert np.array_equal(runs[0][-1].depth_m, runs[1][-1].depth_m, equal_nan=True)


def test_models_without_a_network_need_no_more_than_before():
    cameras, stamps = out_and_back(4)
    one, other = started(PixelModel()), started(PixelModel(), overlap_decode=True)
    assert same(frames(one.rollout(cameras, stamps)), frames(other.rollout(cameras, stamps)))

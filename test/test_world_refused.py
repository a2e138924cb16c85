"""What a world refuses, a model that fails or does not fit, a bad seed, plan or folder: it stays as it was."""

import numpy as np
import pytest
import torch
from fakes import PixelModel
from pixel_worlds import SIZE, camera, frames, out_and_back, picture, same, started

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Perception
from mirage_ros.world.world import World, WorldConfig


@pytest.mark.parametrize("stage", ["encode", "generate", "decode", "perceive"])
def test_a_failing_model_leaves_the_world_as_it_was(stage, monkeypatch):
    world, untouched = started(), started()
    cameras, stamps = out_and_back()
    for each in (world, untouched):
        each.step(cameras[:4], stamps[:4])

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(world.model, stage, fail)
    if stage != "encode":
        with pytest.raises(RuntimeError):
            world.step(cameras[4:8], stamps[4:8])
    if stage != "generate":
        with pytest.raises(RuntimeError):
            world.reset(picture(1), camera())
    monkeypatch.undo()
    assert world.frames_seen == 5 and world.stamp_ns == stamps[3]
    assert same(*(frames(each.rollout(cameras[4:], stamps[4:])) for each in (world, untouched)))


def bad_latents(*_):
    return torch.full((4, 192, 8, 10), float("nan"))


def short_latents(*_):
    return torch.zeros(3, 192, 8, 10)


def short_pictures(*_):
    return np.zeros((3, *SIZE, 3), np.uint8)


def small_depth(*_):
    return Perception(*(np.zeros((4, 8, 8), kind) for kind in (np.float32, bool, bool)))


@pytest.mark.parametrize(
    ("stage", "output", "message"),
    [
        ("generate", bad_latents, "NaN"),
        ("generate", short_latents, "shape"),
        ("decode", short_pictures, "shape"),
        ("perceive", small_depth, "shape"),
    ],
)
def test_a_model_whose_output_does_not_fit_is_named(stage, output, message, monkeypatch):
    world = started()
    tokens, (cameras, stamps) = world.memory.tokens, out_and_back()
    monkeypatch.setattr(world.model, stage, output)
    with pytest.raises(MirageError, match=message):
        world.step(cameras[:4], stamps[:4])
    assert (world.frames_seen, world.memory.tokens) == (1, tokens)


def test_a_bad_world_folder_is_refused_and_nothing_is_lost(tmp_path):
    world = started()
    with pytest.raises(MirageError, match="world.json"):
        world.load(tmp_path / "none")
    folder = tmp_path / "world"
    world.save(folder)
    for name in ("memory.safetensors", "latents.safetensors", "world.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-7])
        with pytest.raises(MirageError):
            world.load(folder)
        (folder / name).write_bytes(data)
    other = World(PixelModel(stride=16))
    with pytest.raises(MirageError, match="stride 16"):
        other.load(folder)
    assert world.frames_seen == 1 and world.memory.tokens == 80


@pytest.mark.parametrize(
    ("rgb", "depth", "message"),
    [
        (np.zeros((0, 80, 3), np.uint8), None, "at least 8 pixels"),
        (np.zeros((64, 80, 3), np.float32), None, "uint8"),
        (np.zeros((64, 80), np.uint8), None, "uint8"),
        (np.zeros((60, 80, 3), np.uint8), None, "size"),
        (picture(), np.ones((32, 40)), "same size"),
        (picture(), np.full(SIZE, np.nan), "no valid pixel"),
        (picture(), np.zeros(SIZE), "no valid pixel"),
    ],
)
def test_a_bad_seed_is_refused(rgb, depth, message):
    world = started()
    with pytest.raises(MirageError, match=message):
        world.reset(rgb, camera(), depth)
    assert world.frames_seen == 1 and world.memory.tokens == 80


@pytest.mark.parametrize("focal", [1e-9, 0.05, 3.0])
def test_a_field_of_view_that_no_picture_has_is_refused(focal):
    world = started()
    with pytest.raises(MirageError, match="focal lengths.*check K"):
        wide = Camera(np.diag([focal, focal, 1.0]), camera().world_from_camera, SIZE)
        world.reset(picture(1), wide)
    assert world.frames_seen == 1


def test_a_seed_of_which_nothing_can_be_remembered_is_refused():
    world, untouched = started(PixelModel()), started(PixelModel())
    world.model.far_m = 1000.0
    with pytest.raises(MirageError, match="Nothing of the seed can be remembered: 0% of it"):
        world.reset(picture(1), camera())
    world.model.far_m = untouched.model.far_m
    plan = out_and_back()
    assert same(*(frames(each.rollout(*plan)) for each in (world, untouched)))


def test_depth_that_fills_no_cell_is_refused():
    depth = np.full(SIZE, np.nan)
    depth[3, 3] = 2.0
    world = started()
    with pytest.raises(MirageError, match="no cell of 8x8"):
        world.reset(picture(), camera(), depth)
    assert world.frames_seen == 1


def test_bad_plans_are_refused():
    world, (cameras, stamps) = started(), out_and_back()
    with pytest.raises(MirageError, match="no seed"):
        World(PixelModel()).step(cameras[:1], stamps[:1])
    for plan, times, message in [
        (cameras[:5], stamps[:5], "1 to 4"),
        (cameras[:0], stamps[:0], "0 cameras"),
        (cameras[:2], stamps[:3], "one stamp"),
        (cameras[0], stamps[:1], "one stamp"),
        (cameras[:2], stamps[1::-1], "increase"),
        (cameras[:2], np.array([0, 1]), "after the last"),
    ]:
        with pytest.raises(MirageError, match=message):
            world.step(plan, times)
    assert world.frames_seen == 1


def test_a_world_refuses_what_is_no_rule_for_moving_things():
    for wrong in ({"forget_moving": "sometimes"}, {"max_dynamic_share": 1.0}):
        with pytest.raises(MirageError, match="forget_moving"):
            World(PixelModel(), WorldConfig(**wrong))

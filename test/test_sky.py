"""The sky, remembered by where one looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from imagined_worlds import FAR_M, SIZE, ImaginingModel, level

from mirage_ros.geometry.camera import Camera
from mirage_ros.world.observing import only_seen
from mirage_ros.world.world import World

SKY_ROWS = 3


def outdoors() -> World:
    """A world whose seed shows sky above a wall 4 m away."""
    world = World(ImaginingModel(sky_rows=SKY_ROWS))
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    depth = np.full(SIZE, FAR_M, np.float32)
    depth[: SKY_ROWS * 8] = np.inf
    world.reset(picture, level(np.zeros(1))[0], depth)
    return world


def turned_to(world: World, *yaw_deg: float) -> list:
    """Frames of a camera that turns in place."""
    start = world.stamp_ns
    return [world.step(level(np.array([yaw])), np.array([start + (1 + i) * 10**8])).frames[0] for i, yaw in enumerate(yaw_deg)]


def test_the_sky_is_remembered_by_where_one_looks(tmp_path):
    world = outdoors()
    seed = world.state.latents[0]
    there, away, back = turned_to(world, 1e-6, 30, 1e-6)
    assert there.observed.all() and back.observed.all() and not away.observed.all()
    assert np.isinf(there.depth_m[: SKY_ROWS * 8]).all()
    assert np.array_equal(there.rgb, back.rgb) and world.model.asked <= 2
    assert torch.equal(world.state.latents[0], seed) and np.isfinite(world.memory.positions_m).all()
    assert np.abs(world.memory.positions_m).max() < 20, "the memory itself holds surfaces alone"
    again, sky = turned_to(world, 30)[0], slice(0, SKY_ROWS * 8)
    assert again.observed[sky].all() and np.array_equal(again.rgb[sky], away.rgb[sky]), "what was imagined of it stays as well"
    world.save(tmp_path / "world")
    loaded = World(ImaginingModel(sky_rows=SKY_ROWS))
    loaded.load(tmp_path / "world")
    assert np.array_equal(turned_to(loaded, 30)[0].rgb[sky], again.rgb[sky])
    unchanged = world.snapshot()
    turned_to(world, 100)
    assert unchanged.sky.tokens < world.state.sky.tokens
    seen, _ = only_seen(world.state)
    assert 0 < seen.sky.tokens < unchanged.sky.tokens


def test_where_nobody_has_looked_a_wall_may_stand_before_the_sky():
    """Sky is seen past the edge of a wall; from a place aside that edge hides it, but nobody knows yet."""
    world = outdoors()
    pose = level(np.zeros(1)).world_from_camera.copy()
    pose[:, 1, 3] = -30.0  # 30 m to the right, where the seed's view never was
    camera = Camera(level(np.zeros(1)).intrinsics, pose, SIZE)
    frame = world.step(camera, np.array([10**8])).frames[0]
    assert not frame.observed[: SKY_ROWS * 8].any()
    assert world.model.asked


def test_a_world_that_was_saved_without_a_sky_gets_an_empty_one(tmp_path):
    world = outdoors()
    world.restore(replace(world.snapshot(), sky=None))
    world.save(tmp_path / "world")
    assert not (tmp_path / "world" / "sky.safetensors").exists()
    world.load(tmp_path / "world")
    assert world.state.sky.tokens == 0
    turned_to(world, 50)
    world.save(tmp_path / "world")
    assert (tmp_path / "world" / "sky.safetensors").exists()
    world.restore(replace(world.snapshot(), sky=None))
    world.save(tmp_path / "world")
    assert not (tmp_path / "world" / "sky.safetensors").exists()


def test_a_real_sky_takes_the_place_of_an_imagined_one():
    world = outdoors()
    turned_to(world, 40)
    imagined = int((~world.state.sky.from_real).sum())
    picture, depth = np.full((*SIZE, 3), 200, np.uint8), np.full(SIZE, FAR_M, np.float32)
    depth[: SKY_ROWS * 8] = np.inf
    world.observe(picture, level(np.array([40.0]))[0], depth, world.stamp_ns)
    assert int((~world.state.sky.from_real).sum()) < imagined / 2
    frame = turned_to(world, 40)[0]
    assert frame.observed[: SKY_ROWS * 8].all() and np.abs(frame.rgb[:16, :24].astype(int) - 200).max() < 3
    world.observe(picture // 4, level(np.array([40.0]))[0], depth, world.stamp_ns)
    assert np.abs(turned_to(world, 40)[0].rgb[:16].astype(int) - 50).max() < 3, "another real one as well"
    before = world.state.sky.tokens
    world.keep_up(picture, level(np.array([-40.0]))[0], depth, world.stamp_ns)
    assert world.state.sky.tokens > before, "a live picture adds what it shows of it"


def pitched(up_deg: float) -> Camera:
    """A camera that looks up."""
    up, pose = np.radians(up_deg), level(np.zeros(1)).world_from_camera.copy()
    pose[:, :3, 1] = np.sin(up), 0, -np.cos(up)
    pose[:, :3, 2] = np.cos(up), 0, np.sin(up)
    return Camera(level(np.zeros(1)).intrinsics, pose, SIZE)


def test_a_view_of_nothing_but_sky_is_dreamt_once():
    world = World(ImaginingModel(sky_rows=8))
    depth = np.full(SIZE, FAR_M, np.float32)
    depth[: SKY_ROWS * 8] = np.inf
    world.reset(np.full((*SIZE, 3), 90, np.uint8), level(np.zeros(1))[0], depth)
    frames = [world.step(pitched(75.0), np.array([(1 + i) * 10**8])).frames[0] for i in range(3)]
    assert np.isinf(frames[0].depth_m).all() and world.model.asked == 1
    assert frames[1].observed.all() and np.array_equal(frames[1].rgb, frames[2].rgb) and np.array_equal(frames[0].rgb, frames[1].rgb)

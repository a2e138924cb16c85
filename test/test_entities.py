"""Entities in a world: drawn by depth, never remembered, kept with the world, and cheap."""

from __future__ import annotations

import time

import numpy as np
import psutil
import trimesh
from analytic import cameras, look
from bodies import PERIOD, at, spawn
from fakes import PixelModel

from mirage_ros.data.seeds import load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import Track, exp_rotation
from mirage_ros.models import load_model
from mirage_ros.world.drawing import Solid
from mirage_ros.world.entities import Mesh, Motion
from mirage_ros.world.sensors import LidarConfig, ScanConfig, lidar, scan
from mirage_ros.world.world import World

EYE = np.array([0.0, 0.0, 1.0])


def looks(*targets, size=(64, 80)) -> Camera:
    """Cameras at EYE."""
    return cameras([look(EYE, target) for target in targets], size, 60.0)


def painted(depth_m, size=(64, 80)) -> World:
    """A world from a picture of noise, ahead along x from EYE, with a depth."""
    world = World(PixelModel(size))
    rgb = np.random.default_rng(0).integers(60, 200, (*size, 3)).astype(np.uint8)
    world.reset(rgb, looks((5, 0, 1), size=size)[0], np.broadcast_to(np.float32(depth_m), size).copy(), 0)
    return world


def around(count: int) -> Camera:
    """Cameras that turn and move about the place of the box."""
    poses = []
    for angle in np.linspace(-0.9, 0.9, count):
        eye = (2.2 - 2.2 * np.cos(angle), -2.2 * np.sin(angle), 1.0 + 0.3 * np.sin(3 * angle))
        poses.append(look(eye, (2.2, 0.1 * angle, 1.0)))
    return cameras(poses, (64, 80), 60.0)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def true_box_depth(camera: Camera, pose: np.ndarray, half: float) -> np.ndarray:
    """Depth along z where the ray of a pixel enters a cube, inf elsewhere."""
    box_from_camera = np.linalg.inv(pose) @ camera.world_from_camera
    rays, eye = camera.rays() @ box_from_camera[:3, :3].T, box_from_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort(np.stack([(s * half - eye) / rays for s in (-1, 1)]), axis=0)
    enters, leaves = ends[0].max(-1), ends[1].min(-1)
    return np.where((enters <= leaves) & (enters > 0), enters, np.inf)


def test_a_box_is_seen_where_it_is_and_never_remembered():
    """0.4 m, its face 2 m ahead: depth in every camera, labels, memory after 50 frames, the view after its deletion."""
    world, bare = painted(4.0), painted(4.0)
    box, plan, stamps = at(2.2, turn=0.2), around(50), np.arange(1, 51) * PERIOD
    spawn(world, "box", box)
    frames = [frame for chunk in world.rollout(plan, stamps) for frame in chunk.frames]
    without = [frame for chunk in bare.rollout(plan, stamps) for frame in chunk.frames]
    for frame, other in zip(frames, without, strict=True):
        truth = true_box_depth(frame.camera, box, 0.2)
        seen = np.isfinite(truth) & (truth < np.nan_to_num(other.depth_m, nan=np.inf) - 0.05)
        assert seen.sum() > 100 and (np.abs(frame.depth_m - truth)[seen] < 0.02).mean() > 0.98
        inner = seen & np.isfinite(true_box_depth(frame.camera, box, 0.19))
        assert np.abs(frame.depth_m - truth)[inner].max() < 0.02
        assert (frame.labels[inner] == 1).all() and (frame.labels[~np.isfinite(truth)] == 0).mean() > 0.995
    for one, other in zip(world.memory.to_points(), bare.memory.to_points(), strict=True):
        np.testing.assert_array_equal(one, other)
    world.change_entities(lambda there, stamp_ns: there.without("box"))
    chunk, same = (w.step(around(1), np.array([51 * PERIOD])) for w in (world, bare))
    assert chunk.frames[0].labels is None and psnr(chunk.frames[0].rgb, same.frames[0].rgb) > 45
    assert psnr(frames[0].rgb, without[0].rgb) < 30


def test_a_box_leaves_nothing_behind_with_the_shipped_model():
    """The same in the shipped room, which the model imagines further; the camera goes sideways and back, and turns."""
    model, start = load_model("mini", device="cpu"), load_seed("room")
    worlds = World(model), World(model)
    for world in worlds:
        world.reset(start.rgb, start.camera, start.depth_m)
    box = worlds[0].camera.world_from_camera.copy()
    box[:3, 3] += 2.2 * box[:3, 2]
    spawn(worlds[0], "box", box)
    poses = np.stack([worlds[0].camera.world_from_camera] * 13)
    for index, angle in enumerate(np.linspace(0, 2 * np.pi, 13)):
        poses[index, :3, 3] += 0.5 * np.sin(angle) * poses[0, :3, 0]
        poses[index, :3, :3] = exp_rotation(np.array([0, 0, 0.3 * np.sin(angle)])) @ poses[index, :3, :3]
    intrinsics, size = worlds[0].camera.intrinsics, worlds[0].camera.size
    plan, last = Camera(intrinsics, poses[:12], size), Camera(intrinsics, poses[12:], size)
    frames, bare = ([f for c in w.rollout(plan, np.arange(1, 13) * PERIOD) for f in c.frames] for w in worlds)
    for frame, other in zip(frames, bare, strict=True):
        inner = np.isfinite(true_box_depth(frame.camera, box, 0.19)) & (other.depth_m > 3.0)
        assert inner.sum() > 200 and np.abs(frame.depth_m - true_box_depth(frame.camera, box, 0.2))[inner].max() < 0.02
        assert (frame.labels[inner] == 1).all()
    for one, other in zip(*(world.memory.to_points() for world in worlds), strict=True):
        np.testing.assert_array_equal(one, other)
    worlds[0].change_entities(lambda there, stamp_ns: there.without("box"))
    after, never = (world.step(last, np.array([13 * PERIOD])).frames[0].rgb for world in worlds)
    assert psnr(after, never) > 45 and psnr(frames[0].rgb, bare[0].rgb) < 30


def test_surfaces_hide_what_stands_behind_them_and_are_hidden_by_what_stands_before():
    """A table's front, 1.5 m off, fills the lower half of the picture."""
    depth_m = np.full((64, 80), 4.0)
    depth_m[32:] = 1.5
    for far, low_seen in ((2.2, False), (1.0, True)):
        world = painted(depth_m)
        spawn(world, "box", at(far))
        frame = world.step(looks((5, 0, 1)), np.array([PERIOD])).frames[0]
        hit = frame.labels > 0
        assert hit[26:31, 38:42].all() and hit[33:38, 38:42].any() == low_seen
        np.testing.assert_allclose(frame.depth_m[34:37, 38:42], far - 0.2 if low_seen else 1.5, atol=0.05)


def test_bodies_hide_each_other_and_one_around_the_camera_is_cut_open():
    world = painted(4.0)
    spawn(world, "near", at(1.5, 0.1))
    spawn(world, "far", at(2.5, 0.0))
    spawn(world, "floor", at(0.0, 0.0, 0.5), "shape://plane?size=8,8")
    frame = world.step(looks((5, 0, 1)), np.array([PERIOD])).frames[0]
    assert set(np.unique(frame.labels)) == {0, 1, 2, 3}
    assert frame.depth_m[frame.labels == 1].max() < frame.depth_m[frame.labels == 2].min()
    rows = frame.camera.rays()[..., 1]
    floor = frame.labels == 3
    np.testing.assert_allclose(frame.depth_m[floor], (0.5 / rows)[floor], atol=1e-3)
    assert floor[-1].all()


def test_colours_follow_the_surroundings_and_the_ground_is_darker_beside():
    bright, dark = painted(4.0), painted(4.0)
    rgb = np.full((64, 80, 3), 40, np.uint8)
    dark.reset(rgb, dark.camera, np.full((64, 80), 4.0, np.float32))
    for world in (bright, dark):
        spawn(world, "box", at(3.85))
    one, two = (w.step(looks((5, 0, 1)), np.array([PERIOD])).frames[0] for w in (bright, dark))
    assert one.rgb[one.labels > 0].mean() > 1.7 * two.rgb[two.labels > 0].mean()
    # The box stands right before the wall, which is all of one grey.
    beside = two.labels == 0
    assert two.rgb[beside].min() < 30 and np.median(two.rgb[beside]) > 36


def test_sensors_meet_entities():
    world = painted(4.0)
    spawn(world, "box", at(2.2))
    state, pose = world.state, looks((5, 0, 1))[0].world_from_camera
    solid = Solid(state.memory, state.entities, 0)
    config = ScanConfig(fov_deg=60.0, resolution_deg=1.0)
    with_box, without = (scan(m, state.free_space, pose, config).ranges_m for m in (solid, state.memory))
    middle = np.abs(np.degrees(config.angles_rad)) < 5
    np.testing.assert_allclose(with_box[middle] * np.cos(config.angles_rad[middle]), 2.0, atol=0.01)
    np.testing.assert_allclose(without[middle] * np.cos(config.angles_rad[middle]), 4.0, atol=0.1)
    sides = np.abs(np.degrees(config.angles_rad)) > 8
    np.testing.assert_array_equal(with_box[sides], without[sides])
    cloud = lidar(solid, pose, LidarConfig((-2.0, 0.0, 2.0), fov_deg=10.0))
    np.testing.assert_allclose(cloud.points_m[..., 0], 2.0, atol=0.01)


def test_five_hundred_spawns_and_deletions_leave_nothing():
    world, process, used = painted(4.0), psutil.Process(), {}
    bare = world.change(lambda state: world.cycle.stepped(state, looks((5, 0, 1)), np.array([PERIOD])))
    for index in range(500):
        for name in (f"box{index % 7}", "last"):
            spawn(world, name, at(2.2))
        world.change_entities(lambda there, stamp_ns: there.without(next(iter(there)).state.name))
        labels = set(np.unique(world.drawn(bare).frames[0].labels)) - {0}
        assert labels == {2 * index + 2}
        world.change_entities(lambda there, stamp_ns: there.without("last"))
        used[index] = process.memory_info().rss
    assert not len(world.entities) and world.drawn(bare) is bare
    assert used[499] < 1.02 * used[99]


def test_a_world_is_saved_with_its_entities(tmp_path):
    world = painted(4.0)
    for name, x in (("one", 2.0), ("two", 2.6)):
        spawn(world, name, at(x))
    world.change_entities(
        lambda there, stamp_ns: there.moved("two", stamp_ns, motion=Motion(np.ones(3), np.zeros(3), True, 5 * PERIOD))
        .described("two", 4, "a box", ("red", "small"))
        .without("one")
    )
    spawn(world, "led", at(3.0))
    route = Track((world.stamp_ns, world.stamp_ns + 20 * PERIOD), np.stack([at(3.0), at(4.0)]))
    world.change_entities(lambda there, stamp_ns: there.led("led", stamp_ns, route))
    world.save(tmp_path / "world")
    other = World(PixelModel())
    other.load(tmp_path / "world")
    (body, led), (same, still_led) = world.entities.states, other.entities.states
    np.testing.assert_array_equal(led.pose_at(9 * PERIOD), still_led.pose_at(9 * PERIOD))
    assert (same.name, same.number, same.tags, same.category, same.source) == ("two", 2, ("red", "small"), 4, "")
    np.testing.assert_array_equal(same.pose_at(9 * PERIOD), body.pose_at(9 * PERIOD))
    frames = [w.step(looks((5, 0, 1)), np.array([PERIOD])).frames[0] for w in (world, other)]
    for name in ("rgb", "depth_m", "labels"):
        np.testing.assert_array_equal(getattr(frames[0], name), getattr(frames[1], name))
    spawn(other, "four", at(2.0))
    assert other.entities.states[-1].number == 4
    world.reset(np.zeros((64, 80, 3), np.uint8), world.camera, np.full((64, 80), 2.0, np.float32))
    spawn(world, "next", at(2.0))
    assert [state.number for state in world.entities.states] == [4]


def test_twenty_entities_of_five_thousand_triangles_cost_a_quarter_at_most():
    """Time of this process alone, at the shipped model's size, all of them in view."""
    model, start = load_model("mini", device="cpu"), load_seed("room")
    world = World(model)
    world.reset(start.rgb, start.camera, start.depth_m)
    ball = trimesh.creation.uv_sphere(radius=0.2, count=[51, 26])
    assert len(ball.faces) >= 5000
    mesh, camera = Mesh.of(ball.vertices, ball.faces, [200, 60, 40]), world.camera
    for index in range(20):
        place = camera.world_from_camera @ np.array([(index % 5 - 2) * 0.35, (index // 5 - 1.5) * 0.35, 2.5, 1])
        world.change_entities(lambda there, stamp_ns, i=index, p=place: there.spawned(f"b{i}", mesh, at(*p[:3]), stamp_ns))
    cycle_s, drawn_s = [], []
    for index in range(8):
        pose = camera.world_from_camera.copy()
        pose[:3, 3] += 0.05 * (index + 1) * pose[:3, 0]
        poses = np.stack([pose] * model.chunk_frames)
        stamps = 1 + np.arange(model.chunk_frames) + index * model.chunk_frames
        times = [time.process_time()]
        chunk = world.change(lambda s, p=poses, t=stamps: world.cycle.stepped(s, Camera(camera.intrinsics, p, camera.size), t))
        times.append(time.process_time())
        chunk = world.drawn(chunk)
        times.append(time.process_time())
        cycle_s.append(times[1] - times[0])
        drawn_s.append(times[2] - times[1])
    assert len(np.unique(chunk.frames[-1].labels)) > 15
    cycle, more = np.median(cycle_s[2:]), np.median(drawn_s[2:])
    print(f"cycle {1e3 * cycle:.0f} ms, drawing {1e3 * more:.1f} ms of a core, for {model.chunk_frames} frames")
    assert more < 0.25 * cycle

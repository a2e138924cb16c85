"""Entities in a world: drawn by depth, never remembered, moved, kept with the world, and refused where they are no good."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import trimesh
from analytic import cameras, look
from fakes import PixelModel
from test_worker import seed, step

from mirage_ros.data.meshes import MESHES, SHAPES, Spawnables, load, shape
from mirage_ros.data.seeds import level_camera_pose, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import Track, exp_rotation
from mirage_ros.models import load_model
from mirage_ros.protocol import SECOND_NS, Delete, Move, Spawn
from mirage_ros.ros.worker import ChangeEntities, Fork, Load, Redate, Reset, Restore, Save, View, WorkerConfig
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.drawing import Solid
from mirage_ros.world.entities import MOST_TRIANGLES, Entities, EntityError, Mesh, Motion
from mirage_ros.world.sensors import LidarConfig, ScanConfig, lidar, scan
from mirage_ros.world.world import World

PERIOD = SECOND_NS // 10
EYE = np.array([0.0, 0.0, 1.0])
BOX = "shape://box?size=0.4,0.4,0.4&color=c83c28"


def at(x: float, y: float = 0.0, z: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """world_from_entity."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = exp_rotation(np.array([0, 0, turn])), (x, y, z)
    return pose


def looks(*targets, size=(64, 80)) -> Camera:
    """Cameras at EYE."""
    return cameras([look(EYE, target) for target in targets], size, 60.0)


def painted(depth_m, size=(64, 80)) -> World:
    """A world from a picture of noise, ahead along x from EYE, with a depth."""
    world = World(PixelModel(size))
    rgb = np.random.default_rng(0).integers(60, 200, (*size, 3)).astype(np.uint8)
    world.reset(rgb, looks((5, 0, 1), size=size)[0], np.broadcast_to(np.float32(depth_m), size).copy(), 0)
    return world


def spawn(world: World, name: str, pose: np.ndarray, uri: str = BOX) -> None:
    world.change_entities(lambda there, stamp_ns: there.spawned(name, shape(uri), pose, stamp_ns))


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


def test_motion_goes_on_between_changes_along_the_world_or_the_body():
    there = Entities().spawned("car", shape(BOX), at(1.0), 0)
    forward = np.array([1.0, 0, 0]), np.array([0, 0, np.pi / 2])
    body = there.moved("car", 0, motion=Motion(*forward, in_body=True)).known("car").state
    quarter = 2 / np.pi
    np.testing.assert_allclose(body.pose_at(SECOND_NS), at(1 + quarter, quarter, turn=np.pi / 2), atol=1e-9)
    np.testing.assert_allclose(body.twist_at(SECOND_NS)[0], [0, 1, 0], atol=1e-9)
    world = there.moved("car", 0, motion=Motion(*forward)).known("car").state
    np.testing.assert_allclose(world.pose_at(2 * SECOND_NS), at(3.0, turn=np.pi), atol=1e-9)
    np.testing.assert_array_equal(world.pose_at(-SECOND_NS), at(1.0))
    ending = there.moved("car", 0, motion=Motion(*forward, until_ns=SECOND_NS))
    later = ending.redated(SECOND_NS // 2, 100 * SECOND_NS).known("car").state
    np.testing.assert_allclose(later.pose_at(200 * SECOND_NS), at(2.0, turn=np.pi / 2), atol=1e-9)
    assert not np.any(later.twist_at(200 * SECOND_NS))
    np.testing.assert_array_equal(ending.at_start(0).known("car").state.pose_at(9 * SECOND_NS), at(1.0))


def on_path(stamps_s, xs, **more) -> Move:
    return Move("car", route=Track(tuple(round(s * SECOND_NS) for s in stamps_s), np.stack([at(x, **more) for x in xs])))


def test_a_body_goes_along_a_path_at_its_stamps_or_at_a_speed():
    found = engine()
    changed(found, Spawn("car", BOX, at(1.0)))
    now_ns = found._world.stamp_ns
    where = lambda after_s: found._world.entities.known("car").state.pose_at(now_ns + round(after_s * SECOND_NS))  # noqa: E731
    moving = lambda after_s: found._world.entities.known("car").state.twist_at(now_ns + round(after_s * SECOND_NS))  # noqa: E731
    then = [now_ns / SECOND_NS + after_s for after_s in (1, 2, 4)]
    assert changed(found, on_path(then, (2.0, 3.0, 3.0), y=1.0)) == ["car"]
    for after_s, pose in ((-1, at(1.0)), (0.5, at(1.5, 0.5)), (1, at(2.0, 1.0)), (1.75, at(2.75, 1.0)), (3, at(3.0, 1.0)), (9, at(3.0, 1.0))):
        np.testing.assert_allclose(where(after_s), pose, atol=1e-9)
    np.testing.assert_allclose([moving(after_s)[0] for after_s in (0.5, 1, 3, 9)], [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-9)
    # One that has begun is where it says, at once; one without stamps begins where the body is.
    assert changed(found, on_path([then[0] - 2, then[1]], (0.0, 3.0))) == ["car"]
    np.testing.assert_allclose(where(0.5), at(1.5), atol=1e-9)
    changed(found, Move("car", at(0.0)))
    np.testing.assert_array_equal(where(5.0), at(0.0))
    slow = replace(on_path((0, 0, 0), (0.0, 1.0, 1.0)), speed_mps=0.5)
    slow.route.poses[2] = at(1.0, turn=np.pi / 2)
    assert changed(found, slow) == ["car"]
    for after_s, pose in ((1, at(0.5)), (2, at(1.0)), (2.25, at(1.0, turn=np.pi / 4)), (3, at(1.0, turn=np.pi / 2))):
        np.testing.assert_allclose(where(after_s), pose, atol=1e-8)


def test_a_path_that_cannot_be_followed_changes_nothing():
    found = engine()
    changed(found, Spawn("car", BOX, at(1.0)))
    before, now_s = found._world.entities, found._world.stamp_ns / SECOND_NS
    past, fast, nobody = changed(found, on_path((now_s - 2, now_s - 1), (1, 2)), on_path((now_s + 1e-4,), (9.0,)),
                                 replace(on_path((now_s + 1,), (1.0,)), name="nobody"))  # fmt: skip
    assert "send times to come" in str(past) and "at most 1000" in str(fast) and nobody.kind == "not_found"
    assert found._world.entities is before


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


def engine(**config) -> Engine:
    found = Engine(PixelModel(), WorkerConfig(period_ns=PERIOD, **config))
    found.carry_out(Reset(seed(), None, "test"))
    return found


def changed(found: Engine, *changes):
    return found.carry_out(ChangeEntities(changes)).values["outcomes"]


def test_the_worker_says_what_became_of_each_change(tmp_path):
    found = engine()
    asked = Spawn("a", BOX, at(2)), Spawn("a", BOX, at(2)), Spawn("a", BOX, at(2), rename=True), Spawn("b", "", at(2))
    outcomes = changed(found, *asked, Spawn("", BOX, at(1), rename=True, namespace="/ns/", beside="a"), Delete("nobody"))
    assert outcomes[0] == "a" and outcomes[2] == "a_1" and outcomes[4] == "ns/box"
    assert [outcomes[i].kind for i in (1, 3, 5)] == ["name_not_unique", "no_resource", "not_found"]
    done = found.carry_out(ChangeEntities((Move("a", twist=(np.array([1.0, 0, 0]), np.zeros(3)), lasts_ns=PERIOD),)))
    assert [state.name for state in done.entities] == ["a", "a_1", "ns/box"]
    np.testing.assert_allclose(done.entities[2].pose, at(3.0, z=2.0))
    assert found.carry_out(step(1)).entities is not None  # the first frame dates the world, and its motions
    assert found.carry_out(step(2)).entities is None
    for command in (Fork("f"), ChangeEntities((Delete("a"),)), Restore("f"), Save(str(tmp_path / "w"))):
        found.carry_out(command)
    assert "a" in found._world.entities.bodies
    found.carry_out(Reset(seed(), None, "test", keep_entities=True))
    np.testing.assert_array_equal(found._world.entities.known("a").state.pose_at(10**12), at(2))
    found.carry_out(Redate())
    found.carry_out(Reset(seed(), None, "test"))
    assert not len(found._world.entities)
    found.carry_out(Load(str(tmp_path / "w")))
    assert len(found._world.entities) == 3


def test_entities_are_drawn_at_the_size_of_the_pictures():
    found = engine(views=(View((256, 320)),))
    pose = level_camera_pose()
    changed(found, Spawn("ball", "shape://sphere?radius=0.2", at(2.0, z=pose[2, 3])))
    frame = found.carry_out(step(1)).chunk.frames[0]
    assert frame.labels.shape == (256, 320)
    # Half the angle under which a ball of 0.2 m is seen whose middle is 2 m away. A picture of the model's size, four
    # times as coarse, would change in steps of 4 pixels.
    radius = frame.camera.intrinsics[0, 0] * np.tan(np.arcsin(0.2 / 2.0))
    rows = (frame.labels > 0).sum(1)
    assert abs(rows.sum() / (np.pi * radius**2) - 1) < 0.03 and (rows[rows > 0] % 4 != 0).any()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of good and of hostile models."""
    folder = tmp_path_factory.mktemp("models")
    box = trimesh.creation.box(extents=[1, 2, 3])
    box.visual.face_colors = [200, 10, 10, 255]
    for kind in ("obj", "stl", "glb", "ply", "dae"):
        data = box.export(file_type=kind)
        (folder / f"box.{kind}").write_bytes(data if isinstance(data, bytes) else data.encode())
    triangle = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    texts = {
        "empty.obj": "",
        "points.obj": "v 0 0 0\n",
        "flat.obj": "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n",
        "nan.obj": triangle.replace("v 1", "v nan"),
        "huge.obj": triangle.replace("v 1", "v 1e9"),
        "outside.obj": "mtllib ../../../../etc/passwd\n" + triangle,
        "index.obj": triangle.replace("f 1", "f 9"),
        "bomb.dae": '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><COLLADA>&b;</COLLADA>',
        "torn.dae": "<COLLADA><asset>",
        "buffer.gltf": '{"asset": {"version": "2.0"}, "buffers": [{"uri": "../../../etc/passwd", "byteLength": 9}]}',
        "what.xyz": "0 0 0",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "link.obj").symlink_to("/etc/passwd")
    (folder / "torn.glb").write_bytes(b"glTF" + bytes(40))
    with open(folder / "huge.stl", "wb") as file:  # 10^7 triangles
        file.truncate(84 + 50 * 10**7)
    many = MOST_TRIANGLES + 1
    (folder / "many.stl").write_bytes(bytes(80) + many.to_bytes(4, "little") + bytes(50 * many))
    return folder


def test_mesh_files_of_all_kinds_say_the_same(models):
    for kind in ("obj", "stl", "glb", "ply", "dae"):
        name, mesh = load((models / f"box.{kind}").as_uri(), Spawnables(models))
        # glTF and COLLADA files have y up, where they say nothing else.
        half = [0.5, 1.5, 1.0] if kind in ("glb", "dae") else [0.5, 1.0, 1.5]
        np.testing.assert_allclose(mesh.bounds_m, [np.negative(half), half], atol=1e-6)
        assert len(mesh.faces) == 12 and mesh.closed and mesh.colours[0].tolist() == ([200, 10, 10], [190] * 3)[kind == "stl"]


def test_shapes_and_shipped_models_are_closed_and_have_their_sizes():
    for kind in SHAPES:
        mesh = shape(f"shape://{kind}?color=0a141e")
        assert mesh.closed == (kind != "plane") and mesh.colours[-1].tolist() == [10, 20, 30]
    sizes = {"chair": 0.92, "carton": 0.4, "ball": 0.24, "mannequin": 1.75, "robot": 0.355}
    files = list(Spawnables().files(MESHES))
    assert {file.stem for file in files} == set(sizes) and sum(file.stat().st_size for file in files) < 2e6
    for name, height in sizes.items():
        _, mesh = load(f"package://mirage_ros/config/spawnables/{name}.glb", Spawnables())
        assert abs(mesh.bounds_m[1, 2] - height) < 2e-3 and abs(mesh.bounds_m[0, 2]) < 2e-3 and mesh.closed


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("missing.obj", "missing_assets", "cannot be read"),
        ("empty.obj", "parse", "empty"),
        ("points.obj", "parse", "no triangle"),
        ("flat.obj", "parse", "with an area"),
        ("nan.obj", "parse", "NaN"),
        ("huge.obj", "parse", "scale it"),
        ("outside.obj", "not_allowed", "outside"),
        ("index.obj", "parse", "mend"),
        ("bomb.dae", "parse", "document type"),
        ("torn.dae", "parse", "no whole XML"),
        ("buffer.gltf", "not_allowed", "outside"),
        ("what.xyz", "unsupported_format", "give one of"),
        ("link.obj", "not_allowed", "outside"),
        ("torn.glb", "parse", "mend"),
        ("huge.stl", "unsupported_assets", "477 MiB"),
        ("many.stl", "unsupported_assets", "200,001"),
        ("../../etc/passwd", "not_allowed", "outside"),
        ("file:///etc/passwd", "not_allowed", "spawnables|put it in"),
        ("package://nowhere/a.obj", "missing_assets", "no ROS package"),
        ("package://../../etc/passwd", "missing_assets", "no ROS package"),
        ("package://mirage_ros/../../etc/passwd", "not_allowed", "outside"),
        ("http://example.org/a.obj", "parse", "scheme"),
        ("shape://cone", "parse", "there are"),
        ("file://[", "parse", "names no model"),
        ("package://mirage_ros/%00.obj", "parse", "names no model"),
        ("shape://box?size=1,2", "parse", "3 numbers"),
        ("shape://box?size=nan,1,1", "parse", "above 0"),
        ("shape://box?color=red", "parse", "hexadecimal"),
        ("", "no_resource", "uri"),
    ],
)
def test_bad_models_are_refused_in_a_sentence_and_nothing_is_spawned(models, name, kind, words):
    found = engine(spawnables=str(models))
    uri = name if "://" in name or not name else f"file://{models}/{name}"
    start_s = time.perf_counter()
    (outcome,) = changed(found, Spawn("bad", uri, at(2)))
    assert isinstance(outcome, EntityError) and outcome.kind == kind
    assert any(word in str(outcome) for word in words.split("|")) and len(str(outcome)) < 400
    assert not len(found._world.entities) and not found._change._kept
    assert time.perf_counter() - start_s < 10


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "a b"}, "name_invalid"),
        ({"name": "ü"}, "name_invalid"),
        ({"name": "x" * 300}, "name_invalid"),
        ({"name": ""}, "name_invalid"),
        ({"name": "taken"}, "name_not_unique"),
        ({"pose": at(np.nan)}, "pose"),
        ({"pose": at(1e8)}, "pose"),
        ({"pose": 2 * np.eye(4)}, "pose"),
        ({"beside": "nobody"}, "not_found"),
    ],
)
def test_bad_names_and_poses_are_refused(fields, kind):
    there = engine()
    changed(there, Spawn("taken", BOX, at(2)))
    uri = "shape://box" if fields.get("name") else BOX
    before = there._world.entities
    if fields == {"name": ""}:
        with pytest.raises(EntityError) as refused:
            before.spawned("", shape(uri), at(2), 0)
        outcome = refused.value
    else:
        (outcome,) = changed(there, Spawn(**{"name": "new", "uri": uri, "pose": at(2), **fields}))
    assert outcome.kind == kind and list(there._world.entities.bodies) == ["taken"]


def test_meshes_beyond_all_bounds_are_refused():
    with pytest.raises(EntityError, match="at most 200,000"):
        Mesh.of(np.zeros((3, 3)), np.zeros((10**7, 3), np.int8), [0, 0, 0])
    with pytest.raises(MirageError, match="finite numbers"):
        Motion(np.array([np.inf, 0, 0]), np.zeros(3))


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

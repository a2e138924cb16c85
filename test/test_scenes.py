"""Procedural scenes: the same by seed, exact in geometry, clear of solids, fit to look at."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("cv2")

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.scenes import (
    Renderer,
    camera_path,
    make_clip,
    make_scene,
    make_texture,
    write_preview,
    write_seed,
)
from mirage_ros.scenes.paths import CLEARANCE_M, MOTIONS
from mirage_ros.scenes.textures import KINDS as TEXTURES
from mirage_ros.scenes.worlds import KINDS

SIZE = (64, 80)
SEED = 2_000_100  # outside what training and validation use


@cache
def scene_of(kind: str, moving: bool = False):
    return make_scene(SEED, kind, moving=moving, texture_px=64)


@cache
def clip_of(kind: str):
    scene = scene_of(kind)
    cameras = camera_path(scene, SEED, 6, size=SIZE, hfov_deg=75.0, period_s=0.2)
    with Renderer(scene, SIZE) as renderer:
        return renderer.render(cameras)


@pytest.mark.parametrize("kind", TEXTURES)
def test_textures_repeat_by_seed_and_vary_with_it(kind):
    first, again, other = (
        make_texture(np.random.default_rng(s), kind, (48, 64)) for s in (1, 1, 2)
    )
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(MirageError, match="wood"):
        make_texture(np.random.default_rng(0), "velvet")
    with pytest.raises(MirageError, match="corridor"):
        make_scene(SEED, "cave")
    with pytest.raises(MirageError, match="drone"):
        camera_path(scene_of("room"), SEED, 4, motion="snake")


def test_clips_repeat_by_seed_and_vary_with_it():
    first, again, other = (make_clip(s, 2, SIZE, "corridor") for s in (SEED, SEED, SEED + 1))
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth_m, again.depth_m)
    np.testing.assert_array_equal(first.cameras.world_from_camera, again.cameras.world_from_camera)
    assert np.abs(first.rgb.astype(int) - other.rgb).mean() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_lit_textured_and_measured(kind):
    clip = clip_of(kind)
    assert 40 < clip.rgb.mean() < 220 and clip.rgb.std() > 10
    assert (clip.depth_m > CLEARANCE_M / 2).all()
    assert not clip.moving.any()
    np.testing.assert_array_equal(clip.sky, np.isinf(clip.depth_m))
    assert kind == "yard" or not clip.sky.any()


@pytest.mark.parametrize("kind", KINDS)
def test_depth_of_one_frame_lands_on_the_surface_of_another(kind):
    """Golden geometry: where frame j is smooth, frame i's points lie within 1 cm of it."""
    clip = clip_of(kind)
    shared = 0
    for i, j in ((0, 1), (2, 4), (5, 3)):
        behind_m = _behind_surface(clip, i, j)
        shared += behind_m.size
        assert (behind_m > -0.01).mean() > 0.999  # nothing floats in front of what j sees
        assert (behind_m < 0.01).mean() > 0.7  # the rest is hidden from frame j
        assert np.median(np.abs(behind_m)) < 1e-4
    assert shared > 1000


def _behind_surface(clip, i, j):
    """How far frame i's points lie behind frame j's surface, where its inverse depth is flat."""
    known = np.isfinite(clip.depth_m[i])
    pixels, depth = clip.cameras[j].project(clip.cameras[i].lift(clip.depth_m[i])[known])
    height, width = clip.depth_m[j].shape
    corner = np.floor(pixels).astype(int)
    inside = (depth > 0) & (corner >= 0).all(-1) & (corner < (width - 1, height - 1)).all(-1)
    corner, depth = corner[inside], depth[inside]
    u, v = (pixels[inside] - corner).T
    inverse = 1 / clip.depth_m[j].astype(float)
    x, y = corner.T
    a, b, c, d = inverse[y, x], inverse[y, x + 1], inverse[y + 1, x], inverse[y + 1, x + 1]
    bent = np.zeros_like(inverse)  # second differences, across and down
    bent[:, 1:-1] = np.abs(np.diff(inverse, 2, axis=1))
    bent[1:-1] = np.maximum(bent[1:-1], np.abs(np.diff(inverse, 2, axis=0)))
    flat = (a > 0) & (np.max([bent[y + i, x + k] for i in (0, 1) for k in (0, 1)], 0) < 2e-5)
    surface = 1 / ((a * (1 - u) + b * u) * (1 - v) + (c * (1 - u) + d * u) * v)[flat]
    return depth[flat] - surface


def test_floor_and_walls_are_where_they_were_built():
    scene, clip = scene_of("room"), clip_of("room")
    points = clip.cameras.lift(clip.depth_m)
    assert points[..., 2].min() > -1e-3
    assert np.abs(points[..., 2]).min() < 1e-4
    walls = np.stack([points.reshape(-1, 3) - scene.low, scene.high - points.reshape(-1, 3)])
    assert walls.min() > -1e-3
    assert scene.solids.distance(points.reshape(-1, 3)[::50]).max() < 0.6


def test_off_centre_cameras_are_drawn_as_asked():
    """A crop of a wide view is the same view through a cropped camera."""
    camera = clip_of("room").cameras[:1]
    window = Camera(camera.cropped(10, 24, (32, 40)).intrinsics, camera.world_from_camera, (32, 40))
    with Renderer(scene_of("room"), (32, 40)) as renderer:
        part = renderer.render(window)
    whole = clip_of("room")
    np.testing.assert_allclose(part.depth_m[0], whole.depth_m[0, 10:42, 24:64], rtol=1e-4)
    colour_error = np.abs(part.rgb[0].astype(int) - whole.rgb[0, 10:42, 24:64])
    assert colour_error.mean() < 3


def test_moving_bodies_are_masked_and_move():
    scene = scene_of("room", moving=True)
    assert scene.movers
    times = np.array([0.0, 0.7])
    mover = scene.movers[0]
    body = mover.position(times[0]) + [0, 0, mover.radius_m]
    away = np.array([0.8, -0.4, 0.6]) * np.sign(-body - [0.01, 0.01, -9])
    camera = _looking_at(body + away, body)
    with Renderer(scene, SIZE) as renderer:
        moving = renderer.render(Camera.stack([camera, camera]), times)
    assert 0.005 < moving.moving[0].mean() < 0.9
    assert (moving.moving[0] != moving.moving[1]).any()
    still = ~moving.moving.any(0)
    np.testing.assert_array_equal(moving.depth_m[0][still], moving.depth_m[1][still])


def _looking_at(position, target):
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = position
    return Camera.from_hfov(75.0, SIZE, pose)


def test_sky_is_what_looks_up_in_the_yard():
    up = _looking_at(np.array([0, 0, 3.9]), np.array([0.5, 0, 9.0]))
    with Renderer(scene_of("yard"), SIZE) as renderer:
        clip = renderer.render(Camera.stack([up]))
    assert clip.sky.all() and np.isinf(clip.depth_m).all()
    assert clip.rgb.mean() > 80


@pytest.mark.parametrize("kind", KINDS)
def test_paths_keep_clear_of_solids_at_real_speeds(kind):
    scene, period_s = scene_of(kind), 0.1
    for seed, motion in enumerate(MOTIONS):
        cameras = camera_path(scene, SEED + seed, 32, motion=motion, size=SIZE, period_s=period_s)
        assert len(cameras) == 32 and 49 < np.mean(cameras.hfov_deg) < 91
        positions = cameras.position_world
        assert scene.solids.distance(positions).min() > CLEARANCE_M - 0.02
        assert (positions > scene.low).all() and (positions < scene.high).all()
        steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        assert steps.max() / period_s < 1.4
        forward = cameras.world_from_camera[:, :3, 2]
        turns = np.degrees(np.arccos(np.clip((forward[1:] * forward[:-1]).sum(1), -1, 1)))
        assert turns.max() / period_s < 80
        assert steps.sum() > 0.02 or turns.sum() > 2


def test_more_than_a_third_of_the_paths_return():
    scene, back = scene_of("hall"), 0
    for seed in range(24):
        positions = camera_path(scene, seed, 24, size=SIZE).position_world
        away = np.linalg.norm(positions - positions[0], axis=1)
        back += away[-1] < 0.4 * away.max() or away.max() < 0.1
    assert 8 <= back < 24


def test_a_camera_of_another_size_is_refused():
    with Renderer(scene_of("room"), SIZE) as renderer:
        with pytest.raises(MirageError, match="resize"):
            renderer.render(clip_of("room").cameras.resized((32, 40)))


def test_previews_and_seeds_are_written(tmp_path):
    import cv2
    import yaml

    write_preview(tmp_path / "sheet.png", [SEED], frames=2, size=SIZE, kind="room")
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (64, 320, 3)
    write_seed(tmp_path / "room", SEED, "room")
    depth = cv2.imread(str(tmp_path / "room/depth.png"), cv2.IMREAD_UNCHANGED)
    assert cv2.imread(str(tmp_path / "room/color.png")).shape == (480, 640, 3)
    assert depth.dtype == np.uint16 and depth.shape == (480, 640)
    assert 500 < np.median(depth) < 12_000
    camera = yaml.safe_load((tmp_path / "room/camera.yaml").read_text())
    assert (camera["width"], camera["height"]) == (640, 480)
    pose = np.array(camera["world_from_camera"])
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    assert 0.5 < pose[2, 3] < 1.3

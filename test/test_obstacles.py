"""The policy's map: what puts a voxel in, and how much it takes to put it out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import BasePose
from mirage_ros.loop.wander import MapConfig, ObstacleMap

SIZE = (64, 80)
LENS = Camera.from_hfov(75.0, SIZE)
CONFIG = MapConfig()


def at(pose: BasePose) -> Camera:
    return Camera(LENS.intrinsics, pose.world_from_base @ level_camera_pose(0.9), SIZE)


def see(obstacles: ObstacleMap, depth_m, pose: BasePose = BasePose(), times: int = 1) -> None:
    """Pictures of one depth everywhere, or of a depth picture."""
    depth = np.broadcast_to(np.float32(depth_m), SIZE)
    view = at(pose)
    points = view.lift(depth).reshape(-1, 3)
    for _ in range(times):
        obstacles.look(points[np.isfinite(points).all(-1)], depth, view)


def test_a_picture_adds_its_points_once():
    obstacles = ObstacleMap()
    see(obstacles, 1.0, times=3)
    count = len(obstacles)
    assert 50 < count < SIZE[0] * SIZE[1]
    assert set(obstacles.hits) == {3} and not obstacles.misses.any()
    voxels = np.floor(obstacles.points / CONFIG.cell_m)
    assert len(np.unique(voxels, axis=0)) == count
    see(obstacles, 2.0)
    assert len(obstacles) > count and sorted(set(obstacles.hits)) == [1, 3]


def test_points_stay_where_they_were_first_seen():
    obstacles = ObstacleMap()
    see(obstacles, 1.0)
    before = obstacles.points.copy()
    see(obstacles, 1.001)
    kept = {tuple(point) for point in obstacles.points}
    assert all(tuple(point) in kept for point in before)


def test_only_many_pictures_past_a_voxel_forget_it():
    obstacles = ObstacleMap()
    see(obstacles, 1.0)
    count = len(obstacles)
    see(obstacles, np.inf, times=CONFIG.misses - 1)
    assert len(obstacles) == count
    see(obstacles, np.inf)
    # Those at the picture's border are not looked past on all sides.
    assert len(obstacles) < 0.25 * count


def test_what_was_shown_often_takes_longer_to_forget():
    obstacles = ObstacleMap()
    see(obstacles, 1.0, times=10)
    see(obstacles, np.inf, times=int(10 * CONFIG.misses_per_hit) - 1)
    count = len(obstacles)
    assert count and set(obstacles.hits) == {10}
    see(obstacles, np.inf)
    assert len(obstacles) < count


@pytest.mark.parametrize("depth_m", [np.nan, 0.5, 1.0, 1.2])
def test_unknown_depth_and_depth_nearby_say_nothing_against(depth_m):
    obstacles = ObstacleMap()
    see(obstacles, 1.0)
    see(obstacles, depth_m, times=40)
    assert not obstacles.misses.any()


def test_a_picture_from_behind_says_nothing_against_a_surface():
    obstacles = ObstacleMap()
    see(obstacles, 1.0)
    see(obstacles, np.inf, BasePose(2.0, 0.0, math.pi), times=40)
    assert not obstacles.misses.any()
    see(obstacles, np.inf, BasePose(-0.5, 0.0, 0.0))
    assert obstacles.misses.any()


def test_an_edge_beside_a_voxel_keeps_it():
    """The near wall covers the left half; its rim is looked past by two pixels only."""
    obstacles = ObstacleMap()
    near = np.full(SIZE, 1.0, np.float32)
    near[:, 40:] = np.nan
    see(obstacles, near)
    shifted = np.full(SIZE, 5.0, np.float32)
    shifted[:, :38] = 1.0
    see(obstacles, shifted, times=40)
    assert not obstacles.misses.any()


def test_what_is_out_of_reach_is_forgotten():
    obstacles = ObstacleMap(MapConfig(reach_m=3.0))
    see(obstacles, 1.0)
    assert len(obstacles)
    see(obstacles, np.nan, BasePose(0.0, 6.0))
    assert not len(obstacles)

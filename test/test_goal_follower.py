"""examples/goal_follower.py: its plans on small maps, and drives to goals in worlds that the shipped model makes.

MIRAGE_GOALS says how many goals in each of five rooms are driven to ("10"); by default it is one goal in one room.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mirage_ros.data.seeds import load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import Footprint, LiveBase, live_base_under
from mirage_ros.loop.drive import clearances_m
from mirage_ros.world.cycle import Cycle
from mirage_ros.world.sensors import MapConfig, floor_plan

GOALS = int(os.environ.get("MIRAGE_GOALS", "1"))
ROOMS = range(2_000_200, 2_000_205) if GOALS > 1 else ("room",)
PERIOD_NS, FRAMES = 200_000_000, 4
MAP = MapConfig(robot_height_m=1.2)
LONGEST_S = 90.0


def example():
    path = Path(__file__).parents[1] / "examples" / "goal_follower.py"
    spec = importlib.util.spec_from_file_location("goal_follower", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["goal_follower"] = module
    spec.loader.exec_module(module)
    return module


follower = example()


def walled_map() -> np.ndarray:
    """6 x 8 m of free floor, cells of 0.1 m, with a wall that has a gap of 1 m at its upper end."""
    cells = np.zeros((60, 80), np.int8)
    cells[:50, 40] = 100
    return cells


def test_the_way_leads_through_the_gap_and_keeps_away_from_the_wall():
    path = follower.plan(follower.Follower(), walled_map(), (0, 0), 0.1, (1.0, 1.0), (7.0, 1.0))
    assert path[-1].tolist() == [7.0, 1.0]
    wall = np.stack([np.full(50, 4.05), np.arange(50) * 0.1 + 0.05], 1)
    assert np.linalg.norm(path[:, None] - wall, axis=-1).min() > 0.2
    assert path[:, 1].max() > 5.0


def test_there_is_no_way_through_a_wall_nor_off_the_map():
    closed = walled_map()
    closed[:, 40] = 100
    plain = follower.Follower()
    assert follower.plan(plain, closed, (0, 0), 0.1, (1.0, 1.0), (7.0, 1.0)) is None
    assert follower.plan(plain, walled_map(), (0, 0), 0.1, (1.0, 1.0), (9.0, 1.0)) is None


def test_the_unknown_is_gone_around_or_forbidden():
    cells = np.zeros((60, 80), np.int8)
    cells[:40, 30:50] = -1
    path = follower.plan(follower.Follower(), cells, (0, 0), 0.1, (1.0, 2.0), (7.0, 2.0))
    rows, columns = (path[:, 1] * 10).astype(int), (path[:, 0] * 10).astype(int)
    assert (cells[rows, columns] == 0).all(), "around costs less than three times as much"
    cells[:, 30:50] = -1
    assert follower.plan(follower.Follower(), cells, (0, 0), 0.1, (1.0, 2.0), (7.0, 2.0)) is not None
    wary = follower.Follower(unknown_cost=math.inf)
    assert follower.plan(wary, cells, (0, 0), 0.1, (1.0, 2.0), (7.0, 2.0)) is None


class Drive:
    """A live base in a generated world, no ROS: the node's cycle, map and base at their rates."""

    def __init__(self, cycle: Cycle, seed) -> None:
        self.cycle, self.camera, self.now_ns = cycle, seed.camera, 10**9
        self.state, _ = cycle.first(seed.rgb, seed.camera, seed.depth_m, self.now_ns)
        start, self.base_from_camera = live_base_under(seed.camera.world_from_camera, "diff")
        self.base = LiveBase(start)
        self.base.advance(self.now_ns)
        self.trail: list[np.ndarray] = []
        self.contacts = 0

    @property
    def pose(self) -> tuple[float, float, float]:
        matrix = self.base.odom_from_base
        return float(matrix[0, 3]), float(matrix[1, 3]), math.atan2(matrix[1, 0], matrix[0, 0])

    def plan(self):
        return floor_plan(self.state.memory, self.state.free_space, self.state.camera.position_world, MAP)

    def goals(self, rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
        """Free cells of the map that the body fits into, a metre away or more."""
        plan = self.plan()
        rows, columns = np.nonzero(plan.cells == 0)
        points = (np.stack([columns, rows], 1) + 0.5) * plan.resolution_m + plan.origin_m
        held = np.stack(np.nonzero(plan.cells == 100)[::-1], 1) * plan.resolution_m + plan.origin_m
        far = np.linalg.norm(points - self.pose[:2], axis=1) > 1.0
        clear = np.linalg.norm(points[:, None] - held[None], axis=-1).min(1) > 0.35
        chosen = points[far & clear]
        return [tuple(point) for point in chosen[rng.permutation(len(chosen))[:count]].tolist()]

    def to(self, goal: tuple[float, float]) -> bool:
        """Whether it gets there in time. Ten commands a second, a map with each chunk."""
        rule, end_ns = follower.Follower(), self.now_ns + round(LONGEST_S * 1e9)
        while self.now_ns < end_ns:
            plan = self.plan()
            path = follower.plan(rule, plan.cells, tuple(plan.origin_m), plan.resolution_m, self.pose[:2], goal)
            cameras = []
            for _ in range(FRAMES):
                for _ in range(2):
                    if math.dist(goal, self.pose[:2]) < rule.tolerance_m:
                        return True
                    speed, turn = rule.command(path, *self.pose) if path is not None else (0.0, 0.5)
                    self.base.command(np.array([speed, 0, 0, 0, 0, turn]), self.now_ns)
                    self.now_ns += PERIOD_NS // 2
                    self.base.advance(self.now_ns)
                cameras.append(self._camera())
            self._step(cameras)
        return False

    def _camera(self) -> Camera:
        world_from_camera = self.base.odom_from_base @ self.base_from_camera
        return Camera(self.camera.intrinsics, world_from_camera, self.camera.size)

    def _step(self, cameras: list[Camera]) -> None:
        stamps = self.now_ns - PERIOD_NS * np.arange(len(cameras) - 1, -1, -1)
        held = self.state.memory.positions_m
        places = np.stack([camera.world_from_camera[:2, 3] for camera in cameras])
        self.contacts += int((clearances_m(Footprint(), held, places) < 0).sum())
        self.state, _ = self.cycle.stepped(self.state, Camera.stack(cameras), stamps)


@pytest.mark.timeout(7200)
def test_goals_in_generated_rooms_are_reached_without_contact(tmp_path):
    from mirage_ros.models import load_model

    reached = []
    for number, name in enumerate(ROOMS):
        cycle = Cycle(load_model("mini"))
        if name != "room":
            scenes = pytest.importorskip("mirage_ros.scenes", reason="pip install 'mirage_ros[scenes]'")
            scenes.write_seed(tmp_path / str(name), name, "room")
        seed = load_seed(name if name == "room" else str(tmp_path / str(name)))
        for goal in Drive(cycle, seed).goals(np.random.default_rng(number), GOALS):
            drive = Drive(cycle, seed)
            there = drive.to(goal)
            seconds = (drive.now_ns - 10**9) / 1e9
            print(f"{name} {goal[0]:.2f} {goal[1]:.2f}: {'reached' if there else 'NOT reached'} in {seconds:.1f} s, "
                  f"{drive.contacts} frames in contact", flush=True)  # fmt: skip
            reached.append(there and not drive.contacts)
    print(f"{sum(reached)} of {len(reached)} goals")
    assert len(reached) >= GOALS * len(ROOMS) and np.mean(reached) >= 0.9

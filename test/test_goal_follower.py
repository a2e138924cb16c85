"""examples/goal_follower.py: its plans on small maps, drives to goals in worlds that the shipped model makes, and a robot that
explores one by its scans.

MIRAGE_GOALS says how many goals in each of five rooms are driven to ("10"); by default it is one goal in one room, and three to explore.
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
from mirage_ros.world.world import World
from mirage_ros.world.sensors import MapConfig, ScanConfig, floor_plan, scan

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

    @property
    def camera_pose(self) -> np.ndarray:
        return self.base.odom_from_base @ self.base_from_camera

    def follow(self, rule, path: np.ndarray) -> None:
        """A chunk's time along a path."""
        cameras = []
        for _ in range(FRAMES):
            for _ in range(2):
                speed, turn = rule.command(path, *self.pose)
                self.base.command(np.array([speed, 0, 0, 0, 0, turn]), self.now_ns)
                self.now_ns += PERIOD_NS // 2
                self.base.advance(self.now_ns)
            cameras.append(self._camera())
        self._step(cameras)

    def _camera(self) -> Camera:
        return Camera(self.camera.intrinsics, self.camera_pose, self.camera.size)

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
        cycle = World(load_model("mini")).cycle
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


class Seen:
    """A world in which only what a real picture showed is known, for sensors: surfaces, and what was seen to be free."""

    def __init__(self, state) -> None:
        self._memory, self._free = state.memory, state.free_space
        self.cameras, self.reach_m, self.real = self._free.cameras, self._free.reach_m, self._free.real

    def measure(self, cameras: Camera) -> tuple[np.ndarray, np.ndarray]:
        depth_m, real = self._memory.measure(cameras)
        return np.where(real, depth_m, np.nan).astype(np.float32), real

    def seen_free(self, points: np.ndarray, margin: float, only_real: bool = False) -> np.ndarray:
        return self._free.seen_free(points, margin, only_real=True)


class Costmap:
    """Cells of 0.1 m around the start, made of scans at some heights: free where beams went in all, occupied where any ended."""

    SIDE, CELL_M, HEIGHTS_M = 120, 0.1, (0.35, 0.55, 0.75, 0.95, 1.15)

    def __init__(self, start_xy) -> None:
        self.origin = np.asarray(start_xy) - self.SIDE * self.CELL_M / 2
        self._went = np.zeros((len(self.HEIGHTS_M), self.SIDE, self.SIDE), bool)
        self._ended = np.zeros((self.SIDE, self.SIDE), bool)

    @property
    def cells(self) -> np.ndarray:
        return np.where(self._ended, 100, np.where(self._went.all(0), 0, -1)).astype(np.int8)

    def index(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells = np.floor((points - self.origin) / self.CELL_M).astype(int)
        cells = cells[((cells >= 0) & (cells < self.SIDE)).all(1)]
        return cells[:, 1], cells[:, 0]

    def scanned(self, seen: Seen, world_from_camera: np.ndarray) -> None:
        for layer, height_m in enumerate(self.HEIGHTS_M):
            found = scan(seen, seen, world_from_camera, ScanConfig(height_m=height_m, range_max_m=4.0))
            angles = found.angle_min_rad + found.angle_step_rad * np.arange(len(found.ranges_m))
            away = np.stack([np.cos(angles), np.sin(angles)], 1) @ found.world_from_scan[:2, :2].T
            reach = np.where(np.isnan(found.ranges_m), 0.0, np.minimum(found.ranges_m, found.range_max_m))
            for distance in np.arange(0.0, found.range_max_m, self.CELL_M / 2):
                went = reach > distance + self.CELL_M
                self._went[layer][self.index(found.world_from_scan[:2, 3] + distance * away[went])] = True
            ended = np.isfinite(found.ranges_m)
            self._ended[self.index(found.world_from_scan[:2, 3] + found.ranges_m[ended, None] * away[ended])] = True


def test_a_robot_explores_what_the_seed_shows_by_its_scans_alone():
    """scan -> costmap -> cmd_vel, what was imagined taken as unknown: it comes near all that it can, and touches none of it."""
    from mirage_ros.models import load_model

    drive, rule = Drive(World(load_model("mini")).cycle, load_seed("room")), follower.Follower(unknown_cost=math.inf)
    known, costmap, trail, goals = floor_plan_of_seed(drive), Costmap(drive.pose[:2]), [drive.pose[:2]], 0
    real, way = drive.state.memory.positions_m, [drive.pose[:2]]
    while goals < (12 if GOALS > 1 else 3):
        costmap.scanned(Seen(drive.state), drive.camera_pose)
        goal = next_goal(costmap, rule, drive.pose, np.array(trail))
        if goal is None:
            break
        goals += 1
        for _ in range(60):
            costmap.scanned(Seen(drive.state), drive.camera_pose)
            path = follower.plan(rule, costmap.cells, tuple(costmap.origin), costmap.CELL_M, drive.pose[:2], goal)
            if path is None or math.dist(goal, drive.pose[:2]) < 0.3:
                break
            drive.follow(rule, path)
            trail.append(drive.pose[:2])
            way.append(drive.pose[:2])
        trail.append(goal)  # come near, or found to be out of reach
    away = np.linalg.norm(known[:, None] - np.array(way)[None], axis=-1).min(1)
    touched = int((clearances_m(Footprint(), real, np.array(way)) < 0).sum())
    print(f"{goals} goals, {len(way)} steps, {touched} in contact with what the seed shows, {drive.contacts} frames with what was imagined; "
          f"{(away < 1.0).mean():.0%} of {len(known)} known free cells within 1 m of its way")  # fmt: skip
    assert goals >= 2 and touched == 0 and (away < 1.0).mean() >= (0.9 if GOALS > 1 else 0.3)


def floor_plan_of_seed(drive: Drive) -> np.ndarray:
    """(n, 2) free cells of the map that the body fits into, of what the seed shows."""
    plan = drive.plan()
    rows, columns = np.nonzero(plan.cells == 0)
    points = (np.stack([columns, rows], 1) + 0.5) * plan.resolution_m + plan.origin_m
    held = np.stack(np.nonzero(plan.cells == 100)[::-1], 1) * plan.resolution_m + plan.origin_m
    return points[np.linalg.norm(points[:, None] - held[None], axis=-1).min(1) > 0.45]


def next_goal(costmap: Costmap, rule, pose, trail: np.ndarray):
    """The nearest free cell that it can reach and was not near yet; None where all is explored."""
    rows, columns = np.nonzero(costmap.cells == 0)
    points = (np.stack([columns, rows], 1) + 0.5) * costmap.CELL_M + costmap.origin
    new = np.linalg.norm(points[:, None] - trail[None], axis=-1).min(1) > 0.8
    for point in sorted(points[new].tolist(), key=lambda point: math.dist(point, pose[:2]))[::7]:
        path = follower.plan(rule, costmap.cells, tuple(costmap.origin), costmap.CELL_M, pose[:2], tuple(point))
        if path is not None:
            return tuple(point)
    return None

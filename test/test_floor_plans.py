"""Maps of the floor that are made from memory: what is free, what stands there, what nobody saw."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml
from analytic import AHEAD, HERE, cameras, look, raycast, remember, room
from fakes import PixelModel
from sim_client import PERIOD
from test_worker import seed, step

from mirage_ros.cli import main
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.protocol import FREE, OCCUPIED, UNKNOWN, FloorPlan
from mirage_ros.ros.worker import Reset, Survey, WorkerConfig
from mirage_ros.ros.worker import engine as engines
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.sensors import MapConfig, floor_plan
from mirage_ros.world.world import World


@pytest.fixture(scope="module")
def corner() -> tuple[LatentMemory, FreeSpaceViews]:
    """The analytic room from the place HERE, looking ahead and down: its floor, three walls and a box."""
    views = cameras([AHEAD, look(HERE, (2.0, 1.0, 0.0))], (96, 120), 80.0)
    memory, free_space = LatentMemory(MemoryConfig(4)), FreeSpaceViews.none()
    remember(memory, views.resized((24, 30)), room())
    depth = raycast(views, room())[0].astype(np.float32)
    for camera, one in zip(views, depth, strict=True):
        free_space = free_space.with_real(camera, one, 4)
    return memory, free_space


def value_at(plan: FloorPlan, x: float, y: float) -> int:
    column, row = np.floor((np.array([x, y]) - plan.origin_m) / plan.resolution_m).astype(int)
    inside = 0 <= row < plan.cells.shape[0] and 0 <= column < plan.cells.shape[1]
    return int(plan.cells[row, column]) if inside else UNKNOWN


def test_a_map_shows_free_floor_surfaces_and_what_nobody_saw(corner):
    plan = floor_plan(*corner, np.array(HERE), MapConfig())
    assert {value_at(plan, x, 2.0) for x in (0.0, 0.3, 0.6)} == {FREE}
    front = [value_at(plan, x, y) for x in (1.2, 1.5, 1.8) for y in (1.02, 1.07)]
    assert front.count(OCCUPIED) >= 3 and FREE not in front, "the box's front"
    assert value_at(plan, 1.5, 1.5) in (OCCUPIED, UNKNOWN), "inside the box"
    assert {value_at(plan, x, 2.7) for x in (1.9, 2.2)} <= {UNKNOWN, OCCUPIED}, "behind the box"
    assert value_at(plan, 0.5, -2.0) == UNKNOWN, "behind the camera"
    wall = [value_at(plan, x, 4.02) for x in np.arange(-1.0, 0.5, 0.1)]
    assert wall.count(OCCUPIED) > 0.7 * len(wall)


def test_low_and_high_surfaces_do_not_stop_a_robot(corner):
    over = floor_plan(*corner, np.array(HERE), MapConfig(floor_margin_m=1.05, robot_height_m=1.15))
    assert value_at(over, 1.5, 1.5) != OCCUPIED, "it passes over the box, which is 1 m high"
    small = floor_plan(*corner, np.array(HERE), MapConfig(size_m=2.0))
    assert max(small.cells.shape) <= 41 and value_at(small, 0.5, -0.2) != OCCUPIED


def test_what_was_only_imagined_can_count_as_unknown(corner):
    memory, free_space = corner
    imagined = replace(free_space, real=np.zeros(2, bool))
    here = np.array(HERE)
    known = floor_plan(memory, imagined, here, MapConfig())
    assert (known.cells == FREE).any() and (known.cells == OCCUPIED).any()
    assert (floor_plan(memory, imagined, here, MapConfig(imagined=False)).cells == UNKNOWN).all()
    # Views of real pictures whose tokens were imagined: how far they saw is all that counts.
    real = floor_plan(memory, free_space, here, MapConfig(imagined=False))
    assert (real.cells == FREE).any() and (real.cells == OCCUPIED).any()


def test_of_nothing_there_is_a_map_of_one_unknown_cell():
    plan = floor_plan(LatentMemory(MemoryConfig(4)), FreeSpaceViews.none(), np.array(HERE), MapConfig())
    assert plan.cells.tolist() == [[UNKNOWN]]


def test_a_saved_world_becomes_a_map_that_map_server_reads(tmp_path, capsys):
    world = World(PixelModel())
    one = seed()
    world.reset(one.rgb, one.camera, np.full(one.rgb.shape[:2], 3.0, np.float32))
    world.save(tmp_path / "world")
    assert main(["export", str(tmp_path / "world"), "--to", "map", "--robot-height", "1.5"]) == 0
    assert "world.yaml and world.pgm" in capsys.readouterr().out
    about = yaml.safe_load((tmp_path / "world.yaml").read_text())
    shades = cv2.imread(str(tmp_path / about["image"]), cv2.IMREAD_UNCHANGED)
    state = world.snapshot()
    config = MapConfig(robot_height_m=1.5)
    plan = floor_plan(state.memory, state.free_space, state.camera.position_world, config)
    # As nav2's map_server in mode trinary.
    occupied = (255 - shades[::-1].astype(float)) / 255
    read = np.where(occupied > about["occupied_thresh"], 100, np.where(occupied < about["free_thresh"], 0, -1))
    np.testing.assert_array_equal(read, plan.cells)
    assert {FREE, OCCUPIED, UNKNOWN} == set(np.unique(plan.cells).tolist())
    assert about["resolution"] == 0.05 and about["mode"] == "trinary" and about["negate"] == 0
    np.testing.assert_allclose(about["origin"], [*plan.origin_m, 0])
    for words in (["--out", "map.png"], ["--robot-height", "0.05"]):
        assert main(["export", str(tmp_path / "world"), "--to", "map", *words]) == 2
    assert main(["export", str(tmp_path), "--to", "map"]) == 2
    assert "give the path of a saved world" in capsys.readouterr().err


def test_maps_come_when_they_are_wanted_and_at_most_once_a_period(monkeypatch):
    monkeypatch.setattr(engines, "MAP_SHARE", np.inf)
    engine = Engine(PixelModel(), WorkerConfig(period_ns=PERIOD, map=MapConfig(period_s=1e9)))
    assert engine.carry_out(Reset(seed(), 0, "test")).floor_plan is None
    wanted = [replace(step(chunk), sensors=("map",)) for chunk in range(2)]
    first, second = (engine.carry_out(command).floor_plan for command in wanted)
    assert first is not None and second is None
    surveyed = engine.carry_out(Survey())
    assert surveyed.floor_plan is not None and surveyed.points is None and surveyed.chunk is None
    monkeypatch.setattr(engines, "MAP_SHARE", 1e-9)
    assert engine.carry_out(Survey()).floor_plan is None, "it would take more than its share of the time"
    engine.carry_out(Reset(seed(), 0, "test"))
    assert engine.carry_out(Survey()).floor_plan is not None, "another world's is due at once"

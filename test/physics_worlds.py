"""The analytic room, 6 m by 8 m, as a world whose bodies fall, and an engine in it; without MuJoCo its tests are skipped."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import cameras, look, raycast, room
from bodies import PERIOD
from fakes import PixelModel

from mirage_ros.data.seeds import Seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.worker import Planned, Reset, Step, WorkerConfig
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.entities import RobotBody
from mirage_ros.world.world import World

pytest.importorskip("mujoco")
from mirage_ros.physics import Mujoco  # noqa: E402 - says what is missing where it is

SIZE = (128, 160)
EYE = np.array([-2.0, 0.0, 1.1])
WALLS = room()[:6]  # 6 x 8 m, the box left out


def seen(target=(2, 0, 0.6), quads=WALLS) -> tuple[np.ndarray, Camera, np.ndarray]:
    """A picture of noise of the analytic room, its camera and its true depth."""
    view = cameras([look(EYE, target)], SIZE, 75.0)
    depth_m = raycast(view, quads)[0][0].astype(np.float32)
    return np.random.default_rng(0).integers(60, 200, (*SIZE, 3)).astype(np.uint8), view[0], depth_m


def world_of(quads=WALLS, physics=True, **kwargs) -> World:
    world = World(PixelModel(SIZE), physics=Mujoco(RobotBody(**kwargs)) if physics else None)
    world.reset(*seen(quads=quads))
    return world


def engine(**config) -> Engine:
    found = Engine(PixelModel(SIZE), WorkerConfig(period_ns=PERIOD, **config))
    rgb, camera, depth_m = seen()
    found.carry_out(Reset(Seed("room", rgb, camera, depth_m), 0, "test"))
    return found


def step(number: int, sensors: tuple[str, ...] = (), ahead_m: float = 0.0) -> Step:
    poses = np.repeat(seen()[1].world_from_camera[None], 4, 0)
    poses[:, 0, 3] += ahead_m
    stamps = tuple(PERIOD * (4 * number + k) for k in range(1, 5))
    return Step(Planned(stamps, poses), sensors=sensors)

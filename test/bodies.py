"""Entities that tests spawn, and an engine that is asked to change them."""

from __future__ import annotations

import numpy as np
from fakes import PixelModel
from test_worker import seed

from mirage_ros.data.meshes import shape
from mirage_ros.geometry.rigid import exp_rotation
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros.worker import ChangeEntities, Reset, WorkerConfig
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.world import World

PERIOD = SECOND_NS // 10
BOX = "shape://box?size=0.4,0.4,0.4&color=c83c28"


def at(x: float, y: float = 0.0, z: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """world_from_entity."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = exp_rotation(np.array([0, 0, turn])), (x, y, z)
    return pose


def spawn(world: World, name: str, pose: np.ndarray, uri: str = BOX, **more) -> None:
    world.change_entities(lambda there, stamp_ns: there.spawned(name, shape(uri), pose, stamp_ns, **more))


def engine(**config) -> Engine:
    found = Engine(PixelModel(), WorkerConfig(period_ns=PERIOD, **config))
    found.carry_out(Reset(seed(), None, "test"))
    return found


def changed(found: Engine, *changes):
    return found.carry_out(ChangeEntities(changes)).values["outcomes"]

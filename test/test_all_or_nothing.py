"""A call that fails, whatever failed in it, leaves memory and world exactly as they were."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from fakes import PixelModel
from test_memory_forgetting import some_rows
from test_rig import SIZE, WALL_M, plan, spotted, turned
from test_worker import seed

from mirage_ros.data.seeds import Seed, level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, blocks
from mirage_ros.memory.store import TokenStore
from mirage_ros.ros.worker import (
    Erase,
    Fork,
    Load,
    Observe,
    Planned,
    Reset,
    Restore,
    Step,
    WorkerConfig,
)
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.world.state import WorldState
from mirage_ros.world.world import Rig, World, WorldConfig

BEYOND = 62_000.0
"""Finite as float16, and more than a token holds."""


class Faulty(PixelModel):
    """Fails when it is told to, at the stage and in the way it is told."""

    fault = ""

    def encode(self, rgb):
        return self._spoilt(super().encode(rgb), "encode")

    def generate(self, readout, cameras, preceding, references, seed):
        return self._spoilt(super().generate(readout, cameras, preceding, references, seed),
                            "generate")  # fmt: skip

    def decode(self, latents):
        if self.fault == "decode":
            raise RuntimeError("out of luck")
        return super().decode(latents)

    def perceive(self, rgb, cameras, anchor_depth_m):
        if self.fault == "perceive":
            raise MemoryError
        return super().perceive(rgb, cameras, anchor_depth_m)

    def _spoilt(self, latents, stage):
        if self.fault == f"{stage} beyond":
            # The last frame's last cell, so that all else would be written before.
            latents[-1, :, -1, -1] = BEYOND
        if self.fault == f"{stage} raises":
            raise torch.OutOfMemoryError("no memory")
        return latents


def told(state: WorldState) -> str:
    """A hash of all that a world is."""
    store, found = state.memory._store, hashlib.sha256()
    parts = [store[name] for name in sorted(store.arrays)]
    parts += [store.views[name] for name in sorted(store.views.fields)]
    parts += [store.table, state.camera.world_from_camera, state.free_space.reach_m]
    parts += [latent.numpy() for latent in state.latents.values()]
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes())
    numbers = state.memory._tick, state.frames_seen, state.stamp_ns, *state.latents
    found.update(repr(numbers).encode())
    return found.hexdigest()


def started(**config) -> World:
    world = World(Faulty(), WorldConfig(**config))
    camera = Camera.from_hfov(60.0, SIZE, level_camera_pose())
    world.reset(spotted(), camera, np.full(SIZE, WALL_M, np.float32), 0)
    world.step(away(), np.arange(1, 5))
    return world


def away(yaw: float = 0.4) -> Camera:
    """Four cameras that see much that is new."""
    poses = np.stack([turned(level_camera_pose(), yaw * i) for i in range(1, 5)])
    return Camera(Camera.from_hfov(60.0, SIZE).intrinsics, poses, SIZE)


def no_room(monkeypatch, after: int) -> None:
    """Memory runs out once so many frames have been written."""
    insert, count = TokenStore.insert, [0]

    def limited(self, rows, views):
        count[0] += 1
        if count[0] > after:
            raise MemoryError
        return insert(self, rows, views)

    monkeypatch.setattr(TokenStore, "insert", limited)


def new_picture(world: World) -> None:
    world.reset(spotted(back=30), world.camera, np.full(SIZE, 1.0, np.float32), 9)


def two_cameras(world: World) -> None:
    start = plan(level_camera_pose(), 4)[1]
    Rig(world, 2).step([start, away(0.7)], np.arange(5, 9))


def real_picture(world: World) -> None:
    world.observe(spotted(back=60), world.camera, np.full(SIZE, 1.0, np.float32), 9)


def a_step(world: World) -> None:
    world.step(away(0.6), np.arange(5, 9))


def a_rollout(world: World) -> None:
    list(world.rollout(away(0.6), np.arange(5, 9)))


MAKING = ("generate beyond", "generate raises", "decode", "perceive")


@pytest.mark.parametrize(
    ("call", "fault"),
    [(call, fault) for call in (a_step, two_cameras, a_rollout) for fault in MAKING]
    + [(new_picture, f) for f in ("encode beyond", "encode raises", "decode", "perceive")]
    + [(real_picture, fault) for fault in ("encode beyond", "encode raises")],
)
def test_a_model_that_fails_changes_nothing(call, fault):
    world = started(overlap_decode=call is a_rollout)
    before, world.model.fault = told(world.state), fault
    with pytest.raises(Exception) as raised:
        call(world)
    assert ("beyond" not in fault) or "beyond 61,440" in str(raised.value)
    assert told(world.state) == before
    world.model.fault = ""
    call(world)
    assert told(world.state) != before


@pytest.mark.parametrize(
    ("call", "after"),
    [(call, after) for call in (a_step, two_cameras, a_rollout) for after in (0, 1)]
    + [(real_picture, 0), (new_picture, 0)],
)
def test_memory_that_runs_out_while_it_is_written_changes_nothing(call, after, monkeypatch):
    world = started(overlap_decode=call is a_rollout)
    before = told(world.state)
    no_room(monkeypatch, after)
    with pytest.raises(MemoryError):
        call(world)
    assert told(world.state) == before
    monkeypatch.undo()
    call(world)
    assert told(world.state) != before


def test_memory_that_runs_out_while_a_box_is_erased_changes_nothing(monkeypatch):
    world = started()
    before = told(world.state)

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(blocks.Blocks, "refit", fails)
        with pytest.raises(MemoryError):
            world.erase(np.full(3, -9.0), np.full(3, 9.0))
    assert told(world.state) == before
    assert world.erase(np.full(3, -9.0), np.full(3, 9.0)) > 0 and world.memory.tokens == 0


def test_latents_beyond_what_a_token_holds_are_refused_before_the_first_frame_is_written():
    world = started()
    memory, before = world.memory.fork(), told(world.state)
    latents = torch.zeros(2, memory.config.channels, 8, 10)
    latents[1, 0, 7, 9] = BEYOND
    cells = away()[:2].resized((8, 10))
    depth, whole = np.full((2, 8, 10), 2.0, np.float32), np.ones((2, 8, 10), bool)
    rest = np.arange(2), np.zeros((2, 8, 10, 3), np.uint8), np.arange(2)
    tokens = memory.tokens
    for write in (memory.write, memory.write_new, memory.write_by_surfaces):
        with pytest.raises(MirageError, match="beyond"):
            write(latents, cells, depth, whole, *rest)
        assert memory.tokens == tokens
    assert told(world.state) == before


def test_a_copy_that_memory_has_no_room_for_leaves_both_forks_sound(monkeypatch):
    world = started()
    one, other = world.memory, world.memory.fork()
    before, box = told(world.state), (np.full(3, -9.0), np.full(3, 9.0))

    def fails(self):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "copy", fails)
        with pytest.raises(MemoryError):
            other.erase(*box)
    other.erase(*box)
    assert other.tokens == 0 and one.tokens > 0 and told(world.state) == before


@pytest.mark.parametrize("granted", range(6))
def test_a_store_that_cannot_grow_keeps_arrays_of_one_length(granted, monkeypatch):
    """The so-many-th array of a growth is refused, as by the operating system."""
    store = TokenStore(16, 2**20, "float16")
    store.insert(*some_rows(0, 1))
    held = {name: store[name].copy() for name in store.arrays}
    empty, count = np.empty, [0]

    def scarce(*shape, **options):
        count[0] += 1
        if count[0] > granted:
            raise MemoryError
        return empty(*shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr("mirage_ros.memory.store.np.empty", scarce)
        with pytest.raises(MemoryError):
            store._grow(store.capacity + 1)
    assert {len(array) for array in store.arrays.values()} == {store.capacity}
    assert len(store.blocks.bounds) * blocks.BLOCK_ROWS >= store.capacity
    for name, rows in held.items():
        np.testing.assert_array_equal(store[name], rows)
    store.insert(*some_rows(1, 1))
    assert store.count > len(held["used"])


ENGINE_CALLS = {
    "step": Step(Planned(tuple(range(10, 14)), away(0.6).world_from_camera)),
    "observe": Observe(
        Seed("real", seed(1).rgb, seed(1).camera, np.full(seed(1).rgb.shape[:2], 1.0)), 9
    ),
    "reset": Reset(seed(2), None, "test"),
    "load": Load("/no/such/world"),
    "restore": Restore("nobody"),
    "erase": Erase((1.0,) * 3, (-1.0,) * 3),
}


@pytest.mark.parametrize("name", ENGINE_CALLS)
@pytest.mark.parametrize("dated", [True, False])
def test_a_command_that_fails_leaves_the_engine_as_it_was(name, dated, monkeypatch):
    """Also what is kept to begin the world at its first frame's time."""
    engine = Engine(Faulty(), WorkerConfig())
    engine.carry_out(Reset(seed(), 0 if dated else None, "test"))
    engine.carry_out(Fork("kept"))
    engine.carry_out(Restore("kept"))
    before, dating = told(engine._world.state), engine._dating
    fault = {"step": "generate beyond", "observe": "encode beyond", "reset": "perceive"}
    engine.model.fault = fault.get(name, "")
    with pytest.raises((MirageError, MemoryError)):
        engine.carry_out(ENGINE_CALLS[name])
    assert told(engine._world.state) == before and engine._dating is dating
    engine.model.fault = ""
    engine.carry_out(ENGINE_CALLS["step"])
    assert engine._world.stamp_ns == 13


def test_what_is_looked_at_again_costs_no_copy_of_memory(monkeypatch):
    """Only what is new is written, so a robot that is parked pays nothing for the safety."""
    world = started()
    copies, copy = [], TokenStore.copy
    monkeypatch.setattr(TokenStore, "copy", lambda self: copies.append(1) or copy(self))
    world.step(away(), np.arange(5, 9))
    assert isinstance(world.memory, LatentMemory) and not copies
    world.step(away(0.9), np.arange(9, 13))
    assert copies == [1]

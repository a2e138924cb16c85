"""The inference worker's process: a model, a world, commands in, results out.

Imported once where workers are forked from: compiled code is loaded here, not in each of them. Loading numba's
compiled functions takes a second, the first call of torch some more. One tiny world is run on one thread, because
threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
import torch
from numba.core import event

from mirage_ros.errors import LONG_S, MirageError, legible, listen, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Perception, WorldModel
from mirage_ros.ros.worker import Beat, Command, Dying, Failed, ModelReady, WorkerConfig
from mirage_ros.ros.worker.engine import Engine
from mirage_ros.ros.worker.shared import receive, send
from mirage_ros.world.entities import Mesh
from mirage_ros.world.world import World, WorldConfig

BEAT_S = 0.5
# The node's own process answers services and publishes; it goes first, by a little.
NICENESS = 1
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_cpu")


SIZE, STRIDE, CHANNELS = (32, 32), 8, 4


class TinyModel:
    """The least that a world can be run with."""

    name, stride, channels, size = "tiny", STRIDE, CHANNELS, SIZE
    chunk_frames, preceding_frames, reference_frames = 2, 1, 1

    def encode(self, rgb):
        return torch.zeros(len(rgb), CHANNELS, SIZE[0] // STRIDE, SIZE[1] // STRIDE)

    def decode(self, latents):
        return np.zeros((len(latents), *SIZE, 3), np.uint8)

    def generate(self, readout, cameras, preceding, references, seed):
        return readout.latents.float()

    def perceive(self, rgb, cameras, anchor_depth_m):
        shape = rgb.shape[:3]
        nothing = np.zeros(shape, bool)
        return Perception(np.full(shape, 2.0, np.float32), nothing, nothing)


def warm() -> None:
    """Runs everything of the core once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    world = World(TinyModel(), WorldConfig(max_memory_bytes=2**20))
    camera = Camera.from_hfov(60.0, SIZE)
    world.reset(np.zeros((*SIZE, 3), np.uint8), camera, np.full(SIZE, 2.0, np.float32))
    poses = np.stack([np.eye(4)] * 2)
    poses[:, 0, 3] = [0.1, 0.4]
    triangle = Mesh.of(np.array([[-1.0, -1, 1], [1, -1, 1], [0, 1, 1]]), np.array([[0, 1, 2]]), np.zeros(3))
    world.change_entities(lambda entities, stamp_ns: entities.spawned("tiny", triangle, np.eye(4), stamp_ns))
    world.step(Camera(camera.intrinsics, poses, SIZE), np.array([1, 2]))
    world.erase(np.full(3, -9.0), np.full(3, 9.0))
    torch.set_num_threads(threads)


warm()


def run(connection: Connection, make_model: Callable[[], WorldModel], config: WorkerConfig) -> None:
    """The whole life of the process; returns when the node is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    outbox = _Outbox(connection)
    try:
        engine = _load(outbox, make_model, config)
        while engine is not None:
            while not connection.poll(BEAT_S):
                outbox.beat()
            command = receive(connection)
            outbox.put(_result(engine, command, outbox))
            _give_back()
    except (EOFError, OSError):
        pass
    if config.snapshots is not None:
        shutil.rmtree(config.snapshots, ignore_errors=True)


def _give_back() -> None:
    """Freed memory goes back to the system; takes 3 ms.

    glibc keeps what lies between live tensors, and more of it as the remembered frames get more:
    done only every few chunks, the process grew by 4 % though it held no byte more.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Outbox:
    """Results and, between them, a heartbeat at most twice a second: from the work itself, so that
    it stops when the work does."""

    def __init__(self, connection: Connection) -> None:
        # Work may report from several threads.
        self._connection, self._lock = connection, threading.RLock()
        self._told_s, self._allow_s = 0.0, 0.0
        listen(self.beat)
        event.register("numba:compile", _Compiling())

    def put(self, value) -> None:
        with self._lock:
            send(self._connection, value)
            self._told_s, self._allow_s = time.monotonic(), getattr(value, "allow_s", 0.0)

    def beat(self, allow_s: float = 0.0) -> None:
        with self._lock:
            if allow_s != self._allow_s or time.monotonic() - self._told_s >= BEAT_S:
                self.put(Beat(allow_s))


class _Compiling(event.Listener):
    """A loop that is compiled on its first use may take a while; others are loaded from disk."""

    def __init__(self) -> None:
        self._depth = 0

    def on_start(self, event) -> None:
        self._depth += 1
        report(LONG_S)

    def on_end(self, event) -> None:
        self._depth -= 1
        report(LONG_S if self._depth else 0.0)


def _load(outbox: _Outbox, make_model, config: WorkerConfig) -> Engine | None:
    report(LONG_S)
    try:
        model = make_model()
        engine = Engine(model, config)
    except Exception as error:  # noqa: BLE001 - a process must not die unheard
        outbox.put(Failed(None, _message(error)))
        return None
    outbox.put(ModelReady(model.name, tuple(model.size), model.chunk_frames))
    return engine


def _result(engine: Engine, command: Command, outbox: _Outbox):
    """What a command came to. The command itself stays behind: the node still has it."""
    try:
        return replace(engine.carry_out(command), command=None)
    except Exception as error:  # noqa: BLE001
        if _is_out_of_memory(error):
            outbox.put(Dying(f"The inference worker ran out of memory ({_first_line(error)})."))
            os._exit(1)
        return Failed(None, _message(error))


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(t in text for t in OUT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _message(error: Exception) -> str:
    if isinstance(error, MirageError):
        return str(error)
    logging.getLogger(__name__).exception("unexpected")
    return f"An unexpected {type(error).__name__} ({legible(str(error))}); please report it with the log."

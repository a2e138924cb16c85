"""Who runs the episodes: this process, or several that may die without losing one.

A pool turns units (tuples of episode indices that are drawn together) into events:

- ("ready", None) when a worker has its model, ("waiting", None) while none could start yet;
- ("frames", n) as they are drawn, ("episode", report) for each one on the disk;
- ("retry", unit) when a worker was lost and its unit goes to another.

What runs the units is made by a function that a pool is given, in the process that it works in: so the
function has to be one that can be sent there (pickled).

When a pool assigns a unit it asks which episodes are not to be written, being on the disk already
or not asked for: they are drawn with the others of their unit and dropped.

On a Ray cluster (RayPool) there is one actor per GPU, or per `threads` cores without GPUs. Every
machine of the cluster has to see the dataset's folder under the same path. Actors that are lost,
with their machine or without, are replaced and their unit is run again.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from typing import Protocol

from mirage_ros.errors import MirageError

#: Indices of episodes that are drawn together.
Unit = tuple[int, ...]
#: What a worker reports: a kind, and what it is about.
Event = tuple[str, object]
Finished = Callable[[], set[int]]


class Runner(Protocol):
    """Runs units with what was loaded when it was made."""

    def run(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """Events of one unit, whose indices in `skip` are not written."""
        ...


MakeRunner = Callable[[], Runner]
MOST_TRIES = 3
LOCAL = "local"
PATIENCE_S = 20.0
MOST_LOST = 9


def run_here(make_runner: MakeRunner, finished: Finished, units: Sequence[Unit]) -> Iterator[Event]:
    """Runs the units one after the other in this process."""
    runner = make_runner()
    yield "ready", None
    for unit in units:
        yield from runner.run(unit, finished())


@dataclass
class _Worker:
    """A process, the connection to it, and the unit that it is working on."""

    process: object
    connection: Connection
    unit: Unit | None = None


class ProcessPool:
    """Processes on this machine; one that dies is replaced and its unit is run again."""

    def __init__(self, make_runner: MakeRunner, finished: Finished, workers: int) -> None:
        self._make_runner, self._finished = make_runner, finished
        self._context = get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Events of all units, in the order in which they happen."""
        waiting, tries = deque(units), dict.fromkeys(units, 0)
        try:
            while waiting or any(worker.unit for worker in self._workers):
                for index, worker in enumerate(self._workers):
                    if worker.unit is None and waiting:
                        self._assign(index, waiting, tries)
                indices = {worker.connection: index for index, worker in enumerate(self._workers)}
                for ready in connection.wait(list(indices)):
                    yield from self._receive(indices[ready], waiting, tries)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (self._make_runner, theirs, os.getpid())
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _assign(self, index: int, waiting: deque, tries: dict) -> None:
        worker, unit = self._workers[index], waiting.popleft()
        tries[unit] += 1
        worker.unit = unit
        try:
            worker.connection.send((unit, self._finished() & set(unit)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the connection reports its death

    def _receive(self, index: int, waiting: deque, tries: dict) -> Iterator[Event]:
        worker = self._workers[index]
        try:
            kind, what = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            kind, what = "lost", "the process was killed"
        if kind == "error":
            raise MirageError(what)
        if kind in ("lost", "fault"):
            unit, worker.unit = worker.unit, None
            if kind == "lost":
                worker.process.join()
                worker.connection.close()
                self._workers[index] = self._start()
            yield from retried(unit, waiting, tries, what)
        elif kind == "idle":
            worker.unit = None
        else:
            yield kind, what


def retried(unit: Unit | None, waiting: deque, tries: dict, reason: str) -> Iterator[Event]:
    """Puts a lost unit back in front. Raises MirageError after too many tries."""
    if unit is None:
        return
    if tries[unit] >= MOST_TRIES:
        raise MirageError(
            f"The episodes {list(unit)} failed {MOST_TRIES} times ({reason}); what is finished is "
            "kept: mend the cause and run the same command again."
        )
    waiting.appendleft(unit)
    yield "retry", unit


def _serve(make_runner: MakeRunner, connection: Connection, parent: int) -> None:
    """A worker process: units in, events out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool ends this process
    _die_with(parent)
    try:
        runner = make_runner()
        connection.send(("ready", None))
        while True:
            _serve_one(runner, *connection.recv(), connection)
    except MirageError as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _serve_one(runner, unit: Unit, skip: set[int], connection: Connection) -> None:
    try:
        for event in runner.run(unit, skip):
            connection.send(event)
    except (MirageError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        connection.send(("fault", traceback.format_exc().strip().splitlines()[-1]))
    else:
        connection.send(("idle", unit))


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however that happens (Linux)."""
    parent_death_signal = 1
    try:
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)


def import_ray():
    """The package ray, which is an extra. MirageError where it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MirageError(
            f"Generating on a cluster needs Ray ({error}); pip install 'mirage_ros[ray]'."
        ) from error
    return ray


class _Actor:
    """Lives in a process of its own somewhere in the cluster."""

    def __init__(self, make_runner: MakeRunner) -> None:
        self._make_runner = make_runner

    def load(self) -> None:
        """Not in __init__: Ray reports what fails there as a lost actor."""
        self._runner = self._make_runner()

    def run(self, unit: Unit, skip: set[int]) -> list[Event]:
        return list(self._runner.run(unit, skip))


class RayPool:
    """Actors on the cluster at `address` ("local" starts one on this machine); `threads` of each are what it
    needs of a machine's cores."""

    def __init__(
        self,
        make_runner: MakeRunner,
        finished: Finished,
        workers: int | None,
        threads: int,
        address: str = LOCAL,
    ) -> None:
        ray = self._ray = import_ray()
        self._make_runner, self._finished, self._threads = make_runner, finished, threads
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address)
        self._gpus = ray.cluster_resources().get("GPU", 0)
        if workers is None:
            cores = ray.cluster_resources().get("CPU", 1)
            workers = int(self._gpus or max(1, cores // threads))
        self._started = self._lost = 0
        # Names are unique in a cluster, which others may use for the same.
        self._name = f"mirage_generate_{secrets.token_hex(4)}"
        # Actors whose models are being loaded, or that wait for room: they get no unit yet.
        self._loading, self._idle, self._actors = {}, [], []
        for _ in range(workers):
            self._start()

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Events of all units, each unit's when it is finished.

        An actor that finds no room in the cluster gets no unit: the others do without it.
        """
        waiting, tries, running = deque(units), dict.fromkeys(units, 0), {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    actor, unit = self._idle.pop(), waiting.popleft()
                    tries[unit] += 1
                    running[actor.run.remote(unit, self._finished() & set(unit))] = (actor, unit)
                done, _ = self._ray.wait([*running, *self._loading], num_returns=1, timeout=PATIENCE_S)
                if done and done[0] in running:
                    actor, unit = running.pop(done[0])
                    yield from self._receive(done[0], actor, unit, waiting, tries)
                elif done:
                    yield from self._loaded(done[0])
                elif not running:
                    yield "waiting", None
        finally:
            self.close()

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        while self._actors and self._ray.is_initialized():
            self._end(self._actors[-1])
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def _receive(self, reference, actor, unit: Unit, waiting, tries) -> Iterator[Event]:
        try:
            events = self._ray.get(reference)
            self._idle.append(actor)
            yield from events
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MirageError):
                raise error.cause from error
            self._idle.append(actor)
            yield from retried(unit, waiting, tries, str(error.cause))
        except self._ray.exceptions.RayError as error:
            # Its machine may only be cut off: it shall not write beside who replaces it.
            self._end(actor)
            self._start()
            yield from retried(unit, waiting, tries, f"the actor was lost: {_first_line(error)}")

    def _loaded(self, reference) -> Iterator[Event]:
        """An actor has its model, or could not load it."""
        actor = self._loading.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise MirageError(str(error.cause)) from error
        except self._ray.exceptions.RayError as error:
            self._lost += 1
            if self._lost > MOST_LOST:
                raise MirageError(
                    f"{self._lost} actors were lost before they had loaded the model "
                    f"({_first_line(error)}); look at Ray's logs."
                ) from error
            self._end(actor)
            self._start()
        else:
            self._idle.append(actor)
            yield "ready", None

    def _start(self) -> None:
        needs = {"num_cpus": self._threads, "num_gpus": 1 if self._gpus else 0}
        name = f"{self._name}_{self._started}"
        self._started += 1
        actor = self._ray.remote(_Actor).options(name=name, **needs).remote(self._make_runner)
        self._actors.append(actor)
        self._loading[actor.load.remote()] = actor

    def _end(self, actor) -> None:
        self._actors.remove(actor)
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(actor)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _connect(ray, address: str) -> None:
    try:
        if address == LOCAL:
            # Ray makes its workers nice (15): on a busy machine they would hardly ever run.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MirageError(
            f"No Ray cluster was found at {address} ({_first_line(error)}); give its address or "
            "'local'."
        ) from error

"""Who runs the episodes: this process, or several that may die without losing one.

A pool turns units (tuples of episode indices that are drawn together) into events:

- ("ready", None) when a worker has its model, ("waiting", None) while none could start yet;
- ("frames", n) as they are drawn, ("episode", report) for each one on the disk;
- ("retry", unit) when a worker was lost and its unit goes to another.

Which episodes are not to be written, being on the disk already or not asked for, it asks for when
it gives a unit away: they are drawn with the others of their unit and forgotten.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.generate.job import Job

Unit = tuple[int, ...]
Event = tuple[str, object]
Finished = Callable[[], set[int]]
MOST_TRIES = 3


def run_here(job: Job, out: Path, finished: Finished, units: Sequence[Unit]) -> Iterator[Event]:
    """Runs the units one after the other in this process."""
    from mirage_ros.generate.worker import UnitRunner

    runner = UnitRunner(job, out)
    yield "ready", None
    for unit in units:
        yield from runner.run(unit, finished())


@dataclass
class _Worker:
    """A process, the line to it, and what it is working on."""

    process: object
    line: connection.Connection
    unit: Unit | None = None


class ProcessPool:
    """Processes on this machine; one that dies is replaced and its unit is run again."""

    def __init__(self, job: Job, out: Path, finished: Finished, workers: int) -> None:
        self._job, self._out, self._finished = job, out, finished
        self._context = get_context("spawn")
        self._workers = [self._start() for _ in range(workers)]

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Events of all units, in the order in which they happen."""
        waiting, tries = deque(units), dict.fromkeys(units, 0)
        try:
            while waiting or any(worker.unit for worker in self._workers):
                for place, worker in enumerate(self._workers):
                    if worker.unit is None and waiting:
                        self._give(place, waiting, tries)
                lines = {worker.line: place for place, worker in enumerate(self._workers)}
                for line in connection.wait(list(lines)):
                    yield from self._hear(lines[line], waiting, tries)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()

    def _start(self) -> _Worker:
        line, theirs = self._context.Pipe()
        arguments = (self._job, self._out, theirs, os.getpid())
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, line)

    def _give(self, place: int, waiting: deque, tries: dict) -> None:
        worker, unit = self._workers[place], waiting.popleft()
        tries[unit] += 1
        worker.unit = unit
        try:
            worker.line.send((unit, self._finished() & set(unit)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # its death is heard on the line

    def _hear(self, place: int, waiting: deque, tries: dict) -> Iterator[Event]:
        worker = self._workers[place]
        try:
            kind, what = worker.line.recv()
        except (EOFError, ConnectionResetError):
            kind, what = "lost", "the process was killed"
        if kind == "error":
            raise MirageError(what)
        if kind in ("lost", "fault"):
            unit, worker.unit = worker.unit, None
            if kind == "lost":
                worker.process.join()
                worker.line.close()
                self._workers[place] = self._start()
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


def _serve(job: Job, out: Path, line: connection.Connection, parent: int) -> None:
    """A worker process: units in, events out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends us
    _die_with(parent)
    from mirage_ros.generate.worker import UnitRunner

    try:
        runner = UnitRunner(job, out)
        line.send(("ready", None))
        while True:
            _serve_one(runner, *line.recv(), line)
    except MirageError as error:
        line.send(("error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _serve_one(runner, unit: Unit, skip: set[int], line: connection.Connection) -> None:
    try:
        for event in runner.run(unit, skip):
            line.send(event)
    except (MirageError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        line.send(("fault", traceback.format_exc().strip().splitlines()[-1]))
    else:
        line.send(("idle", unit))


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however that happens (Linux)."""
    parent_death_signal = 1
    try:
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)

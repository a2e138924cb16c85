"""What node and worker share: values sent through a pipe, and a folder of snapshots for the worker that may follow.

Small parts of a value go through the pipe, arrays through shared memory. Pickle's protocol 5 hands out the arrays'
buffers; they are written to one anonymous memory file whose descriptor goes over the pipe's socket. The reader maps
it, and the memory is free again when the last array on it is gone, or when both processes are: nothing to name, count
or clean up.

The folder of snapshots lies in memory and goes with the node, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mirage_ros.errors import MirageError

ALIGNMENT = 64


def send(connection: Connection, value: Any) -> None:
    """Sends a picklable value. Raises OSError where nobody reads any more."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    ends, total = [], 0
    for part in parts:
        total += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        ends.append((total - -(-part.nbytes // ALIGNMENT) * ALIGNMENT, part.nbytes))
    connection.send_bytes(pickle.dumps((data, ends, total)))
    if total:
        _send_parts(connection, parts, ends, total)


def receive(connection: Connection) -> Any:
    """What `send` sent; its arrays are read-only views of the shared memory.

    Raises:
        EOFError, OSError: the sender is gone.
    """
    data, ends, total = pickle.loads(connection.recv_bytes())
    if not total:
        return pickle.loads(data, buffers=[b""] * len(ends))
    descriptor = recv_handle(connection)
    try:
        view = memoryview(mmap.mmap(descriptor, total, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)
    return pickle.loads(data, buffers=[view[start : start + size] for start, size in ends])


def _send_parts(connection: Connection, parts, ends, total: int) -> None:
    descriptor = os.memfd_create("mirage", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, total)
        with mmap.mmap(descriptor, total) as shared:
            for part, (start, size) in zip(parts, ends, strict=True):
                shared[start : start + size] = part
        send_handle(connection, descriptor, None)
    finally:
        os.close(descriptor)


PREFIX = "mirage-"
LOCK = "lock"
FORK = "fork-"


class Scratch:
    """A new folder, in /dev/shm where there is one. What dead processes left there is removed.

    Whoever holds the lock of a folder is alive; a process number would say nothing where several
    containers share the memory.
    """

    def __init__(self) -> None:
        shared = Path("/dev/shm")
        usable = shared.is_dir() and os.access(shared, os.W_OK)
        parent = shared if usable else Path(tempfile.gettempdir())
        for folder in parent.glob(f"{PREFIX}*"):
            _remove_if_left(folder)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def keep(self, snapshot: str | None) -> None:
        """Removes what a dead worker left, but not its forks, nor the snapshot named here.

        Otherwise every death would leave the memory of a world or two behind.
        """
        for path in self.path.iterdir():
            if path.name != LOCK and FORK not in path.name and str(path) != snapshot:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Removes it; once is enough."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError), open(folder / LOCK, "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


# At most this share of the time goes into snapshots that nobody asked for.
SHARE = 0.05
KEPT = 2


@runtime_checkable
class Kept(Protocol):
    """A world, as far as it is kept: in a folder, or as a state in this process."""

    def save(self, path: Path) -> object: ...

    def load(self, path: Path) -> object: ...

    def snapshot(self) -> Any: ...


class Snapshots:
    """A folder of saved worlds: the last ones, and the forks.

    Args:
        folder: None keeps forks in this process alone and takes no snapshots.

    Attributes:
        failure: why the last one could not be taken, '' if it could.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._names = (f"snapshot-{os.getpid()}-{n}" for n in itertools.count())
        self._name = next(self._names)
        self._taken: list[Path] = []
        self._next_s = 0.0
        self.failure = ""
        self._forks: dict[str, Any] = {}

    def take(self, world: Kept, force: bool) -> str | None:
        """Saves the world if it is time to, and returns the folder.

        A disk that is full costs the snapshot, not the world; `failure` says so.
        """
        now_s = time.monotonic()
        if self._folder is None or (now_s < self._next_s and not force):
            return None
        path = self._folder / self._name
        try:
            world.save(path)
        except MirageError as error:
            self._wait(time.monotonic() - now_s, 10.0)
            self.failure = str(error)
            return None
        self.failure, self._name = "", next(self._names)
        self._wait(time.monotonic() - now_s)
        self._taken.append(path)
        while len(self._taken) > KEPT:
            shutil.rmtree(self._taken.pop(0), ignore_errors=True)
        return str(path)

    def _wait(self, took_s: float, least_s: float = 0.0) -> None:
        """The next one comes when the last one was its share of the time."""
        self._next_s = time.monotonic() + max(took_s / SHARE, least_s)

    def fork(self, world: Kept, name: str) -> list[str]:
        """Keeps the world under a name; returns all names."""
        if self._folder is not None:
            world.save(self._folder / f"{FORK}{name}")
        self._forks[name] = world.snapshot()
        return self._known()

    def forked(self, name: str, make_world: Callable[[], Kept]) -> Any:
        """The state of the world kept under a name. MirageError, which knows the names, where there is none.

        Args:
            make_world: gives an empty world like the one that was kept.
        """
        if name not in self._known():
            known = ", ".join(self._known()) or "none"
            raise MirageError(f"There is no fork named '{name}' (known: {known}); fork first.")
        if name not in self._forks:
            other = make_world()
            other.load(self._folder / f"{FORK}{name}")
            self._forks[name] = other.snapshot()
        return self._forks[name]

    def clear(self) -> None:
        """Forgets the forks, whose world is gone."""
        self._forks = {}
        if self._folder is not None:
            for path in self._folder.glob(f"{FORK}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _known(self) -> list[str]:
        kept = [] if self._folder is None else self._folder.glob(f"{FORK}*")
        return sorted({*self._forks, *(path.name.removeprefix(FORK) for path in kept)})

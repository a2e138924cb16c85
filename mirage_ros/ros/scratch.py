"""A folder in memory for the worker's snapshots, which goes with the node, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

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

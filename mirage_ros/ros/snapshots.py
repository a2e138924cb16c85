"""What the worker keeps of its world for the worker that may have to follow it."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.core.world import World
from mirage_ros.core.world_state import WorldState
from mirage_ros.ros.scratch import FORK

# At most this share of the time goes into snapshots that nobody asked for.
SHARE = 0.05
KEPT = 2


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
        self._forks: dict[str, WorldState] = {}

    def take(self, world: World, force: bool) -> str | None:
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

    def fork(self, world: World, name: str) -> list[str]:
        """Keeps the world under a name; returns all names."""
        if self._folder is not None:
            world.save(self._folder / f"{FORK}{name}")
        self._forks[name] = world.snapshot()
        return self._known()

    def forked(self, name: str, world: World) -> WorldState:
        """The world kept under a name. MirageError, which knows the names, where there is none."""
        if name not in self._known():
            known = ", ".join(self._known()) or "none"
            raise MirageError(f"There is no fork named '{name}' (known: {known}); fork first.")
        if name not in self._forks:
            other = World(world.model, world.config)
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

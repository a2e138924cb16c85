"""Datasets whose episodes stand beside each other in a folder, or that are a single one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.recording.episodes import Episode, PathLock, disk_errors, remove
from mirage_ros.recording.recorder import NOTHING, RecordingConfig

MakeEpisode = Callable[[Path, RecordingConfig, str, Mapping], Episode]


def episode_path(root: Path, index: int, ending: str) -> Path:
    """`root/episode-000012` with the format's ending."""
    return root / f"episode-{index:06d}{ending}"


class FolderDataset:
    """Every finished episode is whole by itself; adopting one only counts it."""

    def __init__(
        self, root: Path, config: RecordingConfig, make_episode: MakeEpisode, ending: str
    ) -> None:
        """Opens or resumes; episodes that were never finished are removed."""
        self.root, self.config, self._ending = root, config, ending
        self._make_episode = make_episode
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._lock = PathLock(root)
            for path in root.glob(".episode-*.tmp*"):
                remove(path)
        found = self.finished()
        self.episodes = next(index for index in range(len(found) + 1) if index not in found)

    def finished(self) -> set[int]:
        """Indices of all episodes on the disk."""
        paths = self.root.glob(f"episode-*{self._ending}")
        return {int(path.name.removesuffix(self._ending).split("-")[1]) for path in paths}

    def episode(self, index: int, task: str = "", info: Mapping = NOTHING) -> Episode:
        """A writer of episode `index`."""
        path = episode_path(self.root, index, self._ending)
        return self._make_episode(path, self.config, task, info)

    def adopt(self, index: int) -> None:
        """Counts the finished episode `index`, which has to be the next one."""
        if index != self.episodes or index not in self.finished():
            raise MirageError(
                f"Episode {index} was to be adopted by a dataset of {self.episodes}; finish and "
                f"adopt {self.episodes} first."
            )
        self.episodes += 1

    def close(self) -> None:
        """Lets other processes open it."""
        self._lock.release()


class SingleDataset:
    """A path that is one episode itself."""

    def __init__(self, path: Path, config: RecordingConfig, make_episode: MakeEpisode) -> None:
        self.path, self.config, self._make_episode = path, config, make_episode
        self.episodes = 0

    def finished(self) -> set[int]:
        """0, once the episode is there."""
        return {0} if self.path.exists() else set()

    def episode(self, index: int, task: str = "", info: Mapping = NOTHING) -> Episode:
        """The writer of the only episode. Raises MirageError for another one."""
        if index:
            raise MirageError(f"{self.path} holds one episode; give a folder to record more.")
        episode = self._make_episode(self.path, self.config, task, info)
        episode.keep_half = True
        return episode

    def adopt(self, index: int) -> None:
        """Counts it."""
        self.episodes = 1

    def close(self) -> None:
        """Nothing is left to do."""

"""Joins finished episodes into a LeRobot dataset v3.0 that is whole after every one of them.

An adoption writes rows, videos, tasks and the episode's entry, each by renaming a new file over
the old one, and `info.json` last. Readers trust the counts in there, so that they see the
dataset as it was before or after, whenever the process is killed; what lies beyond the counts
is dropped by the next adoption, or by `recover_dataset`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import av  # noqa: F401 - where it is missing, the format says so when it is opened
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.recording import NOTHING, RecordingConfig
from mirage_ros.recording import lerobot as schema
from mirage_ros.recording.episodes import PathLock, check_left, disk_errors, remove
from mirage_ros.recording.lerobot import read_info
from mirage_ros.recording.lerobot.episode import (
    LerobotEpisode,
    Part,
    count_stream,
    halves,
    load_levels,
    mend_half,
    read_part,
    read_rows,
    row_statistics,
    save_levels,
    video_statistics,
)
from mirage_ros.recording.video import join_streams

STATS_GROWTH = 1.1


class LerobotDataset:
    """The one process that holds a dataset open; see `Dataset`."""

    def __init__(
        self, root: Path, config: RecordingConfig, recount: bool = False, keep_halves: bool = False
    ) -> None:
        """Opens or resumes. Raises MirageError when another kind of dataset is there.

        Args:
            recount: decode all videos for the statistics instead of trusting kept counts.
            keep_halves: of an episode that is cut off, what is whole is worth keeping.
        """
        self.root, self.config, self._keep_halves = root, config, keep_halves
        self._rate = schema.whole_rate(config)
        schema.vectors(config)
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._lock = PathLock(root)
            try:
                self._open(recount)
            except BaseException:
                self._lock.release()
                raise

    def finished(self) -> set[int]:
        """Indices of adopted episodes and of those that wait."""
        waiting = (self.root / schema.PARTS).glob("episode-*")
        return set(range(self.episodes)) | {int(path.name.split("-")[1]) for path in waiting}

    def episode(self, index: int, task: str = "", info: Mapping = NOTHING) -> LerobotEpisode:
        """A writer of episode `index`."""
        episode = LerobotEpisode(schema.part_path(self.root, index), self.config, task, info)
        episode.keep_half = self._keep_halves
        return episode

    def adopt(self, index: int) -> None:
        """Appends the finished episode; once it returns, readers see it."""
        if index != self.episodes:
            raise MirageError(
                f"Episode {index} was to be adopted by a dataset of {self.episodes}; adopt "
                f"{self.episodes} first."
            )
        part = read_part(schema.part_path(self.root, index))
        self._check_same(part.summary["features"])
        with disk_errors(self.root):
            self._append(part)
        remove(part.path)

    def adopt_waiting(self) -> None:
        """Adopts whole episodes that come next, as a writer leaves them that was killed."""
        while self.episodes in self.finished():
            self.adopt(self.episodes)

    def close(self) -> None:
        """Brings the statistics up to date."""
        try:
            with disk_errors(self.root):
                if self.episodes > self._told:
                    self._tell_statistics()
                folder = self.root / schema.PARTS
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        finally:
            self._lock.release()

    def _open(self, recount: bool) -> None:
        """Reads what is there. Nothing is touched before it is known to be ours."""
        self._info = schema.read_info(self.root)
        if self._info:
            self._check_same(self._info["features"])
        self._tasks = schema.read_tasks(self.root)
        self._drop_leftovers()
        self.episodes = self._info["total_episodes"] if self._info else 0
        self._frames = self._info["total_frames"] if self._info else 0
        self._in_file = self._read_lengths()
        self._levels: dict[str, np.ndarray] = {}
        self._counted = self._told = 0
        if self._info:
            self._count_again(recount)

    def _append(self, part: Part) -> None:
        number, frames = schema.numbered(self.episodes), part.frames
        before = sum(self._in_file)
        if part.summary["task"] not in self._tasks:
            self._tasks = [*self._tasks, part.summary["task"]]
            schema.write_tasks(self.root, self._tasks)
        rows = self._numbered_rows(part)
        kept = len(self._in_file)
        schema.append_rows(self.root / schema.DATA.format(**number), kept, rows)
        for key in part.levels:
            self._append_video(key, part, number, before)
        entry = self._entry(part, rows, number, before)
        schema.append_rows(self.root / schema.EPISODES.format(**number), kept, entry)
        self.episodes, self._frames = self.episodes + 1, self._frames + frames
        self._in_file = [] if self.episodes % schema.EPISODES_PER_FILE == 0 else [
            *self._in_file, frames]  # fmt: skip
        self._add_levels(part.levels)
        self._counted = self.episodes
        if self.episodes >= self._told * STATS_GROWTH:
            self._tell_statistics()
        self._tell_info(part.summary)

    def _numbered_rows(self, part: Part) -> pa.Table:
        """The part's rows with the columns that say where they stand."""
        numbers = np.arange(part.frames)
        values = {
            "timestamp": (numbers / self._rate).astype(np.float32),
            "frame_index": numbers,
            "episode_index": np.full_like(numbers, self.episodes),
            "index": self._frames + numbers,
            "task_index": np.full_like(numbers, self._tasks.index(part.summary["task"])),
        }
        rows = part.rows()
        for name, feature in schema.INDICES.items():
            rows = rows.append_column(name, schema.column(feature, values[name]))
        return rows

    def _append_video(self, key: str, part: Part, number: Mapping, before: int) -> None:
        path = self.root / schema.VIDEO.format(video_key=key, **number)
        pieces = [(path, before)] if before else []
        pieces.append((part.path / f"{key}.mp4", part.frames))
        with atomic_path(path) as new:
            join_streams(pieces, self._rate, new)

    def _entry(self, part: Part, rows: pa.Table, number: Mapping, before: int) -> pa.Table:
        """The episode's row of meta/episodes."""
        entry = {
            "episode_index": self.episodes,
            "tasks": [part.summary["task"]],
            "length": part.frames,
            "info": json.dumps(part.summary["info"], sort_keys=True),
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + part.frames,
        }
        for place in ("data", "meta/episodes", *(f"videos/{key}" for key in part.levels)):
            entry |= {f"{place}/{name}": value for name, value in number.items()}
        for key in part.levels:
            entry[f"videos/{key}/from_timestamp"] = before / self._rate
            entry[f"videos/{key}/to_timestamp"] = (before + part.frames) / self._rate
        stats = video_statistics(part.levels, part.frames, self.config)
        for feature, values in {**stats, **row_statistics(rows)}.items():
            entry |= {f"stats/{feature}/{name}": value.tolist() for name, value in values.items()}
        return pa.table({name: [value] for name, value in entry.items()})

    def _add_levels(self, levels: Mapping[str, np.ndarray]) -> None:
        self._levels = {key: counts + self._levels.get(key, 0) for key, counts in levels.items()}

    def _tell_statistics(self) -> None:
        """stats.json of all episodes; it may lag behind until the dataset is closed."""
        rows = read_rows(self.root, self._frames)
        videos = video_statistics(self._levels, self._frames, self.config)
        schema.write_stats(self.root, {**videos, **row_statistics(rows)})
        save_levels(self.root, self.episodes, self._levels)
        self._told = self.episodes

    def _tell_info(self, summary: Mapping) -> None:
        schema.write_info(
            self.root, summary["features"], self._rate, summary["robot_type"], self.episodes,
            self._frames, len(self._tasks),
        )  # fmt: skip
        self._info = schema.read_info(self.root)

    def _check_same(self, features: Mapping) -> None:
        """Every episode holds the same; so does what the config announces."""
        announced = schema.feature_table(self.config, features[schema.COLOR]["shape"][:2])
        for known in (announced, self._info["features"] if self._info else announced):
            if known != features:
                different = sorted(
                    name for name in {*known, *features} if known.get(name) != features.get(name)
                )
                raise MirageError(
                    f"The dataset {self.root} and what is recorded differ in "
                    f"{', '.join(different) or 'the order of the features'}; record the same or "
                    "into another folder."
                )

    def _drop_leftovers(self) -> None:
        """Half episodes and parts that were adopted already; nobody else writes here now."""
        for half in halves(self.root):
            mend_half(half)
        for folder in (schema.PARTS, "meta", "data", "videos"):
            for path in list((self.root / folder).rglob(".*")):
                remove(path)
        for path in (self.root / schema.PARTS).glob("episode-*"):
            if self._info and int(path.name.split("-")[1]) < self._info["total_episodes"]:
                remove(path)

    def _read_lengths(self) -> list[int]:
        """Frames of each adopted episode in the file that the next one goes into."""
        kept = self.episodes % schema.EPISODES_PER_FILE
        if not kept:
            return []
        path = self.root / schema.EPISODES.format(**schema.numbered(self.episodes))
        return pq.read_table(path, columns=["length"])["length"].to_pylist()[:kept]

    def _count_again(self, recount: bool) -> None:
        """The levels of all adopted videos: kept counts, and the rest from the videos."""
        self._counted, self._levels = load_levels(self.root)
        if recount or self._counted > self.episodes:
            self._counted, self._levels = 0, {}
        self._told = self._counted
        lengths = self._lengths_from(self._counted)
        for index, (before, frames) in lengths.items():
            number = schema.numbered(index)
            for key in schema.encoders(self.config):
                path = self.root / schema.VIDEO.format(video_key=key, **number)
                counts = islice(count_stream(path, key, self._rate), before, before + frames)
                self._levels[key] = self._levels.get(key, 0) + sum(counts)

    def _lengths_from(self, first: int) -> dict[int, tuple[int, int]]:
        """(frames before it in its file, frames) of each adopted episode from `first` on."""
        found = {}
        for path in schema.files_below(self.root, schema.EPISODES):
            before = 0
            for row in pq.read_table(path, columns=["episode_index", "length"]).to_pylist():
                if first <= row["episode_index"] < self.episodes:
                    found[row["episode_index"]] = (before, row["length"])
                before += row["length"]
        return found


def recover_dataset(root: Path) -> str:
    """Mends or drops half episodes, adopts whole ones, decodes every video and counts anew.

    Returns:
        A sentence about what was found.

    Raises:
        MirageError: it is being recorded, nothing of it can be kept, or a video is damaged.
    """
    with PathLock(root):
        found = halves(root)
        for half in found:
            check_left(half, root)
        mended = [frames for frames in map(mend_half, found) if frames]
    parts = sorted((root / schema.PARTS).glob("episode-*"))
    about = read_info(root) or (read_part(parts[0]).summary if parts else None)
    if about is None:
        raise MirageError(
            f"Nothing of {root} was finished before it was cut off; remove it and record again."
        )
    dataset = LerobotDataset(root, schema.config_of(about), recount=True)
    before = dataset.episodes
    dataset.adopt_waiting()
    waiting = sorted(dataset.finished() - set(range(dataset.episodes)))
    dataset.close()
    summary = f"{root}: {dataset.episodes} episodes ({dataset.episodes - before} of them adopted now)"
    if mended:
        summary += f", {sum(mended)} frames of a half one kept"
    if len(found) > len(mended):
        summary += f", {len(found) - len(mended)} half ones removed"
    if waiting:
        summary += f", {len(waiting)} that wait for episode {dataset.episodes}"
    return summary

"""One LeRobot episode by itself: its videos, its rows, its statistics, in a folder of its own.

Any process may write one; `LerobotDataset` joins them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirage_ros.core.errors import MirageError
from mirage_ros.core.frames import Frame
from mirage_ros.recording import lerobot_schema as schema
from mirage_ros.recording.episodes import Episode
from mirage_ros.recording.histograms import count_levels
from mirage_ros.recording.recorder import NOTHING, RecordingConfig
from mirage_ros.recording.streams import StreamWriter, read_stream

TIME_TOLERANCE_S = 1e-4
SUMMARY, ROWS = "episode.json", "rows.parquet"


class LerobotEpisode(Episode):
    """Writes videos as frames come; rows wait in memory until the end."""

    def __init__(
        self, target: Path, config: RecordingConfig, task: str = "", info: Mapping = NOTHING
    ) -> None:
        """Begins `schema.part_path(root, index)`."""
        self._rate, self._vectors = schema.whole_rate(config), schema.vectors(config)
        self._codes = schema.depth_codes(config)
        super().__init__(target, config, task, info)
        self._streams: dict[str, StreamWriter] = {}
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in self._vectors}
        self._first: Frame | None = None

    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        self._check(frame)
        if not self._streams:
            self.partial.mkdir(parents=True)
            self._hold()
            for key, encoder in schema.encoders(self.config).items():
                path = self.partial / f"{key}.mp4"
                self._streams[key] = StreamWriter(path, encoder, self._rate, frame.rgb.shape[:2])
        self._streams[schema.COLOR].add(np.ascontiguousarray(frame.rgb))
        self._streams[schema.DEPTH].add(self._codes.encode(frame.depth_m))
        for name, value in {**values, **schema.own_values(frame)}.items():
            self._columns[name].append(value)

    def _check(self, frame: Frame) -> None:
        first = self._first = self._first or frame
        if frame.rgb.shape != first.rgb.shape:
            raise MirageError(
                f"An episode of {first.rgb.shape} pictures got one of {frame.rgb.shape}; "
                "give one size."
            )
        late_s = (frame.stamp_ns - first.stamp_ns) / 1e9 - self.frames / self._rate
        if abs(late_s) > TIME_TOLERANCE_S:
            raise MirageError(
                f"Frame {self.frames} is stamped {late_s:+.4f} s off a rate of {self._rate}/s; "
                "LeRobot has no gaps: end the episode there and begin another."
            )

    def _complete(self) -> None:
        for stream in self._streams.values():
            stream.close()
        columns = {
            name: schema.column(feature, np.stack(self._columns[name]))
            for name, feature in self._vectors.items()
        }
        pq.write_table(pa.table(columns), self.partial / ROWS)
        height, width = self._first.rgb.shape[:2]
        summary = {
            "frames": self.frames,
            "task": self.task,
            "info": self.info,
            "fps": self._rate,
            "robot_type": self.config.robot_type,
            "features": schema.feature_table(self.config, (height, width)),
            "levels": {
                key: self._count(self.partial / f"{key}.mp4", key).tolist() for key in self._streams
            },
        }
        (self.partial / SUMMARY).write_text(json.dumps(summary))

    def _count(self, path: Path, key: str) -> np.ndarray:
        """Reads a finished video back. Raises MirageError when a frame is missing in it."""
        counts = list(count_stream(path, key, self._rate))
        if len(counts) != self.frames:
            raise MirageError(
                f"{path} holds {len(counts)} pictures instead of {self.frames}; record it again."
            )
        return np.sum(counts, axis=0)

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()


@dataclass(frozen=True)
class Part:
    """A finished episode that waits to be adopted."""

    path: Path
    summary: dict

    @property
    def frames(self) -> int:
        return self.summary["frames"]

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """Counts of each level of each channel, by video."""
        return {key: np.array(counts) for key, counts in self.summary["levels"].items()}

    def rows(self) -> pa.Table:
        return pq.read_table(self.path / ROWS)


def read_part(path: Path) -> Part:
    """Raises MirageError when the folder is no finished episode."""
    try:
        return Part(path, json.loads((path / SUMMARY).read_text()))
    except (OSError, ValueError) as error:
        raise MirageError(
            f"{path} is no finished episode ({error}); remove it and record it again."
        ) from error


def count_stream(path: Path, key: str, rate_hz: int) -> Iterator[np.ndarray]:
    """Counts the levels of each picture as a reader decodes it.

    Raises:
        MirageError: frame k does not lie at k / rate.
    """
    deep = key == schema.DEPTH
    for number, (time_s, pixels) in enumerate(read_stream(path, "gray12le" if deep else "rgb24")):
        if abs(time_s - number / rate_hz) > TIME_TOLERANCE_S:
            raise MirageError(f"Frame {number} of {path} lies at {time_s} s; record it again.")
        yield count_levels(pixels[..., None] if deep else pixels, 4096 if deep else 256)

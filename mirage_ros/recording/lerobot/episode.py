"""One LeRobot episode by itself: its videos, its rows, its statistics, in a folder of its own.

Any process may write one; `LerobotDataset` joins them, and `mend_half` makes a whole one of what a
killed live recording left. Statistics are exact: colours take 256 levels and depth 4096 codes, so
that counting levels keeps every quantile, and counts of many episodes add up. Videos are counted level by
level as readers decode them; numbers are read again from the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64, Shaped
from safetensors.numpy import load_file, save

from mirage_ros.errors import MirageError
from mirage_ros.files import write_file
from mirage_ros.protocol import Frame
from mirage_ros.recording import NOTHING, RecordingConfig
from mirage_ros.recording import lerobot as schema
from mirage_ros.recording.episodes import Episode, remove
from mirage_ros.recording.lerobot import RowWriter, read_row_stream
from mirage_ros.recording.video import StreamWriter, count_frames, cut_to_whole, read_stream

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
NAMES = tuple(f"q{round(100 * share):02d}" for share in QUANTILES)


def count_levels(pixels: Shaped[np.ndarray, "h w c"], levels: int) -> Int64[np.ndarray, "c levels"]:
    """How often each level occurs in each channel of unsigned pixels."""
    channels = pixels.reshape(-1, pixels.shape[-1])
    counts = [np.bincount(channel, minlength=levels) for channel in channels.T]
    return np.stack(counts).astype(np.int64)


def counted_statistics(
    counts: Int64[np.ndarray, "c levels"], values: Float[np.ndarray, "levels"]
) -> dict[str, Float[np.ndarray, "c"]]:
    """min, max, mean, std and the quantiles of each channel; `values` rise with the level."""
    values = values.astype(np.float64)
    total = counts.sum(-1)
    mean = counts @ values / total
    spread = (counts * (values - mean[:, None]) ** 2).sum(-1) / total
    present = [np.flatnonzero(channel) for channel in counts]
    return {
        "min": values[[found[0] for found in present]],
        "max": values[[found[-1] for found in present]],
        "mean": mean,
        "std": np.sqrt(spread),
        **{
            name: np.array([_quantile(channel, values, share) for channel in counts])
            for name, share in zip(NAMES, QUANTILES, strict=True)
        },
    }


def vector_statistics(rows: Shaped[np.ndarray, "n d"]) -> dict[str, Float[np.ndarray, "d"]]:
    """The same of rows of numbers."""
    rows = rows.astype(np.float64)
    quantiles = np.quantile(rows, QUANTILES, axis=0)
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": rows.mean(0),
        "std": rows.std(0),
        **dict(zip(NAMES, quantiles, strict=True)),
    }


def _quantile(counts: np.ndarray, values: np.ndarray, share: float) -> float:
    """As numpy's linear method has it, from counts instead of samples."""
    below = np.cumsum(counts)
    place = (below[-1] - 1) * share
    low, high = int(np.floor(place)), int(np.ceil(place))
    first, second = values[np.searchsorted(below, [low, high], side="right")]
    return float(first + (second - first) * (place - low))


TIME_TOLERANCE_S = 1e-4
HEAD, SUMMARY, ROWS = "begun.json", "episode.json", "rows.arrow"


class LerobotEpisode(Episode):
    """Writes videos and rows as frames come; each second of them is safe from a kill.

    Where the half of it is to be kept, `mend_half` makes a whole part of what a kill left.
    """

    def __init__(
        self, target: Path, config: RecordingConfig, task: str = "", info: Mapping = NOTHING
    ) -> None:
        """Begins `schema.part_path(root, index)`."""
        self._rate, self._vectors = schema.whole_rate(config), schema.vectors(config)
        self._codes = schema.depth_codes(config)
        super().__init__(target, config, task, info)
        self._streams: dict[str, StreamWriter] = {}
        self._rows: RowWriter | None = None
        self._first: Frame | None = None

    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        self._check(frame)
        if self._rows is None:
            self._begin(frame.rgb.shape[:2])
        self._streams[schema.COLOR].add(np.ascontiguousarray(frame.rgb))
        self._streams[schema.DEPTH].add(self._codes.encode(frame.depth_m))
        self._rows.add({**values, **schema.own_values(frame)})

    def _begin(self, size: tuple[int, int]) -> None:
        self.partial.mkdir(parents=True)
        self._hold()
        for key, encoder in schema.encoders(self.config).items():
            path = self.partial / f"{key}.mp4"
            self._streams[key] = StreamWriter(path, encoder, self._rate, size)
        head = {
            "task": self.task,
            "info": self.info,
            "fps": self._rate,
            "robot_type": self.config.robot_type,
            "features": schema.feature_table(self.config, size),
            "keep_half": self.keep_half,
        }
        (self.partial / HEAD).write_text(json.dumps(head))
        self._rows = RowWriter(self.partial / ROWS, self._vectors, self._rate)

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
        self._rows.close()
        complete_part(self.partial, self.frames)

    def _abandon(self) -> None:
        for stream in self._streams.values():
            stream.abandon()
        if self._rows is not None:
            self._rows.abandon()


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
        return read_row_stream(self.path / ROWS).slice(0, self.frames)


def complete_part(folder: Path, frames: int) -> None:
    """Reads the videos back and sums up their first so many frames as an episode.

    Raises:
        MirageError: a video holds less.
    """
    head = json.loads((folder / HEAD).read_text())
    videos = [key for key, entry in head["features"].items() if entry["dtype"] == "video"]
    levels = {key: _count(folder / f"{key}.mp4", key, head["fps"], frames) for key in videos}
    (folder / SUMMARY).write_text(json.dumps({**head, "frames": frames, "levels": levels}))


def _count(path: Path, key: str, rate_hz: int, frames: int) -> list:
    counts = list(islice(count_stream(path, key, rate_hz), frames))
    if len(counts) < frames:
        raise MirageError(
            f"{path} holds {len(counts)} pictures instead of {frames}; record it again."
        )
    return np.sum(counts, axis=0).tolist()


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


def halves(root: Path) -> list[Path]:
    """Temporary folders of episodes below a dataset, whoever writes or wrote them."""
    return sorted((root / schema.PARTS).glob(".episode-*.tmp"))


def mend_half(half: Path) -> int:
    """Finishes the episode with the frames that all of its files hold, and counts them.

    Where nothing can be kept, or was to be kept, the folder is removed. A mending that is cut off
    is done again.
    """
    head = _read_head(half)
    frames = _whole_frames(half, head) if head is not None and head["keep_half"] else 0
    # .episode-000012.4711.tmp
    target = half.with_name(half.name.split(".")[1])
    if not frames or target.exists():
        remove(half)
        return 0
    complete_part(half, frames)
    half.replace(target)
    return frames


def _whole_frames(half: Path, head: dict) -> int:
    """Makes every file readable; the frames that are in all of them, some may hold more."""
    rows = read_row_stream(half / ROWS)
    videos = [key for key, entry in head["features"].items() if entry["dtype"] == "video"]
    frames = [_cut_video(half / f"{key}.mp4") for key in videos]
    return min(0 if rows is None else rows.num_rows, *frames)


def _cut_video(path: Path) -> int:
    """Leaves what is whole; the number of frames in it."""
    if not path.is_file():
        return 0
    cut_to_whole(path)
    return count_frames(path) if path.stat().st_size else 0


def _read_head(half: Path) -> dict | None:
    """What a half episode was to become; None where the kill came before that was written."""
    try:
        return json.loads((half / HEAD).read_text())
    except (OSError, ValueError):
        return None


LEVELS = "meta/levels.safetensors"
Statistics = dict[str, dict[str, np.ndarray]]


def video_statistics(
    levels: Mapping[str, np.ndarray], frames: int, config: RecordingConfig
) -> Statistics:
    """Of each video: colours from 0 to 1, depth in metres, all of shape (channels, 1, 1)."""
    values = {
        schema.COLOR: np.arange(256) / 255,
        schema.DEPTH: schema.depth_codes(config).table_m.astype(np.float64),
    }
    stats = {}
    for key, counts in levels.items():
        entries = counted_statistics(counts, values[key])
        shaped = {name: value.reshape(-1, 1, 1) for name, value in entries.items()}
        stats[key] = {**shaped, "count": np.array([frames])}
    return stats


def row_statistics(table: pa.Table) -> Statistics:
    """Of every column of numbers."""
    return {
        name: {**vector_statistics(schema.rows(table[name])), "count": np.array([len(table)])}
        for name in table.column_names
    }


def read_rows(root: Path, frames: int) -> pa.Table:
    """The first `frames` rows of the whole dataset."""
    paths = schema.files_below(root, schema.DATA)
    return pa.concat_tables([pq.read_table(path) for path in paths]).slice(0, frames)


def load_levels(root: Path) -> tuple[int, dict[str, np.ndarray]]:
    """How many episodes the kept counts are of, and the counts."""
    path = root / LEVELS
    if not path.is_file():
        return 0, {}
    counts = load_file(path)
    return int(counts.pop("episodes")[0]), counts


def save_levels(root: Path, episodes: int, levels: Mapping[str, np.ndarray]) -> None:
    """Keeps the counts, so that a resumed dataset need not decode its videos again."""
    write_file(root / LEVELS, save({**levels, "episodes": np.array([episodes])}))

"""What a LeRobot dataset v3.0 of ours holds: features, columns, depth codes, and its files, each written under a
temporary name and renamed.

The format: `lerobot.datasets` of LeRobot 0.6, whose loader is what the datasets are tried with.
The numbers of an episode are written in batches that a kill cannot take back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt16
from transforms3d.quaternions import mat2quat

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path, write_file
from mirage_ros.protocol import Frame
from mirage_ros.recording import Feature, RecordingConfig
from mirage_ros.recording.video import ENCODERS, KEYFRAME_EVERY, Encoder

VERSION = "v3.0"
EPISODES_PER_FILE = 50
FILES_PER_FOLDER = 1000
PARTS = ".parts"
COLOR = "observation.images.color"
DEPTH = "observation.images.depth"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
NUMBERED = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA = f"data/{NUMBERED}.parquet"
VIDEO = f"videos/{{video_key}}/{NUMBERED}.mp4"
EPISODES = f"meta/episodes/{NUMBERED}.parquet"

# What comes with every frame without being asked for.
OWN = {
    "camera_pose": Feature((7,), "float32", ("x_m", "y_m", "z_m", "qw", "qx", "qy", "qz")),
    "camera_intrinsics": Feature((4,), "float32", ("fx_px", "fy_px", "cx_px", "cy_px")),
    "observed_fraction": Feature((1,), "float32"),
    "stamp_ns": Feature((1,), "int64"),
}
# What the format itself wants in every row.
INDICES = {
    "timestamp": Feature((1,), "float32"),
    "frame_index": Feature((1,), "int64"),
    "episode_index": Feature((1,), "int64"),
    "index": Feature((1,), "int64"),
    "task_index": Feature((1,), "int64"),
}

LAST_CODE = (1 << 12) - 1


@dataclass(frozen=True)
class DepthCodes:
    """The map between metres and 12-bit codes of a depth video.

    Codes step evenly in the logarithm of (depth + shift), so that near depth is fine and far depth
    coarse: 1.4 mm at 1 m and 4 mm at 10 m for a range of 40 m. The two outermost codes are kept for
    what has no number: 0 is invalid (NaN), the last is beyond range (+inf). A reader that knows
    nothing of this sees the nearest and the farthest depth there.

    Formula and defaults: `lerobot.datasets.depth_utils` of LeRobot 0.6.

    Attributes:
        near_m, far_m: depths of the first and the last code.
        shift_m: added before the logarithm is taken.
    """

    near_m: float = 0.01
    far_m: float = 40.0
    shift_m: float = 3.5

    def encode(self, depth_m: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
        """Codes of metres; NaN and what is not above 0 give 0, beyond `far_m` the last one."""
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = (np.log(depth_m.astype(np.float64) + self.shift_m) - self._first) / self._step
        codes = np.clip(np.nan_to_num(np.rint(steps), posinf=LAST_CODE), 1, LAST_CODE - 1)
        codes[depth_m > self.far_m] = LAST_CODE
        codes[~(depth_m > 0)] = 0
        return codes.astype(np.uint16)

    def decode(self, codes: UInt16[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Metres, with NaN for invalid and +inf for beyond range."""
        special = self.table_m.copy()
        special[0], special[LAST_CODE] = np.nan, np.inf
        return special[codes]

    @cached_property
    def table_m(self) -> Float[np.ndarray, "codes"]:
        """Depth of every code as a plain reader of the format computes it."""
        values = np.exp(np.arange(LAST_CODE + 1) * self._step + self._first) - self.shift_m
        return np.clip(values, self.near_m, self.far_m).astype(np.float32)

    @property
    def _first(self) -> float:
        return float(np.log(self.near_m + self.shift_m))

    @property
    def _step(self) -> float:
        return float(np.log(self.far_m + self.shift_m) - self._first) / LAST_CODE


def own_values(frame: Frame) -> dict[str, np.ndarray]:
    """The values of `OWN`."""
    matrix, intrinsics = frame.camera.world_from_camera, frame.camera.intrinsics
    pose = np.concatenate([matrix[:3, 3], mat2quat(matrix[:3, :3])])
    pinhole = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    return {
        "camera_pose": pose.astype(np.float32),
        "camera_intrinsics": pinhole.astype(np.float32),
        "observed_fraction": np.array([frame.observed.mean()], np.float32),
        "stamp_ns": np.array([frame.stamp_ns], np.int64),
    }


def encoders(config: RecordingConfig) -> dict[str, Encoder]:
    """The video features and how each is encoded."""
    return {COLOR: ENCODERS[config.video_codec], DEPTH: ENCODERS["depth"]}


def whole_rate(config: RecordingConfig) -> int:
    """Frames per second as LeRobot takes them. Raises MirageError when that is no whole number."""
    if config.rate_hz != round(config.rate_hz):
        raise MirageError(
            f"LeRobot datasets have a whole number of frames/s, got {config.rate_hz}; give one."
        )
    return round(config.rate_hz)


def vectors(config: RecordingConfig) -> dict[str, Feature]:
    """Everything but the videos and the format's own columns."""
    for name in config.features:
        if name in OWN or name in INDICES or name in (COLOR, DEPTH) or "/" in name:
            raise MirageError(f"A feature is called {name!r}, which is taken; give another name.")
    return {**config.features, **OWN}


def feature_table(config: RecordingConfig, size: Sequence[int]) -> dict[str, dict]:
    """`features` of info.json for pictures of `size` (height, width)."""
    shapes = {COLOR: (*size, 3), DEPTH: (*size, 1)}
    videos = {
        key: {
            "dtype": "video",
            "shape": list(shapes[key]),
            "names": ["height", "width", "channels"],
            "info": _video_info(encoder, config, size, is_depth=key == DEPTH),
        }
        for key, encoder in encoders(config).items()
    }
    numbers = {
        name: {
            "dtype": feature.dtype,
            "shape": list(feature.shape),
            "names": list(feature.names) or None,
        }
        for name, feature in {**vectors(config), **INDICES}.items()
    }
    return {**videos, **numbers}


def config_of(info: Mapping) -> RecordingConfig:
    """The config that a dataset with this info.json was written with."""
    features = {
        name: Feature(tuple(entry["shape"]), entry["dtype"], tuple(entry["names"] or ()))
        for name, entry in info["features"].items()
        if entry["dtype"] != "video" and name not in OWN and name not in INDICES
    }
    return RecordingConfig(
        rate_hz=float(info["fps"]),
        features=features,
        video_codec=info["features"][COLOR]["info"]["video.codec"],
        depth_max_m=info["features"][DEPTH]["info"]["video.depth_max"],
        robot_type=info["robot_type"],
    )


def column(feature: Feature, values: np.ndarray) -> pa.Array:
    """Rows (n, *shape) as the format keeps them: single numbers bare, vectors as lists."""
    flat = pa.array(values.reshape(-1))
    if feature.shape == (1,):
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, *feature.shape)


def rows(column_of_table: pa.ChunkedArray) -> np.ndarray:
    """(n, d) back from a column."""
    joined = column_of_table.combine_chunks()
    if isinstance(joined, pa.FixedSizeListArray):
        return joined.flatten().to_numpy(zero_copy_only=False).reshape(len(joined), -1)
    return joined.to_numpy(zero_copy_only=False).reshape(len(joined), 1)


def numbered(index: int) -> dict[str, int]:
    """Folder and file that hold episode `index`: the same numbers for rows and videos."""
    chunk, file = divmod(index // EPISODES_PER_FILE, FILES_PER_FOLDER)
    return {"chunk_index": chunk, "file_index": file}


def part_path(root: Path, index: int) -> Path:
    """Where a finished episode waits to be adopted."""
    return root / PARTS / f"episode-{index:06d}"


def to_json(value: object) -> bytes:
    return json.dumps(value, indent=4).encode()


def depth_codes(config: RecordingConfig) -> DepthCodes:
    return DepthCodes(far_m=float(config.depth_max_m))


def _video_info(
    encoder: Encoder, config: RecordingConfig, size: Sequence[int], is_depth: bool
) -> dict[str, object]:
    codec = {"libx264": "h264", "libsvtav1": "av1", "libx265": "hevc"}[encoder.name]
    info = {
        "video.height": size[0],
        "video.width": size[1],
        "video.codec": codec,
        "video.pix_fmt": encoder.pixels,
        "video.fps": whole_rate(config),
        "video.channels": 1 if is_depth else 3,
        "has_audio": False,
        "video.g": KEYFRAME_EVERY,
        "is_depth_map": is_depth,
    }
    if is_depth:
        codes = depth_codes(config)
        info |= {"depth_unit": "m", "video.depth_min": codes.near_m, "video.shift": codes.shift_m}
        info |= {"video.depth_max": codes.far_m, "video.use_log": True}
        info |= {"video.extra_options": {"x265-params": "lossless=1"}}
    return info


class RowWriter:
    """An Arrow stream; every `batch` rows are handed to the system together."""

    def __init__(self, path: Path, features: Mapping[str, Feature], batch: int) -> None:
        self._features, self._batch = features, batch
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in features}
        fields = _table(features, {name: [] for name in features}).schema
        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, fields)

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Appends one row."""
        for name, rows in self._waiting.items():
            rows.append(values[name])
        if len(rows) >= self._batch:
            self._flush()

    def close(self) -> None:
        """Writes what waits and ends the stream."""
        self._flush()
        self._stream.close()
        self._file.close()

    def abandon(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def _flush(self) -> None:
        if not any(self._waiting.values()):
            return
        self._stream.write_table(_table(self._features, self._waiting))
        self._file.flush()
        for rows in self._waiting.values():
            rows.clear()


def _table(features: Mapping[str, Feature], rows: Mapping[str, list[np.ndarray]]) -> pa.Table:
    return pa.table(
        {
            name: column(feature, np.array(rows[name], feature.dtype).reshape(-1, *feature.shape))
            for name, feature in features.items()
        }
    )


def read_row_stream(path: Path) -> pa.Table | None:
    """All rows, of a stream that was cut off those of its whole batches; None without a head."""
    batches = []
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as stream:
            fields = stream.schema
            # The kill may have come within a batch.
            with suppress(pa.ArrowInvalid, OSError):
                batches += stream
    except (pa.ArrowInvalid, OSError):
        return None
    return pa.Table.from_batches(batches, fields).combine_chunks()


def read_info(root: Path) -> dict | None:
    """info.json, None without one. Raises MirageError when it is of another format version."""
    path = root / INFO
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text())
        version = info["codebase_version"]
    except (OSError, ValueError, KeyError) as error:
        raise MirageError(f"{path} cannot be read ({error}); restore or remove it.") from error
    if version != VERSION or not set(OWN) <= set(info["features"]):
        raise MirageError(
            f"{root} is a LeRobot dataset of version {version} that was not written by mirage_ros; "
            "give another folder."
        )
    return info


def write_info(
    root: Path, features: Mapping, rate_hz: int, robot_type: str, episodes: int, frames: int,
    tasks: int,
) -> None:  # fmt: skip
    """The last file to be written: what it counts is part of the dataset."""
    info = {
        "codebase_version": VERSION,
        "fps": rate_hz,
        "features": dict(features),
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_FOLDER,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": DATA,
        "video_path": VIDEO,
        "robot_type": robot_type,
        "splits": {"train": f"0:{episodes}"},
    }
    write_file(root / INFO, to_json(info))


def read_tasks(root: Path) -> list[str]:
    path = root / TASKS
    return pq.read_table(path).column("task").to_pylist() if path.is_file() else []


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Tasks by number, with the index that pandas looks for."""
    column = {"field_name": "task", "name": "task", "metadata": None}
    number = {"field_name": "task_index", "name": "task_index", "metadata": None}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**number, "pandas_type": "int64", "numpy_type": "int64"},
            {**column, "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    numbers = pa.array(range(len(tasks)), pa.int64())
    table = pa.table({"task_index": numbers, "task": pa.array(tasks, pa.string())})
    table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    with atomic_path(root / TASKS) as new:
        pq.write_table(table, new)


def append_rows(path: Path, kept: int, table: pa.Table) -> None:
    """Keeps the first `kept` row groups of a file and adds one of `table`'s rows.

    One episode is one row group. Groups beyond `kept` stem from an adoption that was cut off.
    """

    with (
        atomic_path(path) as new,
        pq.ParquetWriter(new, table.schema, compression="snappy") as writer,
    ):
        if kept:
            with pq.ParquetFile(path) as old:
                for group in range(kept):
                    writer.write_table(old.read_row_group(group))
        writer.write_table(table)


def files_below(root: Path, pattern: str) -> list[Path]:
    """All files of a numbered pattern such as `DATA`, in order."""
    folder, _, rest = pattern.partition("chunk-")
    return sorted((root / folder).glob(f"chunk-*/file-*{Path(rest).suffix}"))


def write_stats(root: Path, stats: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    plain = {
        feature: {name: np.asarray(value).tolist() for name, value in entries.items()}
        for feature, entries in stats.items()
    }
    write_file(root / STATS, to_json(plain))

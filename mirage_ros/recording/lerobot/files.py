"""The files of a LeRobot dataset, each written under a temporary name and renamed, and its statistics.

Videos are counted level by level as readers decode them, so that their quantiles are exact, and so
are those of the numbers, which are read again from the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path, write_file
from mirage_ros.recording.lerobot import schema
from mirage_ros.recording.lerobot.episode import counted_statistics, vector_statistics
from mirage_ros.recording.recorder import RecordingConfig


def read_info(root: Path) -> dict | None:
    """info.json, None without one. Raises MirageError when it is of another format version."""
    path = root / schema.INFO
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text())
        version = info["codebase_version"]
    except (OSError, ValueError, KeyError) as error:
        raise MirageError(f"{path} cannot be read ({error}); restore or remove it.") from error
    if version != schema.VERSION or not set(schema.OWN) <= set(info["features"]):
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
        "codebase_version": schema.VERSION,
        "fps": rate_hz,
        "features": dict(features),
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": schema.FILES_PER_FOLDER,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": schema.DATA,
        "video_path": schema.VIDEO,
        "robot_type": robot_type,
        "splits": {"train": f"0:{episodes}"},
    }
    write_file(root / schema.INFO, schema.to_json(info))


def read_tasks(root: Path) -> list[str]:
    path = root / schema.TASKS
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
    with atomic_path(root / schema.TASKS) as new:
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
    """All files of a numbered pattern such as `schema.DATA`, in order."""
    folder, _, rest = pattern.partition("chunk-")
    return sorted((root / folder).glob(f"chunk-*/file-*{Path(rest).suffix}"))


def write_stats(root: Path, stats: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    plain = {
        feature: {name: np.asarray(value).tolist() for name, value in entries.items()}
        for feature, entries in stats.items()
    }
    write_file(root / schema.STATS, schema.to_json(plain))


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
    files = files_below(root, schema.DATA)
    return pa.concat_tables([pq.read_table(path) for path in files]).slice(0, frames)


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

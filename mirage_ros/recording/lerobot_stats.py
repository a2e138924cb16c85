"""Statistics of a LeRobot dataset: of each episode as it comes, and of everything together.

Videos are counted level by level as readers decode them, so that their quantiles are exact,
and so are those of the numbers, which are read again from the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save

from mirage_ros.core.files import write_file
from mirage_ros.recording import lerobot_schema as schema
from mirage_ros.recording.histograms import counted_statistics, vector_statistics
from mirage_ros.recording.lerobot_files import files_below
from mirage_ros.recording.recorder import RecordingConfig

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

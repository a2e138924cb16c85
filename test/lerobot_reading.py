"""Reads LeRobot datasets back, and tells whether they are whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from recorded_frames import RATE_HZ, config, frame, record

from mirage_ros.recording import lerobot as lerobot_schema
from mirage_ros.recording.formats import open_recorder
from mirage_ros.recording.lerobot import DepthCodes
from mirage_ros.recording.video import read_stream

COLOR, DEPTH = "observation.images.color", "observation.images.depth"


def write(path: Path, lengths=(5, 8, 3), **changes) -> Path:
    with open_recorder(path, "lerobot", config(**changes)) as recorder:
        for episode, frames in enumerate(lengths):
            record(recorder, frames, episode)
    return path


def read_rows(root: Path) -> dict[str, np.ndarray]:
    tables = [
        pq.read_table(path) for path in lerobot_schema.files_below(root, "data/chunk-.parquet")
    ]
    columns = {
        name: [row for t in tables for row in t[name].to_pylist()]
        for name in tables[0].column_names
    }
    return {name: np.array(rows) for name, rows in columns.items()}


def read_info(root: Path) -> dict:
    return json.loads((root / "meta/info.json").read_text())


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def expect_whole(root: Path, lengths) -> None:
    """Counts, rows, every frame of every video and the entries of all episodes agree."""
    info, rows = read_info(root), read_rows(root)
    assert (info["total_episodes"], info["total_frames"]) == (len(lengths), sum(lengths))
    count = sum(lengths)
    assert rows["index"][:count].tolist() == list(range(count))
    expected = [(e, f) for e, frames in enumerate(lengths) for f in range(frames)]
    found = list(zip(rows["episode_index"], rows["frame_index"], strict=True))[:count]
    assert found == expected
    np.testing.assert_allclose(
        rows["timestamp"][:count], rows["frame_index"][:count] / RATE_HZ, atol=1e-6
    )
    entries = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for key, pixels in ((COLOR, "rgb24"), (DEPTH, "gray12le")):
        path = root / f"videos/{key}/chunk-000/file-000.mp4"
        shown = list(read_stream(path, pixels))
        assert [round(time_s * RATE_HZ, 6) for time_s, _ in shown[:count]] == list(range(count))
        for index, frames in enumerate(lengths):
            start = round(entries[index][f"videos/{key}/from_timestamp"] * RATE_HZ)
            assert start == sum(lengths[:index])
            for number in range(frames):
                expect_picture(shown[start + number][1], frame(number, index), key)


def expect_picture(pixels: np.ndarray, expected, key: str) -> None:
    if key == COLOR:
        assert np.abs(pixels.astype(int) - expected.rgb).mean() < 6
    else:
        assert np.array_equal(pixels, DepthCodes().encode(expected.depth_m))

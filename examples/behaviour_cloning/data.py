"""Reads a LeRobot v3.0 dataset's colour pictures and actions, with pyarrow and PyAV alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq

from mirage_ros.apps.generate_episode import SPEED_MPS, TURN_RPS
from mirage_ros.geometry.images import resize_rgb

COLOR = "observation.images.color"
FORWARD, LEFT = 0, 5  # of the six elements of the action's twist


@dataclass(frozen=True)
class Examples:
    """Attributes:
    pictures: (n, h, w, 3) uint8.
    drives: (n, 2) forward and left turn, shares of the full speeds.
    starts: names of the episodes' seeds.
    """

    pictures: np.ndarray
    drives: np.ndarray
    starts: list[str]


def load(folder: Path, size: tuple[int, int]) -> Examples:
    """Every frame of every episode, its picture shrunk to (height, width)."""
    rows = _table(folder / "data").sort_by("index")
    actions = np.array(rows["action"].to_pylist(), np.float32)
    drives = actions[:, (FORWARD, LEFT)] / np.float32([SPEED_MPS, TURN_RPS])
    episodes = _table(folder / "meta/episodes").sort_by("episode_index")
    starts = [json.loads(text)["start"] for text in episodes["info"].to_pylist()]
    # Videos hold the episodes' frames one after the other, as the rows do.
    videos = sorted((folder / "videos" / COLOR).rglob("*.mp4"))
    pictures = np.stack([resize_rgb(rgb, size) for video in videos for rgb in _decoded(video)])
    if len(pictures) != len(drives):
        raise SystemExit(f"{folder} has {len(pictures)} pictures for {len(drives)} actions.")
    return Examples(pictures, drives, starts)


def _table(folder: Path):
    return pq.ParquetDataset(sorted(folder.rglob("*.parquet"))).read()


def _decoded(path: Path):
    with av.open(str(path)) as video:
        for frame in video.decode(video=0):
            yield frame.to_ndarray(format="rgb24")

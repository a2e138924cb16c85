"""Makes a whole episode of what a killed live recording left of one."""

from __future__ import annotations

import json
from pathlib import Path

from mirage_ros.recording import lerobot_schema as schema
from mirage_ros.recording.episodes import remove
from mirage_ros.recording.lerobot_episode import HEAD, ROWS, complete_part
from mirage_ros.recording.lerobot_rows import read_row_stream
from mirage_ros.recording.streams import count_frames, cut_to_whole


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
    """What a half episode was to become; None where the kill came before it was told."""
    try:
        return json.loads((half / HEAD).read_text())
    except (OSError, ValueError):
        return None

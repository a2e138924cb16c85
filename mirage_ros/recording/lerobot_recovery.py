"""Brings a LeRobot dataset whose writer was killed into order."""

from __future__ import annotations

from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.recording import lerobot_schema as schema
from mirage_ros.recording.episodes import PathLock, check_left
from mirage_ros.recording.lerobot_dataset import LerobotDataset
from mirage_ros.recording.lerobot_episode import read_part
from mirage_ros.recording.lerobot_files import read_info
from mirage_ros.recording.lerobot_halves import halves, mend_half


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
    told = f"{root}: {dataset.episodes} episodes ({dataset.episodes - before} of them adopted now)"
    if mended:
        told += f", {sum(mended)} frames of a half one kept"
    if len(found) > len(mended):
        told += f", {len(found) - len(mended)} half ones removed"
    if waiting:
        told += f", {len(waiting)} that wait for episode {dataset.episodes}"
    return told

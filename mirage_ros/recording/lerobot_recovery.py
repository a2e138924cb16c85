"""Brings a LeRobot dataset whose writer was killed into order."""

from __future__ import annotations

from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.recording import lerobot_schema as schema
from mirage_ros.recording.episodes import PathLock, check_left
from mirage_ros.recording.lerobot_dataset import LerobotDataset
from mirage_ros.recording.lerobot_episode import read_part
from mirage_ros.recording.lerobot_files import read_info


def recover_dataset(root: Path) -> str:
    """Drops half episodes, adopts whole ones, decodes every video and counts anew.

    Returns:
        A sentence about what was found.

    Raises:
        MirageError: it is being recorded, no episode was ever finished, or a video is damaged.
    """
    folder = root / schema.PARTS
    PathLock(root).release()
    for partial in folder.glob(".*"):
        check_left(partial, root)
    half = len(list(folder.glob(".*")))
    parts = sorted(folder.glob("episode-*"))
    about = read_info(root) or (read_part(parts[0]).summary if parts else None)
    if about is None:
        raise MirageError(
            f"No episode of {root} was finished before it was cut off; remove it and record again."
        )
    dataset = LerobotDataset(root, schema.config_of(about), recount=True)
    before = dataset.episodes
    while dataset.episodes in dataset.finished():
        dataset.adopt(dataset.episodes)
    waiting = sorted(dataset.finished() - set(range(dataset.episodes)))
    dataset.close()
    told = f"{root}: {dataset.episodes} episodes ({dataset.episodes - before} of them adopted now)"
    if half:
        told += f", {half} half ones removed"
    if waiting:
        told += f", {len(waiting)} that wait for episode {dataset.episodes}"
    return told

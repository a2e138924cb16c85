"""What `mirage recover` does: makes a whole recording of one that was cut off.

Nothing is written over: what was cut off is removed only after the mended recording has its
name. What somebody is writing is left alone: each writer holds a lock on its file or folder, and
whoever fills a dataset one on the dataset's.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.recording.episodes import (
    PARTIAL,
    PathLock,
    check_left,
    lock_or_refuse,
    partials_of,
    remove,
)
from mirage_ros.recording.mcap import BAG_RECORD, McapRecorder

CUT_OFF = (McapError, struct.error, zstandard.ZstdError, EOFError, ValueError)


def is_whole(path: Path) -> bool:
    """Whether readers find the file's index."""
    try:
        with path.open("rb") as stream:
            return make_reader(stream).get_summary() is not None
    except (*CUT_OFF, OSError):
        return False


def mend(broken: Path, target: Path) -> str:
    """Writes all that can be read of `broken` as the recording `target`.

    `broken` stays, unless it is the target itself.

    Args:
        target: a .mcap file or a rosbag2 folder, see `McapRecorder`.

    Returns:
        A sentence about what was found.

    Raises:
        MirageError: somebody is still recording to it, or it holds no message.
    """
    messages = 0
    with broken.open("rb") as stream, lock_or_refuse(stream.fileno(), broken):
        partial = target.with_name(target.name + ".mending")
        with McapRecorder(target, partial=partial, replace=True) as recorder:
            records = tqdm(readable(stream), unit="record", desc="mending", delay=1.0)
            for message in copy_records(records, recorder):
                messages += message
            lost = broken.stat().st_size - stream.tell()
            if not messages:
                recorder.discard()
    if not messages:
        raise MirageError(
            f"{broken} was cut off before its first message was flushed; nothing can be read from "
            "it: remove it."
        )
    end = f"; {lost} bytes after them cannot be read" if lost else ""
    return f"{target}: {messages} messages on {len(recorder.counts)} topics{end}"


def readable(stream) -> Iterator[McapRecord]:
    """Records up to where the file is cut off or damaged, where the stream stands then."""
    place = stream.tell()
    reader = StreamReader(stream, validate_crcs=True).records
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except CUT_OFF:
            stream.seek(place)
            return
        place = stream.tell()
        yield record


def copy_records(records: Iterator[McapRecord], recorder: McapRecorder) -> Iterator[int]:
    """Writes records anew; yields 1 for every message."""
    schemas: dict[int, Schema] = {}
    topics: dict[int, str] = {}
    for record in records:
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel) and record.id not in topics:
            schema = schemas[record.schema_id]
            topics[record.id] = record.topic
            recorder.channel(
                record.topic,
                schema.name,
                schema.data.decode(),
                record.metadata.get("offered_qos_profiles", ""),
                record.metadata.get("topic_type_hash", ""),
            )
        elif isinstance(record, Message):
            topic = topics[record.channel_id]
            recorder.write(topic, record.data, record.log_time, record.publish_time)
            yield 1
        elif isinstance(record, Metadata) and record.name != BAG_RECORD:
            recorder.note(record.name, record.metadata)


FFMPEG_END_S = 1.0


def recover(path: str | Path) -> list[str]:
    """Mends the recording at `path`, which may also be the temporary name it was left under.

    Returns:
        Sentences about what was found and done.

    Raises:
        MirageError: nothing there was left by a recording, or it is still being written.
    """
    path = _target(Path(path))
    partials = partials_of(path)
    for partial in partials:
        # None is mended beside a recording that is to get the same name.
        check_left(partial, path)
    done = [_mend_partial(partial, path) for partial in partials]
    if path.is_dir() and not done:
        done = _recover_folder(path)
    elif path.suffix == ".mcap" and path.is_file() and not done:
        done = [_mend_file(path)]
    if not done:
        raise MirageError(
            f"There is no recording {path}, nor one that was cut off; give the path that was "
            "recorded to."
        )
    return done


def _target(path: Path) -> Path:
    """The name that a temporary name stands for."""
    if path.name.endswith(PARTIAL) and not path.name.startswith("."):
        return path.with_name(path.name.removesuffix(PARTIAL))
    return path


def _mend_partial(partial: Path, target: Path) -> str:
    """A single recording that never got its name."""
    target = _free(target)
    if partial.suffix == ".mp4" or (partial / "K.txt").is_file():
        mend = _mend_video if partial.suffix == ".mp4" else _mend_pictures
        with PathLock(partial, target):
            return mend(partial, target)
    bag = next(partial.glob("*.mcap"), None) if partial.is_dir() else partial
    if bag is None:
        raise MirageError(f"{partial} was cut off before its first frame; remove it.")
    done = _mend_mcap(bag, target)
    remove(partial)
    return done


def _mend_file(path: Path) -> str:

    if is_whole(path):
        return f"{path} is whole."
    return _mend_mcap(path, path)


def _mend_mcap(broken: Path, target: Path) -> str:

    return mend(broken, target)


def _mend_pictures(partial: Path, target: Path) -> str:
    """Drops pictures that came without a line in the tables, and a half line."""
    from mirage_ros.recording.pictures import trim_pictures

    frames = trim_pictures(partial)
    if not frames:
        raise MirageError(f"{partial} was cut off before its first frame; remove it.")
    partial.replace(target)
    return f"{target}: {frames} frames"


def _mend_video(partial: Path, target: Path) -> str:
    """ffmpeg ends its file by itself when its source dies, a moment later."""
    from mirage_ros.recording.video import count_frames, index_once

    size = -1
    while size != (size := partial.stat().st_size):
        time.sleep(FFMPEG_END_S)
    index_once(partial, target)
    remove(partial)
    return f"{target}: {count_frames(target)} frames"


def _recover_folder(path: Path) -> list[str]:
    """A bag, a dataset of episodes, a LeRobot dataset, by what is in it."""
    if (path / "meta" / "info.json").is_file() or (path / ".parts").is_dir():
        from mirage_ros.recording.lerobot.dataset import recover_dataset

        return [recover_dataset(path)]
    bags = sorted(path.glob("*.mcap"))
    if bags:
        return [_mend_file(bag) for bag in bags]
    with PathLock(path):
        return _drop_halves(path)


def _drop_halves(path: Path) -> list[str]:
    """The same of a folder of episodes; every finished one is whole by itself."""
    half = sorted(path.glob(f".episode-*{PARTIAL}*"))
    whole = sorted(path.glob("episode-*"))
    for episode in half:
        check_left(episode, path)
    for episode in half:
        remove(episode)
    if not half and not whole:
        return []
    return [f"{path}: {len(whole)} episodes, {len(half)} half ones removed"]


def _free(target: Path) -> Path:
    """`target`, or a name beside it when a recording of that name is there."""
    others = (f"{target.stem}.recovered{n or ''}{target.suffix}" for n in range(1000))
    names = (target, *(target.with_name(other) for other in others))
    return next(name for name in names if not name.exists())

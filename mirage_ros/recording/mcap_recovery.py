"""Makes a whole recording of an MCAP file that was cut off."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import zstandard
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from tqdm import tqdm

from mirage_ros.core.errors import MirageError
from mirage_ros.recording.episodes import lock_or_refuse
from mirage_ros.recording.mcap_writer import BAG_RECORD, McapRecorder

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
    """Records up to where the file is cut off or damaged, which the stream's place tells."""
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

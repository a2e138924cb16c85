"""MCAP files of serialised ROS 2 messages: written whole, and made whole when they were cut off.

A file is written by the `mcap` package, whole or not at all. It follows the ros2 profile of the MCAP
specification: message encoding `cdr`, schema encoding `ros2msg`, and the channel and file metadata
that rosbag2 writes, so that Foxglove, `ros2 bag` and the pure-Python readers open it alike.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
import zstandard
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, Writer
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.recording.episodes import PARTIAL, PathLock, check_left, disk_errors, lock_or_refuse, remove

BAG_METADATA_VERSION = 9
BAG_RECORD = "rosbag2"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Channel:
    channel_id: int
    type_name: str
    qos_yaml: str
    type_hash: str


class McapRecorder:
    """Context-managed writer: declare channels, write bytes, get a whole recording or none.

    It grows under a temporary name beside the target and takes its own name when the block
    ends, also when it ends by an exception: what was recorded until then is kept. When the
    process is killed, `mirage recover` makes a recording of what was flushed. Neither such a
    half recording nor a whole one is written over.

        with McapRecorder("out/demo.mcap") as recorder:
            recorder.channel("/color/image_raw", "sensor_msgs/msg/Image", text)
            recorder.write("/color/image_raw", cdr_bytes, log_time_ns)
    """

    def __init__(
        self,
        path: str | Path,
        ros_distro: str = "kilted",
        flush_s: float | None = None,
        partial: Path | None = None,
        replace: bool = False,
    ) -> None:
        """Open the file.

        Raises:
            MirageError: something is there already, is being recorded or was cut off, or the
                folder cannot be written.

        Args:
            path: a file if it ends in .mcap, else rosbag2's folder: NAME/NAME_0.mcap and
                NAME/metadata.yaml.
            ros_distro: noted in the metadata.
            flush_s: longest time that a message may wait in memory; None until a chunk is
                full, which leaves the file's bytes to the messages alone.
            partial: the temporary name, if not the target's with .tmp.
            replace: a file of the name is replaced at the end, one of the temporary name now.
        """
        self.path = Path(path)
        self.ros_distro = ros_distro
        self.partial = partial or self.path.with_name(self.path.name + PARTIAL)
        self._channels: dict[str, _Channel] = {}
        self._schemas: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._span_ns: list[int] = []
        self._flush_s, self._flushed_s = flush_s, time.monotonic()
        self._broken, self._replace = False, replace
        self._is_bag = self.path.suffix != ".mcap"
        self.file_name = f"{self.path.name}_0.mcap" if self._is_bag else self.path.name
        if self.path.is_dir() or (self.path.exists() and not replace):
            raise MirageError(f"{self.path} is there already; give another path or remove it.")
        with disk_errors(self.path):
            if replace:
                remove(self.partial)
            self._open()

    def _open(self) -> None:
        """Begins the file; only one that nobody began before."""
        folder = self.partial if self._is_bag else self.partial.parent
        if self.partial.exists():
            check_left(self.partial, self.path)
            raise MirageError(
                f"A recording to {self.path} was cut off and is kept in {self.partial}; run "
                f"`mirage recover {self.path}` first, or give another path."
            )
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.file_name if self._is_bag else self.partial
        self._stream = file.open("xb")
        # It outlives the stream: until the recording has its name, it is in progress.
        self._lock = PathLock(file, self.path)
        self._writer = Writer(
            self._stream, chunk_size=CHUNK_BYTES, compression=CompressionType.ZSTD
        )
        self._writer.start(profile="ros2", library="mirage_ros")

    def __enter__(self) -> McapRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return dict(self._counts)

    def channel(
        self,
        topic: str,
        type_name: str,
        definition: str,
        qos_yaml: str = "",
        type_hash: str = "",
    ) -> None:
        """Declare a topic before its first message.

        Args:
            topic: fully qualified, with its leading slash.
            type_name: full, such as "sensor_msgs/msg/Image".
            definition: the .msg text, its dependencies appended behind ===== separators.
            qos_yaml: rosbag2's `offered_qos_profiles`, a YAML list of profiles.
            type_hash: the RIHS01 hash of the type, empty where unknown.
        """
        if topic in self._channels:
            raise MirageError(f"The topic {topic} is already being recorded; declare it once.")
        if type_name.count("/") != 2:
            raise MirageError(
                f"The topic {topic} was given the type {type_name!r}; give its full name, "
                "such as sensor_msgs/msg/Image."
            )
        if type_name not in self._schemas:
            self._schemas[type_name] = self._writer.register_schema(
                type_name, "ros2msg", definition.encode()
            )
        channel_id = self._writer.register_channel(
            topic,
            "cdr",
            self._schemas[type_name],
            {"offered_qos_profiles": qos_yaml, "topic_type_hash": type_hash},
        )
        self._channels[topic] = _Channel(channel_id, type_name, qos_yaml, type_hash)
        self._counts[topic] = 0

    def write(
        self, topic: str, data: bytes, log_time_ns: int, publish_time_ns: int | None = None
    ) -> None:
        """Append one serialised message of a declared topic; times in nanoseconds."""
        if topic not in self._channels:
            raise MirageError(f"The topic {topic} was never declared; call channel() first.")
        with self._unbroken():
            self._writer.add_message(
                self._channels[topic].channel_id,
                log_time_ns,
                bytes(data),
                log_time_ns if publish_time_ns is None else publish_time_ns,
                self._counts[topic],
            )
        self._counts[topic] += 1
        first, last = self._span_ns or (log_time_ns, log_time_ns)
        self._span_ns = [min(first, log_time_ns), max(last, log_time_ns)]
        if self._flush_s is not None and time.monotonic() - self._flushed_s > self._flush_s:
            self.flush()

    def note(self, name: str, entries: dict[str, str]) -> None:
        """Adds a metadata record."""
        with self._unbroken():
            self._writer.add_metadata(name, entries)

    def flush(self) -> None:
        """Hands everything to the system: from here it survives the end of the process."""
        with self._unbroken():
            self._writer.flush()
        self._flushed_s = time.monotonic()

    def finish(self) -> None:
        """Completes what lies under the temporary name; a second call does nothing."""
        if self._stream.closed:
            return
        with self._unbroken():
            information = self._bag_metadata()
            self._writer.add_metadata(
                BAG_RECORD, {"serialized_metadata": yaml.safe_dump(information)}
            )
            self._writer.finish()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            if self._is_bag:
                text = yaml.safe_dump({"rosbag2_bagfile_information": information})
                (self.partial / "metadata.yaml").write_text(text)

    def close(self) -> None:
        """Finish and give it its name; a second call does nothing, nor does one after an error."""
        if self._stream.closed:
            return
        if self._broken:
            self.abandon()
            return
        try:
            self.finish()
            if self.path.exists() and not self._replace:
                raise MirageError(
                    f"{self.path} appeared while it was recorded; the recording is whole in "
                    f"{self.partial}: run `mirage recover {self.path}`."
                )
            with disk_errors(self.path):
                self.partial.replace(self.path)
        finally:
            self.let_go()

    def abandon(self) -> None:
        """Leaves what was written under the temporary name as it is."""
        with contextlib.suppress(OSError):
            self._stream.close()
        self.let_go()

    def let_go(self) -> None:
        """Tells others that nothing is written any more; a second call does nothing."""
        self._lock.release()

    def discard(self) -> None:
        """Leaves nothing behind."""
        self.abandon()
        remove(self.partial)

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Remembers that writing failed: what follows a half-written record would be lost."""
        try:
            with disk_errors(self.path):
                yield
        except BaseException:
            self._broken = True
            raise

    def _bag_metadata(self) -> dict:
        """What rosbag2 keeps about a bag, in the layout of its version 9."""
        total = sum(self._counts.values())
        return {
            "version": BAG_METADATA_VERSION,
            "storage_identifier": "mcap",
            "relative_file_paths": [self.file_name],
            **self._times(),
            "message_count": total,
            "compression_format": "",
            "compression_mode": "",
            "topics_with_message_count": [self._topic_metadata(name) for name in self._channels],
            "files": [{"path": self.file_name, **self._times(), "message_count": total}],
            "custom_data": None,
            "ros_distro": self.ros_distro,
        }

    def _times(self) -> dict[str, dict[str, int]]:
        """Made anew for each place: YAML would write the second one as an alias."""
        first, last = self._span_ns or (0, 0)
        return {
            "starting_time": {"nanoseconds_since_epoch": first},
            "duration": {"nanoseconds": last - first},
        }

    def _topic_metadata(self, topic: str) -> dict:
        channel = self._channels[topic]
        return {
            "topic_metadata": {
                "name": topic,
                "type": channel.type_name,
                "serialization_format": "cdr",
                "offered_qos_profiles": yaml.safe_load(channel.qos_yaml or "[]"),
                "type_description_hash": channel.type_hash,
            },
            "message_count": self._counts[topic],
        }


def clear(path: Path) -> None:
    """Removes the recording `path` and what a cut off one left, but none that is in progress."""
    partial = path.with_name(path.name + PARTIAL)
    if partial.exists():
        check_left(partial, path)
        remove(partial)
    remove(path)


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

"""Records a running node's topics as the topics table lists them.

MCAP gets the bytes of the messages as they arrived; only their header stamp is read. The other
formats get whole frames, put together from the messages of one stamp.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from mirage_ros.errors import MirageError
from mirage_ros.protocol import SECOND_NS, Frame
from mirage_ros.recording import Recorder, RecordingConfig
from mirage_ros.recording.formats import check_start, open_recorder
from mirage_ros.recording.mcap import McapRecorder
from mirage_ros.recording.topics import BY_NAME, PICTURES, RECORDED, TF, Topic
from mirage_ros.ros.callbacks import ending_with_ros
from mirage_ros.ros.messages import message_class
from mirage_ros.ros.playback import FrameAssembler, message_definition, offered_qos

SETTLE_S = 1.5
FLUSH_S = 1.0
# At its end an episode is decoded once for its statistics, and readers see it.
EPISODE_FRAMES = 100


@dataclass(frozen=True)
class RecorderConfig:
    """What to record.

    Attributes:
        path: what to write; see `mirage_ros.recording.formats` for what each format makes of it.
        format: one of FORMATS.
        rate_hz: frames per second of the plan, None to take it from the first two stamps.
        video_codec: of the formats that have a choice.
        namespace: of the node.
        ros_arguments: what stands behind `--ros-args`, such as remaps of the node's names.
        frames: end after that many frames arrived on all picture topics; None goes on.
        idle_s: end when no picture came for so long after the first one; None goes on.
        cameras: what stands before the topics of each, below the namespace.
    """

    path: Path
    namespace: str = ""
    ros_arguments: tuple[str, ...] = ()
    frames: int | None = None
    idle_s: float | None = None
    format: str = "mcap"
    rate_hz: float | None = None
    video_codec: str = "h264"
    cameras: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Source:
    """Where a message came from.

    Attributes:
        name: in the table of topics; the topic itself where it is not in there.
        topic: the whole name on the graph, namespaces and remaps applied.
        type_name: such as "sensor_msgs/msg/Image".
    """

    name: str
    topic: str
    type_name: str


@runtime_checkable
class Sink(Protocol):
    """Takes what arrives."""

    def take(self, node: Node, source: Source, data: bytes, info: dict) -> None:
        """One serialised message."""
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(self, *exception: object) -> None: ...


class BytesSink:
    """MCAP: the bytes as they came."""

    def __init__(self, config: RecorderConfig) -> None:
        self._recorder = McapRecorder(config.path, flush_s=FLUSH_S)

    def take(self, node: Node, source: Source, data: bytes, info: dict) -> None:
        """Declares the topic with its first message."""
        topic, type_name = source.topic, source.type_name
        if topic not in self._recorder.counts:
            qos_yaml, type_hash = offered_qos(node, topic)
            definition = message_definition(type_name)
            self._recorder.channel(topic, type_name, definition, qos_yaml, type_hash)
        now_ns = time.time_ns()
        self._recorder.write(topic, data, now_ns, info.get("source_timestamp") or now_ns)

    def __enter__(self) -> BytesSink:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.close()


class FrameSink:
    """Every other format: whole frames. Without a rate it opens with the second frame's stamp.

    Attributes:
        frames: that were handed on to be written.
    """

    def __init__(self, config: RecorderConfig) -> None:
        """Raises MirageError where nothing can be recorded."""
        self.frames = 0
        self._config, self._assembler = config, FrameAssembler()
        self._recorder: Recorder | None = None
        self._first: Frame | None = None
        self._made_folder = not config.path.exists()
        check_start(config.path, config.format)
        if config.rate_hz:
            self._open(config.rate_hz)

    def take(self, node: Node, source: Source, data: bytes, info: dict) -> None:
        """Adds the frame that the message completes."""
        for frame in self._assembler.add(source.name, source.type_name, data):
            if self._recorder is None and self._first is None:
                self._first = frame
                continue
            if self._recorder is None:
                self._open(_rate_hz(self._first, frame))
            self._add(frame)

    def _open(self, rate_hz: float) -> None:
        config = RecordingConfig(
            rate_hz=rate_hz,
            video_codec=self._config.video_codec,
            episode_frames=EPISODE_FRAMES if self._config.format == "lerobot" else None,
        )
        self._recorder = open_recorder(self._config.path, self._config.format, config, single=True)
        # So that an error is raised now.
        self._recorder.start_episode()
        self._recorder.wait()
        if self._first is not None:
            self._add(self._first)

    def _add(self, frame: Frame) -> None:
        self._recorder.add(frame)
        self.frames += 1

    def __enter__(self) -> FrameSink:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._recorder is None and self._first is not None:
            self._open(1.0)
        if self._recorder is not None:
            self._recorder.__exit__(*exception)
        if not self.frames and self._made_folder and self._config.path.is_dir():
            # A dataset of nothing.
            with suppress(OSError):
                self._config.path.rmdir()


def open_sink(config: RecorderConfig) -> BytesSink | FrameSink:
    """What a format is written by. Raises MirageError where nothing can be recorded."""
    if len(config.cameras) > 1 and config.format != "mcap":
        raise MirageError(
            f"Of {len(config.cameras)} cameras only MCAP makes one recording, not {config.format}; give a path that ends in .mcap, or "
            "record one alone, with --namespace in place of --robots."
        )
    return BytesSink(config) if config.format == "mcap" else FrameSink(config)


def _rate_hz(first: Frame, second: Frame) -> float:
    """By two stamps, whole where a millisecond's rounding leaves a choice."""
    rate_hz = SECOND_NS / (second.stamp_ns - first.stamp_ns)
    return float(round(rate_hz)) if abs(rate_hz - round(rate_hz)) < 1e-3 * rate_hz else rate_hz


@dataclass
class Tally:
    """What arrived of the picture topics.

    Attributes:
        topics: how many a frame has.
        complete: frames of which every picture topic's message arrived.
        last_picture_s: when (monotonic) the last message did.
    """

    topics: int = len(PICTURES)
    complete: int = 0
    last_picture_s: float | None = None
    _partly: dict[int, set[str]] = field(default_factory=dict)

    @property
    def incomplete(self) -> int:
        """Frames that lack a message of at least one picture topic."""
        return len(self._partly)

    def add(self, name: str, stamp_ns: int) -> None:
        """A message of the picture topic `name`."""
        self.last_picture_s = time.monotonic()
        here = self._partly.setdefault(stamp_ns, set())
        here.add(name)
        if len(here) == self.topics:
            # Forgotten: recordings are long, and this is looked at with every message.
            del self._partly[stamp_ns]
            self.complete += 1


class TopicRecorder(Node):
    """Raw subscriptions to the table of topics, handed to a sink."""

    def __init__(self, config: RecorderConfig, sink: Sink, tally: Tally) -> None:
        super().__init__("mirage_recorder", namespace=config.namespace)
        self.config, self.sink, self.tally = config, sink, tally
        self._pictures = [prefix + name for prefix in config.cameras for name in PICTURES]
        world = [name for name in RECORDED if name not in PICTURES]
        self._listeners = {name: self._listen(BY_NAME[name], name) for name in world}
        for prefix in config.cameras:
            self._listeners |= {prefix + name: self._listen(BY_NAME[name], prefix + name) for name in PICTURES}

    def connected(self) -> bool:
        """Whether a publisher was found for every picture topic."""
        return all(self._listeners[name].get_publisher_count() for name in self._pictures)

    def finished(self) -> bool:
        """Whether the asked number of frames is here, and what follows them too, or all is idle."""
        last = self.tally.last_picture_s
        if last is None:
            return False
        quiet_s = time.monotonic() - last
        if self.config.frames is not None and self.tally.complete >= self.config.frames:
            return quiet_s > SETTLE_S
        return self.config.idle_s is not None and quiet_s > self.config.idle_s

    def _listen(self, topic: Topic, name: str):
        type_name = topic.type_name
        qos = recorder_qos(latched=topic.qos.durability == "transient_local")
        source = Source(topic.name, self.resolve_topic_name(name), type_name)

        def on_bytes(data: bytes, info: dict) -> None:
            self.sink.take(self, source, data, info)
            if topic.name in PICTURES:
                self.tally.add(name, header_stamp_ns(data))

        return self.create_subscription(message_class(type_name), name, on_bytes, qos, raw=True)


def recorder_qos(
    latched: bool, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE
) -> QoSProfile:
    """Of a subscription that overwrites nothing that was not read yet."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_ALL,
        reliability=reliability,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def header_stamp_ns(data: bytes) -> int:
    """The stamp of a serialised message that begins with std_msgs/Header."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return seconds * SECOND_NS + nanoseconds


def written(sink: BytesSink | FrameSink, tally: Tally, path: Path, tf_topic: str) -> str:
    """What a recording that has ended holds: its frames and bytes, in a sentence.

    Args:
        tf_topic: where the frames' poses were looked for.

    Raises:
        MirageError: a format of frames got none, so that there is nothing at the path.
    """
    if isinstance(sink, FrameSink) and not sink.frames:
        reason = (
            f"{tally.complete} frames' pictures came without their pose on {tf_topic}; give the "
            "node's remaps as well (--ros-args -r ...)"
            if tally.complete
            else "no picture came meanwhile; look at the plan and at /diagnostics"
        )
        raise MirageError(f"0 frames were recorded, so nothing was written to {path}: {reason}.")
    frames = sink.frames if isinstance(sink, FrameSink) else tally.complete
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    note = "" if frames else " (no whole frame came meanwhile)"
    return f"Recorded {frames} frames{note}, {size:,} bytes in {path}."


def run_recorder(config: RecorderConfig, report: Callable[[str, int], None]) -> str:
    """Record until finished, interrupted or terminated; what is written is whole in any case.

    Args:
        report: called with ("listening", 0), with ("ready", 0) once the node is found and with
            ("frames", count) as they come.

    Returns:
        A sentence with the frames and bytes that were written.

    Raises:
        MirageError: the file cannot be written, no frame came for a format of frames, or fewer
            frames came than were asked for.
    """
    tally, interrupted, tf_topic = Tally(len(PICTURES) * len(config.cameras)), False, TF
    rclpy.init(args=["mirage_record", *_ros_words(config.ros_arguments)])
    try:
        with open_sink(config) as sink:
            # Caught here, so that an error of the recording's end is raised all the same.
            try:
                recorder = TopicRecorder(config, sink, tally)
                tf_topic = recorder.resolve_topic_name(TF)
                # Made before the first report: an interrupt shuts the context, and then none can be.
                executor = SingleThreadedExecutor()
                executor.add_node(recorder)
                report("listening", 0)
                _spin(executor, recorder, report)
            except (KeyboardInterrupt, ExternalShutdownException):
                interrupted = True
    finally:
        rclpy.try_shutdown()
    summary = written(sink, tally, config.path, tf_topic)
    if config.frames is not None and not interrupted and tally.complete < config.frames:
        raise MirageError(
            f"Only {tally.complete} of {config.frames} frames came before {config.idle_s:.0f} s of "
            "silence; look at the node's log and at the plan."
        )
    return f"{summary[:-1]}, {tally.incomplete} incomplete ones left." if tally.incomplete else summary


def _ros_words(arguments: Sequence[str]) -> list[str]:
    return ["--ros-args", *arguments] if arguments else []


def _spin(
    executor: Executor, recorder: TopicRecorder, report: Callable[[str, int], None]
) -> None:
    ready, reported = False, 0
    while not recorder.finished():
        with ending_with_ros():
            executor.spin_once(timeout_sec=0.1)
            connected = ready or recorder.connected()
        if connected and not ready:
            ready = True
            report("ready", 0)
        if (complete := recorder.tally.complete) > reported:
            reported = complete
            report("frames", complete)

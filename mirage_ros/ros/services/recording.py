"""Recording on request: the node listens to its own topics.

What it keeps is what went out, to the byte: a second serialisation would not be, because the
middleware leaves the gaps between a message's fields as they are in memory.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.recording import Background
from mirage_ros.recording.episodes import partials_of
from mirage_ros.recording.formats import guess_format
from mirage_ros.recording.topics import NOWHERE, PICTURES, TF, TOPICS
from mirage_ros.ros import CameraOutput
from mirage_ros.ros.callbacks import Deferred, Endpoints
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.messages import message_class
from mirage_ros.ros.recorder import (
    RecorderConfig,
    Source,
    Tally,
    header_stamp_ns,
    open_sink,
    recorder_qos,
    written,
)
from mirage_ros.srv import Record

WAITING = 1000
DRAIN_S = 2.0
MATCH_S = 1.0


def recorded_by_node(
    resolve: Callable[[str], str], cameras: Sequence[CameraOutput]
) -> dict[str, str]:
    """Whole topic name -> name in the table, of what a node keeps when it records itself.

    Topics of a rig's other cameras have no name in the table: their whole name stands for it.

    Args:
        resolve: gives the whole name of a relative one, as the node does.
    """
    found = {}
    for topic in TOPICS:
        if topic.recorded == NOWHERE:
            continue
        for camera in cameras if topic.per_camera else cameras[:1]:
            prefix = camera.prefix if topic.per_camera else ""
            whole = resolve(prefix + topic.name)
            found[whole] = topic.name if camera is cameras[0] else whole
    return found


class FrameRecording:
    """Runs from its making to `leave`, which `finish` follows.

    A bounded queue stands before the disk: when it is full, the executor's thread waits, and so
    does what is published next. Nothing is dropped.

    Attributes:
        path: that is written; its ending says the format, see `guess_format`.
        tally: what arrived of the first camera.
    """

    def __init__(
        self, node: Node, path: str | Path, cameras: Sequence[CameraOutput], rate_hz: float
    ) -> None:
        """Args: node: whose topics are recorded; cameras: of these pictures.

        Raises MirageError when nothing can be written there.
        """
        if not str(path):
            raise MirageError("A recording got no path; give a file such as /tmp/walk.mcap.")
        self.path, self.tally = user_path(path).absolute(), Tally()
        self._node = node
        self._names = recorded_by_node(node.resolve_topic_name, cameras)
        format = guess_format(self.path)
        config = RecorderConfig(self.path, format=format, rate_hz=rate_hz)
        self._sink = open_sink(config)
        self._tf_topic = node.resolve_topic_name(TF)
        self._background = Background(WAITING)
        self._error: Exception | None = None
        self._listeners = [
            self._listen(topic, types[0])
            for topic, types in own_topics(node)
            if topic in self._names
        ]
        self._wait_for_matches()

    def leave(self, drain_s: float = DRAIN_S) -> None:
        """Takes what is still under way, then listens no more. On the executor's thread.

        Args:
            drain_s: to wait at most for what was published but has not arrived.
        """
        # After Ctrl-C, ROS is gone before the node is.
        if self._node.context.ok():
            self._drain(drain_s)
            for listener in self._listeners:
                self._node.destroy_subscription(listener)

    def finish(self) -> str:
        """Writes what waits and the end, on any thread.

        Returns:
            A sentence with the frames and bytes that are there.

        Raises:
            MirageError: anything failed, or a format of frames got none.
        """
        try:
            if self._error is None:
                self._background.wait()
        except Exception as error:  # noqa: BLE001 - reported below, after the file is closed
            self._error = error
        self._background.stop()
        self._sink.__exit__(type(self._error) if self._error else None, self._error, None)
        if self._error is not None:
            raise MirageError(f"The recording ended early: {self._error}") from self._error
        return written(self._sink, self.tally, self.path, self._tf_topic)

    def _wait_for_matches(self) -> None:
        """What is published before the two ends know each other would be missing."""
        deadline_s = time.monotonic() + MATCH_S
        while not all(listener.get_publisher_count() for listener in self._listeners):
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.005)

    def _listen(self, topic: str, type_name: str):
        infos = self._node.get_publishers_info_by_topic(topic)
        latched = any(
            info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in infos
        )
        qos = recorder_qos(latched, _reliability(infos))
        source = Source(self._names[topic], topic, type_name)

        def on_bytes(data: bytes, info: dict) -> None:
            self._take(source, data, info)

        return self._node.create_subscription(
            message_class(type_name), topic, on_bytes, qos, raw=True
        )

    def _take(self, source: Source, data: bytes, info: dict) -> None:
        if self._error is not None:
            return
        if source.name in PICTURES:
            self.tally.add(source.name, header_stamp_ns(data))
        try:
            self._background.put(
                functools.partial(self._sink.take, self._node, source, data, info)
            )
        except Exception as error:  # noqa: BLE001 - a recording that fails must not end the node
            self._error = error
            self._node.get_logger().error(f"The recording ended early: {error}")

    def _drain(self, drain_s: float) -> None:
        """Takes what was published already but not delivered to the executor yet."""
        deadline_s = time.monotonic() + drain_s
        while True:
            for listener in self._listeners:
                self._take_waiting(listener)
            if not self.tally.incomplete or time.monotonic() > deadline_s:
                return
            time.sleep(0.01)

    def _take_waiting(self, listener) -> None:
        while True:
            with listener.handle:
                taken = listener.handle.take_message(listener.msg_type, listener.raw)
            if taken is None:
                return
            listener.callback(*taken)


def own_topics(node: Node) -> list[tuple[str, list[str]]]:
    """Topics that the node publishes, with their types."""
    return node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace())


def _reliability(infos) -> ReliabilityPolicy:
    """Best effort where that is all a publisher offers."""
    reliable = all(info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in infos)
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


# What the node published itself is here within milliseconds, and everybody else waits meanwhile.
BRIEF_S = 0.05


class RecordService:
    """The service `record`.

    The end of a recording may take seconds, videos are read back: on request it is written by a
    thread, and answered by the executor.

    Args:
        make: begins a recording of a path. Raises MirageError when nothing can be written there.
        path: gives what the parameter `record` asks for, '' for nothing.
        log: has `info` and `error`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        make: Callable[[str], FrameRecording],
        path: Callable[[], str],
        health: Health,
        log: Any,
    ) -> None:
        self._make, self._path, self._health, self._log = make, path, health, log
        self._recording: FrameRecording | None = None
        self._endings: list[_Ending] = []
        self._waiting: list[Callable[[], None]] = []
        self._ended = endpoints.guard_condition(self._answer)
        self._running = endpoints.running
        endpoints.service(Record, "~/record", self._record)

    def start(self, path: str) -> str:
        """Starts a recording; returns the path really used. Raises MirageError."""
        if self._recording is not None:
            raise MirageError(f"A recording into {self._recording.path} runs; end it first.")
        recording = self._make(path)
        self._recording = recording
        return str(recording.path)

    def stop(self, response) -> Deferred:
        """Ends the recording; the answer comes when it is whole. Raises MirageError without one."""
        if self._recording is None:
            raise MirageError("No recording runs; start one with a path.")
        recording, self._recording = self._recording, None
        recording.leave(BRIEF_S)
        ending = _Ending(recording, response, self._ended.trigger)
        self._endings.append(ending)
        return ending.answer

    def leave_off(self) -> None:
        """Ends the recording that runs, if one does, while the node goes on; `when_ended` says when it is whole."""
        if self._recording is not None:
            self.stop(Record.Response()).bind(self._log_end)

    def when_ended(self, response: Any) -> Any:
        """The response, later where a recording is still being written."""
        if not self._endings:
            return response
        deferred = Deferred()
        self._waiting.append(lambda: deferred.finish(response))
        return deferred

    def begin(self) -> None:
        """Starts what the parameter `record` asks for; reports an error and goes on."""
        path = self._path()
        if not path or self._recording is not None:
            return
        try:
            self.start(str(unused(user_path(path))))
        except MirageError as error:
            self._health.error("recording", str(error))

    def end(self) -> None:
        """Ends the recording that runs, if one does; reports an error and goes on.

        Returns when everything is on the disk, recordings that are ending already included.
        """
        if self._recording is not None:
            recording, self._recording = self._recording, None
            try:
                recording.leave()
                self._log.info(recording.finish())
            except MirageError as error:
                self._log.error(str(error))
        for ending in self._endings:
            ending.thread.join()
        if self._running():
            self._answer()

    def _record(self, request, response):
        try:
            if not request.start:
                return self.stop(response)
            response.path, response.success = self.start(request.path), True
        except MirageError as error:
            response.success, response.message = False, str(error)
        return response

    def _answer(self) -> None:
        """Tells whoever asked for them of the recordings that have ended."""
        ended = [ending for ending in self._endings if ending.done]
        self._endings = [ending for ending in self._endings if ending not in ended]
        for ending in ended:
            ending.answer.finish(ending.response)
        if not self._endings:
            waiting, self._waiting = self._waiting, []
            for answer in waiting:
                answer()

    def _log_end(self, ended: Record.Response) -> None:
        # Two lines, because rclpy ties a severity to the line of code that logs.
        if ended.success:
            self._log.info(ended.message)
        else:
            self._log.error(ended.message)


class _Ending:
    """A recording that a thread brings to its end."""

    def __init__(self, recording: FrameRecording, response, ended: Callable[[], None]) -> None:
        """Begins. `ended` is called by the thread when `response` holds the outcome."""
        self.response, self.answer, self.done = response, Deferred(), False
        self._recording, self._ended = recording, ended
        self.thread = threading.Thread(target=self._finish, name="recording_end", daemon=True)
        self.thread.start()

    def _finish(self) -> None:
        try:
            self.response.message = self._recording.finish()
            self.response.path, self.response.success = str(self._recording.path), True
        except Exception as error:  # noqa: BLE001 - whoever asked has to be answered
            self.response.success, self.response.message = False, str(error)
        self.done = True
        # The node may have ended meanwhile.
        with suppress(RuntimeError):
            self._ended()


def unused(path: Path) -> Path:
    """The path, or one with a number: a node that becomes active again begins another one.

    What a killed node left keeps its name, for `mirage recover`.
    """
    found, number = path, 0
    while found.exists() or partials_of(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found

"""Recording on request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirage_ros.core.errors import MirageError
from mirage_ros.recording.recovery import partials_of
from mirage_ros.resources import user_path
from mirage_ros.ros.deferred import Deferred, create_service
from mirage_ros.srv import Record

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode
    from mirage_ros.ros.recording_service import FrameRecording

# What the node published itself is here within milliseconds, and everybody else waits meanwhile.
BRIEF_S = 0.05


class RecordService:
    """The service `record`.

    The end of a recording may take seconds, videos are read back: on request it is written by a
    thread, and answered by the executor.
    """

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._recording = None
        self._endings: list[_Ending] = []
        self._waiting: list[Callable[[], None]] = []
        self._ended = node.create_guard_condition(self._answer)
        node.recording = self
        create_service(node, Record, "~/record", self._record)

    def start(self, path: str) -> str:
        """Starts a recording; returns the path really used. Raises MirageError."""
        if self._recording is not None:
            raise MirageError(f"A recording into {self._recording.path} runs; end it first.")
        recording = _make(self._node, path)
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
            self.stop(Record.Response()).bind(self._tell)

    def when_ended(self, response: Any) -> Any:
        """The response, later where a recording is still being written."""
        if not self._endings:
            return response
        deferred = Deferred()
        self._waiting.append(lambda: deferred.finish(response))
        return deferred

    def begin(self) -> None:
        """Starts what the parameter `record` asks for; tells of an error and goes on."""
        path = self._node.config.record
        if not path or self._recording is not None:
            return
        try:
            self.start(str(unused(user_path(path))))
        except MirageError as error:
            self._node.health.error("recording", str(error))

    def end(self) -> None:
        """Ends the recording that runs, if one does; tells of an error and goes on.

        Returns when everything is on the disk, recordings that are ending already included.
        """
        if self._recording is not None:
            recording, self._recording = self._recording, None
            try:
                recording.leave()
                self._node.get_logger().info(recording.finish())
            except MirageError as error:
                self._node.get_logger().error(str(error))
        for ending in self._endings:
            ending.thread.join()
        if self._node.context.ok():
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

    def _tell(self, ended: Record.Response) -> None:
        logger = self._node.get_logger()
        # Two lines, because rclpy ties a severity to the line of code that logs.
        if ended.success:
            logger.info(ended.message)
        else:
            logger.error(ended.message)


class _Ending:
    """A recording that a thread brings to its end."""

    def __init__(self, recording: FrameRecording, response, tell: Callable[[], None]) -> None:
        """Begins. `tell` is called by the thread when `response` holds the outcome."""
        self.response, self.answer, self.done = response, Deferred(), False
        self._recording, self._tell = recording, tell
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
            self._tell()


def unused(path: Path) -> Path:
    """The path, or one with a number: a node that becomes active again begins another one.

    What a killed node left keeps its name, for `mirage recover`.
    """
    found, number = path, 0
    while found.exists() or partials_of(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def _make(node: MirageNode, path: str):
    try:
        from mirage_ros.ros.recording_service import FrameRecording
    except ImportError as error:
        raise MirageError(f"Recordings are not available here ({error}).") from error
    return FrameRecording(node, path)

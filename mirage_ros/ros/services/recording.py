"""Recording on request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mirage_ros.core.errors import MirageError
from mirage_ros.recording.recovery import partials_of
from mirage_ros.ros.deferred import create_service
from mirage_ros.srv import Record

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


class RecordService:
    """The service `record`."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._recording = None
        node.recording = self
        create_service(node, Record, "~/record", self._record)

    def start(self, path: str) -> str:
        """Starts a recording; returns the path really used. Raises MirageError."""
        if self._recording is not None:
            raise MirageError(f"A recording into {self._recording.path} runs; end it first.")
        recording = _make(self._node, path)
        self._recording = recording
        return str(recording.path)

    def stop(self) -> str:
        """Ends the recording; returns its path. Raises MirageError without one."""
        if self._recording is None:
            raise MirageError("No recording runs; start one with a path.")
        recording, self._recording = self._recording, None
        recording.close()
        return str(recording.path)

    def begin(self) -> None:
        """Starts what the parameter `record` asks for; tells of an error and goes on."""
        path = self._node.config.record
        if not path or self._recording is not None:
            return
        try:
            self.start(str(unused(Path(path))))
        except MirageError as error:
            self._node.health.error("recording", str(error))

    def end(self) -> None:
        """Ends the recording that runs, if one does; tells of an error and goes on."""
        if self._recording is None:
            return
        try:
            self._node.get_logger().info(f"Recorded into {self.stop()}.")
        except MirageError as error:
            self._node.get_logger().error(str(error))

    def _record(self, request, response):
        try:
            response.path = self.start(request.path) if request.start else self.stop()
            response.success = True
        except MirageError as error:
            response.success, response.message = False, str(error)
        return response


def unused(path: Path) -> Path:
    """The path, or one with a number: a node that becomes active again begins another one.

    What a killed node left keeps its name, for `mirage recover`.
    """
    found, number = path, 0
    while os.path.exists(where := os.path.expanduser(found)) or partials_of(Path(where)):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def _make(node: MirageNode, path: str):
    try:
        from mirage_ros.ros.recording_service import FrameRecording
    except ImportError as error:
        raise MirageError(f"Recordings are not available here ({error}).") from error
    return FrameRecording(node, path)

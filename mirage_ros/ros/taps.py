"""What else is published of every frame and cloud: a class for each kind of topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mirage_ros.core.frames import Frame, Points
from mirage_ros.ros.lazy import LazyPublisher
from mirage_ros.ros.viewing_taps import VIEWING_TAPS


@runtime_checkable
class Tap(Protocol):
    """Made as `Tap(node, config, camera)`: the node, its NodeConfig, and the CameraOutput.

    Both methods run in the executor's thread: they look for subscribers first, and are quick.

    Attributes:
        all: the publishers whose every message counts.
    """

    all: Sequence[LazyPublisher]

    def frame(self, frame: Frame) -> None:
        """After the standard topics of the frame, with its stamp."""

    def cloud(self, points: Points, stamp_ns: int) -> None:
        """After cache/points; of a rig, only the first camera's tap is told."""


TAPS: list[type] = [*VIEWING_TAPS]

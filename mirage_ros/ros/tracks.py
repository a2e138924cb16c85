"""One frame's transforms over time, and interpolation between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import from_quaternion, slerp, slerp_rows
from mirage_ros.ros.messages.conversions import matrices

MOST_KEPT = 200_000  # poses of one frame: 200 s at 1,000 a second


class TransformError(MirageError):
    """A transform that the buffer cannot give."""


class LookupException(TransformError):
    """A frame that nobody has published."""


class ConnectivityException(TransformError):
    """Two frames without a common ancestor."""


class ExtrapolationException(TransformError):
    """A time outside of what was published."""


@dataclass
class Track:
    """What is known about one child frame: parent_from_child over time.

    A static track holds one pose, at stamp 0, and is valid at every time.

    Attributes:
        rewritten: a pose was replaced by another one of the same stamp.
    """

    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    quaternions: list[np.ndarray] = field(default_factory=list)
    rewritten: bool = False

    def insert(self, stamp_ns: int, position: np.ndarray, quaternion: np.ndarray) -> None:
        index = bisect_left(self.stamps, stamp_ns)
        same = index < len(self.stamps) and self.stamps[index] == stamp_ns
        self.rewritten |= same and not self.holds(stamp_ns, position, quaternion)
        for values, value in (
            (self.stamps, stamp_ns),
            (self.positions, position),
            (self.quaternions, quaternion),
        ):
            values[index : index + same] = [value]

    def holds(self, stamp_ns: int, position: np.ndarray, quaternion: np.ndarray) -> bool:
        """This very pose is known at this very time."""
        index = bisect_left(self.stamps, stamp_ns)
        return (
            index < len(self.stamps)
            and self.stamps[index] == stamp_ns
            and np.array_equal(self.positions[index], position)
            and np.array_equal(self.quaternions[index], quaternion)
        )

    def forget_before(self, stamp_ns: int) -> None:
        """What is older, and the oldest of what is more than MOST_KEPT."""
        index = max(bisect_left(self.stamps, stamp_ns), len(self.stamps) - MOST_KEPT)
        if not index:
            return
        del self.stamps[:index], self.positions[:index], self.quaternions[:index]

    def check(self, stamp_ns: int) -> None:
        """Raises ExtrapolationException where the time is outside of what is known."""
        if not self.static and not self.stamps[0] <= stamp_ns <= self.stamps[-1]:
            raise ExtrapolationException(
                f"The transform from '{self.parent}' is known from {self.stamps[0]} ns to "
                f"{self.stamps[-1]} ns, not at {stamp_ns} ns; publish it for that time."
            )

    def at(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        """parent_from_child, between the two stamps around the time: lerp and slerp."""
        self.check(stamp_ns)
        if self.static:
            return from_quaternion(self.positions[0], self.quaternions[0])
        after = bisect_left(self.stamps, stamp_ns)
        if self.stamps[after] == stamp_ns:
            return from_quaternion(self.positions[after], self.quaternions[after])
        before = after - 1
        share = (stamp_ns - self.stamps[before]) / (self.stamps[after] - self.stamps[before])
        start, end = self.positions[before], self.positions[after]
        turned = slerp(self.quaternions[before], self.quaternions[after], share)
        return from_quaternion(start + share * (end - start), turned)

    def at_all(self, stamps_ns: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 4 4"]:
        """`at` for many rising times at once."""
        self.check(int(stamps_ns[0]))
        self.check(int(stamps_ns[-1]))
        if self.static:
            pose = from_quaternion(self.positions[0], self.quaternions[0])
            return np.broadcast_to(pose, (len(stamps_ns), 4, 4))
        part = slice(
            bisect_right(self.stamps, int(stamps_ns[0])) - 1,
            bisect_left(self.stamps, int(stamps_ns[-1])) + 1,
        )
        known = np.array(self.stamps[part])
        after = np.searchsorted(known, stamps_ns)
        before = np.maximum(after - (known[after] > stamps_ns), 0)
        step = np.maximum(known[after] - known[before], 1)
        share = ((stamps_ns - known[before]) / step)[:, None]
        positions, turns = np.array(self.positions[part]), np.array(self.quaternions[part])
        rows = np.empty((len(stamps_ns), 7))
        rows[:, :3] = positions[before] + share * (positions[after] - positions[before])
        rows[:, 3:] = slerp_rows(turns[before], turns[after], share)[:, [1, 2, 3, 0]]
        return matrices(rows)

"""Transforms over time: one frame's track with interpolation, and chains of frames. No ROS messages; see tf.py.

pytransform3d's time-varying transforms are fixed arrays that would have to be rebuilt with every message of a 100 Hz
stream, hence these.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import from_quaternion, from_rows, inverse, slerp, slerp_rows
from mirage_ros.protocol import SECOND_NS

MOST_KEPT = 200_000  # poses of one frame: 200 s at 1,000 a second
MOST_FRAMES = 10_000
# Names of frames that a message lists.
MOST_KNOWN = 10


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
        return from_rows(rows)


@dataclass(frozen=True)
class Pose:
    """parent_from_child at a time, checked: metres, and a unit quaternion wxyz."""

    parent: str
    child: str
    stamp_ns: int
    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


class Transforms:
    """The tracks of all frames, and maps between any two of them. Keeps `history_s` of planned time of every frame.

    Attributes:
        newest_ns: of all stamps since it was empty.
        cleared: how often `clear` was called.
    """

    def __init__(self, history_s: float = 60.0) -> None:
        self.history_ns = int(history_s * SECOND_NS)
        self.tracks: dict[str, Track] = {}
        self.newest_ns: int | None = None
        self.cleared = 0
        # How many tracks name each frame: thousands may come, and a look-up that fails is made for every poll.
        self._frames: Counter[str] = Counter()
        self._known: str | None = None

    def add(self, pose: Pose) -> None:
        """Adds one pose. Raises MirageError where it has no stamp or names no two frames."""
        if pose.stamp_ns == 0:
            raise MirageError(
                f"TF {pose.parent} -> {pose.child} has no stamp; stamp it, or publish it on "
                "/tf_static."
            )
        track = self._track(pose.parent, pose.child, static=False)
        track.insert(pose.stamp_ns, pose.position, pose.quaternion)
        track.forget_before(track.stamps[-1] - self.history_ns)
        self.newest_ns = max(pose.stamp_ns, self.newest_ns or 0)

    def holds(self, pose: Pose) -> bool:
        """It is there already, just so."""
        track = self.tracks.get(pose.child)
        if track is None or track.static or track.parent != pose.parent:
            return False
        return track.holds(pose.stamp_ns, pose.position, pose.quaternion)

    def add_static(self, pose: Pose) -> None:
        """Adds a pose that holds at every time."""
        track = self._track(pose.parent, pose.child, static=True)
        track.stamps, track.positions, track.quaternions = [0], [pose.position], [pose.quaternion]

    def clear(self) -> None:
        """Forgets what moves; static transforms are published once and stay."""
        self.tracks = {name: track for name, track in self.tracks.items() if track.static}
        self._frames = Counter(name for child, track in self.tracks.items() for name in (child, track.parent))
        self._known = None
        self.newest_ns = None
        self.cleared += 1

    def _track(self, parent: str, child: str, static: bool) -> Track:
        if not parent or not child or parent == child:
            raise MirageError(
                f"TF '{parent}' -> '{child}' does not name two frames; fill frame_id and "
                "child_frame_id."
            )
        track = self.tracks.get(child)
        if track is None and len(self.tracks) >= MOST_FRAMES:
            raise MirageError(
                f"TF names more than {MOST_FRAMES} frames; '{child}' is left out: publish fewer."
            )
        if track is None or track.static != static or track.parent != parent:
            self._count(child, parent, track)
            track = self.tracks[child] = Track(parent, static)
        return track

    def _count(self, child: str, parent: str, before: Track | None) -> None:
        """A track comes in the place of another, or of none."""
        self._frames.update((child, parent))
        for name in (child, before.parent) if before else ():
            self._frames[name] -= 1
            if not self._frames[name]:
                del self._frames[name]
        self._known = None

    def matrix(self, target: str, source: str, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        """target_from_source as a map."""
        up_from_target, up_from_source = self._branches(target, source)
        top_from_source = self._product(up_from_source, stamp_ns)
        top_from_target = self._product(up_from_target, stamp_ns)
        return inverse(top_from_target) @ top_from_source

    def matrices(
        self, target: str, source: str, stamps_ns: Int[np.ndarray, "n"]
    ) -> Float[np.ndarray, "m 4 4"]:
        """target_from_source at many rising times; at one where nothing between them moves."""
        up_from_target, up_from_source = self._branches(target, source)
        top_from_source = self._products(up_from_source, stamps_ns)
        top_from_target = self._products(up_from_target, stamps_ns)
        return inverse(top_from_target) @ top_from_source

    def chain(self, target: str, source: str) -> list[Track]:
        """The tracks between two frames. Raises LookupException, which names the missing frame."""
        return [self.tracks[name] for name in self.links(target, source)]

    def links(self, target: str, source: str) -> list[str]:
        """Child frames of the transforms between two frames. Raises like `chain`."""
        up_from_target, up_from_source = self._branches(target, source)
        return up_from_target + up_from_source

    def span(self, target: str, source: str) -> tuple[int, int] | None:
        """First and last stamp (ns) at which all moving tracks of the chain are known.

        None where nothing in the chain moves, or where the tracks do not overlap.
        """
        moving = [track for track in self.chain(target, source) if not track.static]
        if not moving:
            return None
        first = max(track.stamps[0] for track in moving)
        last = min(track.stamps[-1] for track in moving)
        return (first, last) if first <= last else None

    def gap(self, target: str, source: str, stamp_ns: int) -> tuple[int, int]:
        """The widest pair of neighbouring stamps around a time in the chain; equal on a stamp."""
        widest = (stamp_ns, stamp_ns)
        for track in self.chain(target, source):
            if track.static:
                continue
            before = track.stamps[max(bisect_right(track.stamps, stamp_ns) - 1, 0)]
            after = track.stamps[min(bisect_left(track.stamps, stamp_ns), len(track.stamps) - 1)]
            if after - before > widest[1] - widest[0]:
                widest = (before, after)
        return widest

    def _some_frames(self) -> str:
        """For messages."""
        if self._known is None:
            frames = heapq.nsmallest(MOST_KNOWN, self._frames)
            more = f" and {len(self._frames) - MOST_KNOWN} more" if len(self._frames) > MOST_KNOWN else ""
            self._known = (", ".join(frames) or "none") + more
        return self._known

    def _branches(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Child frames on the way up from either frame to their nearest common ancestor."""
        missing = " or ".join(f"'{name}'" for name in (source, target) if name not in self._frames)
        if missing:
            raise LookupException(
                f"TF has no frame {missing} (known: {self._some_frames()}); publish it on /tf or /tf_static."
            )
        from_target, from_source = self._ancestors(target), self._ancestors(source)
        common = next((name for name in from_source if name in from_target), None)
        if common is None:
            raise ConnectivityException(
                f"TF does not connect '{target}' with '{source}': the trees of "
                f"'{from_target[-1]}' and '{from_source[-1]}' are apart; publish a transform "
                "between them."
            )
        return (
            from_target[: from_target.index(common)],
            from_source[: from_source.index(common)],
        )

    def _ancestors(self, name: str) -> list[str]:
        names = [name]
        while names[-1] in self.tracks:
            parent = self.tracks[names[-1]].parent
            if parent in names:
                raise ConnectivityException(
                    f"TF has a loop at '{parent}'; a frame must have one parent and no loop."
                )
            names.append(parent)
        return names

    def _product(self, names: list[str], stamp_ns: int) -> np.ndarray:
        matrix = np.eye(4)
        for name in names:
            matrix = self.tracks[name].at(stamp_ns) @ matrix
        return matrix

    def _products(self, names: list[str], stamps_ns: np.ndarray) -> np.ndarray:
        """(n, 4, 4), or (1, 4, 4) where nothing moves."""
        product = np.eye(4)[None]
        for name in names:
            track = self.tracks[name]
            product = track.at_all(stamps_ns[:1] if track.static else stamps_ns) @ product
        return product

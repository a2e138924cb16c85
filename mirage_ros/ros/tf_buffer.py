"""Transforms over time: what was published on /tf, interpolated, for chains of frames.

The calls are those of tf2_ros.Buffer, which has no wheel; where a ROS install brings one,
`make_buffer` lets it do the interpolation. pytransform3d's time-varying transforms are fixed
arrays that would have to be rebuilt with every message of a 100 Hz stream, hence this buffer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import TransformStamped
from jaxtyping import Float, Int

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import from_quaternion, inverse
from mirage_ros.ros.messages.conversions import (
    SECOND_NS,
    parts_from_ros,
    stamp_from_ros,
    transform_from_ros,
    transform_to_ros,
)
from mirage_ros.ros.tracks import (
    ConnectivityException,
    ExtrapolationException,
    LookupException,
    Track,
    TransformError,
)

MOST_FRAMES = 10_000
# Names of frames that a message lists.
MOST_KNOWN = 10


@dataclass(frozen=True)
class Pose:
    """parent_from_child at a time, checked: metres, and a unit quaternion wxyz."""

    parent: str
    child: str
    stamp_ns: int
    position: Float[np.ndarray, "3"]
    quaternion: Float[np.ndarray, "4"]


class Buffer:
    """Keeps `history_s` of planned time of every frame.

    Attributes:
        newest_ns: of all stamps since it was empty.
        cleared: how often `clear` was called.
    """

    def __init__(self, history_s: float = 60.0) -> None:
        self.history_ns = int(history_s * SECOND_NS)
        self.tracks: dict[str, Track] = {}
        self.newest_ns: int | None = None
        self.cleared = 0

    def set_transform(self, transform: TransformStamped, authority: str = "") -> None:
        """Adds one transform. Raises MirageError for NaN, a non-unit quaternion or no stamp."""
        self.add(_pose(transform))

    def set_transform_static(self, transform: TransformStamped, authority: str = "") -> None:
        """Adds one transform that holds at every time."""
        self.add_static(_pose(transform))

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
            track = self.tracks[child] = Track(parent, static)
        return track

    def lookup_transform(
        self, target_frame: str, source_frame: str, time, timeout=None
    ) -> TransformStamped:
        """target_from_source at a time. Never waits, whatever the timeout.

        Args:
            time: rclpy.time.Time; 0 is the latest time that all of the chain has.

        Raises:
            LookupException, ConnectivityException, ExtrapolationException: all MirageError.
        """
        stamp_ns = time.nanoseconds
        if stamp_ns == 0:
            span = self.span(target_frame, source_frame)
            stamp_ns = span[1] if span else 0
        matrix = self.matrix(target_frame, source_frame, stamp_ns)
        return transform_to_ros(matrix, target_frame, source_frame, stamp_ns)

    def can_transform(self, target_frame: str, source_frame: str, time, timeout=None) -> bool:
        """Whether `lookup_transform` would answer."""
        try:
            self.lookup_transform(target_frame, source_frame, time)
        except TransformError:
            return False
        return True

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

    def _has(self, frame: str) -> bool:
        return frame in self.tracks or any(track.parent == frame for track in self.tracks.values())

    def _known(self) -> str:
        """Some of the frames, for messages."""
        frames = sorted(set(self.tracks) | {track.parent for track in self.tracks.values()})
        more = f" and {len(frames) - MOST_KNOWN} more" if len(frames) > MOST_KNOWN else ""
        return (", ".join(frames[:MOST_KNOWN]) or "none") + more

    def _branches(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Child frames on the way up from either frame to their nearest common ancestor."""
        missing = " or ".join(f"'{name}'" for name in (source, target) if not self._has(name))
        if missing:
            raise LookupException(
                f"TF has no frame {missing} (known: {self._known()}); publish it on /tf or /tf_static."
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


class Tf2Buffer(Buffer):
    """The same, with a ROS install's tf2_ros doing the look-ups.

    It keeps every pose of a stamp and interpolates with any of them, so a frame whose plan was
    changed is looked up without it.
    """

    def __init__(self, history_s: float, tf2_ros) -> None:
        from rclpy.duration import Duration
        from rclpy.time import Time

        super().__init__(history_s)
        self._time, self._tf2_ros = Time, tf2_ros
        self._tf2 = tf2_ros.Buffer(Duration(seconds=history_s))

    def add(self, pose: Pose) -> None:
        super().add(pose)
        self._tf2.set_transform(_message(pose), "mirage")

    def add_static(self, pose: Pose) -> None:
        super().add_static(pose)
        self._tf2.set_transform_static(_message(pose), "mirage")

    def matrix(self, target: str, source: str, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        tracks = self.chain(target, source)
        for track in tracks:
            track.check(stamp_ns)
        if any(track.rewritten for track in tracks):
            return super().matrix(target, source, stamp_ns)
        try:
            found = self._tf2.lookup_transform(target, source, self._time(nanoseconds=stamp_ns))
        except self._tf2_ros.TransformException as error:
            raise ExtrapolationException(f"TF: {error}.") from error
        return transform_from_ros(found)

    def clear(self) -> None:
        super().clear()
        statics = [
            transform_to_ros(track.at(0), track.parent, child, 0)
            for child, track in self.tracks.items()
        ]
        self._tf2.clear()
        for transform in statics:
            self._tf2.set_transform_static(transform, "mirage")


def _pose(transform: TransformStamped) -> Pose:
    stamp_ns = stamp_from_ros(transform.header.stamp)
    parts = parts_from_ros(transform)
    return Pose(transform.header.frame_id, transform.child_frame_id, stamp_ns, *parts)


def _message(pose: Pose) -> TransformStamped:
    parent_from_child = from_quaternion(pose.position, pose.quaternion)
    return transform_to_ros(parent_from_child, pose.parent, pose.child, pose.stamp_ns)


def make_buffer(history_s: float) -> Buffer:
    """A buffer on tf2_ros where that is installed, the project's own elsewhere."""
    try:
        import tf2_ros
    except ImportError:
        return Buffer(history_s)
    return Tf2Buffer(history_s, tf2_ros)

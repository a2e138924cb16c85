"""The transforms of /tf behind the calls of tf2_ros.Buffer, which has no wheel.

Where a ROS install brings one, `make_buffer` lets it do the interpolation.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import TransformStamped
from jaxtyping import Float

from mirage_ros.geometry.rigid import from_quaternion
from mirage_ros.ros.messages import (
    parts_from_ros,
    stamp_from_ros,
    transform_from_ros,
    transform_to_ros,
)
from mirage_ros.ros.tracks import ExtrapolationException, Pose, TransformError, Transforms


class Buffer(Transforms):
    """`Transforms` that take and give messages."""

    def set_transform(self, transform: TransformStamped, authority: str = "") -> None:
        """Adds one transform. Raises MirageError for NaN, a non-unit quaternion or no stamp."""
        self.add(_pose(transform))

    def set_transform_static(self, transform: TransformStamped, authority: str = "") -> None:
        """Adds one transform that holds at every time."""
        self.add_static(_pose(transform))

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

"""What /tf and plan bring: read from the bytes of DDS, and kept behind the calls of tf2_ros.Buffer, which has no wheel.

rclpy makes about ten Python objects of one stamped pose, all of a message in one go: 100,000 poses keep every service
waiting for seconds. So plans are read without an object for each pose. The layout is that of plain CDR: numbers lie at
multiples of their size after a header of four bytes, strings end in a zero that their length counts.

Where a ROS install brings tf2_ros, `make_buffer` lets it do the interpolation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from geometry_msgs.msg import TransformStamped
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import check_place
from mirage_ros.geometry.rigid import from_quaternion
from mirage_ros.ros.messages import (
    SECOND_NS,
    checked_position,
    faulty_pose,
    parts_from_ros,
    stamp_from_ros,
    transform_from_ros,
    transform_to_ros,
    unit_quaternion,
)
from mirage_ros.ros.plan import StampedPoses
from mirage_ros.ros.tracks import ExtrapolationException, Pose, TransformError, Transforms

MOST_POSES = 100_000
# Poses that name the plan's frame and poses that name none may alternate this often.
MOST_LAYOUTS = 1_000
MOST_CHARACTERS = 1_000
POSE_BYTES = 64  # at least


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


class Untimed(MirageError):
    """A Path whose poses do not say when: all their stamps are zero, or the same."""


class _Reader:
    """One value after the other. Raises MirageError where the bytes end or make no sense."""

    def __init__(self, data: bytes, what: str) -> None:
        self.what = what
        if len(data) < 4 or data[1] > 1:
            raise self.unreadable()
        self.order = "<" if data[1] else ">"
        self.data, self.at = memoryview(data)[4:], 0

    def unreadable(self) -> MirageError:
        return MirageError(f"A {self.what} came whose bytes make no sense; it is left out.")

    def take(self, layout: str, size: int) -> tuple:
        """Values of one size in bytes."""
        self.at += -self.at % size
        try:
            values = struct.unpack_from(self.order + layout, self.data, self.at)
        except struct.error as error:
            raise self.unreadable() from error
        self.at += struct.calcsize("=" + layout)
        return values

    def raw_text(self) -> bytes:
        (length,) = self.take("I", 4)
        if length > MOST_CHARACTERS or self.at + length > len(self.data):
            raise self.unreadable()
        self.at += length
        return bytes(self.data[self.at - length : self.at]).rstrip(b"\0")

    def text(self) -> str:
        try:
            return self.raw_text().decode()
        except UnicodeDecodeError as error:
            raise self.unreadable() from error


def transforms_from_bytes(data: bytes) -> Iterator[Pose | MirageError]:
    """The transforms of a TFMessage one by one; for a bad one the error that says what is wrong.

    Raises:
        MirageError: the bytes make no sense; nothing more can be read.
    """
    reader = _Reader(data, "TFMessage")
    (count,) = reader.take("I", 4)
    for _ in range(count):
        seconds, nanoseconds = reader.take("iI", 4)
        parent, child = reader.text(), reader.text()
        values = np.array(reader.take("7d", 8))
        what = f"TF {parent} -> {child}"
        try:
            if seconds < 0:
                raise MirageError(f"{what} is stamped {seconds} s; send stamps of at least 0.")
            position = checked_position(values[:3], what)
            quaternion = unit_quaternion(values[[6, 3, 4, 5]], what)
        except MirageError as error:
            yield error
        else:
            yield Pose(parent, child, seconds * SECOND_NS + nanoseconds, position, quaternion)


def path_from_bytes(data: bytes) -> StampedPoses:
    """The poses of a Path on plan.

    Raises:
        Untimed: its poses do not say when.
        MirageError: no poses or too many, a pose in another frame than the Path, a stamp that is
            not after the one before it, NaN, a non-unit quaternion.
    """
    path = poses_from_bytes(data, "the plan", MOST_POSES, "the rest before those are rendered")
    if not len(path.poses):
        raise MirageError("The plan holds no poses; send at least one with a stamp.")
    if untimed(path.stamps_ns):
        raise Untimed(
            "A Path on plan is left out: its poses all have the same stamp or none, as Nav2's "
            "/plan has them, so they do not say when the camera is where; give each pose the time "
            "at which the camera shall be there, or let a controller drive the base and publish "
            "its pose on /tf."
        )
    return path


def poses_from_bytes(data: bytes, what: str, most: int, rest: str) -> StampedPoses:
    """The poses of a Path, none as well; their stamps rise or are `untimed`.

    Args:
        what, rest: what the poses are of, as "the plan", and when to send more than `most`, for messages.

    Raises:
        MirageError: as `path_from_bytes`.
    """
    reader = _Reader(data, "Path")
    reader.take("iI", 4)
    frame = reader.text()
    (count,) = reader.take("I", 4)
    if count > most:
        raise MirageError(f"{_begun(what)} holds {count} poses; send at most {most} at once, and {rest}.")
    if count * POSE_BYTES > len(data):
        raise reader.unreadable()
    stamps, values = np.empty(count, np.int64), np.empty((count, 7))
    _read_poses(reader, what, frame, stamps, values)
    _check_stamps(stamps, what)
    index = faulty_pose(values)
    if index is not None:
        pose = f"Pose {index} of {what}"
        checked_position(values[index, :3], pose)
        unit_quaternion(values[index, [6, 3, 4, 5]], pose)
    check_place(values[:, :3], f"A pose of {what}")
    return StampedPoses(frame, stamps, values)


def untimed(stamps_ns: np.ndarray) -> bool:
    """Whether the poses of a Path do not say when: their stamps are zero, or all the same."""
    return not stamps_ns.any() or len(stamps_ns) > 1 and bool((stamps_ns == stamps_ns[0]).all())


def _begun(what: str) -> str:
    """At the beginning of a sentence."""
    return what[0].upper() + what[1:]


def _read_poses(reader: _Reader, what: str, frame: str, stamps: np.ndarray, values: np.ndarray) -> None:
    """Fills stamps (n,) and values (n, 7): all poses in a row that are laid out alike at once."""
    done, layouts = 0, 0
    while done < len(stamps):
        layouts += 1
        if layouts > MOST_LAYOUTS:
            raise MirageError(f"Poses of {what} name their frame now and now not; name it in all or in none.")
        start = reader.at + -reader.at % 4
        reader.take("iI", 4)
        name = reader.raw_text()
        length = reader.at - start - 12
        if name not in (b"", frame.encode()):
            raise MirageError(
                f"Pose {done} of {what} is in frame '{name.decode(errors='replace')}', {what} "
                f"in '{frame}'; use one frame."
            )
        reader.take("7d", 8)
        rows = _rows(reader, start, length, len(stamps) - done)
        rows = rows[: _alike(rows, name, length)]
        reader.at = start + len(rows) * rows.itemsize
        if rows["sec"].min() < 0:
            raise MirageError(f"{_begun(what)} has a pose stamped before 0; send stamps of at least 0.")
        part = slice(done, done + len(rows))
        np.multiply(rows["sec"], SECOND_NS, out=stamps[part], dtype=np.int64, casting="unsafe")
        stamps[part] += rows["nanosec"]
        values[part] = rows["pose"]
        done += len(rows)


def _rows(reader: _Reader, start: int, length: int, most: int) -> np.ndarray:
    """All that the bytes hold, read as if laid out as the pose that begins at start."""
    size = reader.at - start
    # Only the first pose of a Path begins at an odd multiple of four, and it is laid out alone.
    most = 1 if start % 8 else most
    layout = np.dtype(
        {
            "names": ["sec", "nanosec", "length", "text", "pose"],
            "formats": ["i4", "u4", "u4", f"S{max(length, 1)}", "7f8"],
            "offsets": [0, 4, 8, 12, size - 56],
            "itemsize": size,
        }
    ).newbyteorder(reader.order)
    count = min(most, (len(reader.data) - start) // size)
    return np.frombuffer(reader.data, layout, count, start)


def _alike(rows: np.ndarray, name: bytes, length: int) -> int:
    """How many rows from the first on hold this text of this length."""
    differs = rows["length"] != length
    if length:
        differs |= rows["text"] != name
    return int(differs.argmax()) if differs.any() else len(rows)


def _check_stamps(stamps: np.ndarray, what: str) -> None:
    """Raises MirageError for stamps that do not rise, unless they are all alike."""
    late = stamps[1:] <= stamps[:-1]
    if late.any() and not untimed(stamps):
        index = int(late.argmax()) + 1
        before, after = int(stamps[index - 1]), int(stamps[index])
        if before == after:
            raise MirageError(
                f"Pose {index} of {what} has the stamp of the one before it, {after} ns; stamps "
                "must rise from pose to pose."
            )
        raise MirageError(
            f"Pose {index} of {what} jumps back in time, from {before} ns to {after} ns; stamps "
            "must rise from pose to pose."
        )

"""Planned camera poses at frame times, from TF or from a Path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from transforms3d.quaternions import mat2quat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import advance, from_rows
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.tracks import Track, TransformError, Transforms
from mirage_ros.ros.worker import Planned

# The start of the grid and the last frame time that was handed out (ns).
Mark = tuple[int | None, int | None]


@dataclass(frozen=True)
class StampedPoses:
    """The poses of a Path.

    Attributes:
        frame: what they are in, '' where the Path names none.
        stamps_ns: rising.
        poses: of the camera in that frame, x y z qx qy qz qw.
    """

    frame: str
    stamps_ns: Int[np.ndarray, "n"]
    poses: Float[np.ndarray, "n 7"]


@dataclass(frozen=True)
class PlanConfig:
    """Attributes: see the parameters of the same names in parameters.py."""

    world_frame: str
    camera_frame: str
    frame_rate_hz: float = 10.0
    gap_s: float = 1.0

    @property
    def period_ns(self) -> int:
        return round(SECOND_NS / self.frame_rate_hz)


@dataclass(frozen=True)
class Missing:
    """What to do where the plan has ended.

    Attributes:
        policy: wait, hold or extrapolate.
        elapsed_ns: time since the plan last grew; frames are made up for that long, no further.
        limit_ns: how far extrapolate may go beyond the plan.
    """

    policy: str = "wait"
    elapsed_ns: int = 0
    limit_ns: int = SECOND_NS


@runtime_checkable
class Source(Protocol):
    """Poses over time."""

    def span(self) -> tuple[int, int] | None: ...

    def gap(self, stamp_ns: int) -> tuple[int, int]: ...

    def pose(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]: ...


class TfSource:
    """world_frame <- camera_frame as TF has it."""

    def __init__(self, buffer: Transforms, world_frame: str, camera_frame: str) -> None:
        self._buffer, self._frames = buffer, (world_frame, camera_frame)

    def span(self) -> tuple[int, int] | None:
        return self._buffer.span(*self._frames)

    def gap(self, stamp_ns: int) -> tuple[int, int]:
        return self._buffer.gap(*self._frames, stamp_ns)

    def pose(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        return self._buffer.matrix(*self._frames, stamp_ns)


class PathSource:
    """The poses of one Path.

    Args:
        world_from_frame: (n, 4, 4) where its frame is at each pose, (1, 4, 4) where it stays.
    """

    def __init__(self, path: StampedPoses, world_from_frame: Float[np.ndarray, "m 4 4"]) -> None:
        self.path, self._world_from_frame = path, world_from_frame

    def span(self) -> tuple[int, int]:
        return int(self.path.stamps_ns[0]), int(self.path.stamps_ns[-1])

    def gap(self, stamp_ns: int) -> tuple[int, int]:
        """None: one message is one plan, however far apart its poses."""
        return stamp_ns, stamp_ns

    def pose(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        after = int(np.searchsorted(self.path.stamps_ns, stamp_ns))
        if self.path.stamps_ns[after] == stamp_ns:
            return self._poses(slice(after, after + 1))[0]
        near = slice(after - 1, after + 1)
        stamps, poses = self.path.stamps_ns[near].tolist(), self._poses(near)
        turns = [mat2quat(pose[:3, :3]) for pose in poses]
        return Track("", False, stamps, list(poses[:, :3, 3]), turns).at(stamp_ns)

    def _poses(self, part: slice) -> np.ndarray:
        still = len(self._world_from_frame) == 1
        return self._world_from_frame[slice(0, 1) if still else part] @ from_rows(
            self.path.poses[part]
        )


class Plan:
    """Hands out the next frames: an even grid of frame times that starts at the first pose.

    Every frame time is handed out once. A Path goes before TF until all of it is handed out.
    The grid starts anew at the first pose after a gap in the plan. To ask what comes next changes
    nothing: the grid moves when frames are handed out.

    Args:
        source: what TF says, where that is more than one frame's poses.
    """

    def __init__(self, config: PlanConfig, buffer: Transforms, source: Source | None = None) -> None:
        self.config = config
        self._buffer = buffer
        self._tf = source or TfSource(buffer, config.world_frame, config.camera_frame)
        self._path: PathSource | None = None
        self._anchor_ns: int | None = None
        self.cursor_ns: int | None = None
        self._rest: np.ndarray | None = None
        self._rest_since_ns = -1

    def set_path(self, path: StampedPoses) -> None:
        """Takes a Path instead of TF.

        Raises:
            MirageError: a frame that TF does not know, all of it in the past. The plan stays as
                it was.
        """
        world_from_frame = np.eye(4)[None]
        if not self._in_world(path):
            frames = (self.config.world_frame, path.frame)
            world_from_frame = self._buffer.matrices(*frames, path.stamps_ns)
        first_ns, last_ns = int(path.stamps_ns[0]), int(path.stamps_ns[-1])
        if self.is_past(last_ns):
            raise MirageError(
                f"The plan ends at {last_ns} ns but frames are rendered up to {self.cursor_ns} "
                "ns: it jumps back in time; send later stamps, or call ~/reset to start over."
            )
        self._path = PathSource(path, world_from_frame)
        self._anchor_ns = first_ns

    def knows(self, path: StampedPoses) -> bool:
        """It is the plan already, sent again; in another frame it may mean something else now."""
        if self._path is None or not self._in_world(path):
            return False
        given = self._path.path
        return (
            given.frame == path.frame
            and np.array_equal(given.stamps_ns, path.stamps_ns)
            and np.array_equal(given.poses, path.poses)
        )

    def _in_world(self, path: StampedPoses) -> bool:
        return path.frame in ("", self.config.world_frame)

    def forget(self) -> None:
        """Starts over: the next plan may have any stamps."""
        self._path = self._anchor_ns = self.cursor_ns = None
        self._rest_since_ns = -1

    def start_at(self, stamp_ns: int) -> None:
        """The time it is now: frames come one period apart from here on."""
        self.cursor_ns = self._anchor_ns = stamp_ns

    def begin_at(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """Where the camera stands before anything is planned."""
        self._rest, self._rest_since_ns = world_from_camera, -1

    def moved_to(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The same, for a world that was moved; a camera that was put somewhere stays there."""
        if self._rest_since_ns < 0:
            self._rest = world_from_camera

    def rest_at(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """Where the camera stands until poses later than now are planned; a Path is dropped."""
        self._rest, self._path = world_from_camera, None
        self._rest_since_ns = -1 if self.cursor_ns is None else self.cursor_ns

    @property
    def source(self) -> str:
        return "path" if self._active() is self._path and self._path else "tf"

    def end_ns(self) -> int | None:
        """The last planned time, None without a plan. Raises TransformError, which says why."""
        span = self._active().span()
        return span[1] if span else None

    def pending(self) -> int:
        """Frames that are planned but not handed out yet."""
        try:
            span = self._active().span()
        except TransformError:
            return 0
        if span is None:
            return 0
        start = self._next_ns(span[0])
        return max(0, (span[1] - start) // self.config.period_ns + 1)

    def peek(
        self,
        count: int,
        missing: Missing = Missing(),  # noqa: B008
        late_before_ns: int | None = None,
    ) -> Planned | None:
        """Up to `count` next frames, None if there are none. Raises TransformError.

        Args:
            late_before_ns: frames before this time are left out where `count` later ones are
                planned; None leaves out nothing.
        """
        source = self._active()
        try:
            span = source.span()
        except TransformError:
            if missing.policy != "hold" or not self._may_rest():
                raise
            span = None
        if span is None:
            return self._resting(count) if missing.policy == "hold" else None
        stamps, poses, stamp = [], [], self._next_ns(span[0])
        skipped = self._late(stamp, span[1], count, late_before_ns)
        stamp += skipped * self.config.period_ns
        while len(stamps) < count:
            if stamp <= span[1]:
                before, after = source.gap(stamp)
                if after - before > self.config.gap_s * SECOND_NS:
                    if stamps:
                        break
                    stamp = after
                pose = source.pose(stamp)
            else:
                pose = self._beyond(source, span, stamp, missing)
                if pose is None:
                    break
            stamps.append(stamp)
            poses.append(pose)
            stamp += self.config.period_ns
        return Planned(tuple(stamps), np.stack(poses), skipped) if stamps else None

    def commit(self, planned: Planned) -> None:
        """The frames are handed out: they do not come again, and the grid goes on from them."""
        self._anchor_ns, self.cursor_ns = planned.stamps_ns[0], planned.stamps_ns[-1]

    def resolved(self, planned: Planned) -> Planned:
        """Frames that were handed out, with the poses that hold now.

        Poses of a Path are its own, and those that were made up for want of a plan stay.
        """
        stamps, poses = planned.stamps_ns, planned.world_from_camera.copy()
        if self._path is not None and stamps[0] <= self._path.span()[1]:
            return planned
        try:
            span = self._tf.span()
            for index, stamp in enumerate(stamps):
                if span is not None and span[0] <= stamp <= span[1] and not self._in_gap(stamp):
                    poses[index] = self._tf.pose(stamp)
        except TransformError:
            return planned
        return Planned(stamps, poses)

    def _in_gap(self, stamp_ns: int) -> bool:
        before, after = self._tf.gap(stamp_ns)
        return after - before > self.config.gap_s * SECOND_NS

    def passed(self, stamp_ns: int) -> None:
        """Frames up to here came from elsewhere; the grid stays."""
        self.cursor_ns = stamp_ns

    def mark(self) -> Mark:
        """What `rewind` goes back to."""
        return self._anchor_ns, self.cursor_ns

    def rewind(self, mark: Mark) -> None:
        """Frames handed out since the mark were not rendered after all: they come again."""
        self._anchor_ns, self.cursor_ns = mark

    def is_past(self, stamp_ns: int) -> bool:
        return self.cursor_ns is not None and stamp_ns <= self.cursor_ns

    def _active(self) -> Source:
        if self._path is not None:
            span = self._path.span()
            if self._next_ns(span[0]) <= span[1] or not self._tf_known():
                return self._path
        return self._tf

    def _tf_known(self) -> bool:
        try:
            span = self._tf.span()
        except TransformError:
            return False
        return span is not None and not self.is_past(span[1])

    def _next_ns(self, first_ns: int) -> int:
        """The next time on the grid, which starts anew at the first pose when that is later."""
        stamp = first_ns if self._anchor_ns is None else self._anchor_ns
        if self.cursor_ns is not None and stamp <= self.cursor_ns:
            periods = (self.cursor_ns - stamp) // self.config.period_ns + 1
            stamp += periods * self.config.period_ns
        return max(stamp, first_ns)

    def _late(self, first_ns: int, last_ns: int, count: int, before_ns: int | None) -> int:
        """Frames from the first on that are before a time and have `count` others after them."""
        if before_ns is None:
            return 0
        period_ns = self.config.period_ns
        others = (last_ns - first_ns) // period_ns + 1 - count
        return max(0, min(others, -((first_ns - before_ns) // period_ns)))

    def _may_rest(self) -> bool:
        return self._rest is not None and self.cursor_ns is not None

    def _resting(self, count: int) -> Planned | None:
        """Frames of a camera that nothing moves, on the grid."""
        if not self._may_rest():
            return None
        start = self._next_ns(self.cursor_ns)
        stamps = tuple(start + index * self.config.period_ns for index in range(count))
        return Planned(stamps, np.stack([self._rest] * count))

    def _beyond(
        self, source: Source, span: tuple[int, int], stamp_ns: int, missing: Missing
    ) -> np.ndarray | None:
        beyond_ns = stamp_ns - span[1]
        if missing.policy == "wait" or beyond_ns > missing.elapsed_ns:
            return None
        rests = self._rest is not None and span[1] <= self._rest_since_ns
        last = self._rest if rests else source.pose(span[1])
        if missing.policy == "hold" or rests:
            return last
        if beyond_ns > missing.limit_ns:
            return None
        before_ns = max(span[0], span[1] - self.config.period_ns)
        if before_ns == span[1]:
            return last
        share = beyond_ns / (span[1] - before_ns)
        return advance(source.pose(before_ns), last, share)


@runtime_checkable
class FrameSource(Protocol):
    """What hands out frames for good, and takes those back that were not rendered.

    Attributes:
        follows_plan: its poses are those of the plan, which may still change.
    """

    follows_plan: bool

    def commit(self, planned: Planned) -> None: ...

    def take_back(self, planned: Planned, mark: Mark) -> None: ...


@runtime_checkable
class Timing(Protocol):
    """Decides when the next chunk is due, as Pacing."""

    def hear(self, now_s: float) -> None: ...

    def next(
        self, config: NodeConfig, chunk: int, idle_worker: bool, now_s: float, ros_ns: int
    ) -> tuple[Planned, FrameSource] | None: ...

"""What comes on /tf and /tf_static, checked before it enters the buffer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.plan import Plan
from mirage_ros.ros.serialized import transforms_from_bytes
from mirage_ros.ros.tf_buffer import Buffer, Pose
from mirage_ros.ros.tracks import TransformError

SLICE_S = 0.005
MOST_WAITING_BYTES = 2**25


@dataclass(frozen=True)
class Waiting:
    """A message that is not all taken in. `cleared` is the buffer's when it came."""

    poses: Iterator[Pose | MirageError]
    static: bool
    size: int
    cleared: int


class TfIntake:
    """The two callbacks. A bad transform is left out and told; the others of a message count.

    A message is taken in a slice at a time, so that services are answered meanwhile.

    Args:
        own_frames: that the node itself publishes.
        cameras: frames of a rig's cameras that TF mounts.
        published_ns: gives the stamp of the last frame that went out.
        replan: called when a camera may stand elsewhere at a time that was handed out already.
        go_on: called where something is left for `work_off`, to be called soon.
    """

    def __init__(
        self,
        buffer: Buffer,
        plan: Plan,
        health: Health,
        config: NodeConfig,
        *,
        own_frames: Collection[str] = (),
        cameras: Collection[str] = (),
        published_ns: Callable[[], int | None],
        replan: Callable[[], None],
        go_on: Callable[[], None],
    ) -> None:
        self._buffer, self._plan, self._health = buffer, plan, health
        self._world, self._planned = config.world_frame, config.camera_frame
        self._cameras = (config.camera_frame, *cameras)
        self._own, self._published_ns = own_frames, published_ns
        self._replan, self._go_on = replan, go_on
        self._waiting: deque[Waiting] = deque()

    def moving(self, data: bytes) -> None:
        """Callback of /tf. What the node itself publishes there is no news."""
        self._take(data, static=False)

    def static(self, data: bytes) -> None:
        """Callback of /tf_static."""
        self._take(data, static=True)

    def work_off(self) -> None:
        """As much of what waits as fits into a slice of time."""
        until_s, touched = time.monotonic() + SLICE_S, False
        while self._waiting:
            touched |= self._next(self._waiting[0])
            if time.monotonic() > until_s:
                break
        if touched:
            self._replan()
        if self._waiting:
            self._go_on()

    def _take(self, data: bytes, static: bool) -> None:
        if len(data) + sum(message.size for message in self._waiting) > MOST_WAITING_BYTES:
            self._health.error(
                "tf",
                f"More than {MOST_WAITING_BYTES >> 20} MiB of transforms wait; what comes on top is "
                "left out: publish fewer.",
            )
            return
        poses = transforms_from_bytes(data)
        self._waiting.append(Waiting(poses, static, len(data), self._buffer.cleared))
        if len(self._waiting) == 1:
            self.work_off()

    def _next(self, message: Waiting) -> bool:
        """One transform more. Whether a camera may stand elsewhere by it."""
        try:
            pose = next(message.poses, None)
        except MirageError as error:
            self._health.error("tf", str(error))
            pose = None
        if pose is None or not message.static and message.cleared != self._buffer.cleared:
            self._waiting.popleft()
            return False
        try:
            if isinstance(pose, MirageError):
                raise pose
            if pose.child in self._own:
                return False
            return self._enter_static(pose) if message.static else self._enter(pose)
        except MirageError as error:
            self._health.error("tf", str(error))
            return False

    def _enter_static(self, pose: Pose) -> bool:
        self._buffer.add_static(pose)
        return True

    def _enter(self, pose: Pose) -> bool:
        track = self._buffer.tracks.get(pose.child)
        latest_ns = track.stamps[-1] if track and track.stamps else 0
        known = self._buffer.holds(pose)
        self._buffer.add(pose)
        if pose.child == self._planned:
            self._check_order(pose.stamp_ns, latest_ns, known)
        # Also between the end of the plan and this pose, where frames may have been made up.
        past = self._plan.is_past(min(pose.stamp_ns, latest_ns))
        return past and not known and self._carries_a_camera(pose.child)

    def _carries_a_camera(self, child: str) -> bool:
        """Its transform is one of those between the world and a camera."""
        for camera in self._cameras:
            try:
                if child in self._buffer.links(self._world, camera):
                    return True
            except TransformError:
                continue
        return False

    def _check_order(self, stamp_ns: int, latest_ns: int, known: bool) -> None:
        """A plan may be told again while its frames are on their way: nothing changes by that."""
        past = self._plan.is_past(stamp_ns)
        if known and past and stamp_ns > (self._published_ns() or 0):
            return
        if stamp_ns < latest_ns and past:
            self._health.warn(
                "tf",
                f"The planned poses of '{self._planned}' jump back in time to where frames are "
                "rendered already; they are left out: send later stamps, or call ~/reset to start "
                "over.",
            )
        else:
            self._health.ok("tf")

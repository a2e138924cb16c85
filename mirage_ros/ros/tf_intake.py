"""What comes on /tf and /tf_static, checked before it enters the buffer."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tf2_msgs.msg import TFMessage

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.conversions import stamp_from_ros
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.plan import Plan
from mirage_ros.ros.tf_buffer import Buffer
from mirage_ros.ros.tracks import TransformError


class TfIntake:
    """The two callbacks. A bad transform is left out and told; the others of a message count.

    Args:
        replan: called when a camera may stand elsewhere at a time that was handed out already.
        own_frames: that the node itself publishes.
        cameras: frames of a rig's cameras that TF mounts.
        published_ns: gives the stamp of the last frame that went out.
    """

    def __init__(
        self,
        buffer: Buffer,
        plan: Plan,
        health: Health,
        config: NodeConfig,
        replan: Callable[[], None],
        own_frames: Collection[str],
        published_ns: Callable[[], int | None],
        cameras: Collection[str] = (),
    ) -> None:
        self._buffer, self._plan, self._health = buffer, plan, health
        self._replan, self._published_ns = replan, published_ns
        self._world, self._planned = config.world_frame, config.camera_frame
        self._cameras = (config.camera_frame, *cameras)
        self._own = own_frames

    def moving(self, message: TFMessage) -> None:
        """Callback of /tf. What the node itself publishes there is no news."""
        touched = False
        for transform in message.transforms:
            child = transform.child_frame_id
            if child in self._own:
                continue
            track = self._buffer.tracks.get(child)
            latest_ns = track.stamps[-1] if track and track.stamps else 0
            try:
                known = self._buffer.knows(transform)
                self._buffer.set_transform(transform)
            except MirageError as error:
                self._health.error("tf", str(error))
                continue
            stamp_ns = stamp_from_ros(transform.header.stamp)
            # Also between the end of the plan and this pose, where frames may have been made up.
            touched |= not known and self._plan.is_past(min(stamp_ns, latest_ns)) and (
                self._carries_a_camera(child)
            )
            if child == self._planned:
                self._check_order(stamp_ns, latest_ns, known)
        if touched:
            self._replan()

    def static(self, message: TFMessage) -> None:
        """Callback of /tf_static."""
        for transform in message.transforms:
            try:
                self._buffer.set_transform_static(transform)
            except MirageError as error:
                self._health.error("tf", str(error))
        self._replan()

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

"""Puts the messages of one frame together again, whatever order they arrive in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.core.errors import MirageError
from mirage_ros.core.frames import Frame
from mirage_ros.ros.conversions import camera_from_ros, stamp_from_ros, transform_from_ros
from mirage_ros.ros.image_conversions import depth_from_ros, mask_from_ros, picture_from_ros
from mirage_ros.ros.message_text import message_class

PICTURES = ("color/image_raw", "color/camera_info", "depth/image_rect", "observed/image")
PIECES = (*PICTURES, "/tf")
WAITING = 2000


class FrameAssembler:
    """Frames in the order of their stamps, each once all of its messages are here."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[str, object]] = {}
        # By stamp and child frame, of everybody: others plan on /tf far ahead of what is rendered.
        self._poses: dict[int, dict[str, np.ndarray]] = {}

    def add(self, name: str, type_name: str, data: bytes) -> Iterator[Frame]:
        """Takes one serialised message; yields the frame that it completes."""
        if name not in PIECES:
            return
        message = deserialize_message(data, message_class(type_name))
        stamps = self._add_poses(message) if name == "/tf" else self._add_picture(name, message)
        for stamp_ns in stamps:
            if (frame := self._frame(stamp_ns)) is not None:
                # Frames are published in order: what is older lacks something for good.
                self._pieces = {key: kept for key, kept in self._pieces.items() if key > stamp_ns}
                yield frame

    def _add_poses(self, message: TFMessage) -> list[int]:
        """The transforms' stamps. One that cannot be read is somebody else's, and no frame's pose."""
        stamps = []
        for transform in message.transforms:
            try:
                stamp_ns, pose = stamp_from_ros(transform.header.stamp), transform_from_ros(transform)
            except MirageError:
                continue
            # At the end, as the newest.
            self._poses[stamp_ns] = {**self._poses.pop(stamp_ns, {}), transform.child_frame_id: pose}
            if len(self._poses) > WAITING:
                del self._poses[next(iter(self._poses))]
            stamps.append(stamp_ns)
        return stamps

    def _add_picture(self, name: str, message: Image | CameraInfo) -> list[int]:
        stamp_ns = stamp_from_ros(message.header.stamp)
        self._pieces.setdefault(stamp_ns, {})[name] = message
        if len(self._pieces) > WAITING:
            del self._pieces[min(self._pieces)]
        return [stamp_ns]

    def _frame(self, stamp_ns: int) -> Frame | None:
        pieces = self._pieces.get(stamp_ns, {})
        if len(pieces) < len(PICTURES):
            return None
        color = pieces["color/image_raw"]
        pose = self._poses.get(stamp_ns, {}).get(color.header.frame_id)
        if pose is None:
            return None
        try:
            return Frame(
                stamp_ns,
                camera_from_ros(pieces["color/camera_info"], pose),
                picture_from_ros(color),
                depth_from_ros(pieces["depth/image_rect"]),
                mask_from_ros(pieces["observed/image"]),
            )
        except MirageError as error:
            raise MirageError(f"A frame of the node cannot be recorded: {error}") from error

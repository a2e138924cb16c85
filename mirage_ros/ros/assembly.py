"""Puts the messages of one frame together again, whatever order they arrive in."""

from __future__ import annotations

from collections.abc import Iterator

from rclpy.serialization import deserialize_message

from mirage_ros.core.errors import MirageError
from mirage_ros.core.frames import Frame
from mirage_ros.ros.conversions import camera_from_ros, stamp_from_ros, transform_from_ros
from mirage_ros.ros.image_conversions import depth_from_ros, mask_from_ros, picture_from_ros
from mirage_ros.ros.message_text import message_class

PIECES = ("color/image_raw", "color/camera_info", "depth/image_rect", "observed/image", "/tf")
WAITING = 2000


class FrameAssembler:
    """Frames in the order of their stamps, each once all of its messages are here."""

    def __init__(self) -> None:
        self._pieces: dict[int, dict[str, object]] = {}

    def add(self, name: str, type_name: str, data: bytes) -> Iterator[Frame]:
        """Takes one serialised message; yields the frame that it completes."""
        if name not in PIECES:
            return
        message = deserialize_message(data, message_class(type_name))
        for stamp_ns, piece in self._parts(name, message):
            pieces = self._pieces.setdefault(stamp_ns, {})
            pieces[name] = [*pieces.get(name, []), piece] if name == "/tf" else piece
            if (frame := self._frame(stamp_ns, pieces)) is not None:
                # Frames are published in order: what is older lacks something for good.
                self._pieces = {key: kept for key, kept in self._pieces.items() if key > stamp_ns}
                yield frame
        while len(self._pieces) > WAITING:
            del self._pieces[min(self._pieces)]

    def _parts(self, name: str, message) -> Iterator[tuple[int, object]]:
        if name == "/tf":
            for transform in message.transforms:
                yield stamp_from_ros(transform.header.stamp), transform
        else:
            yield stamp_from_ros(message.header.stamp), message

    def _frame(self, stamp_ns: int, pieces: dict[str, object]) -> Frame | None:
        if len(pieces) < len(PIECES):
            return None
        color = pieces["color/image_raw"]
        poses = [tf for tf in pieces["/tf"] if tf.child_frame_id == color.header.frame_id]
        if not poses:
            return None
        try:
            pose = transform_from_ros(poses[-1])
            return Frame(
                stamp_ns,
                camera_from_ros(pieces["color/camera_info"], pose),
                picture_from_ros(color),
                depth_from_ros(pieces["depth/image_rect"]),
                mask_from_ros(pieces["observed/image"]),
            )
        except MirageError as error:
            raise MirageError(f"A frame of the node cannot be recorded: {error}") from error

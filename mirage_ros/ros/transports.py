"""The compressed twins of the pictures, named as image_transport names them."""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from mirage_ros.core.frames import Frame
from mirage_ros.ros.lazy import LazyPublisher
from mirage_ros.ros.transport_conversions import (
    compressed_depth_to_ros,
    compressed_picture_to_ros,
)


@dataclass(frozen=True)
class TransportConfig:
    """How pictures are compressed.

    Attributes:
        kind: jpeg or png, of the colour picture.
        jpeg_quality: 1 to 100.
        max_depth_m: farther depth is sent as invalid.
    """

    kind: str = "jpeg"
    jpeg_quality: int = 90
    max_depth_m: float = 100.0


class CompressedPublishers:
    """`color/image_raw/compressed` and `depth/image_rect/compressedDepth`, for subscribers only.

    Args:
        prefix: put before the topics, such as "left/".
    """

    def __init__(
        self,
        node: Node,
        qos: QoSProfile,
        config: TransportConfig = TransportConfig(),
        prefix: str = "",
    ) -> None:
        self.config = config
        self.color = LazyPublisher(
            node, CompressedImage, f"{prefix}color/image_raw/compressed", qos
        )
        self.depth = LazyPublisher(
            node, CompressedImage, f"{prefix}depth/image_rect/compressedDepth", qos
        )

    def frame(self, frame: Frame, frame_id: str) -> None:
        """Publishes a frame under its planned stamp."""
        config = self.config
        self.color.publish(
            compressed_picture_to_ros,
            frame.rgb, frame.stamp_ns, frame_id, config.kind, config.jpeg_quality,
        )  # fmt: skip
        self.depth.publish(
            compressed_depth_to_ros,
            frame.depth_m, frame.stamp_ns, frame_id, "32FC1", config.max_depth_m,
        )  # fmt: skip

"""For eyes and thin links, as taps of the node: compressed pictures, markers, cloud deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from mirage_ros.core.frames import Frame, Points
from mirage_ros.ros.cache_deltas import DeltaPublisher
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.frustum import FrustumPublisher
from mirage_ros.ros.transports import CompressedPublishers, TransportConfig

if TYPE_CHECKING:
    from mirage_ros.ros.publishers import CameraOutput

MARKERS_DEPTH = 5
DELTAS_DEPTH = 100


class CompressedTap:
    """Each picture as JPEG or PNG, each depth as compressedDepth."""

    def __init__(self, node: Node, config: NodeConfig, camera: CameraOutput) -> None:
        reliable = config.image_reliability == "reliable"
        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=config.image_depth, reliability=policy)
        how = TransportConfig(config.compressed_format, config.jpeg_quality)
        self._publishers = CompressedPublishers(node, qos, how, camera.prefix)
        self.all = (self._publishers.color, self._publishers.depth)
        self._frame_id = camera.frame_id

    def frame(self, frame: Frame) -> None:
        self._publishers.frame(frame, self._frame_id)

    def cloud(self, points: Points, stamp_ns: int) -> None:
        pass


class MarkerTap:
    """Each frame's frustum: the newest is all that counts."""

    all = ()

    def __init__(self, node: Node, config: NodeConfig, camera: CameraOutput) -> None:
        qos = QoSProfile(depth=MARKERS_DEPTH)
        self._publisher = FrustumPublisher(
            node, qos, config.world_frame, camera.name, camera.prefix
        )

    def frame(self, frame: Frame) -> None:
        self._publisher.frame(frame)

    def cloud(self, points: Points, stamp_ns: int) -> None:
        pass


class DeltaTap:
    """Each cloud's new points. A rig has one memory, so the publisher is made by the first
    camera's first cloud."""

    all = ()

    def __init__(self, node: Node, config: NodeConfig, camera: CameraOutput) -> None:
        self._make = lambda: DeltaPublisher(
            node, QoSProfile(depth=DELTAS_DEPTH), config.world_frame, config.delta_bytes_per_s
        )
        self._publisher: DeltaPublisher | None = None

    def frame(self, frame: Frame) -> None:
        pass

    def cloud(self, points: Points, stamp_ns: int) -> None:
        if self._publisher is None:
            self._publisher = self._make()
        self._publisher.offer(points, stamp_ns)


VIEWING_TAPS: list[type] = [CompressedTap, MarkerTap, DeltaTap]

"""What the node publishes: names, types and QoS of the topics table, in one place.

The compressed twins of the pictures, named as image_transport names them.

For eyes and thin links, as taps of the node: compressed pictures, markers, cloud deltas.

What else is published of every frame and cloud: a class for each kind of topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from geometry_msgs.msg import TransformStamped
from jaxtyping import Float
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import Frame, Points
from mirage_ros.ros.callbacks import LazyPublisher
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.messages.clouds import cloud_to_ros
from mirage_ros.ros.messages.conversions import camera_info_to_ros, transform_to_ros
from mirage_ros.ros.messages.images import (
    compressed_depth_to_ros,
    compressed_picture_to_ros,
    depth_to_ros,
    mask_to_ros,
    picture_to_ros,
)
from mirage_ros.ros.overlays import DeltaPublisher, FrustumPublisher

if TYPE_CHECKING:
    pass


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


@runtime_checkable
class Tap(Protocol):
    """Made as `Tap(node, config, camera)`: the node, its NodeConfig, and the CameraOutput.

    Both methods run in the executor's thread: they look for subscribers first, and are quick.

    Attributes:
        all: the publishers whose every message counts.
    """

    all: Sequence[LazyPublisher]

    def frame(self, frame: Frame) -> None:
        """After the standard topics of the frame, with its stamp."""

    def cloud(self, points: Points, stamp_ns: int) -> None:
        """After cache/points; of a rig, only the first camera's tap is told."""


TAPS: list[type] = [*VIEWING_TAPS]


TF_DEPTH = 1000  # a plan may come as one burst of single transforms
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
UNNAMED = "_NODE_NAME_UNKNOWN_"
RELIABILITY = {
    "reliable": ReliabilityPolicy.RELIABLE,
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
}


DURABILITY = {
    "volatile": DurabilityPolicy.VOLATILE,
    "transient_local": DurabilityPolicy.TRANSIENT_LOCAL,
}


def streamed(depth: int, reliability: str = "reliable", durability: str = "volatile") -> QoSProfile:
    """The last `depth` messages kept; by default for nobody who comes later."""
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=RELIABILITY[reliability],
        durability=DURABILITY[durability],
    )


def publishers_of(node: Node, topic: str) -> list[str]:
    """Full names of the nodes that publish a topic, one for each publisher."""
    infos = node.get_publishers_info_by_topic(topic)
    return [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos]


@dataclass(frozen=True)
class CameraOutput:
    """Where one camera's pictures go.

    Attributes:
        name: of the camera, as an entity.
        prefix: put before its topics: "" or "left/".
        frame_id: of the pictures; their pose is published on TF.
    """

    name: str
    prefix: str
    frame_id: str


class CameraPublishers:
    """One camera's pictures; all messages of a frame carry the frame's planned stamp.

    Attributes:
        all: its publishers.
    """

    def __init__(self, node: Node, config: NodeConfig, camera: CameraOutput) -> None:
        self.camera = camera
        images = streamed(config.image_depth, config.image_reliability, config.image_durability)

        def lazy(kind: type, topic: str) -> LazyPublisher:
            return LazyPublisher(node, kind, camera.prefix + topic, images)

        self._color = lazy(Image, "color/image_raw")
        self._color_info = lazy(CameraInfo, "color/camera_info")
        self._depth = lazy(Image, "depth/image_rect")
        self._depth_info = lazy(CameraInfo, "depth/camera_info")
        self._observed = lazy(Image, "observed/image")
        self.all = (self._color, self._color_info, self._depth, self._depth_info, self._observed)

    def frame(self, frame: Frame) -> None:
        stamp = (frame.stamp_ns, self.camera.frame_id)
        self._color_info.publish(camera_info_to_ros, frame.camera, *stamp)
        self._depth_info.publish(camera_info_to_ros, frame.camera, *stamp)
        self._color.publish(picture_to_ros, frame.rgb, *stamp)
        self._depth.publish(depth_to_ros, frame.depth_m, *stamp)
        self._observed.publish(mask_to_ros, frame.observed, *stamp)


class Publishers:
    """One method per event. Frames of one instant, one of each camera, go out together."""

    def __init__(self, node: Node, config: NodeConfig, cameras: Sequence[CameraOutput]) -> None:
        self._node, self._config, self.cameras = node, config, tuple(cameras)
        self._pictures = [CameraPublishers(node, config, camera) for camera in cameras]
        self._cloud = node.create_publisher(PointCloud2, "cache/points", LATCHED)
        self._status = node.create_publisher(RolloutStatus, "status", streamed(config.image_depth))
        self._tf = node.create_publisher(TFMessage, "/tf", streamed(100))
        self._static = node.create_publisher(TFMessage, "/tf_static", LATCHED)
        self._taps = [[tap(node, config, camera) for tap in TAPS] for camera in cameras]

    def full_for(self, now_s: float) -> dict[str, float]:
        """Topics on which one more message may cost a subscriber the oldest, and since when (s)."""
        every = (*self._pictures, *(tap for taps in self._taps for tap in taps))
        found = {p.topic: p.full_for(now_s) for source in every for p in source.all}
        return {topic: seconds for topic, seconds in found.items() if seconds is not None}

    def shared(self) -> dict[str, list[str]]:
        """Topics of pictures, cloud and status that others publish, too, and who they are."""
        own = self._node.get_fully_qualified_name()
        pictures = (publisher.topic for source in self._pictures for publisher in source.all)
        found = {}
        for topic in (*pictures, self._cloud.topic_name, self._status.topic_name):
            names = publishers_of(self._node, topic)
            if own in names:
                names.remove(own)
            # DDS learns of a publisher before it learns whose it is: the next look tells the name.
            if names := [name for name in names if not name.endswith(UNNAMED)]:
                found[topic] = names
        return found

    def start(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """Where the world starts, for whoever comes."""
        frames = (self._config.world_frame, self._config.start_frame)
        transforms = [transform_to_ros(world_from_camera, *frames, 0)]
        self._static.publish(TFMessage(transforms=transforms))

    def instant(self, frames: Sequence[Frame]) -> None:
        """TF first, so that who receives a picture can place it at once."""
        poses = [self._pose(*pair) for pair in zip(frames, self.cameras, strict=True)]
        self._tf.publish(TFMessage(transforms=poses))
        for frame, pictures, taps in zip(frames, self._pictures, self._taps, strict=True):
            pictures.frame(frame)
            for tap in taps:
                tap.frame(frame)

    def cloud(self, points: Points, stamp_ns: int) -> None:
        message = cloud_to_ros(
            points.xyz,
            points.rgb,
            points.confidence,
            points.birth_ns,
            stamp_ns,
            self._config.world_frame,
        )
        self._cloud.publish(message)
        for tap in self._taps[0]:
            tap.cloud(points, stamp_ns)

    def status(self, message: RolloutStatus) -> None:
        self._status.publish(message)

    def _pose(self, frame: Frame, camera: CameraOutput) -> TransformStamped:
        return transform_to_ros(
            frame.camera.world_from_camera,
            self._config.world_frame,
            camera.frame_id,
            frame.stamp_ns,
        )

"""What the node publishes: names, types and QoS of the topics table, in one place."""

from __future__ import annotations

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.core.memory import Points
from mirage_ros.core.types import Frame
from mirage_ros.msg import RolloutStatus
from mirage_ros.ros.cloud_conversions import cloud_to_ros
from mirage_ros.ros.conversions import camera_info_to_ros, transform_to_ros
from mirage_ros.ros.image_conversions import depth_to_ros, mask_to_ros, picture_to_ros
from mirage_ros.ros.parameters import NodeConfig

TF_DEPTH = 1000  # a plan may come as one burst of single transforms
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
RELIABILITY = {
    "reliable": ReliabilityPolicy.RELIABLE,
    "best_effort": ReliabilityPolicy.BEST_EFFORT,
}


def streamed(depth: int, reliability: str = "reliable") -> QoSProfile:
    """Volatile, the last `depth` messages kept."""
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=RELIABILITY[reliability],
        durability=DurabilityPolicy.VOLATILE,
    )


class Publishers:
    """One method per event; all messages of a frame carry the frame's planned stamp."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self._config = config
        images = streamed(config.image_depth, config.image_reliability)
        self._color = node.create_publisher(Image, "color/image_raw", images)
        self._color_info = node.create_publisher(CameraInfo, "color/camera_info", images)
        self._depth = node.create_publisher(Image, "depth/image_rect", images)
        self._depth_info = node.create_publisher(CameraInfo, "depth/camera_info", images)
        self._observed = node.create_publisher(Image, "observed/image", images)
        self._cloud = node.create_publisher(PointCloud2, "cache/points", LATCHED)
        self._status = node.create_publisher(RolloutStatus, "status", streamed(config.image_depth))
        self._tf = node.create_publisher(TFMessage, "/tf", streamed(100))

    def frame(self, frame: Frame) -> None:
        """TF first, so that who receives the picture can place it at once."""
        stamp_ns, name = frame.stamp_ns, self._config.rendered_camera_frame
        self._tf.publish(TFMessage(transforms=[self._pose(frame)]))
        info = camera_info_to_ros(frame.camera, stamp_ns, name)
        self._color_info.publish(info)
        self._depth_info.publish(info)
        self._color.publish(picture_to_ros(frame.rgb, stamp_ns, name))
        self._depth.publish(depth_to_ros(frame.depth_m, stamp_ns, name))
        self._observed.publish(mask_to_ros(frame.observed, stamp_ns, name))

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

    def status(self, message: RolloutStatus) -> None:
        self._status.publish(message)

    def _pose(self, frame: Frame) -> TransformStamped:
        return transform_to_ros(
            frame.camera.world_from_camera,
            self._config.world_frame,
            self._config.rendered_camera_frame,
            frame.stamp_ns,
        )

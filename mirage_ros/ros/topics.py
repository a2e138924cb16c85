"""Publishers of the topics table: what the node sends of every frame, cloud and chunk.

`recording/topics.py` holds the table; here its rows get their rclpy QoS and message classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, PointCloud2
from sensor_msgs.msg import Imu as ImuMessage
from tf2_msgs.msg import TFMessage

from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import FloorPlan, Frame, Points
from mirage_ros.recording import topics
from mirage_ros.recording.topics import BY_NAME, TOPICS, FrameIds, Topic
from mirage_ros.ros import CameraOutput, NodeConfig
from mirage_ros.ros.callbacks import LazyPublisher
from mirage_ros.ros.cameras import imu_config
from mirage_ros.ros.image_messages import (
    compressed_depth_to_ros,
    compressed_picture_to_ros,
)
from mirage_ros.ros.messages import (
    cloud_to_ros,
    message_class,
    message_of,
    transform_to_ros,
)
from mirage_ros.ros.overlays import DeltaPublisher, FrustumPublisher
from mirage_ros.world.sensors import Imu

TF_DEPTH = 1000  # a plan may come as one burst of single transforms
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


LATCHED = streamed(1, durability="transient_local")


def offered_profile(topic: Topic, config: NodeConfig) -> QoSProfile:
    """The QoS of a row's publisher, as the node's parameters have it."""
    qos = topic.qos.resolved(config.image_depth, config.image_reliability, config.image_durability)
    return streamed(qos.depth, qos.reliability, qos.durability)


def publishers_of(node: Node, topic: str) -> list[str]:
    """Full names of the nodes that publish a topic, one for each publisher."""
    infos = node.get_publishers_info_by_topic(topic)
    return [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos]


def recorded_by_node(
    resolve: Callable[[str], str], cameras: Sequence[CameraOutput]
) -> dict[str, str]:
    """Whole topic name -> name in the table, of what a node keeps when it records itself.

    Topics of a rig's other cameras have no name in the table: their whole name stands for it.

    Args:
        resolve: gives the whole name of a relative one, as the node does.
    """
    found = {}
    for topic in TOPICS:
        if topic.recorded == topics.NOWHERE:
            continue
        for camera in cameras if topic.per_camera else cameras[:1]:
            prefix = camera.prefix if topic.per_camera else ""
            whole = resolve(prefix + topic.name)
            found[whole] = topic.name if camera is cameras[0] else whole
    return found


class CameraPublishers:
    """One camera's messages of every frame; all carry the frame's planned stamp.

    Attributes:
        all: its publishers by their row's name.
    """

    def __init__(self, node: Node, config: NodeConfig, camera: CameraOutput) -> None:
        self._makers: dict[str, Callable[[Frame], Any]] = {}
        self.all: dict[str, LazyPublisher] = {}
        for topic in TOPICS:
            maker = _maker(topic, config, camera) if topic.per_camera else None
            if maker is not None:
                self._makers[topic.name] = maker
                self.all[topic.name] = lazy_publisher(node, config, topic, camera.prefix)
        markers = lazy_publisher(node, config, BY_NAME[topics.MARKERS], camera.prefix)
        self.frustum = FrustumPublisher(markers, config.world_frame, camera.name)
        self._imu, self._frame_id = Imu(imu_config(config)), camera.frame_id
        self.inertia = lazy_publisher(node, config, BY_NAME[topics.IMU], camera.prefix)

    def frame(self, frame: Frame) -> None:
        for name, publisher in self.all.items():
            # Who has subscribed since the frame was asked for gets the next one's.
            if not (sensor := BY_NAME[name].sensor) or getattr(frame, sensor) is not None:
                publisher.publish(self._makers[name], frame)
        self.frustum.frame(frame)
        # Who subscribes later gets the motion since then, too.
        self._imu.moved(frame.stamp_ns, frame.camera.world_from_camera)
        self.inertia.publish(self._imu_message, frame)

    def _imu_message(self, frame: Frame) -> ImuMessage:
        rotation = frame.camera.world_from_camera[:3, :3]
        fields = topics.imu_fields(self._imu.measure(), rotation, frame.stamp_ns, self._frame_id)
        return message_of(ImuMessage, fields)

    def sensors(self) -> set[str]:
        """What has to be measured for those who subscribe now."""
        return {BY_NAME[name].sensor for name, publisher in self.all.items() if publisher.wanted} - {""}


def lazy_publisher(
    node: Node, config: NodeConfig, topic: Topic, prefix: str = ""
) -> LazyPublisher:
    """The publisher of a row, below `prefix`, whose messages are made for subscribers only."""
    profile = offered_profile(topic, config)
    return LazyPublisher(node, message_class(topic.type_name), prefix + topic.name, profile)


def _maker(topic: Topic, config: NodeConfig, camera: CameraOutput) -> Callable[[Frame], Any] | None:
    """What makes a row's message of a frame; None where a class with a state does."""
    if topic.fields is not None:
        kind, ids = message_class(topic.type_name), _frame_ids(config, camera)
        return lambda frame: message_of(kind, topic.fields(frame, ids))
    if topic.name in COMPRESSORS:
        return partial(COMPRESSORS[topic.name], config=config, frame_id=camera.frame_id)
    return None


def _frame_ids(config: NodeConfig, camera: CameraOutput) -> FrameIds:
    return FrameIds(config.world_frame, camera.frame_id, camera.scan_frame, camera.lidar_frame)


def _compressed_color(frame: Frame, config: NodeConfig, frame_id: str) -> CompressedImage:
    how = (config.compressed_format, config.jpeg_quality)
    return compressed_picture_to_ros(frame.rgb, frame.stamp_ns, frame_id, *how)


def _compressed_depth(frame: Frame, config: NodeConfig, frame_id: str) -> CompressedImage:
    return compressed_depth_to_ros(frame.depth_m, frame.stamp_ns, frame_id)


COMPRESSORS = {
    topics.COMPRESSED_COLOR: _compressed_color,
    topics.COMPRESSED_DEPTH: _compressed_depth,
}


class Publishers:
    """One method per event. Frames of one instant, one of each camera, go out together."""

    def __init__(self, node: Node, config: NodeConfig, cameras: Sequence[CameraOutput]) -> None:
        self._node, self._config, self.cameras = node, config, tuple(cameras)
        self._pictures = [CameraPublishers(node, config, camera) for camera in cameras]
        self._cloud = self._publisher(topics.POINTS)
        self._status = self._publisher(topics.STATUS)
        self._tf = self._publisher(topics.TF)
        self._static = self._publisher(topics.TF_STATIC)
        self._map = self._publisher(topics.MAP)
        # Of the robot, whichever cameras it carries.
        self._robot = {name: lazy_publisher(node, config, BY_NAME[name]) for name in (topics.CONTACTS, topics.OBSTACLES)}
        # Made with the first cloud.
        self._deltas: DeltaPublisher | None = None

    def full_for(self, now_s: float) -> dict[str, float]:
        """Topics on which one more message may cost a subscriber the oldest, and since when (s)."""
        every = (publisher for camera in self._pictures for publisher in camera.all.values())
        found = {publisher.topic: publisher.full_for(now_s) for publisher in every}
        return {topic: seconds for topic, seconds in found.items() if seconds is not None}

    def sensors(self) -> tuple[str, ...]:
        """What the worker has to measure for those who subscribe now, of any camera."""
        wanted = set().union(*(camera.sensors() for camera in self._pictures))
        # Latched, but nobody who comes later is waited for with work.
        if self._map.get_subscription_count():
            wanted.add(BY_NAME[topics.MAP].sensor)
        wanted |= {BY_NAME[name].sensor for name, publisher in self._robot.items() if publisher.wanted}
        return tuple(sorted(wanted))

    def shared(self) -> dict[str, list[str]]:
        """Topics of pictures, cloud and status that others publish, too, and who they are."""
        own = self._node.get_fully_qualified_name()
        pictures = [camera.all[name].topic for camera in self._pictures for name in topics.PICTURES]
        found = {}
        for topic in (*pictures, self._cloud.topic_name, self._status.topic_name):
            names = publishers_of(self._node, topic)
            if own in names:
                names.remove(own)
            # DDS learns of a publisher before it learns whose it is: the next look finds the name.
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
        self._tf.publish(message_of(TFMessage, {"transforms": self._poses(frames)}))
        for frame, pictures in zip(frames, self._pictures, strict=True):
            pictures.frame(frame)
        ids = _frame_ids(self._config, self.cameras[0])
        for name, publisher in self._robot.items():
            topic = BY_NAME[name]
            if getattr(frames[0], topic.sensor) is not None:
                publisher.publish(lambda frame, topic=topic: message_of(PointCloud2, topic.fields(frame, ids)), frames[0])

    def cloud(self, points: Points, stamp_ns: int) -> None:
        """The whole memory; of a rig's cameras, which share it, once."""
        world_frame = self._config.world_frame
        self._cloud.publish(cloud_to_ros(*points, stamp_ns, world_frame))
        if self._deltas is None:
            lazy = lazy_publisher(self._node, self._config, BY_NAME[topics.DELTAS])
            self._deltas = DeltaPublisher(lazy, world_frame, self._config.delta_bytes_per_s)
        self._deltas.offer(points, stamp_ns)

    def map(self, plan: FloorPlan, stamp_ns: int) -> None:
        """The floor plan of the whole world."""
        fields = topics.map_fields(plan, stamp_ns, self._config.world_frame)
        self._map.publish(message_of(OccupancyGrid, fields))

    def status(self, message: RolloutStatus) -> None:
        self._status.publish(message)

    def _publisher(self, name: str):
        topic = BY_NAME[name]
        kind, profile = message_class(topic.type_name), offered_profile(topic, self._config)
        return self._node.create_publisher(kind, name, profile)

    def _poses(self, frames: Sequence[Frame]) -> list[topics.Fields]:
        """The transforms of all cameras."""
        fields = BY_NAME[topics.TF].fields
        poses = []
        for frame, camera in zip(frames, self.cameras, strict=True):
            poses += fields(frame, _frame_ids(self._config, camera))["transforms"]
        return poses

"""Publishers of the topics table: what the node sends of every frame, cloud and chunk.

`recording/topics.py` holds the table; here its rows get their rclpy QoS and message classes.

The whole cloud is latched on cache/points and grows with the world; a subscriber on a thin link takes cache/deltas, which
keep to a rate in bytes a second, and adds them up. A message without points means: forget all. It comes first, and again
when much of what was sent is gone from memory, as in a new world.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt64
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import PointCloud2
from sensor_msgs.msg import Imu as ImuMessage
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import FloorPlan, Frame, Points
from mirage_ros.recording import topics
from mirage_ros.recording.topics import BY_NAME, TOPICS, FrameIds, Topic
from mirage_ros.ros import CameraOutput, NodeConfig
from mirage_ros.ros.callbacks import LazyPublisher
from mirage_ros.ros.cameras import imu_config
from mirage_ros.ros.image_messages import (
    compressed_depth_to_ros, compressed_picture_to_ros, frustum_to_ros, trail_to_ros,
)  # fmt: skip
from mirage_ros.ros.messages import POINT, cloud_to_ros, message_class, message_of, transform_to_ros
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
    how, frame_id = (config.compressed_format, config.jpeg_quality), camera.frame_id
    if topic.name == topics.COMPRESSED_COLOR:
        return lambda frame: compressed_picture_to_ros(frame.rgb, frame.stamp_ns, frame_id, *how)
    if topic.name == topics.COMPRESSED_DEPTH:
        return lambda frame: compressed_depth_to_ros(frame.depth_m, frame.stamp_ns, frame_id)
    return None


def _frame_ids(config: NodeConfig, camera: CameraOutput) -> FrameIds:
    return FrameIds(config.world_frame, camera.frame_id, camera.scan_frame, camera.lidar_frame)


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
        # Of each robot, whichever cameras it carries, by the place of its first one.
        leaders = [place for place, camera in enumerate(self.cameras) if camera.robot is not None] or [0]
        self._robots = [
            (place, BY_NAME[name], lazy_publisher(node, config, BY_NAME[name], self.cameras[place].robot or ""))
            for place in leaders
            for name in (topics.CONTACTS, topics.OBSTACLES)
        ]
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
        wanted |= {topic.sensor for _, topic, publisher in self._robots if publisher.wanted}
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
        for place, topic, publisher in self._robots:
            if getattr(frames[place], topic.sensor) is not None:
                publisher.publish(lambda frame, topic=topic: message_of(PointCloud2, topic.fields(frame, ids)), frames[place])

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


TRAIL_POSES = 2000
TRAIL_STEP_M = 0.01
JUMP_M = 2.0


class FrustumPublisher:
    """`markers` (MarkerArray): the newest frame's frustum and the trail, for subscribers only.

    Args:
        name: of the camera; one camera's markers replace each other in RViz.
    """

    def __init__(self, markers: LazyPublisher, world_frame: str, name: str = "camera") -> None:
        self.markers = markers
        self._world_frame, self._name = world_frame, name
        self._trail: deque[np.ndarray] = deque(maxlen=TRAIL_POSES)

    def frame(self, frame: Frame) -> None:
        """Shows a frame's camera; the trail begins anew where the camera jumps."""
        position = frame.camera.position_world
        step_m = np.linalg.norm(position - self._trail[-1]) if self._trail else np.inf
        if step_m > JUMP_M:
            self._trail.clear()
        if step_m > TRAIL_STEP_M:
            self._trail.append(position.copy())
        self.markers.publish(self._array, frame)

    def _array(self, frame: Frame) -> MarkerArray:
        where = (frame.stamp_ns, self._world_frame, self._name)
        markers = [frustum_to_ros(frame.camera, *where)]
        if len(self._trail) > 1:
            markers.append(trail_to_ros(list(self._trail), *where))
        return MarkerArray(markers=markers)


# Odd constants of MurmurHash3's and SplitMix64's finalisers.
MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)
STALE_SHARE = 0.5


class Deltas:
    """Which tokens a follower lacks. Holds 8 bytes for each that it has.

    Args:
        bytes_per_s: mean rate that is not exceeded by more than one second's worth; 0 is no cap.
        clock: gives seconds.
    """

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._credit, self._since_s = bytes_per_s, clock()
        self.backlog = 0
        self.forget()

    def forget(self) -> None:
        """The follower starts anew."""
        self._sent = np.zeros(0, np.uint64)
        self._had = 0

    def stale(self, points: Points) -> bool:
        """More than half of what the follower was ever sent is no longer in memory."""
        alive = int(np.isin(self._sent, token_keys(points)).sum())
        return alive < (1 - STALE_SHARE) * self._had

    def take(self, points: Points) -> Bool[np.ndarray, "n"]:
        """The points to send now, the oldest first when not all of them fit under the cap."""
        keys = token_keys(points)
        new = ~np.isin(keys, self._sent)
        budget = self._budget()
        self.backlog = max(int(new.sum()) - budget, 0)
        if self.backlog:
            rows = np.flatnonzero(new)
            order = np.argsort(points.written_ns[rows], kind="stable")
            new[rows[order[budget:]]] = False
        self._credit -= int(new.sum()) * POINT.itemsize if self.bytes_per_s else 0
        # Tokens that the memory dropped or replaced are not kept in mind.
        self._sent = keys[new | np.isin(keys, self._sent)]
        self._had += int(new.sum())
        return new

    def _budget(self) -> int:
        """Points that fit now."""
        if not self.bytes_per_s:
            return np.iinfo(np.int64).max
        now_s = self._clock()
        earned = (now_s - self._since_s) * self.bytes_per_s
        self._credit = min(self._credit + earned, self.bytes_per_s)
        self._since_s = now_s
        return max(int(self._credit) // POINT.itemsize, 0)


class DeltaPublisher:
    """`cache/deltas` (PointCloud2, fields of cache/points), for subscribers only.

    A subscriber that comes later gets everything, as deltas from nothing.
    """

    def __init__(self, cloud: LazyPublisher, world_frame: str, bytes_per_s: float) -> None:
        self.cloud, self.deltas = cloud, Deltas(bytes_per_s)
        self._world_frame = world_frame
        self._followers = 0

    def offer(self, points: Points, stamp_ns: int) -> int:
        """Sends what is new of the whole memory; returns how many points are still due."""
        followers = self.cloud.count
        if followers > self._followers or (followers and self.deltas.stale(points)):
            self.deltas.forget()
            self.cloud.publish(self._message, points, np.zeros(len(points.xyz), bool), stamp_ns)
        self._followers = followers
        if not followers:
            return 0
        new = self.deltas.take(points)
        if new.any():
            self.cloud.publish(self._message, points, new, stamp_ns)
        return self.deltas.backlog

    def _message(self, points: Points, new: np.ndarray, stamp_ns: int) -> PointCloud2:
        chosen = (values[new] for values in points)
        return cloud_to_ros(*chosen, stamp_ns, self._world_frame)


def token_keys(points: Points) -> UInt64[np.ndarray, "n"]:
    """A number for each token that says where and when it was born and what it looks like."""
    place = np.ascontiguousarray(points.xyz, np.float32).view(np.uint32).astype(np.uint64)
    colour = points.rgb.astype(np.uint64) @ np.array([1, 256, 65536], np.uint64)
    parts = (*place.T, points.written_ns.astype(np.uint64), colour)
    key = np.zeros(len(colour), np.uint64)
    for index, part in enumerate(parts):
        key = (key ^ part) * np.uint64(MIX[index % len(MIX)])
        key ^= key >> np.uint64(29)
    return key

"""What viewers and thin links subscribe to: new points of the memory, and the camera as RViz shows it.

The whole cloud is latched on cache/points and grows with the world; a subscriber on a thin link
takes cache/deltas, which keep to a rate in bytes a second, and adds them up. A message without
points means: forget all. It comes first, and again when much of what was sent is gone from memory,
as in a new world.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from geometry_msgs.msg import Point
from jaxtyping import Bool, Float, UInt64
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame, Points
from mirage_ros.ros.callbacks import LazyPublisher
from mirage_ros.ros.messages import POINT, cloud_to_ros, pose_to_ros, stamp_to_ros

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

    def __init__(
        self,
        cloud: LazyPublisher,
        world_frame: str,
        bytes_per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cloud = cloud
        self.deltas = Deltas(bytes_per_s, clock)
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


LENGTH_M = 0.4
LINE_M = 0.012
TRAIL_POSES = 2000
TRAIL_STEP_M = 0.01
JUMP_M = 2.0
FRUSTUM_COLOUR = (0.25, 0.77, 0.71, 1.0)
TRAIL_COLOUR = (1.0, 0.62, 0.26, 1.0)
# Edges between the camera's centre (0) and the corners of its picture (1 to 4).
EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def frustum_corners(camera: Camera, length_m: float = LENGTH_M) -> Float[np.ndarray, "5 3"]:
    """The centre and the picture's four outer corners at a depth, in the camera's axes."""
    height, width = camera.size
    pixels = np.array(
        [[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]]
    )
    still = Camera(camera.intrinsics, np.eye(4), camera.size)
    corners = still.unproject(pixels, np.full(4, length_m))
    return np.concatenate([np.zeros((1, 3)), corners])


def frustum_to_ros(camera: Camera, stamp_ns: int, frame_id: str, name: str = "camera") -> Marker:
    """A frustum of lines whose marker pose is the camera's pose in `frame_id`."""
    marker = _marker(Marker.LINE_LIST, f"{name}/frustum", stamp_ns, frame_id, FRUSTUM_COLOUR)
    marker.pose = pose_to_ros(camera.world_from_camera)
    corners = frustum_corners(camera)
    marker.points = _points([corners[index] for edge in EDGES for index in edge])
    return marker


def trail_to_ros(
    positions: Sequence[Float[np.ndarray, "3"]], stamp_ns: int, frame_id: str, name: str = "camera"
) -> Marker:
    """A line through the camera's past positions in `frame_id`."""
    marker = _marker(Marker.LINE_STRIP, f"{name}/trail", stamp_ns, frame_id, TRAIL_COLOUR)
    marker.pose = pose_to_ros(np.eye(4))
    marker.points = _points(positions)
    return marker


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


def _marker(kind: int, name: str, stamp_ns: int, frame_id: str, colour: Sequence[float]) -> Marker:
    marker = Marker(type=kind, action=Marker.ADD, ns=name, id=0)
    marker.header.stamp = stamp_to_ros(stamp_ns)
    marker.header.frame_id = frame_id
    marker.scale.x = LINE_M
    red, green, blue, alpha = colour
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
    return marker


def _points(positions) -> list[Point]:
    return [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in positions]

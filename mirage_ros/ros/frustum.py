"""The camera as RViz shows it: a frustum at its pose and the way it came."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point
from jaxtyping import Float
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mirage_ros.core.camera import Camera
from mirage_ros.core.frames import Frame
from mirage_ros.ros.conversions import pose_to_ros, stamp_to_ros
from mirage_ros.ros.lazy import LazyPublisher

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

    def __init__(
        self, node: Node, qos: QoSProfile, world_frame: str, name: str = "camera", prefix: str = ""
    ) -> None:
        self.markers = LazyPublisher(node, MarkerArray, f"{prefix}markers", qos)
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

"""Watches a drive over DDS and keeps its trace: pictures, odometry and the memory's cloud.

It has a ROS context of its own, for a process that is not otherwise a ROS one.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import rclpy
from nav_msgs.msg import Odometry
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from mirage_ros.loop.base import Footprint
from mirage_ros.loop.drive import Snap, Trace, clearances_m
from mirage_ros.recording.topics import BY_NAME, PARTS, POINTS, TF
from mirage_ros.ros.messages.conversions import cloud_from_ros, message_class, stamp_from_ros, transform_from_ros
from mirage_ros.ros.topics import frame_of
from mirage_ros.ros.wander_node import base_from_odometry

LATCHED = QoSProfile(depth=64, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class LoopMonitor(Node):
    """Keeps every message by its stamp; `trace` puts them together.

    Args:
        step_frames: frames that follow one command.
    """

    def __init__(
        self,
        footprint: Footprint,
        step_frames: int,
        rendered_frame: str = "mirage_camera_optical_frame",
        **kwargs,
    ) -> None:
        super().__init__("mirage_loop_monitor", **kwargs)
        self._footprint, self._step = footprint, step_frames
        self._rendered = rendered_frame
        self._got: dict[str, dict[int, object]] = {name: {} for name in [*PARTS, "odom", "tf"]}
        self._clouds: dict[int, PointCloud2] = {}
        for name in PARTS:
            kind = message_class(BY_NAME[name].type_name)
            self.create_subscription(kind, name, self._keep(name), QoSProfile(depth=200))
        self.create_subscription(Odometry, "odom", self._keep("odom"), LATCHED)
        self.create_subscription(PointCloud2, POINTS, self._on_cloud, LATCHED)
        self.create_subscription(TFMessage, TF, self._on_tf, QoSProfile(depth=1000))

    def _keep(self, name: str):
        def callback(message) -> None:
            self._got[name][stamp_from_ros(message.header.stamp)] = message

        return callback

    def _on_cloud(self, message: PointCloud2) -> None:
        self._clouds[stamp_from_ros(message.header.stamp)] = message

    def _on_tf(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._rendered:
                stamp_ns = stamp_from_ros(transform.header.stamp)
                self._got["tf"][stamp_ns] = transform_from_ros(transform)

    def instants(self) -> list[int]:
        """Stamps (ns) of which all has come, in order."""
        return sorted(set.intersection(*(set(found) for found in self._got.values())))

    def way_m(self) -> float:
        """Length of the way so far."""
        odometry = self._got["odom"]
        places = [base_from_odometry(odometry[stamp])[0] for stamp in sorted(odometry)]
        return sum(_apart_m(a, b) for a, b in zip(places, places[1:], strict=False))

    def trace(self) -> Trace:
        """The drive as far as it was heard, in whole steps."""
        odometry, stamps = self._got["odom"], self.instants()
        begin_ns = min(odometry)
        trace = Trace(base_from_odometry(odometry[begin_ns])[0])
        for first in range(0, len(stamps) - self._step + 1, self._step):
            chunk = stamps[first : first + self._step]
            self._add_step(trace, chunk, stamps[first - 1] if first else begin_ns)
        if self._clouds:
            newest = cloud_from_ros(self._clouds[max(self._clouds)])
            trace.points, trace.colours = newest["xyz"], newest["rgb"]
        return trace

    def _add_step(self, trace: Trace, chunk: list[int], decided_ns: int) -> None:
        snaps = [self._snap(stamp_ns) for stamp_ns in chunk]
        trace.commands.append(base_from_odometry(self._got["odom"][chunk[0]])[1])
        trace.snaps += snaps
        held = [stamp for stamp in self._clouds if stamp <= decided_ns]
        places = trace.positions_xy[-len(snaps) :]
        points = cloud_from_ros(self._clouds[max(held)])["xyz"] if held else trace.points
        trace.clear_m += clearances_m(self._footprint, points, places).tolist()

    def _snap(self, stamp_ns: int) -> Snap:
        got = {name: found[stamp_ns] for name, found in self._got.items()}
        frame, (base, _) = frame_of(stamp_ns, got, got["tf"]), base_from_odometry(got["odom"])
        return Snap(stamp_ns, base, frame.camera, frame.rgb, frame.depth_m, frame.observed)


def _apart_m(first, second) -> float:
    return ((first.x_m - second.x_m) ** 2 + (first.y_m - second.y_m) ** 2) ** 0.5


SETTLE_S = 1.0


class LoopWatch:
    """Context manager: a LoopMonitor with its own ROS context, in a child's ROS domain.

    Args:
        environment: of the children that are watched.
    """

    def __init__(self, environment: dict[str, str], footprint: Footprint, step: int) -> None:
        key = "ROS_AUTOMATIC_DISCOVERY_RANGE"
        os.environ[key] = environment.get(key, "LOCALHOST")
        self._context = Context()
        rclpy.init(context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self._monitor = LoopMonitor(footprint, step, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._monitor)

    def __enter__(self) -> LoopWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        self._monitor.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        """Takes in messages for so long."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def settle(self) -> None:
        """Lets the last messages arrive."""
        self.spin(SETTLE_S)

    def way_m(self) -> float:
        return self._monitor.way_m()

    def frames(self) -> int:
        return len(self._monitor.instants())

    def trace(self) -> Trace:
        return self._monitor.trace()

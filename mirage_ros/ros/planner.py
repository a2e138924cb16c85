"""A planner that publishes a camera path on TF, stamped ahead of time, a few seconds at once.

It knows the node only by its topics: what it has rendered so far is the stamp of the newest
color/camera_info.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from mirage_ros.data.seeds import load_seed, plan_tour
from mirage_ros.errors import MirageError
from mirage_ros.files import write_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.recording.topics import COLOR_INFO, TF
from mirage_ros.ros.callbacks import ending_with_ros
from mirage_ros.ros.messages import SECOND_NS, stamp_from_ros, transform_to_ros

TICK_S = 0.05
START_DELAY_NS = SECOND_NS // 2
TF_DEPTH = 200


@dataclass(frozen=True)
class PlannerConfig:
    """What to plan and how to offer it.

    Attributes:
        seed, hfov_deg: the view to start from, see `load_seed`.
        frames, rate_hz: length of the path and poses per second of planned time.
        scene_depth_m: assumed distance of a photograph's scene; None measures or assumes 3 m.
        ahead_s: how much of the plan is published ahead of what was rendered.
        listeners: subscriptions to /tf to wait for, so that nobody misses the beginning.
        wait_s: how long to wait for them, and for the node's pictures at the end.
        log: JSON file that gets the stamps and poses of the plan, or None.
    """

    seed: str = "room"
    hfov_deg: float | None = None
    frames: int = 72
    rate_hz: float = 10.0
    scene_depth_m: float | None = None
    world_frame: str = "world"
    camera_frame: str = "camera_color_optical_frame"
    namespace: str = ""
    ahead_s: float = 3.0
    listeners: int = 1
    wait_s: float = 120.0
    log: Path | None = None


class Planner(Node):
    """Publishes `cameras` at `stamps_ns`; `done` once the last one was rendered."""

    def __init__(self, cameras: Camera, config: PlannerConfig) -> None:
        super().__init__("mirage_planner", namespace=config.namespace)
        self.cameras, self.config = cameras, config
        self.stamps_ns: list[int] = []
        self.sent = 0
        self.rendered_ns = 0
        self.done = False
        self._tf = self.create_publisher(TFMessage, TF, TF_DEPTH)
        self.create_subscription(
            CameraInfo,
            COLOR_INFO,
            self._on_rendered,
            QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE),
        )

    def missing(self) -> str:
        """Who is not there yet, empty when everybody listens."""
        if self._tf.get_subscription_count() < self.config.listeners:
            return f"{self.config.listeners} subscriptions to /tf"
        if not self.count_publishers(COLOR_INFO):
            return f"a publisher of {self.resolve_topic_name(COLOR_INFO)}"
        return ""

    def start(self) -> None:
        """Fix the plan's stamps: half a second from now, on whole frame periods."""
        period_ns = round(SECOND_NS / self.config.rate_hz)
        begin_ns = self.get_clock().now().nanoseconds + START_DELAY_NS
        begin_ns -= begin_ns % period_ns
        self.stamps_ns = [begin_ns + index * period_ns for index in range(len(self.cameras))]
        if self.config.log is not None:
            _write_log(self.config.log, self.cameras, self.stamps_ns, self.config)
        self.create_timer(TICK_S, self._publish_due)

    def _publish_due(self) -> None:
        horizon_ns = max(self.rendered_ns, self.stamps_ns[0])
        horizon_ns += int(self.config.ahead_s * SECOND_NS)
        message = TFMessage()
        while self.sent < len(self.stamps_ns) and self.stamps_ns[self.sent] <= horizon_ns:
            pose = self.cameras[self.sent].world_from_camera
            stamp_ns = self.stamps_ns[self.sent]
            frames = (self.config.world_frame, self.config.camera_frame)
            message.transforms.append(transform_to_ros(pose, *frames, stamp_ns))
            self.sent += 1
        if message.transforms:
            self._tf.publish(message)
        self.done = self.rendered_ns >= self.stamps_ns[-1]

    def _on_rendered(self, info: CameraInfo) -> None:
        self.rendered_ns = max(self.rendered_ns, stamp_from_ros(info.header.stamp))


def run_planner(config: PlannerConfig) -> None:
    """Plan, wait for listeners, publish, and return once the last pose was rendered.

    Raises:
        MirageError: nobody listens, or the node stops rendering, for `wait_s`.
    """
    seed = load_seed(config.seed, config.hfov_deg)
    cameras = plan_tour(seed.camera, config.frames, seed.depth_m, config.scene_depth_m)
    rclpy.init()
    try:
        with ending_with_ros():
            planner = Planner(cameras, config)
            _spin_until(planner, lambda: not planner.missing(), planner.missing, config.wait_s)
            planner.start()
            _spin_while_rendering(planner)
    except ExternalShutdownException:
        raise KeyboardInterrupt from None
    finally:
        rclpy.try_shutdown()


def _spin_until(planner: Planner, ready, what, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not ready():
        if time.monotonic() > deadline:
            raise MirageError(
                f"The planner waited {wait_s:.0f} s for {what()}; start `mirage node` in the same "
                "ROS domain and namespace."
            )
        rclpy.spin_once(planner, timeout_sec=TICK_S)


def _spin_while_rendering(planner: Planner) -> None:
    newest_ns, since = 0, time.monotonic()
    while not planner.done:
        rclpy.spin_once(planner, timeout_sec=TICK_S)
        if planner.rendered_ns > newest_ns:
            newest_ns, since = planner.rendered_ns, time.monotonic()
        elif time.monotonic() - since > planner.config.wait_s:
            raise MirageError(
                f"No new picture came for {planner.config.wait_s:.0f} s after {planner.sent} poses"
                "; look at the node's log and /diagnostics."
            )


def _write_log(path: Path, cameras: Camera, stamps_ns: list[int], config: PlannerConfig) -> None:
    values = {
        "world_frame": config.world_frame,
        "camera_frame": config.camera_frame,
        "size": cameras.size,
        "intrinsics": cameras.intrinsics[0].tolist(),
        "stamps_ns": stamps_ns,
        "world_from_camera": cameras.world_from_camera.tolist(),
        "started_ns": time.time_ns(),
    }
    write_file(path, json.dumps(values))

"""Publishes one picture over and over through the lazy publishers; prints what it made.

Arguments: bytes a second of cache/deltas, new tokens with every frame.
"""

import json
import sys

import numpy as np
import rclpy

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame, Points
from mirage_ros.recording.topics import BY_NAME, DELTAS, IMU, MARKERS
from mirage_ros.ros import CameraOutput, NodeConfig
from mirage_ros.ros.topics import CameraPublishers, DeltaPublisher, lazy_publisher

PERIOD_NS = 50_000_000
SIZE = (48, 64)


def make_frame(index: int) -> Frame:
    """A gradient over a slanted wall; the camera moves along x by 5 cm a frame."""
    pose = np.eye(4)
    pose[0, 3] = 0.05 * index
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    rgb = np.stack([u * 3, v * 4, np.full(SIZE, 90)], -1).astype(np.uint8)
    depth = (1.0 + u / 20).astype(np.float32)
    depth[:4], depth[4:8] = np.nan, np.inf
    camera = Camera.from_hfov(70.0, SIZE, pose)
    return Frame((index + 1) * PERIOD_NS, camera, rgb, depth, np.ones(SIZE, bool))


def make_points(count: int) -> Points:
    """The first `count` tokens of a memory that only grows."""
    xyz = np.random.default_rng(3).uniform(-3, 3, (count, 3)).astype(np.float32)
    births = np.arange(count, dtype=np.int64) * 1_000_000
    rgb = (np.arange(count * 3).reshape(count, 3) % 251).astype(np.uint8)
    return Points(xyz, rgb, np.ones(count, np.float32), births)


def main() -> None:
    bytes_per_s, growth = float(sys.argv[1]), int(sys.argv[2])
    rclpy.init()
    node = rclpy.create_node("talker")
    config = NodeConfig()
    pictures = CameraPublishers(node, config, CameraOutput("camera", "", "camera"))
    deltas = DeltaPublisher(lazy_publisher(node, config, BY_NAME[DELTAS]), "world", bytes_per_s)
    lazy = {**pictures.all, MARKERS: pictures.frustum.markers, DELTAS: deltas.cloud, IMU: pictures.inertia}
    index = 0

    def tick() -> None:
        nonlocal index
        frame = make_frame(index)
        pictures.frame(frame)
        backlog = deltas.offer(make_points(growth * (index + 1)), frame.stamp_ns)
        index += 1
        made = {name: publisher.made for name, publisher in lazy.items()}
        print(json.dumps({"frames": index, "backlog": backlog, **made}), flush=True)

    node.create_timer(PERIOD_NS / 1e9, tick)
    rclpy.spin(node)


if __name__ == "__main__":
    main()

"""Nodes with one fault each, for `mirage doctor` to find.

Arguments: `fault` or `fault:node_name`, any number of them.
"""

import contextlib
import sys

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.ros.messages import stamp_to_ros, transform_to_ros

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
POSE = np.eye(4)


def lossy_camera(node):
    node.create_publisher(Image, "image", BEST_EFFORT)
    node.create_subscription(Image, "image", lambda message: None, 5)


def unlatched_map(node):
    node.create_publisher(Image, "map", 5)
    node.create_subscription(Image, "map", lambda message: None, LATCHED)


def clock(node):
    publisher = node.create_publisher(Clock, "/clock", 10)
    return lambda tick: publisher.publish(Clock(clock=stamp_to_ros(10**9 + tick * 10**8)))


def looping_clock(node):
    publisher = node.create_publisher(Clock, "/clock", 10)
    return lambda tick: publisher.publish(Clock(clock=stamp_to_ros(10**9 + tick % 5 * 10**8)))


def timeless(node):
    node.create_subscription(Clock, "/clock", lambda message: None, 10)


def camera(node):
    """Sound: a camera that hangs on the world by a static and a moving transform."""
    moving = node.create_publisher(TFMessage, "/tf", 10)
    static = node.create_publisher(TFMessage, "/tf_static", LATCHED)
    static.publish(TFMessage(transforms=[transform_to_ros(POSE, "base", "camera", 0)]))
    infos = node.create_publisher(CameraInfo, "camera_info", BEST_EFFORT)

    def tick(count):
        stamp = 10**9 + count * 10**8
        moving.publish(TFMessage(transforms=[transform_to_ros(POSE, "world", "base", stamp)]))
        info = CameraInfo()
        info.header.frame_id, info.header.stamp = "camera", stamp_to_ros(stamp)
        infos.publish(info)

    return tick


def lost_camera(node):
    infos = node.create_publisher(CameraInfo, "camera_info", 5)
    info = CameraInfo()
    info.header.frame_id = "lost_camera"
    return lambda tick: infos.publish(info)


def two_parents(node):
    moving = node.create_publisher(TFMessage, "/tf", 10)

    def tick(count):
        parent = ("world", "odom")[count % 2]
        transform = transform_to_ros(POSE, parent, "base", 10**9 + count * 10**8)
        moving.publish(TFMessage(transforms=[transform]))

    return tick


def bad_transform(node):
    moving = node.create_publisher(TFMessage, "/tf", 10)

    def tick(count):
        transform = transform_to_ros(POSE, "world", "base", 10**9 + count * 10**8)
        transform.transform.rotation.w = float("nan")
        moving.publish(TFMessage(transforms=[transform]))

    return tick


def unwell(node):
    publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    status = DiagnosticStatus(level=DiagnosticStatus.ERROR, name="arm", message="too hot")
    return lambda tick: publisher.publish(DiagnosticArray(status=[status]))


def main():
    rclpy.init()
    executor = SingleThreadedExecutor()
    ticks, nodes = [], []
    for word in sys.argv[1:]:
        fault, _, name = word.partition(":")
        node = rclpy.create_node(name or fault)
        tick = globals()[fault](node)
        ticks += [tick] if tick else []
        nodes.append(node)
        executor.add_node(node)
    count = 0

    def on_timer():
        nonlocal count
        for tick in ticks:
            tick(count)
        count += 1

    nodes[0].create_timer(0.1, on_timer)
    print("up", flush=True)
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    main()

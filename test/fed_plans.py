"""Plans that tests feed with poses of their own, without a node, and what they hand out."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message
from transforms3d.euler import euler2mat

from mirage_ros.ros.messages import pose_to_ros, stamp_to_ros, transform_to_ros
from mirage_ros.ros.plan import Plan, PlanConfig
from mirage_ros.ros.tf import Buffer

SECOND = 1_000_000_000
PERIOD = SECOND // 10
START = 1_763_000_000 * SECOND + 123_456_789
LAST = (2**31 - 1) * SECOND


def pose_at(x: float, yaw: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = euler2mat(0, 0, yaw)
    pose[0, 3] = x
    return pose


def feed(buffer: Buffer, stamps_ns, parent="world", child="camera", speed=1.0, turn=0.0) -> None:
    """A frame that moves along x at `speed` m/s and turns about z at `turn` rad/s."""
    for stamp_ns in stamps_ns:
        seconds = (stamp_ns - START) / SECOND
        pose = pose_at(speed * seconds, turn * seconds)
        buffer.set_transform(transform_to_ros(pose, parent, child, stamp_ns))


def stamps(count: int, first: int = START, step: int = PERIOD) -> list[int]:
    return [first + index * step for index in range(count)]


def make_plan(buffer: Buffer, **config) -> Plan:
    return Plan(PlanConfig("world", "camera", **config), buffer)


def drain(plan: Plan, count: int = 4) -> list[int]:
    """All frame times that the plan hands out now."""
    times = []
    while (planned := plan.peek(count)) is not None:
        times += planned.stamps_ns
        plan.commit(planned)
    return times


def path_bytes(stamps_ns, frame="world") -> bytes:
    message = Path()
    message.header.frame_id = frame
    for stamp_ns in stamps_ns:
        pose = PoseStamped(pose=pose_to_ros(pose_at((stamp_ns - START) / SECOND)))
        pose.header.stamp = stamp_to_ros(stamp_ns)
        message.poses.append(pose)
    return bytes(serialize_message(message))

"""A policy that plans a few poses ahead of the simulator's time: python lockstep_policy.py SEED N.

What it knows it asks the simulator: killed and started again, it goes on from the time that it is.
It says its plan again while time stands still: that somebody subscribes to TF does not mean that
everybody does, and what goes out before two sides know each other is lost.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import rclpy  # noqa: E402
from plans import sideways  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from ros_client import CAMERA  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sim_client import PERIOD, START  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from mirage_ros.ros.messages import stamp_from_ros, transform_to_ros

AHEAD = 4
REPEAT_S = 1.0


def main() -> None:
    seed, frames = sys.argv[1], int(sys.argv[2])
    poses = sideways(seed, frames)
    rclpy.init()
    node = rclpy.create_node("policy")
    tf = node.create_publisher(TFMessage, "/tf", 100)
    now = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(
        Clock, "/clock", lambda m: now.append(stamp_from_ros(m.clock)), latched
    )
    sent, told_s = -1, 0.0
    while not now or now[-1] < START + frames * PERIOD:
        rclpy.spin_once(node, timeout_sec=0.1)
        if not now or not tf.get_subscription_count():
            continue
        done = (now[-1] - START) // PERIOD
        if time.monotonic() - told_s > REPEAT_S:
            sent = done
        ahead = range(max(done, sent), min(done + AHEAD, frames))
        message = TFMessage()
        for index in ahead:
            stamp_ns = START + (1 + index) * PERIOD
            message.transforms.append(transform_to_ros(poses[index], "world", CAMERA, stamp_ns))
        if message.transforms:
            tf.publish(message)
            sent, told_s = max(sent, ahead[-1] + 1), time.monotonic()
    rclpy.shutdown()


if __name__ == "__main__":
    main()

"""A subscriber of pictures that says every stamp it gets, one a line: python stamp_listener.py TOPIC."""

import sys

import rclpy
from sensor_msgs.msg import Image


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("listener")
    node.create_subscription(
        Image,
        sys.argv[1],
        lambda m: print(m.header.stamp.sec * 10**9 + m.header.stamp.nanosec, flush=True),
        200,
    )
    rclpy.spin(node)


if __name__ == "__main__":
    main()

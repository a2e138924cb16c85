"""A stranger's subscriber, written from the topics table alone: it knows no mirage_ros.

It takes the latched cloud, then one frame's depth, camera info, mask and pose, and rebuilds the
depth picture from the cloud. Prints one line of JSON. Argument: pixels per memory cell.
"""

import json
import sys
import time

import numpy as np
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage


def rotation(q):
    x, y, z, w = q.x, q.y, q.z, q.w
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def read_points(cloud):
    offsets = {field.name: field.offset for field in cloud.fields}
    kind = np.dtype(
        {
            "names": ["x", "y", "z", "confidence", "age"],
            "formats": ["<f4"] * 5,
            "offsets": [offsets[name] for name in ("x", "y", "z", "confidence", "age")],
            "itemsize": cloud.point_step,
        }
    )
    points = np.frombuffer(bytes(cloud.data), kind, cloud.width * cloud.height)
    return np.stack([points["x"], points["y"], points["z"]], -1).astype(float)


def rebuild(points, info, transform, cell):
    """Depth by splatting every point over its cell, nearest first, as any viewer would."""
    t, k = transform.translation, np.array(info.k).reshape(3, 3)
    seen = (points - [t.x, t.y, t.z]) @ rotation(transform.rotation)
    seen = seen[seen[:, 2] > 0.05]
    pixels = seen @ k.T
    pixels = np.round(pixels[:, :2] / pixels[:, 2:]).astype(int)
    depth = np.full((info.height, info.width), np.inf)
    half = cell // 2
    for (u, v), z in zip(pixels, seen[:, 2], strict=True):
        rows = slice(max(0, v - half), max(0, v + half))
        columns = slice(max(0, u - half), max(0, u + half))
        depth[rows, columns] = np.minimum(depth[rows, columns], z)
    return depth


def main():
    cell = int(sys.argv[1])
    rclpy.init()
    node = rclpy.create_node("stranger")
    got = {"poses": {}}
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(PointCloud2, "cache/points", lambda m: got.update(cloud=m), latched)
    for name, kind in (("depth/image_rect", Image), ("depth/camera_info", CameraInfo),
                       ("observed/image", Image)):  # fmt: skip
        node.create_subscription(kind, name, lambda m, name=name: got.update({name: m}), 10)

    def on_tf(message):
        for transform in message.transforms:
            stamp = (transform.header.stamp.sec, transform.header.stamp.nanosec)
            got["poses"][transform.child_frame_id, stamp] = transform.transform

    node.create_subscription(TFMessage, "/tf", on_tf, 100)
    deadline = time.monotonic() + 60
    told = False
    while time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
        if "cloud" in got and not told:
            print("cloud", flush=True)
            told, cloud = True, got["cloud"]
        if told and len(got) == 5:
            image, info = got["depth/image_rect"], got["depth/camera_info"]
            stamp = (image.header.stamp.sec, image.header.stamp.nanosec)
            same = info.header.stamp == image.header.stamp == got["observed/image"].header.stamp
            pose = got["poses"].get((image.header.frame_id, stamp))
            if same and pose is not None:
                break
    else:
        sys.exit(f"nothing complete came: {list(got)}")
    depth = np.frombuffer(bytes(image.data), "<f4").reshape(image.height, image.width)
    observed = np.frombuffer(bytes(got["observed/image"].data), np.uint8).reshape(depth.shape) > 127
    rebuilt = rebuild(read_points(cloud), info, pose, cell)
    footprint = cell * depth / info.k[0]
    both = observed & np.isfinite(rebuilt) & np.isfinite(depth)
    near = np.abs(rebuilt - depth)[both] <= footprint[both]
    report = {
        "points": cloud.width,
        "cloud_frame": cloud.header.frame_id,
        "covered": float(both.sum() / max(observed.sum(), 1)),
        "within_footprint": float(near.mean()) if both.any() else 0.0,
        "observed": float(observed.mean()),
    }
    print(json.dumps(report), flush=True)
    rclpy.shutdown()


if __name__ == "__main__":
    main()

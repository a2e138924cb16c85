"""Writers of other people's layouts, apart from the package: what they write is by their authors' descriptions alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Bag1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Bag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from transforms3d.quaternions import mat2quat

PERIOD_NS = 100_000_000
START_NS = 1_700_000_000 * 10**9


def png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def units(depth_m: np.ndarray, per_m: float) -> np.ndarray:
    return np.where(np.isfinite(depth_m), np.round(np.nan_to_num(depth_m, posinf=0) * per_m), 0).astype(np.uint16)


def matrix(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, values, fmt="%.17g")


def seconds(i: int) -> str:
    stamp = START_NS + i * PERIOD_NS
    return f"{stamp // 10**9}.{stamp % 10**9:09d}"


def ours(folder: Path, frames) -> None:
    for i, frame in enumerate(frames):
        png(folder / "color" / f"{i:03d}.png", frame.rgb[..., ::-1])
        png(folder / "depth" / f"{i:03d}.png", units(frame.depth_m, 1000))
    matrix(folder / "K.txt", frames[0].camera.intrinsics)
    matrix(folder / "world_from_camera.txt", np.stack([f.camera.world_from_camera.reshape(16) for f in frames]))


def tum(folder: Path, frames) -> None:
    lists = {name: ["# timestamp filename"] for name in ("rgb", "depth")}
    truth = ["# timestamp tx ty tz qx qy qz qw"]
    for i, frame in enumerate(frames):
        png(folder / "rgb" / f"{seconds(i)}.png", frame.rgb[..., ::-1])
        png(folder / "depth" / f"{seconds(i)}.png", units(frame.depth_m, 5000))
        for name in lists:
            lists[name].append(f"{seconds(i)} {name}/{seconds(i)}.png")
        w, x, y, z = mat2quat(frame.camera.world_from_camera[:3, :3])
        numbers = [*frame.camera.position_world, x, y, z, w]
        truth.append(f"{seconds(i)} " + " ".join(f"{number:.17g}" for number in numbers))
    for name, lines in {**lists, "groundtruth": truth}.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def seven_scenes(folder: Path, frames) -> None:
    for i, frame in enumerate(frames):
        png(folder / f"frame-{i:06d}.color.png", frame.rgb[..., ::-1])
        png(folder / f"frame-{i:06d}.depth.png", units(frame.depth_m, 1000))
        matrix(folder / f"frame-{i:06d}.pose.txt", frame.camera.world_from_camera)


def scannet(folder: Path, frames) -> None:
    """Colour of twice the size of depth."""
    four = np.eye(4)
    four[:3, :3] = frames[0].camera.intrinsics
    matrix(folder / "intrinsic" / "intrinsic_depth.txt", four)
    four[:2, :2] *= 2
    four[:2, 2] = 2 * (four[:2, 2] + 0.5) - 0.5
    matrix(folder / "intrinsic" / "intrinsic_color.txt", four)
    for i, frame in enumerate(frames):
        png(folder / "color" / f"{i}.png", np.repeat(np.repeat(frame.rgb[..., ::-1], 2, 0), 2, 1))
        png(folder / "depth" / f"{i}.png", units(frame.depth_m, 1000))
        matrix(folder / "pose" / f"{i}.txt", frame.camera.world_from_camera)


def redwood(folder: Path, frames) -> None:
    lines = []
    for i, frame in enumerate(frames):
        png(folder / "color" / f"{i:05d}.png", frame.rgb[..., ::-1])
        png(folder / "depth" / f"{i:05d}.png", units(frame.depth_m, 1000))
        lines.append(f"{i} {i} {i + 1}")
        lines += [" ".join(f"{x:.17g}" for x in row) for row in frame.camera.world_from_camera]
    (folder / "trajectory.log").write_text("\n".join(lines) + "\n")
    k = frames[0].camera.intrinsics.T.reshape(-1).tolist()
    height, width = frames[0].camera.size
    (folder / "camera_intrinsic.json").write_text(json.dumps({"width": width, "height": height, "intrinsic_matrix": k}))


def nerfstudio(folder: Path, frames) -> None:
    k, (height, width) = frames[0].camera.intrinsics, frames[0].camera.size
    entries = []
    for i, frame in enumerate(frames):
        png(folder / "images" / f"frame_{i:05d}.png", frame.rgb[..., ::-1])
        png(folder / "depth" / f"frame_{i:05d}.png", units(frame.depth_m, 1000))
        pose = frame.camera.world_from_camera.copy()
        pose[:3, 1:3] *= -1
        entries.append({"file_path": f"images/frame_{i:05d}.png", "depth_file_path": f"depth/frame_{i:05d}.png",
                        "transform_matrix": pose.tolist()})  # fmt: skip
    lens = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", **lens, "frames": entries}))


def colmap(folder: Path, frames, step: int = 4) -> None:
    """COLMAP's text model: points are those of every step-th pixel of each frame, seen by that frame alone."""
    model, k = folder / "sparse" / "0", frames[0].camera.intrinsics
    model.mkdir(parents=True)
    height, width = frames[0].camera.size
    lens = f"{k[0, 0]:.17g} {k[1, 1]:.17g} {k[0, 2] + 0.5:.17g} {k[1, 2] + 0.5:.17g}"
    (model / "cameras.txt").write_text(f"1 PINHOLE {width} {height} {lens}\n")
    images, points = [], []
    for i, frame in enumerate(frames):
        png(folder / "images" / f"{i:04d}.png", frame.rgb[..., ::-1])
        there = np.linalg.inv(frame.camera.world_from_camera)
        turn = mat2quat(there[:3, :3])
        numbers = " ".join(f"{x:.17g}" for x in (*turn, *there[:3, 3]))
        images.append(f"{i + 1} {numbers} 1 {i:04d}.png")
        seen, lifted = [], frame.camera.lift(frame.depth_m)
        for row in range(0, height, step):
            for column in range(0, width, step):
                if np.isfinite(frame.depth_m[row, column]):
                    number = len(points) + 1
                    xyz = " ".join(f"{x:.17g}" for x in lifted[row, column])
                    points.append(f"{number} {xyz} 128 128 128 0.5 {i + 1} {len(seen)}")
                    seen.append(f"{column + 0.5} {row + 0.5} {number}")
        images.append(" ".join(seen))
    (model / "images.txt").write_text("\n".join(images) + "\n")
    (model / "points3D.txt").write_text("\n".join(points) + "\n")


def re10k(folder: Path, frames, name: str = "0123456789abcdef") -> Path:
    """A RealEstate10K track: a URL, then a line a frame; intrinsics are shares of the picture, poses 3x4 from the world."""
    lines = ["https://www.youtube.com/watch?v=none"]
    for i, frame in enumerate(frames):
        stamp, k, (height, width) = 1_000_000 + 33_367 * i, frame.camera.intrinsics, frame.camera.size
        png(folder / name / f"{stamp}.png", frame.rgb[..., ::-1])
        lens = [k[0, 0] / width, k[1, 1] / height, (k[0, 2] + 0.5) / width, (k[1, 2] + 0.5) / height, 0, 0]
        there = np.linalg.inv(frame.camera.world_from_camera)[:3].reshape(-1)
        lines.append(f"{stamp} " + " ".join(f"{x:.9f}" for x in (*lens, *there)))
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.txt"


def bag(path: Path, frames, ros: int = 2, poses: str = "tf", depth: str = "16UC1", skip: str = "", late_ns: int = 0) -> Path:
    """A bag by rosbags' writers: MCAP for ROS 2, `.bag` for ROS 1; `skip` leaves a topic out, `late_ns` delays depth."""
    store = get_typestore(Stores.ROS2_KILTED if ros == 2 else Stores.ROS1_NOETIC)
    if ros == 1:
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
    types = store.types
    header_type, time_type = types["std_msgs/msg/Header"], types["builtin_interfaces/msg/Time"]
    writer = Bag2(path, version=9, storage_plugin=StoragePlugin.MCAP) if ros == 2 else Bag1(path)
    k = frames[0].camera.intrinsics

    def header(stamp: int, frame: str):
        parts = (time_type(sec=stamp // 10**9, nanosec=stamp % 10**9), frame)
        return header_type(*parts) if ros == 2 else header_type(0, *parts)

    def image(stamp: int, encoding: str, pixels: np.ndarray):
        data = np.frombuffer(pixels.tobytes(), np.uint8)
        return types["sensor_msgs/msg/Image"](
            header(stamp, "camera_optical"), pixels.shape[0], pixels.shape[1], encoding, 0,
            len(data) // pixels.shape[0], data)  # fmt: skip

    def info(stamp: int):
        p, roi = np.zeros(12), types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        height, width = frames[0].camera.size
        return types["sensor_msgs/msg/CameraInfo"](
            header(stamp, "camera_optical"), height, width, "plumb_bob", np.zeros(5), k.reshape(9), np.eye(3).reshape(9),
            p, 0, 0, roi)  # fmt: skip

    def pose_parts(camera):
        w, x, y, z = mat2quat(camera.world_from_camera[:3, :3])
        return [float(v) for v in camera.position_world], types["geometry_msgs/msg/Quaternion"](x, y, z, w)

    def transform(stamp: int, camera):
        place, turn = pose_parts(camera)
        map_ = types["geometry_msgs/msg/Transform"](types["geometry_msgs/msg/Vector3"](*place), turn)
        one = types["geometry_msgs/msg/TransformStamped"](header(stamp, "world"), "camera_optical", map_)
        return types["tf2_msgs/msg/TFMessage"]([one])

    def stamped(stamp: int, camera):
        place, turn = pose_parts(camera)
        pose = types["geometry_msgs/msg/Pose"](types["geometry_msgs/msg/Point"](*place), turn)
        return types["geometry_msgs/msg/PoseStamped"](header(stamp, "world"), pose)

    with writer:
        open_topics = {}

        def write(topic: str, kind: str, stamp: int, message) -> None:
            if topic == skip:
                return
            if topic not in open_topics:
                open_topics[topic] = writer.add_connection(topic, kind, typestore=store)
            data = store.serialize_cdr(message, kind) if ros == 2 else store.serialize_ros1(message, kind)
            writer.write(open_topics[topic], stamp, data)

        for i, frame in enumerate(frames):
            stamp = START_NS + i * PERIOD_NS
            raw = units(frame.depth_m, 1000)
            if depth == "32FC1":
                raw = np.where(raw == 0, np.nan, raw / np.float32(1000)).astype(np.float32)
            if poses == "tf":
                write("/tf", "tf2_msgs/msg/TFMessage", stamp, transform(stamp, frame.camera))
            else:
                write("/pose", "geometry_msgs/msg/PoseStamped", stamp, stamped(stamp, frame.camera))
            write("/camera/color/image_raw", "sensor_msgs/msg/Image", stamp, image(stamp, "rgb8", frame.rgb))
            write("/camera/color/camera_info", "sensor_msgs/msg/CameraInfo", stamp, info(stamp))
            write("/camera/depth/image", "sensor_msgs/msg/Image", stamp, image(stamp + late_ns, depth, raw))
    return path

"""Bags as walks: rosbag2 folders, MCAP files and ROS 1 bags, read by `rosbags`.

Topics are found by their types and encodings, or asked for. A frame is a colour picture with the depth picture and the
pose at its stamp; poses come from TF, or from odometry or a topic of poses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.typesys import Stores, get_typestore

from mirage_ros.data import (
    Walk,
    WalkConfig,
    joined,
    matched,
    pinhole,
    poses_at,
    sound_pose,
    undistorted,
)
from mirage_ros.data.seeds import PosedFrame
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import inverse
from mirage_ros.protocol import SECOND_NS

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO = "sensor_msgs/msg/CameraInfo"
TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
POSES = ("nav_msgs/msg/Odometry", "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped",
         "geometry_msgs/msg/TransformStamped")  # fmt: skip
COLORS = {"rgb8": None, "bgr8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_RGBA2RGB, "bgra8": cv2.COLOR_BGRA2RGB,
          "mono8": cv2.COLOR_GRAY2RGB}  # fmt: skip
DEPTHS = {"16UC1": np.uint16, "mono16": np.uint16, "32FC1": np.float32}
HEADER_BYTES = 12
"""Of compressedDepth: a kind, and the two numbers with which 32FC1 was made integers."""


class _Bag:
    """An open bag: its topics by name, and messages by topic."""

    def __init__(self, path: Path) -> None:
        paths = sorted(path.glob("*.bag")) if path.is_dir() and not (path / "metadata.yaml").exists() else [path]
        if path.suffix == ".db3":
            paths = [path.parent]
        try:
            self.reader = AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_KILTED))
            self.reader.open()
        except (AnyReaderError, OSError, ValueError, KeyError, AssertionError, EOFError) as error:
            raise MirageError(
                f"The bag {path} cannot be opened ({str(error) or type(error).__name__:.120}); if it was cut off, mend it "
                "with `mirage recover`, `ros2 bag reindex` or `rosbag reindex`."
            ) from error
        except Exception as error:  # rosbags and mcap raise many kinds for damaged bytes
            raise MirageError(f"The bag {path} is damaged ({str(error):.120}); copy it again, or reindex it.") from error
        self.path, self.types = path, {one.topic: one.msgtype for one in self.reader.connections}

    def __del__(self) -> None:
        if getattr(getattr(self, "reader", None), "stack", None):
            self.reader.close()

    def messages(self, topic: str, start: int | None = None, stop: int | None = None) -> Iterator[tuple[int, object]]:
        """(time of arrival, message). Raises MirageError for a damaged bag."""
        connections = [one for one in self.reader.connections if one.topic == topic]
        try:
            for connection, at, data in self.reader.messages(connections, start, stop):
                yield at, self.reader.deserialize(data, connection.msgtype)
        except Exception as error:
            raise MirageError(
                f"The bag {self.path} is damaged or cut off in topic {topic} ({str(error) or type(error).__name__:.100}); "
                "copy it again, or mend it with `mirage recover`, `ros2 bag reindex` or `rosbag reindex`."
            ) from error

    def of_type(self, *types: str) -> list[str]:
        return sorted(topic for topic, kind in self.types.items() if kind in types)

    def first(self, topic: str) -> object | None:
        return next((message for _, message in self.messages(topic)), None)

    def checked(self, topic: str, what: str) -> str:
        """The topic. Raises MirageError where the bag has none of that name."""
        if topic not in self.types:
            raise MirageError(f"The bag {self.path} has no {what} {topic!r}; {self.known()}.")
        return topic

    def known(self) -> str:
        return "it has " + (", ".join(f"{topic} ({self.types[topic].split('/')[-1]})" for topic in sorted(self.types))
                            or "no topic at all")  # fmt: skip


def open_bag(path: Path, config: WalkConfig) -> Walk:
    """The walk in a bag. Raises MirageError for one that is damaged, or lacks a topic that is needed."""
    bag = _Bag(path)
    color, depth = _pictures(bag, config)
    info, depth_info = _info(bag, color, config.color_info, True), _info(bag, depth, config.depth_info, False) or None
    stamps, arrivals, frame = _stamps(bag, color)
    depth_stamps, depth_arrivals, depth_frame = _stamps(bag, depth)
    tree = _Tree(bag)
    poses = _poses(bag, tree, config, frame, stamps)
    kept, of, said = matched(stamps, depth_stamps, poses, str(path))
    offset = tree.between(frame, depth_frame, stamps) if depth_frame != frame else None
    k, distortion = _lens(info, color) if config.intrinsics is None else (pinhole(config.intrinsics), np.zeros(4))
    depth_k = None if depth_info is None else _lens(depth_info, depth)[0]

    names = tuple(f"{color} at {stamps[n] / 1e9:.3f} s" for n in kept)

    def read(i: int) -> PosedFrame:
        n, name = int(kept[i]), names[i]
        d, pose = int(of[i]), sound_pose(poses[n], name)
        rgb = color_of(_at(bag, color, int(stamps[n]), int(arrivals[n])), name)
        deep = _at(bag, depth, int(depth_stamps[d]), int(depth_arrivals[d]))
        depth_m = depth_of(deep, config.depth_units_per_m, name)
        there = pose if offset is None or not np.isfinite(offset[n]).all() else pose @ offset[n]
        own = None if depth_k is None else Camera(depth_k, there, depth_m.shape)
        found = joined(rgb, Camera(k, pose, rgb.shape[:2]), depth_m, own)
        return undistorted(found, distortion)

    return Walk(path, "bag", names, read, said)


def _pictures(bag: _Bag, config: WalkConfig) -> tuple[str, str]:
    """Topics of colour and depth, as asked for or found."""
    colors, depths = {}, []
    for topic in bag.of_type(*IMAGES):
        message = bag.first(topic)
        if message is None:
            continue
        kind = getattr(message, "encoding", "") or getattr(message, "format", "")
        if kind in DEPTHS or "compressedDepth" in kind:
            depths.append(topic)
        else:
            colors[topic] = kind
    several = [topic for topic, kind in colors.items() if not kind.startswith("mono")]
    color = config.color or _only(several or list(colors), bag, "colour", "--color", ("color", "rgb"))
    depth = config.depth or _only(depths, bag, "depth", "--depth", ("aligned", "registered"))
    return bag.checked(color, "colour topic"), bag.checked(depth, "depth topic")


def _only(topics: list[str], bag: _Bag, what: str, flag: str, hints: tuple[str, ...]) -> str:
    """The one topic that is meant: raw before compressed, then by its name."""
    raw = [topic for topic in topics if bag.types[topic] == IMAGES[0]] or topics
    hinted = [topic for topic in raw if any(hint in topic for hint in hints)] or raw
    if len(hinted) == 1:
        return hinted[0]
    if not hinted:
        raise MirageError(f"The bag {bag.path} has no topic with {what} pictures; {bag.known()}.")
    raise MirageError(f"The bag {bag.path} has {what} pictures on {', '.join(hinted)}; say which with {flag}.")


def _info(bag: _Bag, picture: str, asked: str, needed: bool):
    """The CameraInfo beside a topic of pictures, or the one that was asked for."""
    if asked:
        return bag.first(bag.checked(asked, "camera info"))
    infos, place = bag.of_type(INFO), picture.removesuffix("/compressed").removesuffix("/compressedDepth")
    beside = [topic for topic in infos if topic.rpartition("/")[0] == place.rpartition("/")[0]]
    if needed and not beside and len(infos) != 1:
        raise MirageError(f"The bag {bag.path} has no camera info beside {picture}; name one with --color-info.")
    topics = beside or (infos if needed else [])
    return bag.first(topics[0]) if topics else None


def _lens(info, topic: str) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and OpenCV's distortion of a CameraInfo of ROS 1 or 2; rectified pictures have none."""
    k = np.array(info.k if hasattr(info, "k") else info.K, np.float64).reshape(3, 3)
    d = np.array(info.d if hasattr(info, "d") else info.D, np.float64)
    return k, np.zeros(4) if "rect" in topic.rpartition("/")[2] or not d.size else d


def _stamp(header) -> int:
    return int(header.stamp.sec) * SECOND_NS + int(header.stamp.nanosec)


def _stamps(bag: _Bag, topic: str) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], str]:
    """Of a topic's messages, sorted: stamps, times of arrival; and their frame."""
    found, frame = [], ""
    for at, message in bag.messages(topic):
        found.append((_stamp(message.header), at))
        frame = frame or message.header.frame_id.lstrip("/")
    if not found:
        raise MirageError(f"The topic {topic} of the bag {bag.path} is empty; name another one.")
    stamps, arrivals = np.array(sorted(found), np.int64).T
    return stamps, arrivals, frame


def _at(bag: _Bag, topic: str, stamp_ns: int, arrival_ns: int):
    for _, message in bag.messages(topic, arrival_ns, arrival_ns + 1):
        if _stamp(message.header) == stamp_ns:
            return message
    raise MirageError(f"The bag {bag.path} holds {topic} at {stamp_ns / 1e9:.3f} s no more; do not write to it meanwhile.")


def color_of(message, name: str) -> np.ndarray:
    """The RGB picture of an Image or CompressedImage. Raises MirageError for another encoding."""
    if hasattr(message, "format"):
        bgr = cv2.imdecode(np.frombuffer(bytes(message.data), np.uint8), cv2.IMREAD_COLOR) if len(message.data) else None
        if bgr is None:
            raise MirageError(f"The compressed picture {name} cannot be decoded ({message.format}).")
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    if message.encoding not in COLORS:
        raise MirageError(f"The picture {name} has the encoding {message.encoding!r}; give one of {', '.join(COLORS)}.")
    channels = {"mono8": 1, "rgba8": 4, "bgra8": 4}.get(message.encoding, 3)
    pixels = _rows(message, np.uint8, channels, name)
    code = COLORS[message.encoding]
    return np.ascontiguousarray(pixels) if code is None else cv2.cvtColor(np.ascontiguousarray(pixels), code)


def _rows(message, dtype, channels: int, name: str) -> np.ndarray:
    """The pixels of an Image, whose rows may be longer than its width."""
    size, data = np.dtype(dtype).itemsize, np.frombuffer(bytes(message.data), np.uint8)
    used = message.width * channels * size
    if message.step < used or len(data) < message.step * message.height or not used:
        raise MirageError(f"The picture {name} holds {len(data)} bytes for {message.width}x{message.height}; it is cut off.")
    rows = data[: message.step * message.height].reshape(message.height, message.step)[:, :used]
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian and size > 1 else "<")
    pixels = np.ascontiguousarray(rows).view(kind).astype(dtype)
    return pixels.reshape(message.height, message.width, *([channels] if channels > 1 else []))


def depth_of(message, units_per_m: float | None, name: str) -> Float[np.ndarray, "h w"]:
    """Metric depth, NaN where there is none: 16UC1 is millimetres, 32FC1 metres, unless other units are given."""
    if hasattr(message, "format"):
        kind, raw = message.format.split(";")[0].strip(), _uncompressed(message, name)
    elif message.encoding in DEPTHS:
        kind, raw = message.encoding, _rows(message, DEPTHS[message.encoding], 1, name)
    else:
        raise MirageError(f"The depth picture {name} has the encoding {message.encoding!r}; give 16UC1 or 32FC1.")
    if raw.dtype == np.uint16:
        depth = raw.astype(np.float32) / np.float32(units_per_m or 1000.0)
        depth[raw == 65535] = np.inf
    else:
        depth = raw / np.float32(units_per_m or 1.0)
    with np.errstate(invalid="ignore"):
        depth[~(depth > 0)] = np.nan
    if np.isnan(depth).all():
        raise MirageError(f"The depth picture {name} ({kind}) has no valid pixel.")
    return depth


def _uncompressed(message, name: str) -> np.ndarray:
    """What a compressedDepth message holds: 16 bits, or metres."""
    data = bytes(message.data)
    raw = cv2.imdecode(np.frombuffer(data[HEADER_BYTES:], np.uint8), cv2.IMREAD_UNCHANGED) if len(data) > 20 else None
    if raw is None or raw.dtype != np.uint16:
        raise MirageError(f"The compressed depth picture {name} cannot be decoded ({message.format}); only PNG is read.")
    if message.format.startswith("32FC1"):
        slope, shift = np.frombuffer(data[4:HEADER_BYTES], "<f4")
        with np.errstate(divide="ignore"):
            return np.where(raw == 0, np.nan, slope / (raw.astype(np.float32) - shift)).astype(np.float32)
    return raw


class _Tree:
    """Transforms of a bag: of each frame its parent and its poses in it."""

    def __init__(self, bag: _Bag) -> None:
        found: dict[str, tuple[str, list]] = {}
        self.moving: set[str] = set()
        for topic in bag.of_type(*TRANSFORMS):
            for _, message in bag.messages(topic):
                for one in message.transforms:
                    child, parent = one.child_frame_id.lstrip("/"), one.header.frame_id.lstrip("/")
                    t, r = one.transform.translation, one.transform.rotation
                    if "static" not in topic:
                        self.moving.add(child)
                    found.setdefault(child, (parent, []))[1].append((_stamp(one.header), t.x, t.y, t.z, r.x, r.y, r.z, r.w))
        self.tracks = {}
        for child, (parent, rows) in found.items():
            rows.sort()
            stamps = np.array([row[0] for row in rows], np.int64)
            self.tracks[child] = parent, stamps, np.array([row[1:] for row in rows], np.float64)

    def chain(self, frame: str, root: str = "") -> list[str]:
        """The frame and those above it, up to `root` or the top."""
        names = [frame]
        while names[-1] in self.tracks and names[-1] != root and len(names) <= len(self.tracks):
            names.append(self.tracks[names[-1]][0])
        return names

    def poses(self, frame: str, stamps: Int[np.ndarray, "n"], root: str = "") -> Float[np.ndarray, "n 4 4"]:
        """root_from_frame, or from the top of the tree, at each stamp; NaN where a part of it is not known."""
        poses = None
        for name in self.chain(frame, root)[:-1]:
            _, track, rows = self.tracks[name]
            constant = name not in self.moving
            step = poses_at(track[:1].repeat(len(stamps)) if constant else stamps, track, rows)
            poses = step if poses is None else step @ poses
        return np.tile(np.eye(4), (len(stamps), 1, 1)) if poses is None else poses

    def between(self, frame: str, other: str, stamps: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 4 4"] | None:
        """frame_from_other at each stamp; None where nothing joins them."""
        above = self.chain(other)
        common = next((name for name in self.chain(frame) if name in above), None)
        if common is None:
            return None
        return inverse(self.poses(frame, stamps, common)) @ self.poses(other, stamps, common)


def _poses(bag: _Bag, tree: _Tree, config: WalkConfig, frame: str, stamps) -> Float[np.ndarray, "n 4 4"]:
    """world_from_camera at each stamp, from the topic that was asked for, TF, or the only topic of poses."""
    chain = tree.chain(frame, config.world_frame)
    if config.world_frame and config.world_frame not in chain:
        raise MirageError(f"The bag {bag.path} has no transforms from {config.world_frame} to {frame}; it has "
                          f"{' <- '.join(chain)}.")  # fmt: skip
    if not config.poses and tree.moving & set(chain):
        return tree.poses(frame, stamps, config.world_frame)
    topics = [bag.checked(config.poses, "topic of poses")] if config.poses else bag.of_type(*POSES)
    if len(topics) != 1:
        raise MirageError(
            f"The bag {bag.path} has no moving transforms to {frame!r} and {len(topics)} topics of poses "
            f"({', '.join(topics) or 'none'}); name one with --poses. {bag.known().capitalize()}."
        )
    rows, child = [], ""
    for _, message in bag.messages(topics[0]):
        child = child or getattr(message, "child_frame_id", "").lstrip("/")
        pose = getattr(message, "pose", None) or message.transform
        pose = getattr(pose, "pose", pose)
        t, r = getattr(pose, "position", None) or pose.translation, getattr(pose, "orientation", None) or pose.rotation
        rows.append((_stamp(message.header), t.x, t.y, t.z, r.x, r.y, r.z, r.w))
    if not rows:
        raise MirageError(f"The topic {topics[0]} of the bag {bag.path} is empty; name another one with --poses.")
    rows.sort()
    poses = poses_at(stamps, np.array([row[0] for row in rows], np.int64), np.array([row[1:] for row in rows]))
    mount = tree.between(child, frame, stamps) if child and child != frame else None
    return poses if mount is None else poses @ mount

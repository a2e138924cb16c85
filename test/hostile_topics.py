"""Hostile values, and what is published with them. Each message is made of random numbers of its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseStamped, TransformStamped, Vector3
from hostile_ground import Ground
from mirage_ros.action import GenerateRollout
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message
from ros_client import CAMERA, RENDERED
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from simulation_interfaces.action import SimulateSteps
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.image_messages import image_to_ros
from mirage_ros.ros.messages import camera_info_to_ros, pose_to_ros

SECOND_NS = 1_000_000_000
NAN, INF = float("nan"), float("inf")
NUMBERS = (NAN, INF, -INF, 1e39, -1e39, 3.5e38, 1e308, -1e308, 1e-300, 5e-324, 0.0, -0.0, 1e5, 1e7, 1e12, 1e20)
QUATERNIONS = ((0.0, 0.0, 0.0, 0.0), (NAN, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1e39), (1e-300,) * 4, (INF, 0.0, 0.0, 1.0),
               (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 1e-9))  # fmt: skip
STAMPS = ((-1, 0), (-(2**31), 0), (0, 0), (0, 1), (2**31 - 1, 0), (2**31 - 1, 2**32 - 1), (5, 2**32 - 1), (10**9, 0))
TEXTS = ("", " ", "\0", "a\0b", "\n\r\x1b[2J\x07", "../../..", "%s%n%x{0}", "$(true)`true`", "'; --",
         "\u202egnp\ufeff", "\U0001f4a5", "a" * 300, "é" * 5000, "nowhere", "/world", "world", "world/", "base_link",
         "-", ".", "~")  # fmt: skip
MEGABYTES = 2_000_000
MANY_POSES = 100_000


@dataclass(frozen=True)
class Hostile:
    """One message or set of messages.

    Attributes:
        name: topic, service or action.
        sends: (topic, type, message or its bytes) to publish in turn; else
        request: a service's request, or an action's goal, of
        kind: this service or action.
        refused: the node must not take it.
        cancel: the goal is canceled as soon as it is accepted.
    """

    name: str
    what: str
    sends: tuple[tuple[str, type, object], ...] = ()
    kind: type | None = None
    request: object = None
    refused: bool = False
    cancel: bool = False

    @property
    def goal(self) -> bool:
        return self.kind in (SimulateSteps, GenerateRollout)


class Maker:
    """Makes one message out of its own random numbers."""

    def __init__(self, rng: np.random.Generator, ground: Ground, free: bool) -> None:
        self.rng, self.ground, self.free = rng, ground, free

    def one_of(self, values):
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def number(self) -> float:
        if self.chance(0.8):
            return self.one_of(NUMBERS)
        return float(self.rng.normal(0, 10.0 ** self.rng.integers(-3, 12)))

    def stamp(self) -> Time:
        seconds, nanoseconds = self.one_of(STAMPS)
        if self.chance(0.4):
            seconds, nanoseconds = int(self.rng.integers(1, 2**31)), int(self.rng.integers(SECOND_NS))
        return Time(sec=seconds, nanosec=nanoseconds)

    def text(self) -> str:
        return "x" * MEGABYTES if self.chance(0.03) else self.one_of(TEXTS)

    def frame(self) -> str:
        return self.one_of(("world", CAMERA, RENDERED, "base_link")) if self.chance(0.5) else self.text()

    def pose(self, bad: bool = True) -> Pose:
        """Near the seed's, or with something wrong in it."""
        near = self.ground.pose.copy()
        near[:3, 3] += self.rng.normal(0, 0.1, 3)
        pose = pose_to_ros(near)
        if bad and self.chance(0.6):
            setattr(pose.position, self.one_of("xyz"), self.number())
        if bad and self.chance(0.4):
            turn = pose.orientation
            turn.x, turn.y, turn.z, turn.w = self.one_of(QUATERNIONS)
        return pose

    def path_name(self) -> str:
        """A path nobody can save to or load from, or one below the folder that may be written."""
        inside = str(self.ground.folder)
        awkward = (
            "/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/proc/self/mem", "/proc/no/such", "/sys/x", "/",
            "..", ".", "", "\0", f"{inside}/a\0b", "/" + "a" * 5000, f"{inside}/" + "b" * 300,
            f"{inside}/" + "c/" * 3000, "~nobody-at-all/x", "file://[oops", "file://elsewhere/x",
            "http://localhost/x", "file://%00", "file:///dev/zero", "/dev/null/x",
            f"{inside}/../{self.ground.folder.name}/new", f"{inside}/\n\x1b[2J",
        )  # fmt: skip
        if self.chance(0.5):
            return f"{inside}/traps/{self.one_of(self.ground.traps)}"
        return self.one_of(awkward) if self.chance(0.9) else self.text()


def transforms(make: Maker) -> tuple[str, list[TransformStamped]]:
    """What should not be on /tf."""

    def one(parent: str, child: str, bad: bool) -> TransformStamped:
        message = TransformStamped(child_frame_id=child)
        message.header.frame_id, message.header.stamp = parent, make.stamp()
        pose = make.pose(bad)
        at = pose.position
        message.transform.translation = Vector3(x=at.x, y=at.y, z=at.z)
        message.transform.rotation = pose.orientation
        return message

    kind = make.one_of(("values", "cycle", "names", "many", "plan", "own"))
    if kind == "cycle":
        ring = ["world", "base_link", CAMERA]
        if make.chance(0.6):
            ring = [f"ring{n}" for n in range(1 + int(make.rng.integers(5)))]
        return kind, [one(parent, child, False) for parent, child in zip(ring, [*ring[1:], ring[0]], strict=True)]
    if kind == "names":
        return kind, [one(make.frame(), make.frame(), make.chance(0.5)) for _ in range(1 + int(make.rng.integers(4)))]
    if kind == "many":
        return kind, [one("world", f"frame{make.rng.integers(10**9)}", False) for _ in range(200)]
    if kind == "own":
        return kind, [one("world", RENDERED, True)]
    count = 1 if kind == "values" else int(make.rng.integers(1, 30))
    return kind, [one("world", CAMERA, True) for _ in range(count)]


def tf(make: Maker) -> Hostile:
    what, found = transforms(make)
    return Hostile("/tf", what, (("/tf", TFMessage, TFMessage(transforms=found)),))


def tf_static(make: Maker) -> Hostile:
    """The planned frame is only ever given bad values: a good static one lawfully ends its plan for good."""
    what, found = transforms(make)
    for transform in found:
        if transform.child_frame_id in ("world", "base_link", CAMERA):
            turn = transform.transform.rotation
            turn.x, turn.y, turn.z, turn.w = make.one_of(QUATERNIONS)
    return Hostile("/tf_static", what, (("/tf_static", TFMessage, TFMessage(transforms=found)),))


def poses(make: Maker, count: int, bad: bool) -> list[PoseStamped]:
    found = []
    for index in range(count):
        stamped = PoseStamped(pose=make.pose(bad))
        stamped.header.stamp = Time(sec=1000 + index // 10, nanosec=index % 10 * 10**8)
        found.append(stamped)
    return found


@functools.cache
def long_path(frame: str, rising: bool) -> bytes:
    """Made once: to write 100,000 poses takes seconds."""
    message = Path()
    message.header.frame_id = frame
    message.poses = [PoseStamped() for _ in range(MANY_POSES)]
    if rising:
        for index, pose in enumerate(message.poses):
            pose.header.stamp = Time(sec=1000 + index // 10, nanosec=index % 10 * 10**8)
    return serialize_message(message)


def plan(make: Maker) -> Hostile:
    kind = make.one_of(("values", "equal", "back", "stampless", "frames", "empty", "stamps", "far apart"))
    if make.chance(0.02):
        data = long_path(make.one_of(("world", "nowhere")), make.chance(0.7))
        return Hostile("plan", "long", (("plan", Path, data),))
    message = Path()
    message.header.frame_id = "world" if make.chance(0.8) else make.frame()
    message.poses = poses(make, 0 if kind == "empty" else int(make.rng.integers(1, 20)), kind == "values")
    stamps = [pose.header.stamp for pose in message.poses]
    for index, pose in enumerate(message.poses):
        if kind == "equal":
            pose.header.stamp = stamps[0]
        elif kind == "back":
            pose.header.stamp = stamps[-1 - index]
        elif kind == "stampless":
            pose.header.stamp = Time()
        elif kind == "stamps":
            pose.header.stamp = make.stamp()
        elif kind == "far apart":
            pose.header.stamp = Time(sec=index * (2**31 // len(stamps)), nanosec=1)
        elif kind == "frames":
            pose.header.frame_id = make.frame()
    return Hostile("plan", kind, (("plan", Path, message),))


def pictures(make: Maker, stamp: Time) -> dict[str, Image | CameraInfo]:
    """A sound picture, its camera and its depth."""
    size = (48, 60)
    camera = Camera.from_hfov(65.0, size)
    rgb = make.rng.integers(0, 256, (*size, 3), np.uint8)
    found = {
        "image": image_to_ros(rgb, "rgb8", 0, CAMERA),
        "camera_info": camera_info_to_ros(camera, 0, CAMERA),
        "depth": image_to_ros(make.rng.uniform(1, 4, size).astype(np.float32), "32FC1", 0, CAMERA),
    }
    for message in found.values():
        message.header.stamp = stamp
    return found


def spoil_picture(make: Maker, found: dict) -> str:
    image = found["image"]
    kind = make.one_of(("encoding", "step", "short", "empty", "width", "giant"))
    if kind == "encoding":
        image.encoding = make.one_of(("", "yuv422", "bayer_rggb8", "32FC1", "16UC1", "8UC7", "rgb8\0", make.text()))
    elif kind == "step":
        image.step = make.one_of((0, 1, 179, 2**32 - 1))
    elif kind == "short":
        image.data = image.data[: int(make.rng.integers(len(image.data)))]
    elif kind == "empty":
        image.data = image.data[:0]
    elif kind == "width":
        setattr(image, make.one_of(("width", "height")), make.one_of((0, 1, 61, 10**6)))
    else:
        image.width = image.height = 2**32 - 1
    return kind


def spoil_camera(make: Maker, found: dict) -> str:
    info = found["camera_info"]
    kind = make.one_of(("k", "focal", "distorted", "size", "binning", "roi"))
    if kind == "k":
        index = make.one_of((0, 2, 4, 5))
        info.k[index] = make.one_of((NAN, INF, -INF, 1e39, -1e39, 1e300))
    elif kind == "focal":
        info.k[make.one_of((0, 4))] = make.one_of((0.0, -0.0, 1e-9, 1e-300, -50.0))
    elif kind == "distorted":
        info.distortion_model = make.one_of(("equidistant", "rational_polynomial", "fisheye", make.text()))
        info.d = make.one_of(([0.2] * 5, [NAN], [1e39] * 8, [INF] * 4))
    elif kind == "size":
        setattr(info, make.one_of(("width", "height")), make.one_of((0, 1, 2**32 - 1)))
    elif kind == "binning":
        info.binning_x = make.one_of((2, 2**32 - 1))
    else:
        info.roi.width, info.roi.height = 5, 2**32 - 1
    return kind


def spoil_depth(make: Maker, found: dict) -> str:
    stamp, size = found["image"].header.stamp, (48, 60)
    kind = make.one_of(("nothing", "encoding", "size", "short", "step"))
    if kind == "nothing":
        values = np.full(size, make.one_of((NAN, -1.0, 0.0, -INF)), np.float32)
        number = make.one_of((np.float32, np.uint16))
        with np.errstate(invalid="ignore"):
            values = np.zeros(size, number) if number is np.uint16 else values
        depth = image_to_ros(values, "16UC1" if number is np.uint16 else "32FC1", 0, CAMERA)
    elif kind == "size":
        depth = image_to_ros(np.ones((24, 30), np.float32), "32FC1", 0, CAMERA)
    else:
        depth = found["depth"]
        if kind == "encoding":
            depth.encoding = make.one_of(("", "rgb8", "64FC1", "32FC2", "8UC1", make.text()))
        elif kind == "short":
            depth.data = depth.data[: int(make.rng.integers(len(depth.data)))]
        else:
            depth.step = make.one_of((0, 3, 239, 2**32 - 1))
    depth.header.stamp = stamp
    found["depth"] = depth
    return f"depth {kind}"


def real_pictures(make: Maker, topic: str) -> Hostile:
    """seed/* and observe/*: at least one thing is wrong, so nothing may come of it."""
    stamp = Time(sec=int(make.rng.integers(1, 2**31)), nanosec=int(make.rng.integers(SECOND_NS)))
    found = pictures(make, stamp)
    spoilers = (spoil_picture, spoil_camera, spoil_depth)
    what = [make.one_of(spoilers)(make, found)]
    if make.chance(0.2):
        what.append(make.one_of(spoilers)(make, found))
    if make.chance(0.1):
        missing = make.one_of(("image", "camera_info"))
        del found[missing]
        what.append(f"no {missing}")
    if make.chance(0.1):
        for message in found.values():
            message.header.stamp = Time(sec=-5)
    types = {"image": Image, "camera_info": CameraInfo, "depth": Image}
    sends = tuple((f"{topic}/{kind}", types[kind], message) for kind, message in found.items())
    return Hostile(topic, ", ".join(what), sends)


def cut(make: Maker) -> Hostile:
    """Bytes that are no message. A lone picture is no seed, so whatever they mean, nothing comes of it."""
    topic = make.one_of(("plan", "prompt", "/tf_static", "seed/image", "observe/depth", "observe/camera_info"))
    stamp = Time(sec=int(make.rng.integers(1, 2**31)))
    sound = {
        "plan": lambda: Path(poses=poses(make, 3, False)),
        "prompt": lambda: String(data="rain"),
        "/tf_static": lambda: TFMessage(transforms=[TransformStamped(child_frame_id="cut")]),
        "seed/image": lambda: pictures(make, stamp)["image"],
        "observe/depth": lambda: pictures(make, stamp)["depth"],
        "observe/camera_info": lambda: pictures(make, stamp)["camera_info"],
    }
    message = sound[topic]()
    data = bytearray(serialize_message(message))
    what = make.one_of(("cut", "length", "noise", "header"))
    words = min(len(data) // 4, 24)
    if what == "cut":
        data = data[: max(4, int(make.rng.integers(len(data))))]
    elif what == "length":
        at = 4 * int(make.rng.integers(1, words))
        data[at : at + 4] = make.one_of((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x40"))
    elif what == "noise":
        for _ in range(8):
            data[4 + int(make.rng.integers(min(len(data) - 4, 200)))] = int(make.rng.integers(256))
    else:
        data[:4] = make.rng.integers(0, 256, 4, np.uint8).tobytes()
    return Hostile(topic, f"bytes: {what}", ((topic, type(message), bytes(data)),))


def prompt(make: Maker) -> Hostile:
    return Hostile("prompt", "text", (("prompt", String, String(data=make.text())),))


def clock(make: Maker) -> Hostile:
    return Hostile("/clock", "time", (("/clock", Clock, Clock(clock=make.stamp())),))

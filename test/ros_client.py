"""A user of the node over DDS: starts it as a process, publishes plans, collects what comes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path as FilePath

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from mirage_ros.msg import RolloutStatus
from nav_msgs.msg import Path
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from mirage_ros.machine import free_domain
from mirage_ros.ros.messages import (
    pose_to_ros,
    stamp_from_ros,
    stamp_to_ros,
    transform_to_ros,
)

TESTS = FilePath(__file__).parent
# What `mirage` runs, to be followed by its words.
PROGRAM = ("-m", "mirage_ros.cli")
FAKE_NODE = (str(TESTS / "fake_node.py"),)
# To be followed by the path of a Gate.
GATED_NODE = (str(TESTS / "gated_node.py"),)
CAMERA = "camera_color_optical_frame"
RENDERED = "mirage_camera_optical_frame"
PICTURES = ("color/image_raw", "color/camera_info", "depth/image_rect", "depth/camera_info",
            "observed/image")  # fmt: skip
STREAMED = {
    "color/image_raw": Image,
    "color/camera_info": CameraInfo,
    "depth/image_rect": Image,
    "depth/camera_info": CameraInfo,
    "observed/image": Image,
    "status": RolloutStatus,
    "/tf": TFMessage,
    "/diagnostics": DiagnosticArray,
}
PATIENCE_S = 120.0
LOCAL = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
_count = itertools.count()


def new_domain() -> int:
    """A ROS domain that nobody uses, another one each time."""
    return free_domain(os.getpid() + 50 + next(_count))


def make_path(stamps_ns, poses, frame: str = "world") -> Path:
    message = Path()
    message.header.frame_id = frame
    for stamp_ns, pose in zip(stamps_ns, poses, strict=True):
        stamped = PoseStamped(pose=pose_to_ros(pose))
        stamped.header.stamp = stamp_to_ros(stamp_ns)
        message.poses.append(stamped)
    return message


def end(process: subprocess.Popen, patience_s: float = 20.0) -> None:
    """Asks a ROS program to end; middleware that hangs on its way out is killed."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class NodeProcess:
    """The node in a process of its own, its log in a file.

    Args:
        home: where it works and is at home; the test's own folders if not given.
    """

    def __init__(
        self, folder: FilePath, *arguments: str, program=FAKE_NODE, home: FilePath | None = None
    ) -> None:
        self.domain = new_domain()
        self.environment = {**os.environ, **LOCAL, "ROS_DOMAIN_ID": str(self.domain)}
        if home is not None:
            self.environment["HOME"] = str(home)
        self.log = folder / "node.log"
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=home,
        )

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, float]:
        """Sends a signal; exit code and seconds until the end."""
        start_s = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(30)
        return code, time.monotonic() - start_s

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Client:
    """Collects every message of the node's topics in `got`.

    Args:
        remaps: what stands behind `--ros-args`, as the node has it.
    """

    def __init__(self, process: NodeProcess, *remaps: str) -> None:
        self.process = process
        os.environ.update(LOCAL)
        self.context = Context()
        words = ["client", "--ros-args", *remaps] if remaps else []
        rclpy.init(args=words, context=self.context, domain_id=process.domain)
        self.node = Node(f"client_{process.domain}", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.got: dict[str, list] = {name: [] for name in [*STREAMED, "cache/points"]}
        for name, kind in STREAMED.items():
            self.node.create_subscription(kind, name, self.got[name].append, 200)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        points = self.got["cache/points"]
        self.node.create_subscription(PointCloud2, "cache/points", points.append, latched)
        self._tf = self.node.create_publisher(TFMessage, "/tf", 1000)
        # The node may discover this one after several were sent.
        kept = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._static = self.node.create_publisher(TFMessage, "/tf_static", kept)
        self._path = self.node.create_publisher(Path, "plan", 10)
        self.seed = {
            "image": self.node.create_publisher(Image, "seed/image", 5),
            "camera_info": self.node.create_publisher(CameraInfo, "seed/camera_info", 5),
            "depth": self.node.create_publisher(Image, "seed/depth", 5),
        }
        self._reset = self.node.create_client(Trigger, "mirage_node/reset")

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def clear(self) -> None:
        for messages in self.got.values():
            messages.clear()

    def spin(self, until: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < deadline, self.summary()
            assert self.process.process.poll() is None, self.process.text()
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)

    def summary(self) -> str:
        counts = {name: len(messages) for name, messages in self.got.items()}
        return f"timed out with {counts} and {self.problems()}"

    def resolved(self, name: str) -> str:
        """The topic's whole name, remaps applied."""
        return self.node.resolve_topic_name(name)

    def connect(self) -> None:
        """Waits until both sides know each other."""
        publishers = [self._tf, self._static, self._path, *self.seed.values()]
        self.spin(
            lambda: (
                all(p.get_subscription_count() > 0 for p in publishers)
                and self._tf.get_subscription_count() > 1
                and all(self.node.count_publishers(self.resolved(name)) for name in PICTURES)
                and self._reset.service_is_ready()
            )
        )

    def reset(self) -> None:
        """The world back to its seed and the plan forgotten; waits for a node that still starts."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := self.call(self._reset, Trigger.Request())).success:
            assert "not configured" in answer.message, answer.message
            assert time.monotonic() < deadline, answer.message
            self.spin_for(0.2)
        self.spin_for(0.1)
        self.clear()

    def call(self, client, request):
        self.spin(client.service_is_ready)
        future = client.call_async(request)
        self.spin(future.done)
        return future.result()

    def set_parameter(self, name: str, value) -> tuple[bool, str]:
        """Whether the node took it, and why not."""
        kinds = {str: "STRING", float: "DOUBLE", int: "INTEGER", bool: "BOOL"}
        kind = kinds[type(value)]
        content = ParameterValue(type=getattr(ParameterType, f"PARAMETER_{kind}"))
        setattr(content, f"{kind.lower()}_value", value)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=content)])
        service = self.node.create_client(SetParameters, "mirage_node/set_parameters")
        answer = self.call(service, request).results[0]
        return answer.successful, answer.reason

    def get_parameter(self, name: str) -> ParameterValue:
        service = self.node.create_client(GetParameters, "mirage_node/get_parameters")
        return self.call(service, GetParameters.Request(names=[name])).values[0]

    def send_tf(self, stamps_ns, poses, child: str = CAMERA, parent: str = "world") -> None:
        self._tf.publish(
            TFMessage(
                transforms=[
                    transform_to_ros(pose, parent, child, stamp_ns)
                    for stamp_ns, pose in zip(stamps_ns, poses, strict=True)
                ]
            )
        )

    def send_transforms(self, *transforms) -> None:
        self._tf.publish(TFMessage(transforms=list(transforms)))

    def send_static(self, pose: np.ndarray, child: str, parent: str = "world") -> None:
        self._static.publish(TFMessage(transforms=[transform_to_ros(pose, parent, child, 0)]))

    def send_path(self, message: Path) -> None:
        self._path.publish(message)

    def stamps(self, name: str) -> list[int]:
        """Stamps of a topic in order of arrival; of /tf those of the rendered camera."""
        if name == "/tf":
            return [stamp_from_ros(t.header.stamp) for t in self.rendered_poses()]
        return [stamp_from_ros(message.header.stamp) for message in self.got[name]]

    def rendered_poses(self) -> list:
        found = [transform for message in self.got["/tf"] for transform in message.transforms]
        return [transform for transform in found if transform.child_frame_id == RENDERED]

    def wait_for_frames(self, count: int) -> None:
        self.spin(lambda: all(len(self.got[name]) >= count for name in PICTURES))

    def problems(self) -> str:
        """Texts of all diagnostics at WARN or ERROR that came."""
        statuses = [status for message in self.got["/diagnostics"] for status in message.status]
        return " | ".join(status.message for status in statuses if status.level != b"\0")

    def fresh_diagnostic(self, part: str) -> dict[str, str]:
        """The same as of now, by the wall clock: what waited in the queue is older."""
        now_ns, told = time.time_ns(), self.got["/diagnostics"]
        self.spin(lambda: told and stamp_from_ros(told[-1].header.stamp) >= now_ns)
        return self.diagnostic(part)

    def wait_for_queue(self, chunks: int) -> None:
        """So many chunks are handed out and not made yet; 2 are one at work and one that waits."""
        self.spin(lambda: self.fresh_diagnostic("inference")["queue"] == str(chunks))

    def diagnostic(self, part: str) -> dict[str, str]:
        """Values of the newest diagnostic that came and whose name ends in `part`."""
        for status in self.got["/diagnostics"][-1].status:
            if status.name.endswith(part):
                return {pair.key: pair.value for pair in status.values}
        raise AssertionError(part)

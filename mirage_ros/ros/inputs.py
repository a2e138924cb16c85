"""A new world from a live camera: seed/image, seed/camera_info and, if it comes, seed/depth.

Prompts from a topic: what the chunks after the ones at work are to show.

Real pictures with depth on observe/*: what a camera sees is written over what was imagined.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from mirage_ros.data.seeds import Seed
from mirage_ros.errors import MirageError
from mirage_ros.ros.messages.conversions import camera_from_ros, stamp_from_ros
from mirage_ros.ros.messages.images import depth_from_ros, picture_from_ros
from mirage_ros.ros.tracks import TransformError
from mirage_ros.ros.worker.commands import Done, Failed, Observe, Prompt

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


TOPIC = "prompt"


class PromptInput:
    """Hands each message of `prompt` to the model, and says in diagnostics when it reads none."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        node.create_subscription(String, TOPIC, self._on_prompt, 10)

    def _on_prompt(self, message: String) -> None:
        node = self._node
        if node.rollout is None:
            node.health.error(TOPIC, "A prompt came before the node was configured; send it again.")
            return
        try:
            node.rollout.submit(Prompt(message.data), self._finished)
        except MirageError as error:
            node.health.error(TOPIC, str(error))

    def _finished(self, result) -> None:
        if isinstance(result, Failed):
            self._node.health.error(TOPIC, result.message)
        else:
            self._node.health.ok(TOPIC)
            self._node.get_logger().info(f"The prompt is now {result.command.text!r}.")


KEPT_STAMPS = 8
KINDS = ("image", "camera_info", "depth")


@dataclass
class Waiting:
    """Messages of one stamp, and when the first of them came (monotonic seconds)."""

    since_s: float
    messages: dict[str, Image | CameraInfo]


class ExactMatcher:
    """Puts messages of equal stamps together; bounded, the oldest stamp goes first.

    The depth is optional: a set without one is complete `depth_wait_s` after its first message.
    """

    def __init__(self, depth_wait_s: float = 0.5) -> None:
        self.depth_wait_s = depth_wait_s
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()

    def add(self, kind: str, message: Image | CameraInfo, now_s: float) -> None:
        """Takes in one message; `kind` is image, camera_info or depth."""
        stamp_ns = stamp_from_ros(message.header.stamp)
        entry = self._waiting.setdefault(stamp_ns, Waiting(now_s, {}))
        entry.messages[kind] = message
        while len(self._waiting) > KEPT_STAMPS:
            self._waiting.popitem(last=False)

    def take(self, now_s: float) -> dict[str, Image | CameraInfo] | None:
        """The first complete set, once; what is older than it is dropped."""
        for stamp_ns, entry in self._waiting.items():
            kinds = entry.messages.keys()
            waited = now_s - entry.since_s >= self.depth_wait_s
            if {"image", "camera_info"} <= kinds and ("depth" in kinds or waited):
                self._drop_until(stamp_ns)
                return entry.messages
        return None

    def unmatched(self, now_s: float, after_s: float = 2.0) -> str:
        """What is missing from messages that have waited for longer than `after_s`, else ''."""
        for entry in self._waiting.values():
            if now_s - entry.since_s > after_s:
                lacking = [kind for kind in KINDS[:2] if kind not in entry.messages]
                return " and ".join(f"seed/{kind}" for kind in lacking)
        return ""

    def clear(self) -> None:
        self._waiting.clear()

    def _drop_until(self, stamp_ns: int) -> None:
        while self._waiting:
            if self._waiting.popitem(last=False)[0] == stamp_ns:
                return


def seed_from_ros(
    messages: dict[str, Image | CameraInfo],
    world_from_camera: Float[np.ndarray, "4 4"],
    rectified: bool,
) -> Seed:
    """The seed in a set of messages of one stamp. Raises MirageError for what is wrong in it."""
    image, info, depth = (messages.get(kind) for kind in KINDS)
    rgb = picture_from_ros(image)
    camera = camera_from_ros(info, world_from_camera, rectified)
    depth_m = None if depth is None else depth_from_ros(depth)
    for name, size in (
        ("CameraInfo", camera.size),
        ("depth", depth_m is not None and depth_m.shape),
    ):
        if size and size != rgb.shape[:2]:
            raise MirageError(
                f"The seed's {name} is of {size[1]} x {size[0]} pixels, its picture of "
                f"{rgb.shape[1]} x {rgb.shape[0]}; send both in one size, the depth registered."
            )
    return Seed("camera", rgb, camera, depth_m)


class SeedInput:
    """Decides which set of seed messages becomes a new world, and where it stands.

    A stream counts as one seed: after one is taken the rest is left alone until the topics were
    quiet for `QUIET_S`, or until `rearm`.
    """

    QUIET_S = 2.0
    POSE_WAIT_S = 0.5

    def __init__(self) -> None:
        self._matcher = ExactMatcher()
        self._armed = True
        self._heard_s = 0.0
        self._matched: tuple[float, dict[str, Image | CameraInfo]] | None = None

    def add(self, kind: str, message: Image | CameraInfo, now_s: float) -> None:
        """Takes in one message of seed/<kind>."""
        self._rest(now_s)
        self._heard_s = now_s
        if self._armed:
            self._matcher.add(kind, message, now_s)

    def poll(
        self, now_s: float, pose_of: Callable[[str, int], np.ndarray]
    ) -> tuple[dict[str, Image | CameraInfo], np.ndarray | None] | None:
        """A set and its world_from_camera, once.

        Args:
            pose_of: (frame id, stamp ns) -> world_from_camera; raises MirageError where TF does
                not have it (yet). After `POSE_WAIT_S` the set is given without a pose.
        """
        self._rest(now_s)
        if self._matched is None and self._armed:
            messages = self._matcher.take(now_s)
            self._matched = messages and (now_s, messages)
        if self._matched is None:
            return None
        since_s, messages = self._matched
        header = messages["image"].header
        try:
            pose = pose_of(header.frame_id, stamp_from_ros(header.stamp))
        except MirageError:
            if now_s - since_s < self.POSE_WAIT_S:
                return None
            pose = None
        self._matched, self._armed = None, False
        return messages, pose

    def unmatched(self, now_s: float) -> str:
        """Names of the topics that are missing, '' if none is."""
        return self._matcher.unmatched(now_s) if self._armed else ""

    def rearm(self) -> None:
        """Takes the next set, because the last one was bad or a new world is wanted."""
        self._armed = True
        self._matcher.clear()

    def _rest(self, now_s: float) -> None:
        if not self._armed and now_s - self._heard_s > self.QUIET_S:
            self.rearm()


POSE_WAIT_S = 0.5
TOPIC_OBSERVATIONS = "observe"


class Observations:
    """Matches observe/image, camera_info and depth by stamp, and places them by TF.

    Attributes:
        written: observations that are in the memory.
    """

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._matcher = ExactMatcher()
        self._matched: tuple[float, dict] | None = None
        self._at_work = False
        self.written = 0

    def add(self, kind: str, message) -> None:
        """Callback of observe/<kind>."""
        try:
            self._matcher.add(kind, message, time.monotonic())
        except MirageError as error:
            self._left_out(error)

    def poll(self) -> None:
        """Passes one on as soon as all of it is there; the newest waits while one is at work."""
        node, now_s = self._node, time.monotonic()
        if self._at_work or node.rollout is None or not node.rollout.has_world:
            return
        if self._matched is None:
            messages = self._matcher.take(now_s)
            if messages is None:
                return
            self._matched = (now_s, messages)
        # Out of the way before it is looked at: what cannot be read must not come up again.
        (since_s, messages), self._matched = self._matched, None
        try:
            self._submit(self._command(messages))
        except TransformError as error:
            if now_s - since_s < POSE_WAIT_S:
                self._matched = since_s, messages
            else:
                self._left_out(error)
        except MirageError as error:
            self._left_out(error)

    def _left_out(self, reason: MirageError | str) -> None:
        self._node.health.error(TOPIC_OBSERVATIONS, f"An observation was left out: {reason}")

    def _command(self, messages: dict) -> Observe:
        node, header = self._node, messages["image"].header
        if "depth" not in messages:
            raise MirageError("observe/depth of its stamp is missing; send depth with it.")
        stamp_ns = stamp_from_ros(header.stamp)
        pose = node.buffer.matrix(node.config.world_frame, header.frame_id, stamp_ns)
        seed = seed_from_ros(messages, pose, node.config.seed_rectified)
        return Observe(seed, stamp_ns, node.config.cloud_period_s)

    def _submit(self, command: Observe) -> None:
        def then(result: Done | Failed) -> None:
            self._at_work = False
            if isinstance(result, Failed):
                self._left_out(result.message)
            else:
                self.written += 1
                self._node.health.ok(TOPIC_OBSERVATIONS)

        self._node.rollout.submit(command, then)
        self._at_work = True

"""What comes in beside the plan: live pictures for a new world (seed/*), real pictures with depth that are written over
what was imagined (observe/*), and prompts, which say what the next chunks are to show (prompt).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from mirage_ros.data.seeds import Seed
from mirage_ros.errors import MirageError
from mirage_ros.ros.image_messages import depth_from_ros, picture_from_ros
from mirage_ros.ros.messages import camera_from_ros, stamp_from_ros
from mirage_ros.ros.session import Session
from mirage_ros.ros.tracks import TransformError
from mirage_ros.ros.worker import Done, Failed, Observe, Prompt

PROMPT = "prompt"


class PromptInput:
    """Hands each message of `prompt` to the model, and says in diagnostics when it reads none."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, message: String) -> None:
        """Callback of prompt."""
        session = self._session
        if session.rollout is None:
            session.health.error(PROMPT, "A prompt came before the node was configured; send it again.")
            return
        try:
            session.submit(Prompt(message.data), self._finished)
        except MirageError as error:
            session.health.error(PROMPT, str(error))

    def _finished(self, result) -> None:
        if isinstance(result, Failed):
            self._session.health.error(PROMPT, result.message)
        else:
            self._session.health.ok(PROMPT)
            self._session.host.log.info(f"The prompt is now {result.command.text!r}.")


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


class LiveSeeds:
    """Makes a new world of each seed that comes on seed/*.

    Args:
        begin: queues a world from a seed, to begin at a stamp (ns). Raises MirageError.
    """

    def __init__(self, session: Session, begin: Callable[[Seed, int], None]) -> None:
        self._session, self._begin, self._input = session, begin, SeedInput()
        session.on_seed_wanted.append(self._input.rearm)

    def add(self, kind: str, message: Image | CameraInfo) -> None:
        """Callback of seed/<kind>."""
        try:
            self._input.add(kind, message, time.monotonic())
        except MirageError as error:
            self._session.health.error("seed", str(error))

    def poll(self) -> None:
        """Passes a matched set on as soon as it is there."""
        session, now_s = self._session, time.monotonic()
        lacking = self._input.unmatched(now_s)
        if lacking:
            session.health.warn("seed", f"A seed lacks {lacking} of the same stamp; send it.")
        world = session.config.world_frame
        ready = self._input.poll(
            now_s, lambda frame, stamp_ns: session.buffer.matrix(world, frame, stamp_ns)
        )
        if ready is not None:
            self._take(*ready)

    def _take(self, messages: dict, pose: np.ndarray | None) -> None:
        session, header = self._session, messages["image"].header
        if pose is None:
            pose = session.cameras.first
            session.host.log.info(
                f"TF has no '{header.frame_id}' at the seed's stamp: the new world starts where "
                "the camera is."
            )
        try:
            seed = seed_from_ros(messages, pose, session.config.seed_rectified)
        except MirageError as error:
            self._input.rearm()
            session.health.error("seed", f"No new world from seed/image: {error}")
            return
        try:
            self._begin(seed, stamp_from_ros(header.stamp))
        except MirageError as error:
            session.health.error("seed", str(error))


POSE_WAIT_S = 0.5
OBSERVE = "observe"


class Observations:
    """Matches observe/image, camera_info and depth by stamp, and places them by TF.

    Attributes:
        written: observations that are in the memory.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
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
        session, now_s = self._session, time.monotonic()
        if self._at_work or not session.has_world:
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
        self._session.health.error(OBSERVE, f"An observation was left out: {reason}")

    def _command(self, messages: dict) -> Observe:
        session, header = self._session, messages["image"].header
        if "depth" not in messages:
            raise MirageError("observe/depth of its stamp is missing; send depth with it.")
        stamp_ns = stamp_from_ros(header.stamp)
        pose = session.buffer.matrix(session.config.world_frame, header.frame_id, stamp_ns)
        seed = seed_from_ros(messages, pose, session.config.seed_rectified)
        return Observe(seed, stamp_ns, session.config.cloud_period_s)

    def _submit(self, command: Observe) -> None:
        def then(result: Done | Failed) -> None:
            self._at_work = False
            if isinstance(result, Failed):
                self._left_out(result.message)
            else:
                self.written += 1
                self._session.health.ok(OBSERVE)

        self._session.submit(command, then)
        self._at_work = True

"""Real pictures with depth on observe/*: what a camera sees is written over what was imagined."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.conversions import stamp_from_ros
from mirage_ros.ros.seed_input import ExactMatcher, seed_from_ros
from mirage_ros.ros.tracks import TransformError
from mirage_ros.ros.worker import Done, Failed, Observe

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

POSE_WAIT_S = 0.5
TOPIC = "observe"


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
        self._node.health.error(TOPIC, f"An observation was left out: {reason}")

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
                self._node.health.ok(TOPIC)

        self._node.rollout.submit(command, then)
        self._at_work = True

"""What is rendered and waits to be published: a little at a time, so that services are answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mirage_ros.protocol import Points
from mirage_ros.ros.messages.clouds import status_to_ros
from mirage_ros.ros.worker.commands import Done, Step

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

SLICE_S = 0.01
RETRY_S = 0.005
# So long a subscriber may keep the others waiting; then it is taken for stuck or gone.
PATIENCE_S = 1.0
# While one is stuck nobody can tell whether the others keep up: so long they get for each frame.
PACE_S = 0.1


class Outbox:
    """Instants, statuses and clouds in the order in which they came to be.

    A chunk comes as a burst; what a subscriber has not received yet is not pushed out by it.

    Attributes:
        listeners: called with the stamp of each instant that was published.
    """

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._items: deque[tuple] = deque()
        self.last_stamp_ns: int | None = None
        self._last_instant_s = 0.0
        self.plan_to_first_frame_s = 0.0
        self.listeners: list[Callable[[int], None]] = []
        self._unwanted: list[Step] = []
        self._calm: list[tuple[list[Step], Callable[[], None]]] = []
        self._retry = node.create_wall_timer(RETRY_S, self._try_again)
        self._retry.cancel()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, done: Done) -> None:
        """Takes in what a step rendered."""
        if any(done.command is step for step in self._unwanted):
            return
        for frames in zip(done.chunk.frames, *done.others, strict=True):
            self._items.append((self._instant, frames))
        self._items.append((self._status, done))

    def put_cloud(self, points: Points, stamp_ns: int) -> None:
        self._items.append((self._node.output.cloud, points, stamp_ns))

    def clear(self) -> None:
        """Drops what waits."""
        self._items.clear()
        self._settle()

    def drop_all(self) -> None:
        """Drops what waits and what is at work now."""
        rollout = self._node.rollout
        self._unwanted = [] if rollout is None else rollout.at_work
        self.clear()

    def flush(self) -> None:
        """All of it, before something else begins; an inactive node drops it."""
        while self._items and self._node.active:
            self._publish_next()
        self.clear()

    def when_calm(self, then: Callable[[], None]) -> None:
        """Called once what is handed out now is published, or will not be."""
        rollout = self._node.rollout
        self._calm.append(([] if rollout is None else rollout.at_work, then))
        self._settle()

    def _settle(self) -> None:
        if not self._calm or (self._items and self._node.active):
            return
        rollout = self._node.rollout
        busy = () if rollout is None else {id(step) for step in rollout.at_work}
        waiting, self._calm = self._calm, []
        for steps, then in waiting:
            if any(id(step) in busy for step in steps):
                self._calm.append((steps, then))
            else:
                then()

    def publish(self) -> None:
        """Some of it now, the rest when the executor comes by again."""
        until_s = time.monotonic() + SLICE_S
        while self._items and self._node.active:
            if self._must_wait():
                self._retry.reset()
                return
            self._publish_next()
            if time.monotonic() > until_s:
                break
        if self._items and self._node.active:
            self._node.wake()
        self._settle()

    def _publish_next(self) -> None:
        publish, *values = self._items.popleft()
        try:
            publish(*values)
        except Exception as error:  # noqa: BLE001 - who waits for it is told, and the rest goes out
            reason = self._node.tell(error)
            if publish == self._instant:
                self._node.results.tell(reason)

    def _try_again(self) -> None:
        self._retry.cancel()
        self.publish()

    def _must_wait(self) -> bool:
        """A subscriber lacks messages that the next one would push out, and may still get them."""
        full = self._node.output.full_for(time.monotonic())
        stuck = [topic for topic, seconds in full.items() if seconds >= PATIENCE_S]
        if len(stuck) < len(full):
            return True
        if stuck:
            if time.monotonic() < self._last_instant_s + PACE_S:
                return True
            health = self._node.health
            health.warn(
                "pictures",
                f"A subscriber of {', '.join(stuck)} still lacks what was published "
                f"{PATIENCE_S:g} s ago and may miss some of it; give it more time, or raise "
                "image_depth.",
            )
            # Said of this frame; the next one asks again.
            health.ok("pictures")
        return False

    def _instant(self, frames) -> None:
        node = self._node
        node.output.instant(frames)
        self._last_instant_s = time.monotonic()
        node.cameras.showed(frames[0].stamp_ns, [f.camera.world_from_camera for f in frames])
        stamp_ns = self.last_stamp_ns = frames[0].stamp_ns
        if node.sim_clock is not None:
            node.sim_clock.advance(stamp_ns)
        now_s = time.monotonic()
        node.rollout.pacing.published(now_s, stamp_ns)
        waited_s = node.rollout.pacing.first_frame(now_s, stamp_ns)
        if waited_s is not None:
            self.plan_to_first_frame_s = waited_s
        node.stepper.frame(stamp_ns)
        for listener in self.listeners:
            listener(stamp_ns)

    def _status(self, done: Done) -> None:
        node = self._node
        message = status_to_ros(
            done.chunk,
            node.figures.chunks,
            node.plan.pending(),
            node.rollout.model.name,
            done.seconds,
            node.config.world_frame,
        )
        message.plan_to_first_frame_s = self.plan_to_first_frame_s
        node.output.status(message)

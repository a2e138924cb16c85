"""Chunks on their way: handed to the worker that renders them, then published frame by frame.

The worker is kept supplied with planned frames, never more than a chunk ahead of it. What is rendered is
published a little at a time, so that services are answered meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.plan import FrameSource, Mark, Plan, Planned, Timing
from mirage_ros.ros.worker import (
    CHANGING,
    Cloud,
    Command,
    Died,
    Done,
    Failed,
    Load,
    ModelReady,
    Reset,
    Result,
    Revived,
    Step,
    Survey,
    Unload,
    WorkerConfig,
)
from mirage_ros.ros.worker.handle import Worker

IN_FLIGHT = 2  # one at work, one waiting
SAME = 1e-12, 1e-9  # relative and absolute tolerance of a pose: rounding is no movement
SLICE_S = 0.01  # one turn of publishing
PATIENCE_S = 1.0  # a subscriber may keep the others waiting so long; then it is taken for stuck or gone
PACE_S = 0.1  # for each frame while one is stuck: nobody knows then whether the others keep up
Then = Callable[[Done | Failed], None]


@dataclass
class HandedOut:
    """A chunk that is not rendered yet.

    Attributes:
        mark: where the plan was before.
        outdated: it is known that its poses have changed since.
    """

    step: Step
    mark: Mark
    source: FrameSource
    outdated: bool = False


class Rollout:
    """The plan on one side, the worker on the other. Everything but `_receive` runs in the
    executor's thread.

    Attributes:
        ended: why no worker comes any more, '' while one does.
        taken_back: chunks that were handed out and not rendered, because the plan changed.
        mount_missing: which camera of the rig has no known mount, '' where all have one.

    Args:
        make_model: picklable; called in the worker's process.
        wake: called in another thread when a result waits in `take`.
        preload: modules to import once for all workers.
        mounts: gives the poses of a rig's cameras for planned frames, and of the robots' bodies; may raise
            MirageError, which says what it waits for.
    """

    def __init__(
        self,
        plan: Plan,
        make_model: Callable,
        config: WorkerConfig,
        wake: Callable[[], None],
        preload: Sequence[str] = (),
        mounts: Callable[[Planned], tuple] | None = None,
        silence_s: float = 60.0,
    ) -> None:
        self.plan = plan
        self.model: ModelReady | None = None
        self.has_world = False
        self.in_flight = 0
        self.taken_back = 0
        self.ended = ""
        self.lost = False
        self._mounts = mounts or (lambda planned: ((), ()))
        self.mount_missing = ""
        self._cloud_is_old = False
        self._cloud_s = 0.0
        self._map_is_old, self._map_s = True, 0.0
        self._results: deque[Result] = deque()
        self._then: dict[int, tuple[Command, Then]] = {}
        self._steps: list[HandedOut] = []
        self._awaited: list[Command] = []
        self._wake = wake
        self._worker = Worker(make_model, config, self._receive, preload, silence_s)
        self._worker.start()

    @property
    def at_work(self) -> list[Step]:
        """Chunks that are handed out and not rendered yet."""
        return [entry.step for entry in self._steps]

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid

    def stop(self, timeout_s: float) -> bool:
        """Ends the worker. False if its thread is still busy after the timeout."""
        return self._worker.stop(timeout_s)

    def submit(
        self, command: Command, then: Then | None = None, before_chunks: bool = False
    ) -> None:
        """Queues a command. Raises MirageError when too much waits already, or all has ended.

        Args:
            then: called in the executor's thread with how it went.
            before_chunks: what is not at work yet is taken back, and no chunk is handed out
                until the command is done: which time or world it belongs to is open.
        """
        if self.ended:
            raise MirageError(self.ended)
        if before_chunks:
            self.replan()
        self._worker.submit(command)
        self.in_flight += 1
        if before_chunks:
            self._awaited.append(command)
        if then is not None:
            self._then[id(command)] = (command, then)

    def take(self) -> Result | None:
        """The next result, None without one."""
        if not self._results:
            return None
        result = self._results.popleft()
        if isinstance(result, ModelReady):
            self.model = result
        elif isinstance(result, (Died, Revived)):
            self.lost = isinstance(result, Died)
        elif result.command is not None:
            self.in_flight -= 1
            self._steps = [entry for entry in self._steps if entry.step is not result.command]
            self._awaited = [command for command in self._awaited if command is not result.command]
        elif isinstance(result, Failed):
            self.in_flight, self._steps, self._awaited = 0, [], []
            self.has_world = False
            reason = result.message.rstrip(".")
            self.ended = f"Inference has ended ({reason}); clean the node up and configure it again."
        if isinstance(result, Done):
            if isinstance(result.command, (Reset, Load)):
                self.has_world = True
            elif isinstance(result.command, Unload):
                self.has_world = False
            self._cloud_is_old = result.points is None
            self._cloud_s = self._cloud_s if self._cloud_is_old else time.monotonic()
            self._note_map(result)
        return result

    def _note_map(self, done: Done) -> None:
        """Another world's floor plan is due at once."""
        if done.floor_plan is not None:
            self._map_is_old, self._map_s = False, time.monotonic()
        elif isinstance(done.command, Survey):
            # Too soon after the last one: asked again after a period.
            self._map_is_old, self._map_s = True, time.monotonic()
        elif isinstance(done.command, CHANGING):
            self._map_is_old = True
            self._map_s = 0.0 if isinstance(done.command, (Reset, Load)) else self._map_s

    def answer(self, result: Done | Failed, failed: Callable[[Exception], object]) -> None:
        """Calls back whoever submitted the command; without a model, everybody who still waits.

        Args:
            failed: called with what one of them raises; the others are called back all the same.
        """
        if result.command is None:
            waiting, self._then = list(self._then.values()), {}
        else:
            entry = self._then.pop(id(result.command), None)
            waiting = [] if entry is None else [entry]
        for command, then in waiting:
            try:
                then(replace(result, command=command))
            except Exception as error:  # noqa: BLE001 - whoever comes after has to be answered
                failed(error)

    def pump(
        self, timing: Timing, config: NodeConfig, now_s: float, ros_ns: int, sensors: tuple[str, ...] = ()
    ) -> None:
        """Queues the next chunk, with what `sensors` measure (see Step), if it is due and the worker has room."""
        timing.hear(now_s)
        if self.model is None or not self.has_world or self.in_flight >= IN_FLIGHT:
            return
        if self._awaited:
            return
        idle_worker = not self.in_flight
        found = timing.next(config, self.model.chunk_frames, idle_worker, now_s, ros_ns)
        if found is not None:
            self._step(*found, config.cloud_period_s, sensors)
        elif self._cloud_is_old and idle_worker and now_s - self._cloud_s >= config.cloud_period_s:
            self._cloud_is_old = False
            self.submit(Cloud())
        elif "map" in sensors and self._map_is_old and idle_worker and now_s - self._map_s >= config.map_period_s:
            self._map_is_old = False
            self.submit(Survey())

    def replan(self) -> None:
        """Takes back chunks that are not at work yet: the plan has changed."""
        for entry in reversed(list(self._steps)):
            if not self._worker.cancel(entry.step):
                return
            self._steps.pop()
            self._then.pop(id(entry.step), None)
            self.in_flight -= 1
            self.taken_back += 1
            entry.source.take_back(entry.step.planned, entry.mark)

    def replan_changed(self) -> bool:
        """`replan` where a camera that is handed out stands elsewhere by now, and whether one does.

        Whatever moved it: its own transform or one of those that carry it.
        """
        changed = [
            entry
            for entry in self._steps
            if entry.source.follows_plan and not entry.outdated and self._moved(entry.step)
        ]
        for entry in changed:
            entry.outdated = True
        if changed:
            self.replan()
        return bool(changed)

    def _moved(self, step: Step) -> bool:
        planned = self.plan.resolved(step.planned)
        try:
            poses, bodies = self._mounts(planned)
        except MirageError:
            return False
        now = (planned.world_from_camera, *poses, *bodies)
        then = (step.planned.world_from_camera, *step.poses, *step.bodies)
        return not all(np.allclose(*pair, *SAME) for pair in zip(then, now, strict=True))

    def _step(
        self, planned: Planned, source: FrameSource, cloud_period_s: float, sensors: tuple[str, ...]
    ) -> None:
        try:
            poses, bodies = self._mounts(planned)
        except MirageError as error:
            self.mount_missing = f"Waiting for the rig: {error}"
            return
        self.mount_missing = ""
        mark = self.plan.mark()
        step = Step(planned, cloud_period_s, poses, sensors, bodies)
        self.submit(step)
        source.commit(planned)
        self._steps.append(HandedOut(step, mark, source))

    def _receive(self, result: Result) -> None:
        self._results.append(result)
        self._wake()


@dataclass(frozen=True)
class Item:
    """Something to publish: `publish(*values)`. `is_frame`: somebody waits for it."""

    publish: Callable[..., None]
    values: tuple[Any, ...]
    is_frame: bool = False


@dataclass(frozen=True)
class Delivery:
    """What the queue is given to publish with.

    Attributes:
        allowed: whether anything may be published now.
        full_for: topic -> seconds for which one more message might have cost a subscriber the oldest.
        at_work: chunks that are handed out and not rendered yet.
        go_on: `publish` is to be called soon; `retry`: a little later.
        failed: an item could not be published.
    """

    allowed: Callable[[], bool]
    full_for: Callable[[float], dict[str, float]]
    at_work: Callable[[], list[Step]]
    go_on: Callable[[], None]
    retry: Callable[[], None]
    failed: Callable[[Exception, Item], None]


class FrameQueue:
    """Frames, statuses and clouds in the order in which they were made.

    A chunk comes as a burst; what a subscriber has not received yet is not pushed out by it.
    """

    def __init__(self, delivery: Delivery, health: Health) -> None:
        self._delivery, self._health = delivery, health
        self._items: deque[Item] = deque()
        self._last_frame_s = 0.0
        self._unwanted: list[Step] = []
        self._calm: list[tuple[list[Step], Callable[[], None]]] = []

    def put(self, publish: Callable[..., None], *values: Any, is_frame: bool = False) -> None:
        self._items.append(Item(publish, values, is_frame))

    def wants(self, step: Step) -> bool:
        """False for a chunk that was at work when everything was dropped."""
        return not any(step is other for other in self._unwanted)

    def clear(self) -> None:
        """Drops what waits."""
        self._items.clear()
        self._settle()

    def drop_all(self) -> None:
        """Drops what waits and what is at work now."""
        self._unwanted = self._delivery.at_work()
        self.clear()

    def flush(self) -> None:
        """All of it, before something else begins; an inactive node drops it."""
        while self._items and self._delivery.allowed():
            self._publish_next()
        self.clear()

    def when_calm(self, then: Callable[[], None]) -> None:
        """Called once what is handed out now is published, or will not be."""
        self._calm.append((self._delivery.at_work(), then))
        self._settle()

    def publish(self) -> None:
        """Some of it now, the rest when the executor comes by again."""
        until_s = time.monotonic() + SLICE_S
        while self._items and self._delivery.allowed():
            if self._must_wait():
                self._delivery.retry()
                return
            self._publish_next()
            if time.monotonic() > until_s:
                break
        if self._items and self._delivery.allowed():
            self._delivery.go_on()
        self._settle()

    def _settle(self) -> None:
        if not self._calm or (self._items and self._delivery.allowed()):
            return
        busy = {id(step) for step in self._delivery.at_work()}
        waiting, self._calm = self._calm, []
        for steps, then in waiting:
            if any(id(step) in busy for step in steps):
                self._calm.append((steps, then))
            else:
                then()

    def _publish_next(self) -> None:
        item = self._items.popleft()
        try:
            item.publish(*item.values)
        except Exception as error:  # noqa: BLE001 - who waits for it gets to know, and the rest goes out
            self._delivery.failed(error, item)
        if item.is_frame:
            self._last_frame_s = time.monotonic()

    def _must_wait(self) -> bool:
        """A subscriber lacks messages that the next one would push out, and may still get them."""
        full = self._delivery.full_for(time.monotonic())
        stuck = [topic for topic, seconds in full.items() if seconds >= PATIENCE_S]
        if len(stuck) < len(full):
            return True
        if stuck:
            if time.monotonic() < self._last_frame_s + PACE_S:
                return True
            self._health.warn(
                "pictures",
                f"A subscriber of {', '.join(stuck)} still lacks what was published "
                f"{PATIENCE_S:g} s ago and may miss some of it; give it more time, or raise "
                "image_depth.",
            )
            # Said of this frame; the next one asks again.
            self._health.ok("pictures")
        return False

"""Keeps the worker supplied with planned frames, and never more than a chunk ahead of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.ros.config import NodeConfig
from mirage_ros.ros.pacing import Pacing, Source
from mirage_ros.ros.plan import Mark, Plan, Planned
from mirage_ros.ros.worker.commands import (
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
    Unload,
    WorkerConfig,
)
from mirage_ros.ros.worker.handle import Worker

IN_FLIGHT = 2  # one at work, one waiting
SAME = 1e-12, 1e-9  # relative and absolute tolerance of a pose: rounding is no movement
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
    source: Source
    outdated: bool = False


class Rollout:
    """The plan on one side, the worker on the other. Everything but `_receive` runs in the
    executor's thread.

    Attributes:
        ended: why no worker comes any more, '' while one does.
        taken_back: chunks that were handed out and not rendered, because the plan changed.

    Args:
        make_model: picklable; called in the worker's process.
        wake: called in another thread when a result waits in `take`.
        preload: modules to import once for all workers.
        mounts: gives the poses of a rig's cameras for planned frames; may raise
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
        self.pacing = Pacing(plan)
        self.model: ModelReady | None = None
        self.has_world = False
        self.in_flight = 0
        self.taken_back = 0
        self.ended = ""
        self.lost = False
        self._mounts = mounts or (lambda planned: ())
        self._mount_missing = ""
        self._cloud_is_old = False
        self._cloud_s = 0.0
        self._results: deque[Result] = deque()
        self._then: dict[int, tuple[Command, Then]] = {}
        self._steps: list[HandedOut] = []
        self._awaited: list[Command] = []
        self._wake = wake
        self._worker = Worker(make_model, config, self._receive, preload, silence_s)
        self._worker.start()

    @property
    def waiting(self) -> str:
        """Why nothing is rendered though it should be, '' where all is well."""
        return self._mount_missing or self.pacing.waiting

    @property
    def missing_frame(self) -> bool:
        return bool(self._mount_missing) or self.pacing.missing_frame

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
        return result

    def answer(self, result: Done | Failed) -> None:
        """Tells whoever submitted the command; without a model, everybody who still waits."""
        if result.command is None:
            waiting, self._then = list(self._then.values()), {}
            for command, then in waiting:
                then(Failed(command, result.message))
            return
        entry = self._then.pop(id(result.command), None)
        if entry is not None:
            entry[1](result)

    def pump(self, config: NodeConfig, now_s: float, ros_ns: int) -> None:
        """Queues the next chunk if it is planned and the worker has room for it."""
        self.pacing.hear(now_s)
        if self.model is None or not self.has_world or self.in_flight >= IN_FLIGHT:
            return
        if self._awaited:
            return
        idle_worker = not self.in_flight
        found = self.pacing.next(config, self.model.chunk_frames, idle_worker, now_s, ros_ns)
        if found is not None:
            self._step(*found, config.cloud_period_s)
        elif (
            self._cloud_is_old
            and idle_worker
            and now_s - self._cloud_s >= config.cloud_period_s
        ):
            self._cloud_is_old = False
            self.submit(Cloud())

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
            if entry.source is self.pacing and not entry.outdated and self._moved(entry.step)
        ]
        for entry in changed:
            entry.outdated = True
        if changed:
            self.replan()
        return bool(changed)

    def _moved(self, step: Step) -> bool:
        planned = self.plan.resolved(step.planned)
        try:
            now = (planned.world_from_camera, *self._mounts(planned))
        except MirageError:
            return False
        then = (step.planned.world_from_camera, *step.poses)
        return not all(np.allclose(*pair, *SAME) for pair in zip(then, now, strict=True))

    def _step(self, planned: Planned, source: Source, cloud_period_s: float) -> None:
        try:
            poses = self._mounts(planned)
        except MirageError as error:
            self._mount_missing = f"Waiting for the rig: {error}"
            return
        self._mount_missing = ""
        mark = self.plan.mark()
        step = Step(planned, cloud_period_s, poses)
        self.submit(step)
        source.commit(planned)
        self._steps.append(HandedOut(step, mark, source))

    def _receive(self, result: Result) -> None:
        self._results.append(result)
        self._wake()


__all__ = ["Done", "Failed", "ModelReady", "Rollout"]

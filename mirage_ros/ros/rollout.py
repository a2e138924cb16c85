"""Keeps the worker supplied with planned frames, and never more than a chunk ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mirage_ros.core.types import WorldModel
from mirage_ros.ros.parameters import NodeConfig
from mirage_ros.ros.plan import Missing, Plan, Planned
from mirage_ros.ros.tracks import TransformError
from mirage_ros.ros.worker import (
    Cloud,
    Command,
    Done,
    Failed,
    ModelReady,
    Reset,
    Result,
    Step,
    Worker,
    WorkerConfig,
)
from mirage_ros.seeds import Seed

IN_FLIGHT = 2  # one at work, one waiting
SECOND_NS = 1_000_000_000


@dataclass
class Growth:
    """When the plan last grew: its end then, wall seconds, ROS nanoseconds."""

    end_ns: int | None = None
    at_s: float = 0.0
    at_ros_ns: int = 0


class Rollout:
    """The plan on one side, the worker on the other. Everything but `_receive` runs in the
    executor's thread.

    Args:
        wake: called in the worker's thread when a result waits in `take`.
    """

    def __init__(
        self,
        plan: Plan,
        make_model: Callable[[], WorldModel],
        config: WorkerConfig,
        wake: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.model: ModelReady | None = None
        self.has_world = False
        self.in_flight = 0
        self.waiting = ""
        self.missing_frame = False
        self._cloud_is_old = False
        self._growth = Growth()
        self._results: deque[Result] = deque()
        self._wake = wake
        self._worker = Worker(make_model, config, self._receive)
        self._worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the worker. False if it is still busy after the timeout."""
        return self._worker.stop(timeout_s)

    def reset(self, load: Callable[[], Seed], stamp_ns: int | None, origin: str) -> Reset:
        """Queues a new world. Raises MirageError when too much waits already."""
        command = Reset(load, stamp_ns, origin)
        self._submit(command)
        return command

    def take(self) -> Result | None:
        """The next result, None without one."""
        if not self._results:
            return None
        result = self._results.popleft()
        if isinstance(result, ModelReady):
            self.model = result
            return result
        if result.command is not None:
            self.in_flight -= 1
        if isinstance(result, Done):
            self.has_world = True
            self._cloud_is_old = result.points is None
        return result

    def pump(self, config: NodeConfig, now_s: float, ros_ns: int) -> None:
        """Queues the next chunk if it is planned and the worker has room for it."""
        if self.model is None or not self.has_world or self.in_flight >= IN_FLIGHT:
            return
        planned = self._next_chunk(config, now_s, ros_ns)
        if planned is not None:
            self.waiting, self.missing_frame = "", False
            self.plan.commit(planned)
            self._submit(Step(planned, config.cloud_period_s))
        elif self._cloud_is_old and not self.in_flight:
            self._cloud_is_old = False
            self._submit(Cloud())

    def _next_chunk(self, config: NodeConfig, now_s: float, ros_ns: int) -> Planned | None:
        try:
            self._watch(self.plan.end_ns(), now_s, ros_ns)
            idle = now_s - self._growth.at_s >= config.plan_idle_s
            planned = self._peek(config, idle, ros_ns)
        except TransformError as error:
            self._watch(None, now_s, ros_ns)
            idle = now_s - self._growth.at_s >= config.plan_idle_s
            self.waiting = f"Waiting for a plan: {error}" if idle else ""
            self.missing_frame = idle
            return None
        if planned is None and idle and not self.in_flight:
            self.missing_frame = False
            self.waiting = self._starved()
        return planned

    def _peek(self, config: NodeConfig, idle: bool, ros_ns: int) -> Planned | None:
        """A full chunk; one that is not full only when nothing more is coming."""
        full = self.model.chunk_frames
        planned = self.plan.peek(full)
        if planned is not None and len(planned) == full:
            return planned
        if planned is not None and self._before_gap(planned):
            return planned
        if not idle or self.in_flight:
            return None
        if config.on_missing_plan == "wait":
            return planned
        limit_ns = round(config.max_extrapolation_s * SECOND_NS)
        elapsed_ns = max(0, ros_ns - self._growth.at_ros_ns)
        longer = self.plan.peek(full, Missing(config.on_missing_plan, elapsed_ns, limit_ns))
        finite = config.on_missing_plan == "extrapolate"
        spent = finite and elapsed_ns > limit_ns + self.plan.config.period_ns
        return longer if longer is not None and (len(longer) == full or spent) else None

    def _before_gap(self, planned: Planned) -> bool:
        """The plan goes on, but only after a gap: nothing will fill this chunk."""
        return planned.stamps_ns[-1] + self.plan.config.period_ns <= self.plan.end_ns()

    def _starved(self) -> str:
        if self._growth.end_ns is None:
            return (
                f"Waiting for a plan: no moving transform from '{self.plan.config.world_frame}' to "
                f"'{self.plan.config.camera_frame}' is on /tf and no Path on plan; publish one."
            )
        return (
            f"Waiting for a plan: all of it is rendered, up to {self.plan.cursor_ns} ns; publish "
            "poses with later stamps."
        )

    def _watch(self, end_ns: int | None, now_s: float, ros_ns: int) -> None:
        if end_ns != self._growth.end_ns or not self._growth.at_s:
            self._growth = Growth(end_ns, now_s, ros_ns)

    def _submit(self, command: Command) -> None:
        self._worker.submit(command)
        self.in_flight += 1

    def _receive(self, result: Result) -> None:
        self._results.append(result)
        self._wake()


__all__ = ["Done", "Failed", "ModelReady", "Rollout"]

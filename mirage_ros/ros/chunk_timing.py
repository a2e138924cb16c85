"""When the next chunk is due: whose plan its frames follow, how many they are, and steps that count them.

*Stream* follows the plan: full chunks as they are planned, a part of one when nothing more comes.
Where rendering is slower it takes all of them later and later, or leaves out those that are late.
*Lockstep* takes the same number of frames every time, so that the same plan gives the same frames
however its poses arrive. *Paused* takes what a step asks for and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.plan import Mark, Missing, Plan, Planned
from mirage_ros.ros.tracks import TransformError

FOREVER_NS = 2**62
MOST_KNOWN = 10_000


@dataclass
class Growth:
    """When the plan last grew: its end then, wall seconds, ROS nanoseconds."""

    end_ns: int | None = None
    at_s: float = 0.0
    at_ros_ns: int = 0


class PriorityRollout:
    """A given list of poses, rendered before anything else (see GenerateRollout)."""

    follows_plan = False

    def __init__(
        self, stamps_ns: np.ndarray, world_from_camera: Float[np.ndarray, "n 4 4"], plan: Plan
    ) -> None:
        self.stamps_ns, self._poses, self._plan = stamps_ns, world_from_camera, plan
        self.next = 0

    def peek(self, count: int) -> Planned | None:
        part = slice(self.next, self.next + count)
        stamps = tuple(int(stamp) for stamp in self.stamps_ns[part])
        return Planned(stamps, self._poses[part]) if stamps else None

    def commit(self, planned: Planned) -> None:
        self.next += len(planned)
        self._plan.passed(planned.stamps_ns[-1])

    def take_back(self, planned: Planned, mark: Mark) -> None:
        self.next -= len(planned)
        self._plan.rewind(mark)


class Pacing:
    """Decides on the next chunk.

    Attributes:
        budget: frames that may still be handed out; None is any number.
        priority: poses that go first, None without.
        waiting: why nothing is handed out though it should be.
        skipped: frames that were left out because they were late.
        latency_s: wall time from a pose's arrival to its frame, of the last frame.
    """

    follows_plan = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.budget: int | None = None
        self.priority: PriorityRollout | None = None
        self.waiting = ""
        self.missing_frame = False
        self.stopped = False
        self._growth = Growth()
        self._came: tuple[float, int | None] | None = None
        self.skipped = 0
        self.latency_s = 0.0
        # How far the plan went, and since when (s).
        self._known: deque[tuple[int, float]] = deque(maxlen=MOST_KNOWN)

    def hear(self, now_s: float) -> None:
        """Notes how far the plan goes by now."""
        try:
            end_ns = self.plan.end_ns()
        except TransformError:
            return
        if end_ns is not None and (not self._known or end_ns > self._known[-1][0]):
            self._known.append((end_ns, now_s))

    def published(self, now_s: float, stamp_ns: int) -> None:
        """A frame went out. One that was made up beyond the plan has no latency."""
        while self._known and self._known[0][0] < stamp_ns:
            self._known.popleft()
        if self._known:
            self.latency_s = now_s - self._known[0][1]

    def lag_s(self, published_ns: int | None) -> float:
        """Planned time from the last frame that went out to the newest pose that came."""
        if not self._known or published_ns is None:
            return 0.0
        return max(0, self._known[-1][0] - published_ns) / SECOND_NS

    def next(
        self, config: NodeConfig, chunk: int, idle_worker: bool, now_s: float, ros_ns: int
    ) -> tuple[Planned, Pacing | PriorityRollout] | None:
        """The next frames and where they come from, None where there is nothing to do (yet)."""
        if self.priority is not None:
            self.waiting, self.missing_frame = "", False
            planned = self.priority.peek(chunk)
            return None if planned is None else (planned, self.priority)
        if self.stopped or self.budget == 0:
            self.waiting, self.missing_frame = "", False
            return None
        try:
            self._watch(self._end_ns(config), now_s, ros_ns)
            idle = now_s - self._growth.at_s >= config.plan_idle_s
            planned = self._peek(config, chunk, idle, idle_worker, ros_ns)
        except TransformError as error:
            self._watch(None, now_s, ros_ns)
            idle = now_s - self._growth.at_s >= config.plan_idle_s
            self.waiting = f"Waiting for a plan: {error}" if idle else ""
            self.missing_frame = idle
            return None
        if planned is not None:
            self.waiting, self.missing_frame = "", False
            return planned, self
        if idle and idle_worker:
            self.missing_frame = False
            self.waiting = self._starved()
        return None

    def commit(self, planned: Planned) -> None:
        self.plan.commit(planned)
        self.skipped += planned.skipped
        if self.budget is not None:
            self.budget -= len(planned)

    def take_back(self, planned: Planned, mark: Mark) -> None:
        self.plan.rewind(mark)
        self.skipped -= planned.skipped
        if self.budget is not None:
            self.budget += len(planned)

    def plan_came(self, now_s: float) -> None:
        """A plan, or a change of it, arrived. What is handed out already was planned before."""
        if self._came is None:
            self._came = now_s, self.plan.cursor_ns

    def first_frame(self, now_s: float, stamp_ns: int) -> float | None:
        """Seconds from the plan's arrival to now, once for every plan: at its first frame."""
        if self._came is None:
            return None
        came_s, before_ns = self._came
        if before_ns is not None and stamp_ns <= before_ns:
            return None
        self._came = None
        return now_s - came_s

    def forget_plan(self) -> None:
        """The plan that came is void, and nobody waits for its first frame."""
        self._came = None
        self._known.clear()

    def _end_ns(self, config: NodeConfig) -> int | None:
        try:
            return self.plan.end_ns()
        except TransformError:
            if self.budget is None or config.on_missing_plan != "hold":
                raise
            return None

    def _peek(
        self, config: NodeConfig, chunk: int, idle: bool, idle_worker: bool, ros_ns: int
    ) -> Planned | None:
        if self.budget is not None:
            return self._stepped(config, min(chunk, self.budget))
        if config.time_mode == "lockstep":
            return self._locked(config, min(chunk, config.step_frames or chunk), idle, ros_ns)
        return self._streamed(config, min(chunk, config.step_frames or chunk), idle, idle_worker, ros_ns)

    def _stepped(self, config: NodeConfig, count: int) -> Planned | None:
        """Exactly as many as were asked for; where the plan ends the camera stands still."""
        policy = "hold" if config.on_missing_plan == "hold" else "wait"
        planned = self.plan.peek(count, Missing(policy, FOREVER_NS, FOREVER_NS))
        return planned if planned is not None and len(planned) == count else None

    def _locked(self, config: NodeConfig, count: int, idle: bool, ros_ns: int) -> Planned | None:
        planned = self.plan.peek(count)
        if planned is None or len(planned) == count or self._before_gap(planned):
            return planned
        return None

    def _streamed(
        self, config: NodeConfig, full: int, idle: bool, idle_worker: bool, ros_ns: int
    ) -> Planned | None:
        """A full chunk; one that is not full only when nothing more is coming."""
        late_before_ns = None
        if config.late_plan == "skip":
            # Poses that come while a chunk is made are newer than any that could wait for it.
            if not idle_worker:
                return None
            late_before_ns = ros_ns
        planned = self.plan.peek(full, late_before_ns=late_before_ns)
        if planned is not None and (len(planned) == full or self._before_gap(planned)):
            return planned
        if not idle or not idle_worker:
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
            if end_ns is not None and (self.waiting or self._growth.end_ns is None):
                self.plan_came(now_s)
            self._growth = Growth(end_ns, now_s, ros_ns)


class StepJob:
    """So many frames, published, and then an answer.

    Attributes:
        after_ns: the time at which it began; None where time has not begun.

    Args:
        progress: called with the frames done so far.
        finish: called once, with '' or with why it was not done.
    """

    def __init__(
        self, frames: int, progress: Callable[[int], None], finish: Callable[[str], None]
    ) -> None:
        self.frames, self.done = frames, 0
        self.after_ns: int | None = None
        self._progress, self._finish = progress, finish

    def frame(self, stamp_ns: int) -> bool:
        """One was published; True once it was the last. Frames from before the step don't count."""
        if self.after_ns is not None and stamp_ns <= self.after_ns:
            return False
        self.done += 1
        self._progress(self.done)
        return self.done >= self.frames

    def finish(self, reason: str = "") -> None:
        self._finish(reason)


class Stepper:
    """Playing, paused, or stepping while paused. It sets how many frames may be handed out.

    Attributes:
        ending: the simulator was asked to quit.
    """

    def __init__(self, paused: bool) -> None:
        self._pacing: Pacing | None = None
        self._take_back: Callable[[], None] = lambda: None
        self.playing = not paused
        self.stopped = self.ending = False
        self.job: StepJob | None = None

    def attach(self, pacing: Pacing, take_back: Callable[[], None]) -> None:
        """To the supply of a worker. `take_back` takes back chunks that are not at work yet."""
        self._pacing, self._take_back = pacing, take_back
        self._apply()

    def detach(self) -> None:
        """The worker is gone."""
        self._pacing, self._take_back = None, lambda: None

    def play(self) -> None:
        self.playing, self.stopped = True, False
        self._apply()

    def pause(self, stopped: bool = False) -> None:
        """Nothing new is handed out; a step under way is called off.

        A chunk at work still comes, see `FrameQueue.when_calm`.
        """
        self.playing, self.stopped = False, stopped
        self._take_back()
        self.call_off("The simulation was stopped.")
        self._apply()

    def step(self, job: StepJob) -> None:
        """Begins a step. Raises MirageError unless the simulation is paused and idle."""
        if self.playing:
            raise MirageError("The simulation is playing; pause it before stepping.")
        if self.stopped:
            raise MirageError("The simulation is stopped; pause it before stepping.")
        if self.job is not None:
            raise MirageError(
                f"A step of {self.job.frames} frames is under way; wait for it or cancel it."
            )
        if job.frames == 0:
            job.finish()
            return
        job.after_ns = self._pacing.plan.cursor_ns if self._pacing else None
        self.job = job
        self._apply()

    def frame(self, stamp_ns: int) -> None:
        """Frames of one more instant were published."""
        job = self.job
        if job is not None and job.frame(stamp_ns):
            self.job = None
            self._apply()
            job.finish()

    def call_off(self, reason: str) -> None:
        """Ends a step under way; what is at work already still comes."""
        job, self.job = self.job, None
        if job is not None:
            self._take_back()
            self._apply()
            job.finish(reason)

    def _apply(self) -> None:
        if self._pacing is None:
            return
        if self.playing:
            self._pacing.budget = None
        else:
            self._pacing.budget = self.job.frames - self.job.done if self.job else 0


def stretched(count: int, start_ns: int, period_ns: int) -> np.ndarray:
    """Evenly spaced stamps after a start."""
    if count < 0:
        raise MirageError(f"{count} frames were asked for; give 0 or more.")
    return start_ns + period_ns * np.arange(1, count + 1, dtype=np.int64)

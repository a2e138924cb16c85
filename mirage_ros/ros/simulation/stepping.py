"""The simulation's state, and steps that are under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mirage_ros.core.errors import MirageError

if TYPE_CHECKING:
    from mirage_ros.ros.rollout import Rollout


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
        ending: the simulator was told to quit.
    """

    def __init__(self, paused: bool) -> None:
        self._rollout: Rollout | None = None
        self.playing = not paused
        self.stopped = self.ending = False
        self.job: StepJob | None = None

    def attach(self, rollout: Rollout | None) -> None:
        """To the supply of a worker that is there now."""
        self._rollout = rollout
        self._apply()

    def play(self) -> None:
        self.playing, self.stopped = True, False
        self._apply()

    def pause(self, stopped: bool = False) -> None:
        """Nothing new is handed out; a step under way is called off.

        A chunk at work still comes, see `Outbox.when_calm`.
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
        job.after_ns = self._rollout.plan.cursor_ns if self._rollout else None
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

    def _take_back(self) -> None:
        if self._rollout is not None:
            self._rollout.replan()

    def _apply(self) -> None:
        if self._rollout is None:
            return
        pacing = self._rollout.pacing
        if self.playing:
            pacing.budget = None
        else:
            pacing.budget = self.job.frames - self.job.done if self.job else 0

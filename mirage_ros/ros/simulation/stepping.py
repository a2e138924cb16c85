"""The simulation's state, and steps that are under way."""

from __future__ import annotations

from collections.abc import Callable

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.pacing import Pacing


class StepJob:
    """So many frames, published, and then an answer.

    Args:
        progress: called with the frames done so far.
        finish: called once, with '' or with why it was not done.
    """

    def __init__(
        self, frames: int, progress: Callable[[int], None], finish: Callable[[str], None]
    ) -> None:
        self.frames, self.done = frames, 0
        self._progress, self._finish = progress, finish

    def frame(self) -> bool:
        """One more was published; True once it was the last."""
        self.done += 1
        self._progress(self.done)
        return self.done >= self.frames

    def finish(self, reason: str = "") -> None:
        self._finish(reason)


class Stepper:
    """Playing, paused, or stepping while paused. It sets how many frames may be handed out."""

    def __init__(self, paused: bool) -> None:
        self._pacing: Pacing | None = None
        self.playing = not paused
        self.stopped = False
        self.job: StepJob | None = None

    def attach(self, pacing: Pacing | None) -> None:
        """To the pacing of a worker that is there now."""
        self._pacing = pacing
        self._apply()

    def play(self) -> None:
        self.playing, self.stopped = True, False
        self._apply()

    def pause(self, stopped: bool = False) -> None:
        """Nothing new is handed out; a step under way is called off."""
        self.playing, self.stopped = False, stopped
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
        self.job = job
        self._apply()

    def frame(self) -> None:
        """Frames of one more instant were published."""
        job = self.job
        if job is not None and job.frame():
            self.job = None
            self._apply()
            job.finish()

    def call_off(self, reason: str) -> None:
        """Ends a step under way; what was handed out already still comes."""
        job, self.job = self.job, None
        if job is not None:
            self._apply()
            job.finish(reason)

    def _apply(self) -> None:
        if self._pacing is None:
            return
        if self.playing:
            self._pacing.budget = None
        else:
            self._pacing.budget = self.job.frames - self.job.done if self.job else 0

"""What every worker does, in whichever process: load the model once, run units."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numba
import torch

from mirage_ros.core.types import WorldModel
from mirage_ros.generate.batching import Meeting, joined
from mirage_ros.generate.episode import run_episode
from mirage_ros.generate.job import Job
from mirage_ros.generate.pool import Event, Unit
from mirage_ros.models.pretrained import load_model


class UnitRunner:
    """Runs units of episodes with one model."""

    def __init__(self, job: Job, out: Path, device: str = "auto") -> None:
        self.job, self.out = job, out
        self.model: WorldModel = load_model(job.model, device)

    def run(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """Events of one unit, whose indices in `skip` are not written; see `generate.pool`."""
        fix_threads(self.job.threads)
        if len(unit) > 1:
            yield from self._run_together(unit, skip)
        elif unit[0] not in skip:
            yield from run_episode(self.model, self.job, unit[0], self.out)

    def _run_together(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """One thread an episode; their networks' calls meet and become one.

        Threads only wait for each other here, so which calls meet does not depend on timing.
        """
        events: queue.Queue[Event] = queue.Queue()
        meeting, models = joined(self.model, len(unit))
        for model, index in zip(models, unit, strict=True):
            arguments = (meeting, model, index, index not in skip, events)
            threading.Thread(target=self._thread, args=arguments, daemon=True).start()
        left, fault = len(unit), None
        while left:
            kind, what = events.get()
            left -= kind != "frames"
            if kind == "fault":
                fault = fault or what
            elif kind == "frames" or what.index not in skip:
                yield kind, what
        if fault is not None:
            raise fault

    def _thread(self, meeting: Meeting, model, index: int, write: bool, events) -> None:
        fix_threads(self.job.threads)  # a new thread has forgotten it
        try:
            for event in run_episode(model, self.job, index, self.out, write):
                if event[0] == "frames":
                    events.put(event)
            ended: Event = event
        except BaseException as error:
            ended = ("fault", error)
        meeting.leave()
        events.put(ended)


def fix_threads(count: int) -> None:
    """Fixes the threads of this thread's numerics, on which the last bits of sums depend.

    Numba goes first: starting its threads sets OpenMP's number, which is torch's as well.
    """
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)

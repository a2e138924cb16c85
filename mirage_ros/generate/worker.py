"""What every worker does, in whichever process: load the model once, run units.

A unit of several episodes joins their calls of the denoiser into one. Every episode runs in a thread
of its own with what looks like a model of its own. A call waits at a barrier until all episodes that
are still running have called too; then those of equal shapes are stacked and run at once. So which
calls are joined follows from the episodes and not from timing, and the same unit gives the same bits
on every run.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numba
import torch
from torch import Tensor

from mirage_ros.errors import MirageError
from mirage_ros.generate.pool import Event, Unit
from mirage_ros.protocol import WorldModel


@dataclass
class _Call:
    """One waiting call: which tensors, and what came back."""

    tensors: tuple[Tensor, ...]
    world: int
    result: Tensor | None = None
    error: BaseException | None = None
    done: bool = False


@dataclass
class BatchBarrier:
    """Holds back calls of so many worlds and runs them as a batch; `network` takes tensors with the batch
    in front."""

    network: Callable[..., Tensor]
    worlds: int
    calls: list[_Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def call(self, tensors: tuple[Tensor, ...], world: int) -> Tensor:
        """The network's answer to one world's tensors, once the others have called as well."""
        call = _Call(tensors, world)
        with self.changed:
            self.calls.append(call)
            self._run_if_complete()
            self.changed.wait_for(lambda: call.done)
        if call.error is not None:
            raise call.error
        return call.result

    def leave(self) -> None:
        """A world has ended; the others no longer wait for it."""
        with self.changed:
            self.worlds -= 1
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if not self.calls or len(self.calls) < self.worlds:
            return
        calls, self.calls = sorted(self.calls, key=lambda call: call.world), []
        groups: dict[tuple, list[_Call]] = {}
        for call in calls:
            shapes = tuple(tensor.shape[1:] for tensor in call.tensors)
            groups.setdefault(shapes, []).append(call)
        for group in groups.values():
            _run_batch(self.network, group)
        self.changed.notify_all()


def _run_batch(network: Callable[..., Tensor], group: list[_Call]) -> None:
    counts = [len(call.tensors[0]) for call in group]
    try:
        stacked = [torch.cat(parts) for parts in zip(*(c.tensors for c in group), strict=True)]
        with torch.inference_mode():
            parts = network(*stacked).split(counts)
        for call, part in zip(group, parts, strict=True):
            call.result = part
    except BaseException as error:
        for call in group:
            call.error = error
    for call in group:
        call.done = True


class _BatchedDenoiser:
    """Stands in for a denoiser; its calls go to a barrier, all else to the network."""

    def __init__(self, barrier: BatchBarrier, world: int) -> None:
        self._barrier, self._world = barrier, world

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self._barrier.call(tensors, self._world)

    def __getattr__(self, name: str):
        return getattr(self._barrier.network, name)


def batched(model: WorldModel, worlds: int) -> tuple[BatchBarrier, list[WorldModel]]:
    """A barrier and a model for each world that share the given one's weights.

    Raises:
        MirageError: the model has no `denoiser` to join.
    """
    if not hasattr(model, "denoiser"):
        raise MirageError(f"The model {model.name} cannot draw episodes together; use --batch 1.")
    barrier, models = BatchBarrier(model.denoiser, worlds), []
    for world in range(worlds):
        own = copy.copy(model)
        own.denoiser = _BatchedDenoiser(barrier, world)
        models.append(own)
    return barrier, models


class UnitRunner:
    """Runs units of episodes with one model.

    Args:
        load: gives the model, in the process that draws with it.
        draw: a model, the episode's index and whether to write it -> events; see episode.run_episode.
        threads: of the numerics of each episode.
    """

    def __init__(
        self,
        load: Callable[[], WorldModel],
        draw: Callable[..., Iterator[Event]],
        threads: int,
    ) -> None:
        self.model, self.draw, self.threads = load(), draw, threads

    def run(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """Events of one unit, whose indices in `skip` are not written; see `generate.pool`."""
        fix_threads(self.threads)
        if len(unit) > 1:
            yield from self._run_together(unit, skip)
        elif unit[0] not in skip:
            yield from self.draw(self.model, index=unit[0], write=True)

    def _run_together(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """One thread an episode; their networks' calls are joined at a barrier."""
        events: queue.Queue[Event] = queue.Queue()
        barrier, models = batched(self.model, len(unit))
        for model, index in zip(models, unit, strict=True):
            arguments = (barrier, model, index, index not in skip, events)
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

    def _thread(self, barrier: BatchBarrier, model, index: int, write: bool, events) -> None:
        fix_threads(self.threads)  # a new thread starts with the default
        try:
            for event in self.draw(model, index=index, write=write):
                if event[0] == "frames":
                    events.put(event)
            ended: Event = event
        except BaseException as error:
            ended = ("fault", error)
        barrier.leave()
        events.put(ended)


def fix_threads(count: int) -> None:
    """Fixes the threads of this thread's numerics, on which the last bits of sums depend.

    Numba goes first: starting its threads sets OpenMP's number, which is torch's as well.
    """
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)

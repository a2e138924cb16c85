"""Joins the denoiser calls of several worlds into one.

Every world runs in a thread of its own with what looks like a model of its own. A call waits
until all worlds that are still running have called too; then those of equal shapes are
stacked and run at once. So which calls are joined follows from the episodes and not from
timing, and the same unit gives the same bits on every run.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mirage_ros.core.errors import MirageError
from mirage_ros.core.types import WorldModel


@dataclass
class _Call:
    """One waiting call: which tensors, and what came back."""

    tensors: tuple[Tensor, ...]
    world: int
    result: Tensor | None = None
    error: BaseException | None = None
    done: bool = False


@dataclass
class Meeting:
    """Where the calls of so many worlds meet; `network` takes tensors with the batch in front."""

    network: Callable[..., Tensor]
    worlds: int
    calls: list[_Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, tensors: tuple[Tensor, ...], world: int) -> Tensor:
        """The network's answer to one world's tensors, once the others have asked as well."""
        call = _Call(tensors, world)
        with self.changed:
            self.calls.append(call)
            self._run_if_all_are_here()
            self.changed.wait_for(lambda: call.done)
        if call.error is not None:
            raise call.error
        return call.result

    def leave(self) -> None:
        """A world has ended; the others no longer wait for it."""
        with self.changed:
            self.worlds -= 1
            self._run_if_all_are_here()

    def _run_if_all_are_here(self) -> None:
        if not self.calls or len(self.calls) < self.worlds:
            return
        calls, self.calls = sorted(self.calls, key=lambda call: call.world), []
        groups: dict[tuple, list[_Call]] = {}
        for call in calls:
            shapes = tuple(tensor.shape[1:] for tensor in call.tensors)
            groups.setdefault(shapes, []).append(call)
        for group in groups.values():
            _answer(self.network, group)
        self.changed.notify_all()


def _answer(network: Callable[..., Tensor], group: list[_Call]) -> None:
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


class _Joined:
    """Stands in for a denoiser; its calls go to a meeting, all else to the network."""

    def __init__(self, meeting: Meeting, world: int) -> None:
        self._meeting, self._world = meeting, world

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self._meeting.ask(tensors, self._world)

    def __getattr__(self, name: str):
        return getattr(self._meeting.network, name)


def joined(model: WorldModel, worlds: int) -> tuple[Meeting, list[WorldModel]]:
    """A meeting and a model for each world that share the given one's weights.

    Raises:
        MirageError: the model has no `denoiser` to join.
    """
    if not hasattr(model, "denoiser"):
        raise MirageError(f"The model {model.name} cannot draw episodes together; use --batch 1.")
    meeting, models = Meeting(model.denoiser, worlds), []
    for world in range(worlds):
        own = copy.copy(model)
        own.denoiser = _Joined(meeting, world)
        models.append(own)
    return meeting, models

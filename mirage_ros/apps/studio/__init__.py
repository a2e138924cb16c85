"""The studio: a page to walk in a generated world. walk.py owns the world, page.py and its panels show it, gate.py lets in.

Here is what they hand to each other.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import EntityChange, Frame


@dataclass(frozen=True)
class View:
    """A picture, and what it took.

    Attributes:
        frame: the picture with its camera, depth and mask.
        state: the world after it, with its memory; never changed. A WorldState, or what a world elsewhere tells of it.
        seconds: by stage; none of a picture that nobody walked to.
        waited_s: from the pose that was asked for until its picture was decoded; 0 of one that nobody walked to.
        rate_hz: pictures a second, of the last ones.
        observed_fraction: share of it that memory knew.
        world: counts worlds: another number, another world.
    """

    frame: Frame
    state: Any
    seconds: dict[str, float]
    waited_s: float
    rate_hz: float
    observed_fraction: float
    world: int


@contextmanager
def survived() -> Iterator[None]:
    """What is raised within is printed and ends no thread of the studio: its page stays up, and would do nothing any more."""
    try:
        yield
    except Exception:  # noqa: BLE001 - of any part of the page
        traceback.print_exc()


@runtime_checkable
class Listener(Protocol):
    """Who hears of a walk; called by its thread."""

    def saw(self, view: View, jumped: bool) -> None:
        """A picture is there. `jumped`: the camera is not where somebody walked to."""
        ...

    def glimpsed(self, rgb: UInt8[np.ndarray, "h w 3"], camera: Camera) -> None:
        """What the next picture shows, before its depth is known; or, as that failed, what the last one did."""
        ...

    def notify(self, sentence: str, good: bool) -> None:
        """Something is done, or could not be."""
        ...

    def working(self, what: str | None, share: float) -> None:
        """How far long work is; None: it is over."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """A world that is not in this process, with the face of `World`: it keeps its own state, and imagines as it was
    started. After `interrupt`, called by any thread, nothing that it does waits any more: it raises MirageError."""

    def interrupt(self) -> None: ...

    def fork(self, name: str) -> Any: ...

    def change_entities(self, changes: tuple[EntityChange, ...]) -> list[str]: ...

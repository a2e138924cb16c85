"""What the worker says of itself between its results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beat:
    """The worker lives."""


@dataclass(frozen=True)
class Dying:
    """The worker ends itself, and why."""

    message: str

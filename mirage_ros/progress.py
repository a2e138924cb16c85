"""How a process tells that its work goes on: whoever works reports, whoever supervises listens.

A thread of its own would tell that the process lives, not that it gets anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

LONG_S = 600.0
"""For what cannot report meanwhile: loading a network, compiling."""

_listener: Callable[[float], None] | None = None


def report(allow_s: float = 0.0) -> None:
    """The work goes on; cheap, so often is fine.

    Args:
        allow_s: what comes next may take so long until the next report.
    """
    if _listener is not None:
        _listener(allow_s)


def listen(listener: Callable[[float], None] | None) -> None:
    """Who hears the reports of this process from now on."""
    global _listener
    _listener = listener

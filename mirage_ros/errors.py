"""What everything here may say: the one error base, how text from outside is shown, and that work goes on.

A thread of its own would tell that a process lives, not that it gets anywhere: so whoever works reports, and whoever
supervises listens.
"""

from __future__ import annotations

from collections.abc import Callable

# Nobody reads on after so much of a sentence.
MOST_CHARACTERS = 1000


class MirageError(Exception):
    """Something the user can mend.

    The message is one sentence: what was got, what is needed, what to do. What it repeats of the input is cut and
    escaped by `legible`.
    """

    most_characters = MOST_CHARACTERS

    def __str__(self) -> str:
        return legible(super().__str__(), self.most_characters)


class MisfitError(MirageError):
    """Tensors that do not fit a network: all of them are listed, for whoever converts a checkpoint."""

    most_characters = 200_000


def legible(text: str, most: int = MOST_CHARACTERS) -> str:
    """At most so many characters, the middle left out, and no control characters save line ends."""
    if len(text) > most:
        half = (most - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    shown = "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )
    return legible(shown, most) if len(shown) > most else shown


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

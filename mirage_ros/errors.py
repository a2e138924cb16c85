"""The one error base of the project, and how text from outside is shown."""

from __future__ import annotations

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

"""The one error base of the project."""


class MirageError(Exception):
    """Something the user can mend.

    The message is one sentence: what was got, what is needed, what to do.
    """

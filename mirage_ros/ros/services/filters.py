"""Which entities a filter of the standard lets pass: by name, and by where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import regex
from jaxtyping import Float
from simulation_interfaces.msg import Bounds, EntityFilters

from mirage_ros.core.errors import MirageError

# So much of a filter is worth repeating.
SHOWN = 200
# Longer ones are no filter of a name, and take long to compile.
MOST_CHARACTERS = 500
# The search holds up everybody else meanwhile.
SEARCH_S = 0.02


class UnsupportedFilter(MirageError):
    """A filter of a kind that is not offered."""


def check_kinds(filters: EntityFilters) -> None:
    """Raises UnsupportedFilter for what cameras do not have, and for hulls."""
    given = {"categories": bool(filters.categories), "tags": bool(filters.tags.tags)}
    unsupported = [name for name, there in given.items() if there]
    if unsupported:
        raise UnsupportedFilter(
            f"A filter by {' and '.join(unsupported)} is not supported; filter by name or bounds."
        )
    if filters.bounds.type not in (Bounds.TYPE_EMPTY, Bounds.TYPE_SPHERE, Bounds.TYPE_BOX):
        raise UnsupportedFilter(
            f"Bounds of type {filters.bounds.type} are not supported; give a sphere or a box."
        )


def name_filter(text: str) -> Callable[[str], bool]:
    """Whether a name matches a POSIX extended regular expression.

    Raises MirageError for an expression that cannot be used; so does the function, for one that takes too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise MirageError(
            f"The filter is a regular expression of {len(text)} characters; give one of at most {MOST_CHARACTERS}."
        )
    try:
        pattern = regex.compile(text)
    except (regex.error, OverflowError, RecursionError) as error:
        raise MirageError(
            f"The filter '{text[:SHOWN]}' is no usable regular expression ({error}); simplify it."
        ) from error

    def matches(name: str) -> bool:
        try:
            return pattern.search(name, timeout=SEARCH_S) is not None
        except TimeoutError as error:
            raise MirageError(
                f"The filter '{text[:SHOWN]}' is a regular expression that takes more than {SEARCH_S} s; simplify it."
            ) from error

    return matches


def place_filter(bounds: Bounds) -> Callable[[Float[np.ndarray, "3"]], bool]:
    """Whether a point of the world overlaps the bounds, which are the world's, too.

    Raises:
        MirageError: the points of the bounds make no volume.
    """
    if bounds.type == Bounds.TYPE_EMPTY:
        return lambda position: True
    points = np.array([[point.x, point.y, point.z] for point in bounds.points])
    if len(points) != 2 or not np.isfinite(points).all():
        raise MirageError(
            f"The bounds have {len(points)} points, or some that are not finite; give 2: centre "
            "and radius of a sphere, or two opposite corners of a box."
        )
    if bounds.type == Bounds.TYPE_BOX:
        low, high = points.min(axis=0), points.max(axis=0)
        return lambda position: bool(((low <= position) & (position <= high)).all())
    centre, radius = points[0], points[1, 0]
    if radius < 0:
        raise MirageError(f"The sphere has the radius {radius} m; give 0 or more.")
    return lambda position: bool(np.linalg.norm(position - centre) <= radius)

"""Being told to end while rclpy is in the middle of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import ExternalShutdownException

from mirage_ros.core.errors import MirageError


@contextmanager
def told_to_end() -> Iterator[None]:
    """ExternalShutdownException for whatever rclpy raises because its context is gone.

    A handler of SIGINT or SIGTERM shuts the context down at any moment, and the call that is under
    way then fails with an error of rcl's, which has no public class.
    """
    try:
        yield
    except MirageError:
        raise
    except Exception as error:
        if rclpy.ok():
            raise
        raise ExternalShutdownException from error

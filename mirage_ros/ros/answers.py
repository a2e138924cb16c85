"""Answers of services, sent again where the node has not met yet who is to read them.

A request may come before the node has met the client's reader of replies. Fast DDS waits for it, 0.1 s, and gives up; rclpy
makes a warning of Python's of that, which is printed once in a process, and drops the answer: the client waits for ever.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.service import Service
from rclpy.timer import Timer

AGAIN_S = 0.5
PATIENCE_S = 10.0
# What the warning says of an answer that was dropped.
DROPPED = "failed to send response"


@dataclass
class Unsent:
    """An answer whose reader is not known yet."""

    service: str
    send: Callable[[], None]
    since_s: float = field(default_factory=time.monotonic)


class Answers:
    """What a node's services answer.

    Args:
        lost: called with a sentence when an answer is given up.
    """

    def __init__(self, node: Node, lost: Callable[[str], None]) -> None:
        self._node, self._lost = node, lost
        self._unsent: deque[Unsent] = deque()
        self._timer: Timer | None = None

    def watch(self, service: Service) -> None:
        """What this service sends is sent again where it was dropped."""
        send_now = service.send_response

        def send_response(response: Any, header: Any) -> None:
            send = functools.partial(send_now, response, header)
            if not _sent(send):
                self._unsent.append(Unsent(service.service_name, send))
                self._set_timer()

        service.send_response = send_response

    def _set_timer(self) -> None:
        if self._timer is None:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._timer = self._node.create_timer(AGAIN_S, self._send_again, clock=steady)
        elif self._timer.is_canceled():
            self._timer.reset()

    def _send_again(self) -> None:
        """Up to the first that is dropped again: that takes 0.1 s, in which the node does nothing else."""
        while self._unsent:
            unsent = self._unsent.popleft()
            if time.monotonic() - unsent.since_s > PATIENCE_S:
                self._lost(
                    f"An answer of {unsent.service} is lost: for {PATIENCE_S:g} s the node has not met the reader of "
                    "replies of the client that called it; call it again, with the QoS that services have by default."
                )
            elif not _sent(unsent.send):
                self._unsent.append(unsent)
                return
        self._timer.cancel()


def _sent(send: Callable[[], None]) -> bool:
    """Sends; False where the answer was dropped.

    What becomes of warnings is the process's and not a thread's: this is for the one thread of the node's executor.
    """
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        send()
    return not any(DROPPED in str(warning.message) for warning in found)

"""Lockstep: the node owns /clock, alone."""

from __future__ import annotations

from rclpy.node import Node
from rosgraph_msgs.msg import Clock

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.conversions import stamp_to_ros
from mirage_ros.ros.publishers import LATCHED, publishers_of

TOPIC = "/clock"


class SimClock:
    """Publishes the time. It only goes forward, save by `restart`.

    The message is latched, so a process that comes late, or comes back, learns the time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(Clock, TOPIC, LATCHED)
        self.now_ns: int | None = None
        self._told_ns: int | None = None

    def advance(self, stamp_ns: int) -> None:
        """Time is now that of a frame that exists; an earlier one is left out."""
        if self.now_ns is None or stamp_ns > self.now_ns:
            self.restart(stamp_ns)
            self.tell()

    def restart(self, stamp_ns: int) -> None:
        """Time begins (again) here; others learn it by `tell`."""
        self.now_ns, self._told_ns = stamp_ns, None

    def tell(self) -> None:
        """Publishes the time, once. Somebody else's clock has to be ruled out before."""
        if self.now_ns is not None and self._told_ns != self.now_ns:
            self._publisher.publish(Clock(clock=stamp_to_ros(self.now_ns)))
            self._told_ns = self.now_ns

    def check(self) -> None:
        """Raises MirageError where somebody else publishes /clock, too."""
        names = publishers_of(self._node, TOPIC)
        own = self._node.get_fully_qualified_name()
        if own in names:
            names.remove(own)
        if names:
            raise MirageError(
                f"/clock is also published by {', '.join(sorted(set(names)))}; in lockstep the "
                "node owns it: stop the other clock, or set time_mode to stream."
            )

"""A publisher that does its work only when somebody listens, and that knows who lags behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

NOW = Duration()


class LazyPublisher:
    """Asks for a message, and so for its conversion, only while there is a subscriber.

    A latched topic (transient local) always wants its messages: its subscribers may come later.
    """

    def __init__(self, node: Node, message_type: type, topic: str, qos: QoSProfile | int) -> None:
        self._publisher = node.create_publisher(message_type, topic, qos)
        durability = getattr(qos, "durability", DurabilityPolicy.VOLATILE)
        self._latched = durability == DurabilityPolicy.TRANSIENT_LOCAL
        self._depth = qos if isinstance(qos, int) else qos.depth
        self._under_way = 0
        self._full_since_s: float | None = None
        self.made = 0

    @property
    def topic(self) -> str:
        return self._publisher.topic_name

    @property
    def count(self) -> int:
        """How many subscribe."""
        return self._publisher.get_subscription_count()

    @property
    def wanted(self) -> bool:
        """Somebody subscribes, or may come later and still be served."""
        return self._latched or self.count > 0

    def full_for(self, now_s: float) -> float | None:
        """So many seconds the next message might have cost a subscriber the oldest; None: it won't.

        As many messages are kept as may be then, and some subscriber may still lack one of them:
        KEEP_LAST pushes it out without asking whether it has arrived.
        """
        if self._under_way and self._publisher.wait_for_all_acked(NOW):
            self._under_way = 0
        if self._under_way < self._depth:
            self._full_since_s = None
            return None
        if self._full_since_s is None:
            self._full_since_s = now_s
        return now_s - self._full_since_s

    def publish(self, make: Callable[..., Any], *values: Any) -> bool:
        """Publishes `make(*values)` if it is wanted; tells whether it was."""
        if not self.wanted:
            return False
        self._publisher.publish(make(*values))
        self._under_way += 1
        self.made += 1
        return True

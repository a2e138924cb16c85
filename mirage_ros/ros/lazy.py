"""A publisher that does its work only when somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile


class LazyPublisher:
    """Asks for a message, and so for its conversion, only while there is a subscriber.

    A latched topic (transient local) always wants its messages: its subscribers may come later.
    """

    def __init__(self, node: Node, message_type: type, topic: str, qos: QoSProfile | int) -> None:
        self._publisher = node.create_publisher(message_type, topic, qos)
        durability = getattr(qos, "durability", DurabilityPolicy.VOLATILE)
        self._latched = durability == DurabilityPolicy.TRANSIENT_LOCAL
        self.made = 0

    @property
    def count(self) -> int:
        """How many subscribe."""
        return self._publisher.get_subscription_count()

    @property
    def wanted(self) -> bool:
        """Somebody subscribes, or may come later and still be served."""
        return self._latched or self.count > 0

    def publish(self, make: Callable[..., Any], *values: Any) -> bool:
        """Publishes `make(*values)` if it is wanted; tells whether it was."""
        if not self.wanted:
            return False
        self._publisher.publish(make(*values))
        self.made += 1
        return True

"""Prompts from a topic: what the chunks after the ones at work are to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from std_msgs.msg import String

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.worker import Failed, Prompt

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

TOPIC = "prompt"


class PromptInput:
    """Hands each message of `prompt` to the model, and says in diagnostics when it reads none."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        node.create_subscription(String, TOPIC, self._on_prompt, 10)

    def _on_prompt(self, message: String) -> None:
        node = self._node
        if node.rollout is None:
            node.health.error(TOPIC, "A prompt came before the node was configured; send it again.")
            return
        try:
            node.rollout.submit(Prompt(message.data), self._finished)
        except MirageError as error:
            node.health.error(TOPIC, str(error))

    def _finished(self, result) -> None:
        if isinstance(result, Failed):
            self._node.health.error(TOPIC, result.message)
        else:
            self._node.health.ok(TOPIC)
            self._node.get_logger().info(f"The prompt is now {result.command.text!r}.")

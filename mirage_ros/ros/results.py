"""What the worker's results mean to the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirage_ros.ros.worker.commands import (
    Died,
    Done,
    Failed,
    Load,
    ModelReady,
    Reset,
    Revived,
    Step,
)

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


class Results:
    """Takes results from the rollout and tells everybody whom they concern."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._guarded = node.guarded(self._on)

    def work_off(self) -> None:
        """All results that wait."""
        node = self._node
        while node.rollout is not None and (result := node.rollout.take()) is not None:
            self._guarded(result)

    def abandon(self, reason: str) -> None:
        """Tells everybody who waits that nothing comes any more."""
        self._node.rollout.answer(Failed(None, reason))
        self.tell(reason)

    def _on(self, result) -> None:
        node = self._node
        if isinstance(result, ModelReady):
            node.reporter.model_ready(result)
        elif isinstance(result, Died):
            node.figures.restarts += 1
            node.health.error("worker", f"{result.message} Another one is started.")
        elif isinstance(result, Revived):
            self._on_revived(result)
        else:
            # First what a new world ends, then what it brings.
            node.rollout.answer(result)
            self._on_done(result) if isinstance(result, Done) else self._on_failed(result)

    def _on_revived(self, revived: Revived) -> None:
        node = self._node
        node.health.ok("worker")
        text = f"The inference worker is back after {revived.seconds:.1f} s"
        if revived.message:
            node.health.warn("world", f"{text}, without all of the world: {revived.message}")
        else:
            node.get_logger().info(f"{text}, the world as it was.")

    def _on_done(self, done: Done) -> None:
        node, command = self._node, done.command
        if done.unsaved:
            text = "The world cannot be kept for the case that the inference worker is lost"
            node.health.warn("snapshot", f"{text}: {done.unsaved}")
        else:
            node.health.ok("snapshot")
        if isinstance(command, Step):
            node.world.showed(done)
            node.figures.add(done.chunk, done.seconds)
            node.health.ok("world")
            node.outbox.put(done)
        if done.points is not None:
            node.outbox.put_cloud(done.points, done.stamp_ns)

    def _on_failed(self, failed: Failed) -> None:
        node, command = self._node, failed.command
        if command is None:
            node.reporter.model_lost(failed.message)
            node.world.forget()
            self.tell(failed.message)
        elif isinstance(command, Reset):
            node.seed_input.rearm()
            node.health.error("seed", f"No new world from {command.origin}: {failed.message}")
        elif isinstance(command, Load):
            node.health.error("seed", f"No world from {command.path}: {failed.message}")
        elif isinstance(command, Step):
            node.health.error("world", failed.message)
            self.tell(failed.message)

    def tell(self, reason: str) -> None:
        """Those who wait for frames that will not come."""
        self._node.stepper.call_off(reason)
        for listener in self._node.failures:
            listener(reason)

"""The node's /diagnostics: node, model, world, plan, inference and memory once a second
and as soon as something is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from mirage_ros.errors import MirageError
from mirage_ros.ros.diagnostics import status
from mirage_ros.ros.rollout import IN_FLIGHT, Rollout
from mirage_ros.ros.worker.commands import ModelReady

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

PERIOD_S = 1.0
FULL_SHARE = 0.95
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Reporter:
    """Publishes what Health and Figures hold; the node's config gives the limits."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._health, self._figures = node.health, node.figures
        self.model_failed = False
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        node.create_wall_timer(PERIOD_S, self._look_around)
        node.create_wall_timer(PERIOD_S, self.publish)

    @property
    def _rollout(self) -> Rollout | None:
        return self._node.rollout

    def model_ready(self, model: ModelReady) -> None:
        height, width = model.size
        self._node.get_logger().info(
            f"Model '{model.name}' is ready: {width} x {height}, chunks of {model.chunk_frames}."
        )

    def model_lost(self, reason: str) -> None:
        """Without a model the node stays, and says why it does nothing."""
        self._node.wake()
        self.model_failed = True
        self._health.error("model", reason)

    def tell_waiting(self, rollout: Rollout) -> None:
        """Why nothing is rendered though it should be; a frame that is missing is an error once
        anything moves: before that, static transforms may just have come first."""
        moves = any(not track.static for track in self._node.buffer.tracks.values())
        if not rollout.waiting:
            self._health.ok("plan")
        elif rollout.missing_frame and moves:
            self._health.error("plan", rollout.waiting)
        else:
            self._health.warn("plan", rollout.waiting)

    def _look_around(self) -> None:
        """Whether another node has this one's name, or publishes what it publishes."""
        node, health = self._node, self._health
        own = node.get_fully_qualified_name()
        names = [
            f"{namespace.rstrip('/')}/{name}"
            for name, namespace in node.get_node_names_and_namespaces()
        ]
        shared = node.output.shared()
        others = sorted({name for names in shared.values() for name in names} - {own})
        if names.count(own) > 1:
            health.error(
                "graph",
                f"{names.count(own)} nodes are called {own}: frames come from each of them and any "
                "of them answers. Start one under another name (--ros-args -r __node:=...) or "
                "namespace (-r __ns:=...); one that was killed is listed for up to 20 s.",
            )
        elif others:
            health.warn(
                "graph",
                f"{', '.join(sorted(shared))} are also published by {', '.join(others)}: who "
                "subscribes gets both. End the other one, or start one in another namespace "
                "(--ros-args -r __ns:=...).",
            )
        else:
            health.ok("graph")

    def publish(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip("/")
        message.status = [
            status(f"{name}: {part}", *content())
            for part, content in (
                ("node", self._callbacks),
                ("model", self._model),
                ("worker", self._worker),
                ("world", self._world),
                ("plan", self._plan),
                ("inference", self._inference),
                ("memory", self._memory),
            )
        ]
        self._publisher.publish(message)

    def _callbacks(self):
        level, text = self._worst("callback", "recording", "graph")
        return level, text or "answering"

    def _model(self):
        if self.model_failed:
            return self._health.state("model")[:2]
        if self._rollout is None:
            return OK, "not configured"
        model = self._rollout.model
        if model is None:
            return WARN, "loading"
        size = f"{model.size[1]} x {model.size[0]}"
        return OK, "ready", {"name": model.name, "size": size, "chunk_frames": model.chunk_frames}

    def _worker(self):
        level, text = self._worst("worker", "snapshot")
        pid = self._rollout.worker_pid if self._rollout is not None else None
        return level, text or "at work", {"pid": pid, "restarts": self._figures.restarts}

    def _world(self):
        values = {"errors": self._health.errors, "last_error": self._health.last_error}
        level, text = self._worst("world", "seed", "observe", "prompt")
        if level == OK and (self._rollout is None or not self._rollout.has_world):
            return WARN, "no world yet: give a seed", values
        return level, text or "ready", values

    def _plan(self):
        plan, rollout = self._node.plan, self._rollout
        try:
            end_ns = plan.end_ns()
        except MirageError:
            end_ns = None
        values = {
            "source": plan.source,
            "rendered_until_ns": plan.cursor_ns,
            "planned_until_ns": end_ns,
            "frames_pending": plan.pending(),
            "chunks_taken_back": 0 if rollout is None else rollout.taken_back,
            "starved": rollout is not None and bool(rollout.waiting),
            "plan_to_first_frame_s": float(self._node.outbox.plan_to_first_frame_s),
        }
        if rollout is not None:
            values["lag_s"] = rollout.pacing.lag_s(self._node.outbox.last_stamp_ns)
            values["latency_s"] = rollout.pacing.latency_s
            values["frames_skipped"] = rollout.pacing.skipped
        level, text = self._worst("path", "untimed", "tf", "plan", "clock", "start")
        return level, text or "planned", values

    def _inference(self):
        figures = self._figures
        stages = {f"{name}_s": float(seconds) for name, seconds in figures.stage_s.items()}
        values = {
            "frames": figures.frames,
            "chunks": figures.chunks,
            "frames_per_s": figures.frames_per_s,
            "queue": self._rollout.in_flight if self._rollout is not None else 0,
            "queue_size": IN_FLIGHT,
            **stages,
        }
        level, text = self._worst("pictures")
        return level, text or f"{figures.frames_per_s:.3g} frames/s", values

    def _memory(self):
        limit = self._node.config.max_memory_mb * 2**20
        used = self._figures.memory_bytes
        full = used >= FULL_SHARE * limit
        text = (
            "full: the oldest of the least useful tokens go" if full else f"{used / 2**20:.3g} MiB"
        )
        values = {"tokens": self._figures.tokens, "bytes": used, "limit_bytes": limit}
        return (WARN if full else OK), text, values

    def _worst(self, *topics: str) -> tuple[bytes, str]:
        """The worst level of these topics, and all that is wrong at that level."""
        states = [self._health.state(topic)[:2] for topic in topics]
        worst = max(level for level, _ in states)
        return worst, " ".join(text for level, text in states if level == worst and text)

"""What the simulator can do, whether it plays, how it starts over, and how it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from simulation_interfaces.msg import SimulationState, SimulatorFeatures
from simulation_interfaces.srv import (
    GetSimulationState,
    GetSimulatorFeatures,
    ResetSimulation,
    SetSimulationState,
)
from std_srvs.srv import Trigger

from mirage_ros import __version__
from mirage_ros.data.robot_models import MODELS
from mirage_ros.errors import MirageError
from mirage_ros.protocol import Clear
from mirage_ros.ros.callbacks import Deferred, Endpoints
from mirage_ros.ros.chunks import IN_FLIGHT, Then
from mirage_ros.ros.diagnostics import OK, WARN, Health, Status, worst
from mirage_ros.ros.services import FAILED, INCORRECT_STATE, LOADING, UNSUPPORTED, answered, outcome
from mirage_ros.ros.session import Session
from mirage_ros.ros.worker import ChangeEntities, Failed

STOPPED, PLAYING, PAUSED = (
    SimulationState.STATE_STOPPED,
    SimulationState.STATE_PLAYING,
    SimulationState.STATE_PAUSED,
)
NAMES = {STOPPED: "stopped", PLAYING: "playing", PAUSED: "paused"}
FULL_SHARE = 0.95
PERIOD_S = 1.0
ENDING = "The simulator is ending."
TIME, STATE, SPAWNED = (
    ResetSimulation.Request.SCOPE_TIME,
    ResetSimulation.Request.SCOPE_STATE,
    ResetSimulation.Request.SCOPE_SPAWNED,
)
"""The bits of a reset's scope; default and all are every one of them."""

UNSETTABLE = {
    SimulationState.STATE_QUITTING: ENDING,
    SimulationState.STATE_LOADING_WORLD: LOADING,
}
FEATURES = (
    SimulatorFeatures.SPAWNING,
    SimulatorFeatures.SPAWNING_ENTITIES,
    SimulatorFeatures.DELETING,
    SimulatorFeatures.SPAWNABLES,
    SimulatorFeatures.NAMED_POSES,
    SimulatorFeatures.ENTITY_TAGS,
    SimulatorFeatures.ENTITY_BOUNDS,
    SimulatorFeatures.ENTITY_BOUNDS_BOX,
    SimulatorFeatures.ENTITY_CATEGORIES,
    SimulatorFeatures.ENTITY_STATE_GETTING,
    SimulatorFeatures.ENTITY_STATE_SETTING,
    SimulatorFeatures.ENTITY_INFO_GETTING,
    SimulatorFeatures.ENTITY_INFO_SETTING,
    SimulatorFeatures.SIMULATION_RESET,
    SimulatorFeatures.SIMULATION_RESET_TIME,
    SimulatorFeatures.SIMULATION_RESET_STATE,
    SimulatorFeatures.SIMULATION_RESET_SPAWNED,
    SimulatorFeatures.SIMULATION_STATE_GETTING,
    SimulatorFeatures.SIMULATION_STATE_SETTING,
    SimulatorFeatures.SIMULATION_STATE_PAUSE,
    SimulatorFeatures.STEP_SIMULATION_SINGLE,
    SimulatorFeatures.STEP_SIMULATION_MULTIPLE,
    SimulatorFeatures.STEP_SIMULATION_ACTION,
    SimulatorFeatures.WORLD_LOADING,
    SimulatorFeatures.WORLD_TAGS,
    SimulatorFeatures.WORLD_UNLOADING,
    SimulatorFeatures.WORLD_INFO_GETTING,
    SimulatorFeatures.AVAILABLE_WORLDS,
)


def simulation_state(session: Session) -> int:
    """One of the STATE_ constants of SimulationState."""
    if session.stepper.ending:
        return SimulationState.STATE_QUITTING
    if session.loading:
        return SimulationState.STATE_LOADING_WORLD
    if not session.has_world:
        return SimulationState.STATE_NO_WORLD
    if session.stepper.stopped:
        return STOPPED
    # Nothing plays in a node that is not active, but it will again.
    return PLAYING if session.stepper.playing and session.active else PAUSED


@dataclass(frozen=True)
class StartingOver:
    """What the services here cause.

    Attributes:
        reset_world: see `WorldChanges.reset`; `restart_time`: see there, too.
        shut_down_soon: ends the process once whoever asked for it is answered.
    """

    reset_world: Callable[..., None]
    restart_time: Callable[..., None]
    shut_down_soon: Callable[[], None]


class StateServices:
    """get_simulator_features, get and set_simulation_state, reset_simulation, reset."""

    def __init__(self, session: Session, starting_over: StartingOver, endpoints: Endpoints) -> None:
        self._session, self._starting_over = session, starting_over
        endpoints.service(GetSimulatorFeatures, "~/get_simulator_features", self._features)
        endpoints.service(GetSimulationState, "~/get_simulation_state", self._get)
        endpoints.service(SetSimulationState, "~/set_simulation_state", self._set)
        endpoints.service(ResetSimulation, "~/reset_simulation", self._reset)
        endpoints.service(Trigger, "~/reset", self._trigger)

    def _features(self, request, response):
        response.features.features = list(FEATURES)
        response.features.spawn_formats = [ending[1:] for ending in MODELS]
        response.features.custom_info = (
            f"mirage_ros {__version__}, time_mode {self._session.config.time_mode}: a world generated "
            f"from one picture, physics {self._session.config.physics}; a step is one frame."
        )
        return response

    def _get(self, request, response):
        response.state.state = simulation_state(self._session)
        return answered(response)

    def _set(self, request, response):
        target, kind = request.state.state, SetSimulationState.Response
        now = simulation_state(self._session)
        if target == SimulationState.STATE_QUITTING and target != now:
            return self._quit(response)
        if target not in NAMES and target != SimulationState.STATE_QUITTING:
            reason = (
                f"The state {target} cannot be set; set stopped (0), playing (1), paused (2) or "
                "quitting (3)."
            )
            return answered(response, UNSUPPORTED, reason)
        if now not in NAMES:
            reason = UNSETTABLE.get(now) or self._session.lacking()
            return answered(response, INCORRECT_STATE, reason)
        if now == target and (target != PAUSED or not self._session.stepper.playing):
            text = f"The simulation is {NAMES[now]} already."
            return answered(response, kind.ALREADY_IN_TARGET_STATE, text)
        if target == PLAYING:
            return self._play(response)
        if target == PAUSED:
            return self._pause(response)
        return self._start_over(response, stop=True)

    def _play(self, response):
        session = self._session
        if not session.active or not session.check_clock():
            _, text, _ = session.health.state("clock")
            reason = text or "The node is not active; activate it first."
            return answered(response, SetSimulationState.Response.STATE_TRANSITION_ERROR, reason)
        session.stepper.play()
        session.host.wake()
        return answered(response)

    def _pause(self, response):
        self._session.stepper.pause()
        deferred = Deferred()
        self._session.queue.when_calm(lambda: deferred.finish(answered(response)))
        return deferred

    def _quit(self, response):
        """Ends the process soon; who asked for it is answered first."""
        session = self._session
        session.stepper.ending = True
        session.stepper.pause(stopped=True)
        session.end_waits(ENDING)
        self._starting_over.shut_down_soon()
        return answered(response)

    def _reset(self, request, response):
        reason = self._session.lacking()
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        kind, every = ResetSimulation.Request, TIME | STATE | SPAWNED
        scope = every if request.scope in (kind.SCOPE_DEFAULT, kind.SCOPE_ALL) else request.scope
        if scope & ~every:
            reason = (
                f"The scope {request.scope} cannot be reset; give 0 or 255 (all), or a sum of 1 (time), 2 (state) "
                "and 4 (what was spawned): other bits mean nothing."
            )
            return answered(response, UNSUPPORTED, reason)
        if scope & STATE:
            return self._start_over(response, keep_time=not scope & TIME, keep_entities=not scope & SPAWNED)
        return self._in_time(response, lambda then: self._reset_part(scope, then))

    def _reset_part(self, scope: int, then: Then) -> None:
        """Time, what was spawned, or both; the rest of the world stays as it is."""
        if scope & SPAWNED:
            self._session.submit(ChangeEntities((Clear(),)), None if scope & TIME else then)
        if scope & TIME:
            self._starting_over.restart_time(then)

    def _trigger(self, request, response):
        """The world back to its seed, the plan forgotten; answers when it is done."""
        deferred = Deferred()

        def then(result) -> None:
            response.success = not isinstance(result, Failed)
            response.message = "" if response.success else result.message
            deferred.finish(response)

        try:
            self._session.require(world=False)
            self._starting_over.reset_world(then)
        except MirageError as error:
            response.success, response.message = False, str(error)
            return response
        return deferred

    def _start_over(self, response, keep_time: bool = False, stop: bool = False, keep_entities: bool = False):
        if stop:
            self._session.stepper.pause(stopped=True)
        reset = self._starting_over.reset_world
        return self._in_time(response, lambda then: reset(then, keep_time=keep_time, keep_entities=keep_entities))

    def _in_time(self, response, act):
        """Answers when it is done."""
        deferred = Deferred()
        try:
            act(lambda result: deferred.finish(outcome(response, result)))
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred


class Condition:
    """How node, model, worker, world, plan, inference and memory are, for /diagnostics."""

    def __init__(self, session: Session) -> None:
        self._session, self._health, self._figures = session, session.health, session.figures

    def __call__(self) -> list[tuple[str, Status]]:
        return [
            ("node", self._node()),
            ("model", self._model()),
            ("worker", self._worker()),
            ("world", self._world()),
            ("plan", self._plan()),
            ("inference", self._inference()),
            ("memory", self._memory()),
        ]

    def _node(self) -> Status:
        level, text = worst(self._health, "callback", "recording", "graph")
        return Status(level, text or "answering")

    def _model(self) -> Status:
        if self._session.model_failed:
            return Status(*self._health.state("model")[:2])
        if self._session.rollout is None:
            return Status(OK, "not configured")
        model = self._session.rollout.model
        if model is None:
            return Status(WARN, "loading")
        size = f"{model.size[1]} x {model.size[0]}"
        values = {"name": model.name, "size": size, "chunk_frames": model.chunk_frames}
        return Status(OK, "ready", values)

    def _worker(self) -> Status:
        level, text = worst(self._health, "worker", "snapshot")
        rollout = self._session.rollout
        values = {"pid": rollout and rollout.worker_pid, "restarts": self._figures.restarts}
        return Status(level, text or "at work", values)

    def _world(self) -> Status:
        values = {"errors": self._health.errors, "last_error": self._health.last_error}
        level, text = worst(self._health, "world", "seed", "observe", "prompt")
        if level == OK and not self._session.has_world:
            return Status(WARN, "no world yet: give a seed", values)
        return Status(level, text or "ready", values)

    def _plan(self) -> Status:
        session = self._session
        plan, rollout, pacing = session.plan, session.rollout, session.pacing
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
            "starved": bool(session.waiting),
            "plan_to_first_frame_s": float(session.plan_to_first_frame_s),
        }
        if pacing is not None:
            values["lag_s"] = pacing.lag_s(session.last_stamp_ns)
            values["latency_s"] = pacing.latency_s
            values["frames_skipped"] = pacing.skipped
        level, text = worst(self._health, "path", "untimed", "tf", "plan", "robots", "clock", "start")
        return Status(level, text or "planned", values)

    def _inference(self) -> Status:
        figures, rollout = self._figures, self._session.rollout
        stages = {f"{name}_s": float(seconds) for name, seconds in figures.stage_s.items()}
        values = {
            "frames": figures.frames,
            "chunks": figures.chunks,
            "frames_per_s": figures.frames_per_s,
            "queue": rollout.in_flight if rollout is not None else 0,
            "queue_size": IN_FLIGHT,
            **stages,
        }
        level, text = worst(self._health, "pictures")
        return Status(level, text or f"{figures.frames_per_s:.3g} frames/s", values)

    def _memory(self) -> Status:
        limit = self._session.config.max_memory_mb * 2**20
        used = self._figures.memory_bytes
        full = used >= FULL_SHARE * limit
        text = "full: the oldest of the least useful tokens go" if full else f"{used / 2**20:.3g} MiB"
        values = {"tokens": self._figures.tokens, "bytes": used, "limit_bytes": limit}
        return Status(WARN if full else OK, text, values)


class Reporter:
    """Publishes /diagnostics, and looks for nodes that stand in this one's way.

    Args:
        node: whose clock, name and wall timers are used.
        condition: gives how each part is.
        shared: topics of this node that others publish, too, and who they are.
    """

    def __init__(
        self,
        node: Node,
        health: Health,
        condition: Callable[[], list[tuple[str, Status]]],
        shared: Callable[[], dict[str, list[str]]],
    ) -> None:
        self._node, self._health, self._condition, self._shared = node, health, condition, shared
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def look_around(self) -> None:
        """Whether another node has this one's name, or publishes what it publishes."""
        node, health = self._node, self._health
        own = node.get_fully_qualified_name()
        names = [
            f"{namespace.rstrip('/')}/{name}"
            for name, namespace in node.get_node_names_and_namespaces()
        ]
        shared = self._shared()
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
            _status_to_ros(f"{name}: {part}", status) for part, status in self._condition()
        ]
        self._publisher.publish(message)


def _status_to_ros(name: str, status: Status) -> DiagnosticStatus:
    """One entry of the array; floats get four digits."""
    pairs = [
        KeyValue(key=key, value=f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in status.values.items()
    ]
    return DiagnosticStatus(
        level=status.level, name=name, message=status.text, hardware_id="mirage", values=pairs
    )

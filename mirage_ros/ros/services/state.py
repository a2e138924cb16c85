"""What the simulator can do, whether it plays, and how it starts over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation_interfaces.msg import SimulationState, SimulatorFeatures
from simulation_interfaces.srv import (
    GetSimulationState,
    GetSimulatorFeatures,
    ResetSimulation,
    SetSimulationState,
)
from std_srvs.srv import Trigger

from mirage_ros import __version__
from mirage_ros.errors import MirageError
from mirage_ros.ros.callbacks import Deferred, create_service
from mirage_ros.ros.services.answers import (
    FAILED,
    INCORRECT_STATE,
    LOADING,
    UNSUPPORTED,
    answered,
    lacking,
    outcome,
)
from mirage_ros.ros.worker.commands import Failed

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

STOPPED, PLAYING, PAUSED = (
    SimulationState.STATE_STOPPED,
    SimulationState.STATE_PLAYING,
    SimulationState.STATE_PAUSED,
)
NAMES = {STOPPED: "stopped", PLAYING: "playing", PAUSED: "paused"}
# So long the answer has to get out.
QUIT_S = 0.2
ENDING = "The simulator is ending."
SCOPES = {
    ResetSimulation.Request.SCOPE_DEFAULT: (True, True),
    ResetSimulation.Request.SCOPE_TIME: (True, False),
    ResetSimulation.Request.SCOPE_STATE: (False, True),
    ResetSimulation.Request.SCOPE_TIME | ResetSimulation.Request.SCOPE_STATE: (True, True),
    ResetSimulation.Request.SCOPE_ALL: (True, True),
}
"""What of time and state each scope of the standard resets."""

UNSETTABLE = {
    SimulationState.STATE_QUITTING: ENDING,
    SimulationState.STATE_LOADING_WORLD: LOADING,
}
FEATURES = (
    SimulatorFeatures.NAMED_POSES,
    SimulatorFeatures.ENTITY_BOUNDS_BOX,
    SimulatorFeatures.ENTITY_STATE_GETTING,
    SimulatorFeatures.ENTITY_STATE_SETTING,
    SimulatorFeatures.SIMULATION_RESET,
    SimulatorFeatures.SIMULATION_RESET_TIME,
    SimulatorFeatures.SIMULATION_RESET_STATE,
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


def simulation_state(node: MirageNode) -> int:
    """One of the STATE_ constants of SimulationState."""
    if node.stepper.ending:
        return SimulationState.STATE_QUITTING
    if node.world.loading:
        return SimulationState.STATE_LOADING_WORLD
    if node.rollout is None or not node.rollout.has_world:
        return SimulationState.STATE_NO_WORLD
    if node.stepper.stopped:
        return STOPPED
    # Nothing plays in a node that is not active, but it will again.
    return PLAYING if node.stepper.playing and node.active else PAUSED


class StateServices:
    """get_simulator_features, get and set_simulation_state, reset_simulation, reset."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        create_service(node, GetSimulatorFeatures, "~/get_simulator_features", self._features)
        create_service(node, GetSimulationState, "~/get_simulation_state", self._get)
        create_service(node, SetSimulationState, "~/set_simulation_state", self._set)
        create_service(node, ResetSimulation, "~/reset_simulation", self._reset)
        create_service(node, Trigger, "~/reset", self._trigger)

    def _features(self, request, response):
        response.features.features = list(FEATURES)
        response.features.custom_info = (
            f"mirage_ros {__version__}, time_mode {self._node.config.time_mode}: a world generated "
            "from one picture, without physics; a step is one frame."
        )
        return response

    def _get(self, request, response):
        response.state.state = simulation_state(self._node)
        return answered(response)

    def _set(self, request, response):
        node, target = self._node, request.state.state
        now, kind = simulation_state(node), SetSimulationState.Response
        if target == SimulationState.STATE_QUITTING and target != now:
            return self._quit(response)
        if target not in NAMES and target != SimulationState.STATE_QUITTING:
            reason = (
                f"The state {target} cannot be set; set stopped (0), playing (1), paused (2) or "
                "quitting (3)."
            )
            return answered(response, UNSUPPORTED, reason)
        if now not in NAMES:
            reason = UNSETTABLE.get(now) or lacking(node)
            return answered(response, INCORRECT_STATE, reason)
        if now == target and (target != PAUSED or not node.stepper.playing):
            text = f"The simulation is {NAMES[now]} already."
            return answered(response, kind.ALREADY_IN_TARGET_STATE, text)
        if target == PLAYING:
            return self._play(response)
        if target == PAUSED:
            return self._pause(response)
        return self._start_over(response, stop=True)

    def _play(self, response):
        node = self._node
        if not node.active or not node.check_clock():
            _, text, _ = node.health.state("clock")
            reason = text or "The node is not active; activate it first."
            return answered(response, SetSimulationState.Response.STATE_TRANSITION_ERROR, reason)
        node.stepper.play()
        node.wake()
        return answered(response)

    def _pause(self, response):
        self._node.stepper.pause()
        deferred = Deferred()
        self._node.outbox.when_calm(lambda: deferred.finish(answered(response)))
        return deferred

    def _quit(self, response):
        """Ends the process soon; who asked for it is answered first."""
        node = self._node
        node.stepper.ending = True
        node.stepper.pause(stopped=True)
        node.results.tell(ENDING)
        node.create_wall_timer(QUIT_S, node.context.try_shutdown)
        return answered(response)

    def _reset(self, request, response):
        node = self._node
        reason = lacking(node)
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        if request.scope not in SCOPES:
            reason = (
                f"The scope {request.scope} cannot be reset; give 0 or 255 (all), 1 (time), 2 (state) "
                "or 3 (both): nothing is ever spawned here, and other bits mean nothing."
            )
            return answered(response, UNSUPPORTED, reason)
        time, state = SCOPES[request.scope]
        if state:
            return self._start_over(response, keep_time=not time)
        return self._in_time(response, node.world.restart_time)

    def _trigger(self, request, response):
        """The world back to its seed, the plan forgotten; answers when it is done."""
        deferred = Deferred()

        def then(result) -> None:
            response.success = not isinstance(result, Failed)
            response.message = "" if response.success else result.message
            deferred.finish(response)

        try:
            reason = lacking(self._node, world=False)
            if reason:
                raise MirageError(reason)
            self._node.world.reset(then)
        except MirageError as error:
            response.success, response.message = False, str(error)
            return response
        return deferred

    def _start_over(self, response, keep_time: bool = False, stop: bool = False):
        if stop:
            self._node.stepper.pause(stopped=True)
        return self._in_time(
            response, lambda then: self._node.world.reset(then, keep_time=keep_time)
        )

    def _in_time(self, response, act):
        """Answers when it is done."""
        deferred = Deferred()
        try:
            act(lambda result: deferred.finish(outcome(response, result)))
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred

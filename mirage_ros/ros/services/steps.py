"""Steps: so many frames, and an answer when they are published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Result
from simulation_interfaces.srv import StepSimulation

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.deferred import Deferred, Goal, LongAction, create_service
from mirage_ros.ros.services.answers import (
    FAILED,
    INCORRECT_STATE,
    LOADING,
    OK,
    answered,
    lacking,
)
from mirage_ros.ros.simulation.stepping import StepJob

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

CANCELED = "The steps were canceled."


class StepServices:
    """step_simulation and simulate_steps. A step is one frame of every camera."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._jobs: dict[int, StepJob] = {}
        create_service(node, StepSimulation, "~/step_simulation", self._step)
        self._action = LongAction(
            node, SimulateSteps, "~/simulate_steps", self._begin, self._cancel
        )

    def _step(self, request, response):
        deferred = Deferred()

        def finish(reason: str) -> None:
            deferred.finish(answered(response, FAILED if reason else OK, reason))

        code, reason = self._try(StepJob(int(request.steps), lambda done: None, finish))
        return answered(response, code, reason) if reason else deferred

    def _try(self, job: StepJob) -> tuple[int, str]:
        """Starts a job; otherwise a code and the reason."""
        reason = lacking(self._node)
        if reason:
            return INCORRECT_STATE, reason
        if self._node.world.loading:
            return INCORRECT_STATE, LOADING
        if not self._node.active:
            return INCORRECT_STATE, "The node is not active; activate it before stepping."
        if not self._node.check_clock():
            return FAILED, self._node.health.state("clock")[1]
        try:
            self._node.stepper.step(job)
        except MirageError as error:
            return FAILED, str(error)
        self._node.wake()
        return OK, ""

    def _begin(self, goal: Goal) -> None:
        steps = int(goal.request.steps)

        def progress(done: int) -> None:
            goal.feedback(completed_steps=done, remaining_steps=steps - done)

        def finish(reason: str) -> None:
            self._jobs.pop(id(goal), None)
            self._finish(goal, FAILED if reason else OK, reason)

        job = StepJob(steps, progress, finish)
        self._jobs[id(goal)] = job
        code, reason = self._try(job)
        if reason:
            self._jobs.pop(id(goal), None)
            self._finish(goal, code, reason)

    def _finish(self, goal: Goal, code: int, reason: str) -> None:
        result = SimulateSteps.Result(result=Result(result=code, error_message=reason))
        goal.finish(result, success=not reason)

    def _cancel(self, goal: Goal) -> None:
        """Frames that are being rendered still come, no others."""
        job = self._jobs.get(id(goal))
        if job is not None and self._node.stepper.job is job:
            self._node.stepper.call_off(CANCELED)

"""A node whose callbacks may fail: that is told and answered, and the node goes on.

rclpy's executors raise again what a callback raises. One message that nobody has thought of would
end the simulation for everybody.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import ParameterType, SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.lifecycle import LifecycleNode
from simulation_interfaces.msg import Result

from mirage_ros.core.errors import MirageError, legible
from mirage_ros.ros.diagnostics import Health

TOPIC = "callback"
RESULT = "simulation_interfaces/Result"
MOST_CHARACTERS = 300


class GuardedNode(LifecycleNode):
    """Every subscription, timer, guard condition and service made through it is guarded.

    Attributes:
        health: where a failure is told; set by the subclass.
    """

    health: Health

    def create_subscription(self, msg_type, topic, callback, *args, **kwargs):
        return super().create_subscription(
            msg_type, topic, self.guarded(callback), *args, **kwargs
        )

    def create_timer(self, timer_period_sec, callback, *args, **kwargs):
        return super().create_timer(timer_period_sec, self.guarded(callback), *args, **kwargs)

    def create_guard_condition(self, callback, *args, **kwargs):
        return super().create_guard_condition(self.guarded(callback), *args, **kwargs)

    def create_service(self, srv_type, srv_name, callback, **kwargs):
        if srv_type in (SetParameters, SetParametersAtomically):
            callback = checking_parameters(callback)
        return super().create_service(srv_type, srv_name, self.answering(callback), **kwargs)

    def guarded(self, callback: Callable) -> Callable:
        """The callback; what it raises is told and ends there."""

        @functools.wraps(callback)
        def call(*args, **kwargs) -> Any:
            try:
                return callback(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node has to live
                self.tell(error)

        return call

    def answering(self, callback: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A service's callback; what it raises is told and becomes the answer."""

        @functools.wraps(callback)
        def call(request, response) -> Any:
            try:
                return callback(request, response)
            except Exception as error:  # noqa: BLE001 - whoever asked has to be answered
                return refused(type(response)(), self.tell(error), request)

        return call

    def tell(self, error: Exception) -> str:
        """Log and diagnostics; returns the sentence."""
        if isinstance(error, MirageError):
            text = str(error)
        else:
            words = str(error)[:MOST_CHARACTERS]
            text = f"An unexpected {type(error).__name__} ({words}); please report it with the log."
        # When ROS is shut down under a callback, it is no use to tell that it failed.
        if self.context.ok():
            self.health.error(TOPIC, text)
            # It is over; the next message may be a good one.
            self.health.ok(TOPIC)
            if not isinstance(error, MirageError) and self.health.state(TOPIC)[2] == 1:
                self.get_logger().error("".join(traceback.format_exception(error)))
        return text


def refused(answer: Any, text: str, request: Any = None) -> Any:
    """A service's response or an action's result that says that it failed, and why."""
    fields = answer.get_fields_and_field_types()
    if isinstance(answer, SetParameters.Response):
        answer.results = [SetParametersResult(reason=text) for _ in request.parameters]
    elif isinstance(answer, SetParametersAtomically.Response):
        answer.result = SetParametersResult(reason=text)
    if fields.get("result") == RESULT:
        answer.result = Result(result=Result.RESULT_OPERATION_FAILED, error_message=text)
    if "success" in fields:
        answer.success = False
    if "message" in fields:
        answer.message = text
    return answer


def checking_parameters(callback: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """rclpy's callback of a service that sets parameters.

    rclpy raises at a value whose type it does not know, when it has set those before it already, takes a parameter that
    has no name, and repeats names of any length in its reasons.
    """

    def call(request, response) -> Any:
        for parameter in request.parameters:
            if not parameter.name:
                raise MirageError("A parameter has no name; give one that the node has. Nothing was set.")
            if parameter.value.type > ParameterType.PARAMETER_STRING_ARRAY:
                raise MirageError(
                    f"The parameter '{parameter.name}' has a value of type {parameter.value.type}, which ROS does not "
                    "know; give one of rcl_interfaces/ParameterType. Nothing was set."
                )
        response = callback(request, response)
        for result in response.results if hasattr(response, "results") else [response.result]:
            result.reason = legible(result.reason)
        return response

    return call

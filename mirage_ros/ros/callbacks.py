"""What this project needs of rclpy beyond what it brings: guarded callbacks, late answers, lazy publishers.

rclpy's executors raise again what a callback raises: one message that nobody has thought of would end the
simulation for everybody. They poll a coroutine that awaits something over and over, which takes a whole core
from inference; so callbacks return at once here, and the answer is sent when it is there.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterType, SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from simulation_interfaces.msg import Result

from mirage_ros.errors import MirageError, legible
from mirage_ros.ros.answers import Answers
from mirage_ros.ros.diagnostics import Health


@contextmanager
def ending_with_ros() -> Iterator[None]:
    """ExternalShutdownException for whatever rclpy raises because its context is gone.

    A handler of SIGINT or SIGTERM shuts the context down at any moment, and the call that is under
    way then fails with an error of rcl's, which has no public class.
    """
    try:
        yield
    except MirageError:
        raise
    except Exception as error:
        if rclpy.ok():
            raise
        raise ExternalShutdownException from error


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
        """Publishes `make(*values)` if it is wanted, and returns whether it was."""
        if not self.wanted:
            return False
        self._publisher.publish(make(*values))
        self._under_way += 1
        self.made += 1
        return True


TOPIC = "callback"
RESULT = "simulation_interfaces/Result"
# By default ROS keeps ten requests of all clients and drops the oldest of more without a word: somebody waits for ever.
CALLS = QoSProfile(depth=1000)
MOST_CHARACTERS = 300


class GuardedNode(LifecycleNode):
    """Every subscription, timer, guard condition and service made through it is guarded.

    Attributes:
        health: where a failure is reported; set by the subclass.
    """

    health: Health
    _answers: Answers | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._answers = Answers(self, self._report_lost)
        # Those that rclpy has made by now, of parameters and of the life cycle.
        for service in self.services:
            self._answers.watch(service)

    def create_subscription(self, msg_type, topic, callback, *args, **kwargs):
        return super().create_subscription(msg_type, topic, self.guarded(callback), *args, **kwargs)

    def create_timer(self, timer_period_sec, callback, *args, **kwargs):
        return super().create_timer(timer_period_sec, self.guarded(callback), *args, **kwargs)

    def create_guard_condition(self, callback, *args, **kwargs):
        return super().create_guard_condition(self.guarded(callback), *args, **kwargs)

    def create_service(self, srv_type, srv_name, callback, *, qos_profile=CALLS, **kwargs):
        if srv_type in (SetParameters, SetParametersAtomically):
            callback = checking_parameters(callback)
        callback = self.answering(callback)
        service = super().create_service(srv_type, srv_name, callback, qos_profile=qos_profile, **kwargs)
        if self._answers is not None:
            self._answers.watch(service)
        return service

    def guarded(self, callback: Callable) -> Callable:
        """The callback; what it raises is reported and ends there."""

        @functools.wraps(callback)
        def call(*args, **kwargs) -> Any:
            try:
                return callback(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node has to live
                self.report_error(error)

        return call

    def answering(self, callback: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A service's callback; what it raises is reported and becomes the answer."""

        @functools.wraps(callback)
        def call(request, response) -> Any:
            try:
                return callback(request, response)
            except Exception as error:  # noqa: BLE001 - whoever asked has to be answered
                return refused(type(response)(), self.report_error(error), request)

        return call

    def report_error(self, error: Exception) -> str:
        """Log and diagnostics; returns the sentence."""
        if isinstance(error, MirageError):
            text = str(error)
        else:
            words = str(error)[:MOST_CHARACTERS]
            text = f"An unexpected {type(error).__name__} ({words}); please report it with the log."
        # When ROS is shut down under a callback, it is no use to report that it failed.
        if self.context.ok():
            self.health.error(TOPIC, text)
            # It is over; the next message may be a good one.
            self.health.ok(TOPIC)
            if not isinstance(error, MirageError) and self.health.state(TOPIC)[2] == 1:
                self.get_logger().error("".join(traceback.format_exception(error)))
        return text

    def _report_lost(self, text: str) -> None:
        self.health.warn(TOPIC, text)
        # It is over; the next answer may arrive.
        self.health.ok(TOPIC)


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
                raise MirageError(
                    "A parameter has no name; give one that the node has. Nothing was set."
                )
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


class Deferred:
    """An answer that is not there yet. `finish` may come before or after the callback returns."""

    def __init__(self) -> None:
        self._send: Callable[[Any], None] | None = None
        self._response: Any = None

    def finish(self, response: Any) -> None:
        """Sends the answer; a second one is left out."""
        if self._send is not None:
            send, self._send = self._send, _nothing
            send(response)
        elif self._response is None:
            self._response = response

    def bind(self, send: Callable[[Any], None]) -> None:
        """Called once by the service, which knows whom to answer."""
        self._send = send
        if self._response is not None:
            self.finish(self._response)


def _nothing(response: Any) -> None:
    """Where further answers go."""


def create_service(node: GuardedNode, kind: type, name: str, callback: Callable[[Any, Any], Any]):
    """A service whose callback (request, response) returns the response or a Deferred."""
    service = node.create_service(kind, name, callback)
    defer(service)
    return service


def defer(service) -> None:
    """Lets a service's callback return a Deferred."""
    send_now = service.send_response

    def send_response(response: Any, header: Any) -> None:
        if isinstance(response, Deferred):
            response.bind(lambda answer: send_now(answer, header))
        else:
            send_now(response, header)

    service.send_response = send_response


class _DeferredServer(ActionServer):
    """A goal that is accepted is executing from then on; what concludes it comes later, by `Goal.finish`."""

    def notify_execute(self, goal_handle, execute_callback) -> None:
        """Runs what concludes a goal; without it there is nothing to run yet."""
        if execute_callback is not None:
            super().notify_execute(goal_handle, execute_callback)


class LongAction:
    """An action of which one goal runs at a time.

    Args:
        begin: called with an accepted goal; calls `finish` of it sooner or later.
        cancel: called when the running goal shall be canceled; leads to `finish`, too.
    """

    def __init__(
        self,
        node: GuardedNode,
        kind: type,
        name: str,
        begin: Callable[[Goal], None],
        cancel: Callable[[Goal], None],
    ) -> None:
        self.kind = kind
        self._begin, self._cancel = begin, cancel
        self._goals: dict[bytes, Goal] = {}
        self._report_error = node.report_error
        self.server = _DeferredServer(
            node,
            kind,
            name,
            execute_callback=_nothing,
            goal_callback=lambda request: GoalResponse.ACCEPT,
            handle_accepted_callback=self._accepted,
            cancel_callback=self._canceled,
            goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS,
            cancel_service_qos_profile=CALLS,
        )

    def _accepted(self, handle) -> None:
        handle.execute()
        goal = Goal(self, handle)
        self._goals[bytes(handle.goal_id.uuid)] = goal
        self._guarded(self._begin, goal)

    def _canceled(self, handle) -> CancelResponse:
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is None:
            return CancelResponse.REJECT
        goal.canceled = True
        self._guarded(self._cancel, goal)
        return CancelResponse.ACCEPT

    def _guarded(self, act: Callable[[Goal], None], goal: Goal) -> None:
        try:
            act(goal)
        except Exception as error:  # noqa: BLE001 - whoever sent the goal has to be answered
            goal.finish(refused(self.kind.Result(), self._report_error(error)), success=False)

    def forget(self, goal: Goal) -> bool:
        """False if it was forgotten before."""
        return self._goals.pop(bytes(goal.handle.goal_id.uuid), None) is not None


class Goal:
    """One goal on its way."""

    def __init__(self, action: LongAction, handle) -> None:
        self.action, self.handle = action, handle
        self.canceled = False

    @property
    def request(self):
        return self.handle.request

    def feedback(self, **values) -> None:
        self.handle.publish_feedback(self.action.kind.Feedback(**values))

    def finish(self, result: Any, success: bool) -> None:
        """Ends the goal: succeeded, canceled where that was asked for, else aborted.

        A second end is left out.
        """

        def conclude(handle):
            if self.canceled and handle.is_cancel_requested:
                handle.canceled()
            elif success:
                handle.succeed()
            else:
                handle.abort()
            return result

        if self.action.forget(self):
            self.action.server.notify_execute(self.handle, conclude)


class Endpoints:
    """What services are offered through: all of it guarded, see GuardedNode."""

    def __init__(self, node: GuardedNode) -> None:
        self._node = node
        self.guard_condition = node.create_guard_condition
        self.running: Callable[[], bool] = node.context.ok

    def service(self, kind: type, name: str, callback: Callable[[Any, Any], Any]) -> None:
        """See `create_service`."""
        create_service(self._node, kind, name, callback)

    def action(
        self, kind: type, name: str, begin: Callable[[Goal], None], cancel: Callable[[Goal], None]
    ) -> LongAction:
        return LongAction(self._node, kind, name, begin, cancel)

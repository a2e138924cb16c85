"""Service answers that come later, and goals that run for long, without a coroutine.

rclpy's executors poll a coroutine that awaits something over and over, which takes a whole core
from inference; so callbacks return at once here and the answer is sent when it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import GoalEvent

from mirage_ros.ros.guarded import GuardedNode, refused


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
        self._tell = node.tell
        self.server = ActionServer(
            node,
            kind,
            name,
            execute_callback=_nothing,
            goal_callback=lambda request: GoalResponse.ACCEPT,
            handle_accepted_callback=self._accepted,
            cancel_callback=self._canceled,
        )

    def _accepted(self, handle) -> None:
        # Executing from here on; what concludes it is handed to the server by `finish`.
        handle._update_state(GoalEvent.EXECUTE)
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
            goal.finish(refused(self.kind.Result(), self._tell(error)), success=False)

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

"""The managed life cycle: configure loads, activate streams, deactivate keeps, cleanup frees.

Loading takes seconds, in which services shall be answered; so a request to configure is answered
when the model and the first world are there, without waiting for them in a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.timer import Timer

from mirage_ros.ros.callbacks import Deferred, defer
from mirage_ros.ros.chunks import Rollout
from mirage_ros.ros.session import Session
from mirage_ros.ros.worker import Failed

LOAD_POLL_S = 0.05
STOP_TIMEOUT_S = 5.0


class SessionLife:
    """Starts and ends the session's worker.

    Args:
        start_worker: gives a Rollout whose worker is being started.
        load_first: queues the world that the parameters name, if they name one.
    """

    def __init__(
        self, session: Session, start_worker: Callable[[], Rollout], load_first: Callable[[], None]
    ) -> None:
        self._session, self._start_worker, self._load_first = session, start_worker, load_first

    @property
    def loaded(self) -> bool:
        """The model and the first world are there, or one of both will not come."""
        session = self._session
        if session.rollout is None:
            return False
        if self.failed:
            return True
        return session.rollout.model is not None and (not session.config.seed or session.has_world)

    @property
    def failed(self) -> bool:
        """The model or the world that the parameters name will not come."""
        session = self._session
        lacks_world = session.config.seed and not session.has_world and session.world.first_failed
        return session.model_failed or bool(lacks_world)

    def begin(self) -> None:
        """Starts a worker that loads the model and the first world, unless there is one."""
        if self._session.rollout is None:
            self._session.start(self._start_worker())
            self._load_first()

    def wait_until_loaded(self) -> None:
        """For a caller in this process, outside of callbacks, who triggers the transition."""
        self.begin()
        while not self.loaded:
            time.sleep(LOAD_POLL_S)
            self._session.take_results()

    def activate(self) -> None:
        session = self._session
        session.active = True
        if session.host.clock is not None:
            session.host.clock.publish()
        session.pacing.stopped = False
        session.host.wake()

    def deactivate(self) -> None:
        """Nothing new is rendered; the world stays, and what is rendered waits."""
        session = self._session
        session.active = False
        session.end_waits("The node was deactivated.")
        session.rollout.replan()
        session.pacing.stopped = True

    def abandon(self, reason: str) -> None:
        """The worker is going to end: whoever waits gets to know."""
        session = self._session
        session.active = False
        if session.rollout is not None:
            session.rollout.answer(Failed(None, reason))
            session.end_waits(reason)
        session.stepper.detach()

    def stop(self) -> bool:
        """Ends the worker's process, which gives all of its memory back. False if it does not end in time."""
        return self._session.stop(STOP_TIMEOUT_S)

    def clean_up(self) -> None:
        """The worker has ended, and the world with it."""
        session = self._session
        session.queue.clear()
        session.plan.forget()
        session.buffer.clear()
        session.world.forget()


@dataclass(frozen=True)
class Requests:
    """What requests to change the state are answered with.

    Attributes:
        answering: wraps a service's callback: what it raises becomes the answer.
        when_whole: gives the response, later where a recording is still being written.
        timer: makes a timer from a period in seconds and a callback.
    """

    answering: Callable[[Callable], Callable]
    when_whole: Callable[[Any], Any]
    timer: Callable[[float, Callable[[], None]], Timer]


class LifeCycle:
    """Requests to change the state, and `autostart`."""

    def __init__(self, node: LifecycleNode, life: SessionLife, requests: Requests, autostart: bool) -> None:
        self._life, self._requests = life, requests
        self._configure, self._activate = node.trigger_configure, node.trigger_activate
        self._waiting: list[Callable[[], None]] = []
        services = {service.srv_type: service for service in node.services}
        self._get_state = services[GetState].callback
        change = services[ChangeState]
        self._change_now = requests.answering(change.callback)
        change.callback = requests.answering(self._on_change)
        defer(change)
        self._timer = requests.timer(LOAD_POLL_S, self._poll)
        if autostart:
            self._when_loaded(self._autostart)
        else:
            self._timer.cancel()

    def _on_change(self, request, response):
        names = (request.transition.label, request.transition.id)
        wanted = "configure" in names or Transition.TRANSITION_CONFIGURE in names
        if not wanted or self._state() != "unconfigured":
            # Who ends a recording by it finds it whole.
            return self._requests.when_whole(self._change_now(request, response))
        deferred = Deferred()
        self._when_loaded(lambda: deferred.finish(self._change_now(request, response)))
        return deferred

    def _when_loaded(self, then: Callable[[], None]) -> None:
        self._life.begin()
        self._waiting.append(then)
        self._timer.reset()

    def _poll(self) -> None:
        if not self._life.loaded:
            return
        self._timer.cancel()
        first, *others = self._waiting
        self._waiting = []
        first()
        # A request that failed let go of what the others waited for.
        for then in others:
            self._when_loaded(then)

    def _autostart(self) -> None:
        if self._configure() == TransitionCallbackReturn.SUCCESS:
            self._activate()

    def _state(self) -> str:
        return self._get_state(GetState.Request(), GetState.Response()).current_state.label

"""The managed life cycle: configure loads, activate streams, deactivate keeps, cleanup frees.

Loading takes seconds, in which services shall be answered; so a request to configure is answered
when the model and the first world are there, without waiting for them in a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn

from mirage_ros.ros.callbacks import Deferred, defer

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


LOAD_POLL_S = 0.05


class LifeCycle:
    """Requests to change the state, and `autostart`."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self._waiting: list[Callable[[], None]] = []
        self._service = node._service_change_state
        self._change_now = node.answering(self._service.callback)
        self._service.callback = node.answering(self._on_change)
        defer(self._service)
        self._timer = node.create_wall_timer(LOAD_POLL_S, self._poll)
        if node.config.autostart:
            self._when_loaded(self._autostart)
        else:
            self._timer.cancel()

    @property
    def loaded(self) -> bool:
        """The model and the first world are there, or one of both will not come."""
        node = self._node
        if node.rollout is None:
            return False
        if self.failed:
            return True
        if node.rollout.model is None:
            return False
        return not node.config.seed or node.rollout.has_world

    @property
    def failed(self) -> bool:
        """The model or the world that the parameters name will not come."""
        node = self._node
        lacks_world = node.config.seed and not node.rollout.has_world and node.world.first_failed
        return node.failed or bool(lacks_world)

    def wait_until_loaded(self) -> None:
        """For a caller in this process, outside of callbacks, who triggers the transition."""
        if self._node.rollout is None:
            self._node.start_worker()
        while not self.loaded:
            time.sleep(LOAD_POLL_S)
            self._node.results.work_off()

    def _on_change(self, request, response):
        names = (request.transition.label, request.transition.id)
        wanted = "configure" in names or Transition.TRANSITION_CONFIGURE in names
        if not wanted or self._state() != "unconfigured":
            # Who ends a recording by it finds it whole.
            return self._node.recording.when_ended(self._change_now(request, response))
        deferred = Deferred()
        self._when_loaded(lambda: deferred.finish(self._change_now(request, response)))
        return deferred

    def _when_loaded(self, then: Callable[[], None]) -> None:
        if self._node.rollout is None:
            self._node.start_worker()
        self._waiting.append(then)
        self._timer.reset()

    def _poll(self) -> None:
        if not self.loaded:
            return
        self._timer.cancel()
        first, *others = self._waiting
        self._waiting = []
        first()
        # A request that failed let go of what the others waited for.
        for then in others:
            self._when_loaded(then)

    def _autostart(self) -> None:
        if self._node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self._node.trigger_activate()

    def _state(self) -> str:
        return self._node._state_machine.current_state[1]

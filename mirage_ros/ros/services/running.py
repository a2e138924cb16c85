"""What makes the session run: the managed life cycle, steps of time, and the action GenerateRollout.

Configure loads, activate streams, deactivate keeps, cleanup frees. Loading takes seconds, in which services shall be
answered; so a request to configure is answered when the model and the first world are there, without waiting for them in a
callback. A step is answered when its frames are published. A rollout's poses come before anything else that is planned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.timer import Timer
from simulation_interfaces.action import SimulateSteps
from simulation_interfaces.msg import Result
from simulation_interfaces.srv import StepSimulation

from mirage_ros.action import GenerateRollout
from mirage_ros.errors import MirageError
from mirage_ros.ros.callbacks import Deferred, Endpoints, Goal, defer
from mirage_ros.ros.chunk_timing import PriorityRollout, StepJob, stretched
from mirage_ros.ros.chunks import Rollout
from mirage_ros.ros.messages import poses_from_flat, stamp_to_ros
from mirage_ros.ros.services import FAILED, INCORRECT_STATE, LOADING, OK, answered
from mirage_ros.ros.session import Session
from mirage_ros.ros.worker import Failed
from mirage_ros.srv import Record

LOAD_POLL_S = 0.05
STOP_TIMEOUT_S = 5.0
UNCONFIGURED = "unconfigured"


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
            # Who is answered may have the next command ready: nobody would do it any more.
            session.rollout.has_world, session.rollout.ended = False, reason
            session.rollout.answer(Failed(None, reason), session.host.report_error)
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
        if not wanted or self._state() != UNCONFIGURED:
            # Who ends a recording by it finds it whole.
            return self._requests.when_whole(self._change_now(request, response))
        deferred = Deferred()
        self._when_loaded(lambda: deferred.finish(self._change_now(request, response)))
        return deferred

    def _when_loaded(self, then: Callable[[], None]) -> None:
        if self._state() == UNCONFIGURED:
            self._life.begin()
        self._waiting.append(then)
        self._timer.reset()

    def _poll(self) -> None:
        # Shut down meanwhile, it loads nothing any more: whoever waits is refused.
        if self._state() == UNCONFIGURED and not self._life.loaded:
            return
        self._timer.cancel()
        first, *others = self._waiting
        self._waiting = []
        first()
        # A request that failed let go of what the others waited for.
        for then in others:
            self._when_loaded(then)

    def _autostart(self) -> None:
        if self._state() == UNCONFIGURED and self._configure() == TransitionCallbackReturn.SUCCESS:
            self._activate()

    def _state(self) -> str:
        return self._get_state(GetState.Request(), GetState.Response()).current_state.label


CANCELED = "The steps were canceled."


class StepServices:
    """step_simulation and simulate_steps. A step is one frame of every camera."""

    def __init__(self, session: Session, endpoints: Endpoints) -> None:
        self._session = session
        self._jobs: dict[int, StepJob] = {}
        endpoints.service(StepSimulation, "~/step_simulation", self._step)
        endpoints.action(SimulateSteps, "~/simulate_steps", self._begin, self._cancel)

    def _step(self, request, response):
        deferred = Deferred()

        def finish(reason: str) -> None:
            deferred.finish(answered(response, FAILED if reason else OK, reason))

        code, reason = self._try(StepJob(int(request.steps), lambda done: None, finish))
        return answered(response, code, reason) if reason else deferred

    def _try(self, job: StepJob) -> tuple[int, str]:
        """Starts a job; otherwise a code and the reason."""
        reason = self._session.lacking()
        if reason:
            return INCORRECT_STATE, reason
        if self._session.loading:
            return INCORRECT_STATE, LOADING
        if not self._session.active:
            return INCORRECT_STATE, "The node is not active; activate it before stepping."
        if not self._session.check_clock():
            return FAILED, self._session.health.state("clock")[1]
        try:
            self._session.stepper.step(job)
        except MirageError as error:
            return FAILED, str(error)
        self._session.host.wake()
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
        if job is not None and self._session.stepper.job is job:
            self._session.stepper.call_off(CANCELED)


@dataclass
class Running:
    """A goal under way."""

    goal: Goal
    poses: PriorityRollout
    recording: str
    since_s: float
    done: int = 0


@runtime_checkable
class Recordings(Protocol):
    """Starts and ends recordings; see `RecordService`."""

    def start(self, path: str) -> str: ...

    def stop(self, response: Record.Response) -> Deferred: ...


class RolloutAction:
    """One rollout at a time; a second goal is refused while one runs."""

    def __init__(self, session: Session, recordings: Recordings, endpoints: Endpoints) -> None:
        self._session, self._recordings = session, recordings
        self._running: Running | None = None
        endpoints.action(GenerateRollout, "~/generate_rollout", self._begin, self._cancel)
        session.on_frames.append(self._published)
        session.on_failure.append(self._failed)

    def _begin(self, goal: Goal) -> None:
        session, request = self._session, goal.request
        try:
            self._check()
            poses = poses_from_flat(np.frombuffer(request.poses, np.float64))
            session.take_back()  # what is taken back does not count as rendered
            stamps = self._stamps(np.frombuffer(request.stamps_ns, np.int64), len(poses))
            self._check_start(stamps)
            recording = self._recordings.start(request.recording) if request.recording else ""
        except MirageError as error:
            goal.finish(GenerateRollout.Result(message=str(error)), success=False)
            return
        priority = PriorityRollout(stamps, poses, session.plan)
        self._running = Running(goal, priority, recording, time.monotonic())
        session.prioritise(priority)

    def _check(self) -> None:
        self._session.require()
        if not self._session.active:
            raise MirageError("The node is not active; activate it before a rollout.")
        if not self._session.check_clock():
            raise MirageError(self._session.health.state("clock")[1])
        if self._running is not None:
            raise MirageError("Another rollout runs; wait for it or cancel it.")

    def _stamps(self, given: np.ndarray, count: int) -> np.ndarray:
        if len(given) not in (0, count):
            raise MirageError(
                f"The rollout has {count} poses and {len(given)} stamps; give one stamp for each "
                "pose, or none."
            )
        if len(given):
            if (np.diff(given) <= 0).any() or given[0] <= 0:
                raise MirageError("The rollout's stamps must be above 0 and increase.")
            return in_range(given)
        plan = self._session.plan
        now_ns = plan.cursor_ns
        if now_ns is None:
            now_ns = self._session.host.now_ns()
        return in_range(stretched(count, now_ns, plan.config.period_ns))

    def _check_start(self, stamps: np.ndarray) -> None:
        cursor_ns = self._session.plan.cursor_ns
        if cursor_ns is not None and stamps[0] <= cursor_ns:
            raise MirageError(
                f"The rollout starts at {stamps[0]} ns but frames are rendered up to {cursor_ns} "
                "ns; give later stamps, or none."
            )

    def _published(self, stamp_ns: int) -> None:
        """Called with the stamp of each published instant."""
        running = self._running
        if running is None or stamp_ns < running.poses.stamps_ns[0]:
            return
        running.done += 1
        total = len(running.poses.stamps_ns)
        seconds = max(time.monotonic() - running.since_s, 1e-6)
        running.goal.feedback(
            frames_done=running.done, frames_total=total, frames_per_s=running.done / seconds
        )
        if running.done >= total or running.goal.canceled and not self._under_way(running):
            self._finish("" if running.done >= total else "The rollout was canceled.")

    def _under_way(self, running: Running) -> bool:
        """Frames were handed out that are not published yet."""
        return running.poses.next > running.done

    def _cancel(self, goal: Goal) -> None:
        running = self._running
        if running is None or running.goal is not goal:
            return
        self._session.take_back()
        self._session.prioritise(None)
        if not self._under_way(running):
            self._finish("The rollout was canceled.")

    def _failed(self, reason: str) -> None:
        if self._running is not None:
            self._session.take_back()
            self._finish(reason)

    def _finish(self, reason: str) -> None:
        running, self._running = self._running, None
        self._session.prioritise(None)
        if not running.recording:
            self._conclude(running, reason)
            return
        try:
            ended = self._recordings.stop(Record.Response())
        except MirageError as error:
            self._conclude(running, reason or str(error))
            return
        ended.bind(lambda answer: self._conclude(running, reason or ("" if answer.success else answer.message)))

    def _conclude(self, running: Running, reason: str) -> None:
        """Sends the result; what became of the recording is known by now."""
        result = GenerateRollout.Result(
            success=not reason, message=reason, frames=running.done, recording=running.recording
        )
        if running.done:
            result.first_stamp_ns = int(running.poses.stamps_ns[0])
            result.last_stamp_ns = int(running.poses.stamps_ns[running.done - 1])
        running.goal.finish(result, success=not reason)


def in_range(stamps: np.ndarray) -> np.ndarray:
    """The stamps. Raises MirageError where a message cannot carry the last of them."""
    stamp_to_ros(stamps[-1])
    return stamps

"""The session: plan in, frames out. It owns what is planned, pending and published, and which world is there.

It runs in the executor's thread and holds no node: what it needs done outside, `Host` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.protocol import SECOND_NS, FloorPlan, Frame, Points
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.cameras import CameraStates, plan_config
from mirage_ros.ros.chunk_timing import Pacing, PriorityRollout, Stepper
from mirage_ros.ros.chunks import Delivery, FrameQueue, Item, Rollout, Then
from mirage_ros.ros.diagnostics import Figures, Health
from mirage_ros.ros.plan import Plan, Source
from mirage_ros.ros.tracks import Transforms
from mirage_ros.ros.worker import (
    Command,
    Died,
    Done,
    Failed,
    Load,
    ModelReady,
    Reset,
    Result,
    Revived,
    Step,
)
from mirage_ros.ros.worlds import LoadedWorld
from mirage_ros.world.entities import EntityState

NO_WORLD = "No world is loaded; call load_world first."


@runtime_checkable
class Output(Protocol):
    """Where frames, clouds and the world's start go; see topics.Publishers."""

    def instant(self, frames: Sequence[Frame]) -> None: ...

    def cloud(self, points: Points, stamp_ns: int) -> None: ...

    def map(self, plan: FloorPlan, stamp_ns: int) -> None: ...

    def start(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None: ...

    def full_for(self, now_s: float) -> dict[str, float]: ...

    def sensors(self) -> tuple[str, ...]: ...


@runtime_checkable
class SimulatedTime(Protocol):
    """The clock that the session drives in lockstep."""

    now_ns: int | None

    def advance(self, stamp_ns: int) -> None: ...

    def restart(self, stamp_ns: int) -> None: ...

    def publish(self) -> None: ...

    def check(self) -> None: ...


@dataclass(frozen=True)
class Host:
    """What is done for the session outside of it.

    Attributes:
        status: publishes what a chunk cost: called with the step's result and the session.
        clock: of lockstep; None in a stream.
        now_ns: ROS time.
        wake: `take_results` and `queue.publish` are to be called soon; callable from any thread.
        retry: `queue.publish` is to be called a little later.
        report_error: says what went wrong, and returns the sentence.
        log: has `info` and `warning`.
    """

    output: Output
    status: Callable[[Done, Session], None]
    clock: SimulatedTime | None
    now_ns: Callable[[], int]
    wake: Callable[[], None]
    retry: Callable[[], None]
    report_error: Callable[[Exception], str]
    log: Any


class Session:
    """One plan, one world, one worker at a time.

    Attributes:
        config: the parameters as they are now.
        active: whether chunks are handed out and frames published.
        cameras: where they are, as of what was published last.
        stepper: whether the simulation plays, is paused or steps.
        world: the world that is there.
        rollout, pacing: what is handed out to the worker, and when; None without a worker.
        queue: what is rendered and waits to be published.
        bodies: the world's entities by name, as of the last command that the worker has done.
        last_stamp_ns: of the last frames that were published, None before the first.
        on_frames: each called with the stamp of frames that were published.
        on_failure: each called with the reason when frames will not come.
        on_seed_wanted: each called when a seed is wanted from topics again.
    """

    def __init__(self, config: NodeConfig, buffer: Transforms, host: Host, health: Health, source: Source | None = None) -> None:
        self.config, self.buffer, self.health, self.host = config, buffer, health, host
        self.figures = Figures()
        self.plan = Plan(plan_config(config), buffer, source)
        self.cameras = CameraStates(round(config.plan_gap_s * SECOND_NS))
        self.stepper = Stepper(config.start_paused)
        self.world = LoadedWorld()
        self.rollout: Rollout | None = None
        self.pacing: Pacing | None = None
        self.active = self.model_failed = False
        self.last_stamp_ns: int | None = None
        self.bodies: dict[str, EntityState] = {}
        self.plan_to_first_frame_s = 0.0
        self.on_frames: list[Callable[[int], None]] = []
        self.on_failure: list[Callable[[str], None]] = []
        self.on_seed_wanted: list[Callable[[], None]] = []
        delivery = Delivery(
            allowed=lambda: self.active,
            full_for=host.output.full_for,
            at_work=lambda: [] if self.rollout is None else self.rollout.at_work,
            go_on=host.wake,
            retry=host.retry,
            failed=self._publishing_failed,
        )
        self.queue = FrameQueue(delivery, health)

    # The worker.

    def start(self, rollout: Rollout) -> None:
        """Goes on with a worker that is new; nothing is handed out yet."""
        self.model_failed = False
        self.rollout, self.pacing = rollout, Pacing(self.plan)
        self.stepper.attach(self.pacing, rollout.replan)
        self.pacing.stopped = True

    def stop(self, timeout_s: float) -> bool:
        """Ends the worker. False if that did not come to an end in time."""
        rollout, self.rollout, self.pacing = self.rollout, None, None
        return rollout is None or rollout.stop(timeout_s)

    # What state it is in.

    @property
    def has_world(self) -> bool:
        return self.rollout is not None and self.rollout.has_world

    @property
    def loading(self) -> bool:
        """A world is on its way."""
        return self.world.coming > 0

    @property
    def waiting(self) -> str:
        """Why nothing is rendered though it should be, '' where all is well."""
        return "" if self.rollout is None else self.rollout.mount_missing or self.pacing.waiting

    @property
    def start_ns(self) -> int | None:
        """The time at which a world begins: fixed in lockstep, None in a stream."""
        return round(self.config.start_time_s * SECOND_NS) if self.host.clock is not None else None

    @property
    def now_ns(self) -> int:
        """Time of what was published last."""
        if self.host.clock is not None and self.host.clock.now_ns is not None:
            return self.host.clock.now_ns
        return self.last_stamp_ns or 0

    def lacking(self, world: bool = True) -> str:
        """Why nothing can be done now, '' where it can. Without `world`, none is needed for it."""
        if self.rollout is not None and self.rollout.ended:
            return self.rollout.ended
        if self.rollout is None or self.rollout.model is None:
            return "The node is not configured; configure it, or wait until it has loaded its model."
        if world and not self.rollout.has_world:
            return NO_WORLD
        return ""

    def world_from(self, frame: str) -> Float[np.ndarray, "4 4"]:
        """The pose of a frame, '' being the world's, at `now_ns`. Raises TransformError."""
        world = self.config.world_frame
        return np.eye(4) if frame in ("", world) else self.buffer.matrix(world, frame, self.now_ns)

    def require(self, world: bool = True) -> None:
        """Raises MirageError where nothing can be done now."""
        if reason := self.lacking(world):
            raise MirageError(reason)

    def check_clock(self) -> bool:
        """In lockstep: False and an error where somebody else publishes /clock, too."""
        if self.host.clock is None:
            return True
        try:
            self.host.clock.check()
        except MirageError as error:
            self.health.error("clock", str(error))
            if self.active:
                if self.stepper.playing:
                    self.stepper.pause()
                self.end_waits(str(error))
            return False
        self.health.ok("clock")
        return True

    def submit(self, command: Command, then: Then | None = None, before_chunks: bool = False) -> None:
        """Queues a command for the worker; see `Rollout.submit`."""
        self.rollout.submit(command, then, before_chunks)

    # Plan in.

    def plan_came(self) -> None:
        """Poses came that were not planned before."""
        if self.pacing is not None:
            self.pacing.plan_came(time.monotonic())

    def replan_changed(self) -> None:
        """A camera may stand elsewhere at times that are handed out already."""
        if self.rollout is not None and self.rollout.replan_changed():
            self.plan_came()

    def take_back(self) -> None:
        """What is handed out and not at work is planned again."""
        if self.rollout is not None:
            self.rollout.replan()

    def prioritise(self, poses: PriorityRollout | None) -> None:
        """Renders these poses before anything else that is planned; None goes on with the plan."""
        if self.pacing is not None:
            self.pacing.priority = poses
        if poses is not None:
            self.host.wake()

    def supply(self) -> None:
        """Hands the worker what comes next."""
        if self.active:
            now_s, sensors = time.monotonic(), self.host.output.sensors()
            self.rollout.pump(self.pacing, self.config, now_s, self.host.now_ns(), sensors)
        self._report_waiting()
        if self.waiting and self.stepper.job is not None:
            self.stepper.call_off(f"The step needs planned poses. {self.waiting}")

    def _report_waiting(self) -> None:
        """Why nothing is rendered though it should be; a frame that is missing is an error once
        anything moves: before that, static transforms may just have come first."""
        moves = self.buffer.newest_ns is not None
        if not self.waiting:
            self.health.ok("plan")
        elif (self.rollout.mount_missing or self.pacing.missing_frame) and moves:
            self.health.error("plan", self.waiting)
        else:
            self.health.warn("plan", self.waiting)

    def restart_plan(self) -> None:
        """The plan starts over with the next poses; in lockstep, at the time at which a world begins."""
        self.plan.forget()
        if self.pacing is not None:
            self.pacing.forget_plan()
        self.last_stamp_ns = None
        if self.host.clock is not None:
            self.plan.start_at(self.start_ns)

    def restart_clock(self) -> None:
        """Lockstep: the time before the first frame, published once the clock is ours."""
        if self.host.clock is not None:
            self.host.clock.restart(self.start_ns)
            if self.active:
                self.host.clock.publish()

    # Frames out.

    def take_results(self) -> None:
        """All results that wait."""
        while self.rollout is not None and (result := self.rollout.take()) is not None:
            try:
                self._take(result)
            except Exception as error:  # noqa: BLE001 - the next result may be a good one
                self.host.report_error(error)

    def end_waits(self, reason: str) -> None:
        """Whoever waits for frames gets to know that they will not come."""
        self.stepper.call_off(reason)
        for listener in self.on_failure:
            listener(reason)

    def want_seed(self) -> None:
        """The next seed on the topics becomes a world."""
        for listener in self.on_seed_wanted:
            listener()

    def _take(self, result: Result) -> None:
        if isinstance(result, ModelReady):
            height, width = result.size
            text = f"Model '{result.name}' is ready: {width} x {height}, chunks of {result.chunk_frames}."
            self.host.log.info(text)
        elif isinstance(result, Died):
            self.figures.restarts += 1
            self.health.error("worker", f"{result.message} Another one is started.")
        elif isinstance(result, Revived):
            self._take_revived(result)
        else:
            # First what a new world ends, then what it brings.
            self.rollout.answer(result, self.host.report_error)
            self._take_done(result) if isinstance(result, Done) else self._take_failed(result)

    def _take_revived(self, revived: Revived) -> None:
        self.health.ok("worker")
        text = f"The inference worker is back after {revived.seconds:.1f} s"
        if revived.message:
            self.health.warn("world", f"{text}, without all of the world: {revived.message}")
        else:
            self.host.log.info(f"{text}, the world as it was.")

    def _take_done(self, done: Done) -> None:
        if done.entities is not None:
            self.bodies = {state.name: state for state in done.entities}
        if done.unsaved:
            text = "The world cannot be kept for the case that the inference worker is lost"
            self.health.warn("snapshot", f"{text}: {done.unsaved}")
        else:
            self.health.ok("snapshot")
        if isinstance(done.command, Step):
            self._check_start(done)
            self.figures.add(done.chunk, done.seconds)
            self.health.ok("world")
            if self.queue.wants(done.command):
                for frames in zip(done.chunk.frames, *done.others, strict=True):
                    self.queue.put(self._publish_frames, frames, is_frame=True)
                self.queue.put(self.host.status, done, self)
        if done.floor_plan is not None:
            self.queue.put(self.host.output.map, done.floor_plan, done.stamp_ns)
        if done.points is not None:
            self.queue.put(self.host.output.cloud, done.points, done.stamp_ns)

    def _check_start(self, done: Done) -> None:
        """The first chunk of a world says where the plan starts in it."""
        world_frame = self.config.world_frame
        if "start" in done.values:
            leaning = self.world.move_start(done.values["start"])
            self.host.output.start(self.world.start_pose)
            self.plan.moved_to(self.world.start_pose)
            where = f"{self.world.start(world_frame)}{leaning}"
            self.host.log.info(f"The world was put where the plan starts: {where}.")
        if self.figures.chunks == 0 and (far := self.world.far_start(done.chunk, self.config)):
            self.health.warn("start", far)
            # Said of this plan; a next world's is looked at again.
            self.health.ok("start")

    def _take_failed(self, failed: Failed) -> None:
        command = failed.command
        if command is None:
            self.host.wake()
            self.model_failed = True
            self.health.error("model", failed.message)
            self.world.forget()
            self.end_waits(failed.message)
        elif isinstance(command, Reset):
            self.want_seed()
            self.health.error("seed", f"No new world from {command.origin}: {failed.message}")
        elif isinstance(command, Load):
            self.health.error("seed", f"No world from {command.path}: {failed.message}")
        elif isinstance(command, Step):
            self.health.error("world", failed.message)
            self.end_waits(failed.message)

    def _publish_frames(self, frames: tuple[Frame, ...]) -> None:
        """Frames of one instant, one of each camera."""
        self.host.output.instant(frames)
        self.cameras.showed(frames[0].stamp_ns, [f.camera.world_from_camera for f in frames])
        stamp_ns = self.last_stamp_ns = frames[0].stamp_ns
        if self.host.clock is not None:
            self.host.clock.advance(stamp_ns)
        now_s = time.monotonic()
        self.pacing.published(now_s, stamp_ns)
        waited_s = self.pacing.first_frame(now_s, stamp_ns)
        if waited_s is not None:
            self.plan_to_first_frame_s = waited_s
        self.stepper.frame(stamp_ns)
        for listener in self.on_frames:
            listener(stamp_ns)

    def _publishing_failed(self, error: Exception, item: Item) -> None:
        reason = self.host.report_error(error)
        if item.is_frame:
            self.end_waits(reason)

"""The node: wiring and thin callbacks, which convert, call and publish."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockChange, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.ros import parameters
from mirage_ros.ros.callbacks import GuardedNode
from mirage_ros.ros.config import PRELOAD, NodeConfig, shipped_model
from mirage_ros.ros.diagnostics import Figures, Health
from mirage_ros.ros.inputs import KINDS, Observations, PromptInput, SeedInput
from mirage_ros.ros.lifecycle import LifeCycle
from mirage_ros.ros.messages.conversions import SECOND_NS
from mirage_ros.ros.outbox import Outbox
from mirage_ros.ros.plan import Plan
from mirage_ros.ros.plan_intake import PlanIntake, Reactions
from mirage_ros.ros.report import Reporter
from mirage_ros.ros.results import Results
from mirage_ros.ros.rig_config import mounted, plan_config, read_rig, single_camera, worker_config
from mirage_ros.ros.rollout import Rollout
from mirage_ros.ros.simulation import CameraStates, SimClock, Stepper
from mirage_ros.ros.tf_buffer import make_buffer
from mirage_ros.ros.topics import TF_DEPTH, Publishers, streamed
from mirage_ros.ros.world_keeper import WorldKeeper

PUMP_PERIOD_S = 0.05
CLOCK_CHECK_S = 1.0
STOP_TIMEOUT_S = 5.0
ModelFactory = Callable[[NodeConfig], object]
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class MirageNode(GuardedNode):
    """A camera driver whose world is generated.

    Args:
        make_model: gives the model; picklable, called in the worker's process.
        preload: modules that `make_model` imports, to be imported once for all workers.

    Raises:
        MirageError: a parameter is wrong.
    """

    def __init__(
        self,
        make_model: ModelFactory = shipped_model,
        preload: Sequence[str] | None = None,
        **kwargs,
    ) -> None:
        super().__init__("mirage_node", **kwargs)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.config = parameters.declare(self)
        for name in parameters.unknown_overrides(self):
            self.get_logger().warning(f"There is no parameter '{name}'; is it misspelt?")
        self.add_on_set_parameters_callback(self._on_parameters)
        self._make_model = make_model
        shipped = make_model is shipped_model
        self._preload = (PRELOAD if shipped else ()) if preload is None else preload
        self.health = Health(self.get_logger().warning, self.get_logger().error)
        self.figures = Figures()
        self.buffer = make_buffer(self.config.plan_history_s)
        self.plan = Plan(plan_config(self.config), self.buffer)
        self.rollout: Rollout | None = None
        self.active = False
        self.cameras = CameraStates(round(self.config.plan_gap_s * SECOND_NS))
        self.rig = read_rig(self.config.rig) if self.config.rig else ()
        self._single = single_camera(self.config)
        self.output = Publishers(
            self, self.config, [camera.output for camera in self.rig] or [self._single[1]]
        )
        self.lockstep = self.config.time_mode == "lockstep"
        self.sim_clock = SimClock(self) if self.lockstep else None
        self.stepper = Stepper(self.config.start_paused)
        self.world = WorldKeeper(self)
        self.outbox = Outbox(self)
        self.failures: list[Callable[[str], None]] = []
        self._guard = self.create_guard_condition(self._on_wake)
        self.results = Results(self)
        self.reporter = Reporter(self)
        own = {camera.frame_id for camera in self.output.cameras} | {self.config.start_frame}
        self._intake = PlanIntake(
            self.buffer,
            self.plan,
            self.health,
            self.config,
            self._reactions(),
            own_frames=own,
            cameras=[c.frame for c in self.rig if c.planned_from_camera is None],
        )
        self._more_tf = self.create_guard_condition(self._intake.work_off)
        self.seed_input = SeedInput()
        self.observations = Observations(self)
        # One that fails must not keep the others from being done.
        chores = (self.world.take_seed_messages, self.observations.poll, self._supply)
        self._chores = [self.guarded(chore) for chore in chores]
        self._subscribe()
        self._serve()
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self.guarded(self._on_jump),
        )
        self.create_wall_timer(PUMP_PERIOD_S, self._pump)
        self.create_wall_timer(CLOCK_CHECK_S, self.check_clock)
        self.life = LifeCycle(self)

    def close(self) -> bool:
        """Ends recording and worker. False if that did not come to an end in time."""
        self.recording.end()
        rollout, self.rollout = self.rollout, None
        return rollout is None or rollout.stop(STOP_TIMEOUT_S)

    def wake(self) -> None:
        """Looks for results and things to publish soon; callable from any thread."""
        self._guard.trigger()

    def create_wall_timer(self, period_s: float, callback: Callable[[], None]):
        """A timer that goes on when simulated time stands still."""
        return self.create_timer(period_s, callback, clock=self._steady)

    @property
    def failed(self) -> bool:
        """The model could not be loaded."""
        return self.reporter.model_failed

    def start_worker(self) -> None:
        """A worker that loads the model, and the first world after it."""
        self.reporter.model_failed = False
        self.rollout = Rollout(
            self.plan,
            functools.partial(self._make_model, self.config),
            worker_config(self.config, self.rig, self._single[0]),
            self.wake,
            self._preload,
            self._mounts,
            self.config.worker_silence_s,
        )
        self.stepper.attach(self.rollout)
        self.rollout.pacing.stopped = True
        self.world.load_first()

    def on_configure(self, state) -> TransitionCallbackReturn:
        """Succeeds with the model and the first world there; LifeCycle waits for both."""
        self.life.wait_until_loaded()
        if self.life.failed:
            self.on_cleanup(state)
            return FAILURE
        return SUCCESS

    def on_activate(self, state) -> TransitionCallbackReturn:
        if not self.check_clock():
            return FAILURE
        self.active = True
        if self.sim_clock is not None:
            self.sim_clock.tell()
        self.recording.begin()
        self.rollout.pacing.stopped = False
        self.wake()
        return SUCCESS

    def on_deactivate(self, state) -> TransitionCallbackReturn:
        """Nothing new is rendered; the world stays, and what is rendered waits."""
        self.active = False
        self.results.tell("The node was deactivated.")
        self.rollout.replan()
        self.rollout.pacing.stopped = True
        self.recording.leave_off()
        return SUCCESS

    def on_cleanup(self, state) -> TransitionCallbackReturn:
        """Ends the worker's process, and so gives all of its memory back."""
        self.active = False
        if self.rollout is not None:
            self.results.abandon("The node was cleaned up.")
        self.stepper.attach(None)
        self.close()
        self.outbox.clear()
        self.plan.forget()
        self.buffer.clear()
        self.world.forget()
        return SUCCESS

    def on_shutdown(self, state) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def on_error(self, state) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def check_clock(self) -> bool:
        """In lockstep: False and an error where somebody else publishes /clock, too."""
        if self.sim_clock is None:
            return True
        try:
            self.sim_clock.check()
        except MirageError as error:
            self.health.error("clock", str(error))
            if self.active:
                if self.stepper.playing:
                    self.stepper.pause()
                self.results.tell(str(error))
            return False
        self.health.ok("clock")
        return True

    def _subscribe(self) -> None:
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # Raw: who sends many poses at once must not keep the services waiting.
        for kind, topic, callback, qos in (
            (TFMessage, "/tf", self._intake.moving, streamed(TF_DEPTH)),
            (TFMessage, "/tf_static", self._intake.static, latched),
            (Path, "plan", self._intake.path, streamed(10)),
        ):
            self.create_subscription(kind, topic, callback, qos, raw=True)
        self._prompts = PromptInput(self)
        qos = streamed(5, self.config.seed_reliability)
        for kind, message_type in zip(KINDS, (Image, CameraInfo, Image), strict=True):
            self.create_subscription(message_type, f"seed/{kind}", self._on_seed(kind), qos)
            on_real = functools.partial(self.observations.add, kind)
            self.create_subscription(message_type, f"observe/{kind}", on_real, qos)

    def _serve(self) -> None:
        """Every service and action of the node."""
        from mirage_ros.ros.services import serve

        self.services_ = serve(self)

    def _on_parameters(self, wanted: list[Parameter]):
        self.config, reason = parameters.changed(self.config, wanted)
        return parameters.result(reason)

    def _reactions(self) -> Reactions:
        return Reactions(
            published_ns=lambda: self.outbox.last_stamp_ns,
            replan=self._replan,
            take_back=lambda: self.rollout.replan() if self.rollout is not None else None,
            path_came=self._path_came,
            start_over=self._start_over,
            go_on=lambda: self._more_tf.trigger(),
        )

    def _path_came(self, poses: int) -> None:
        self._plan_came()
        self.get_logger().info(f"Got a plan of {poses} poses.")

    def _on_seed(self, kind: str):
        def callback(message: Image | CameraInfo) -> None:
            try:
                self.seed_input.add(kind, message, time.monotonic())
            except MirageError as error:
                self.health.error("seed", str(error))

        return callback

    def _replan(self) -> None:
        """A camera may stand elsewhere at times that are handed out already."""
        if self.rollout is not None and self.rollout.replan_changed():
            self._plan_came()

    def _plan_came(self) -> None:
        if self.rollout is not None:
            self.rollout.pacing.plan_came(time.monotonic())

    def _mounts(self, planned):
        return mounted(self.rig, self.buffer, self.config.camera_frame, planned)

    def _on_jump(self, jump) -> None:
        if self.lockstep or jump.clock_change != ClockChange.ROS_TIME_NO_CHANGE:
            return
        self.world.jumped_back()
        self.get_logger().warning("Time jumped back; the plan starts over with the next poses.")

    def _start_over(self, reason: str) -> bool:
        """The plan starts over, unless poses are rendered that were given as a list."""
        if self.rollout is not None and self.rollout.pacing.errand is not None:
            return False
        self.world.jumped_back()
        self.get_logger().warning(reason)
        return True

    def _on_wake(self) -> None:
        self.results.work_off()
        self.outbox.publish()
        self._pump()

    def _pump(self) -> None:
        if self.rollout is not None:
            for chore in self._chores:
                chore()
        if self.health.take_news():
            self.reporter.publish()

    def _supply(self) -> None:
        """The worker with what comes next."""
        if self.active:
            now_ns = self.get_clock().now().nanoseconds
            self.rollout.pump(self.config, time.monotonic(), now_ns)
        self.reporter.tell_waiting(self.rollout)
        if self.rollout.waiting and self.stepper.job is not None:
            self.stepper.call_off(f"The step needs planned poses. {self.rollout.waiting}")

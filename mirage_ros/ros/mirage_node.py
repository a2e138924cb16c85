"""The node: a thin shell around the session. It converts, calls and publishes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockChange, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.ros import NodeConfig, parameters
from mirage_ros.ros.callbacks import Endpoints, GuardedNode
from mirage_ros.ros.cameras import mounted, read_rig, single_camera, worker_config
from mirage_ros.ros.chunks import Rollout
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.inputs import KINDS, PROMPT, LiveSeeds, Observations, PromptInput
from mirage_ros.ros.messages import stamp_to_ros, status_to_ros
from mirage_ros.ros.plan import Planned
from mirage_ros.ros.plan_intake import PlanIntake, Reactions
from mirage_ros.ros.robots import RobotPlan, carriers, read_robots
from mirage_ros.ros.services.entities import Entities
from mirage_ros.ros.services.recording import FrameRecording, RecordService
from mirage_ros.ros.services.running import LifeCycle, Requests, RolloutAction, SessionLife, StepServices
from mirage_ros.ros.services.spawning import EntityCommands, Spawning, describe
from mirage_ros.ros.services.state import PERIOD_S, Condition, Reporter, StartingOver, StateServices
from mirage_ros.ros.services.worlds import MemoryServices, WorldChanges, WorldServices
from mirage_ros.ros.session import Host, Session
from mirage_ros.ros.tf import make_buffer
from mirage_ros.ros.topics import LATCHED, TF_DEPTH, UNNAMED, Publishers, publishers_of, streamed
from mirage_ros.ros.worker import Done

PUMP_PERIOD_S = 0.05
CLOCK_CHECK_S = 1.0
WATCH_S = 0.5
RETRY_S = 0.005
# So long the answer to who ends the simulator has to get out.
QUIT_S = 0.2
CLOCK = "/clock"
ModelFactory = Callable[[NodeConfig], object]
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class MirageNode(GuardedNode):
    """A camera driver whose world is generated.

    Args:
        make_model: gives the model; picklable, called in the worker's process.
        preload: modules that `make_model` imports, to be imported once for all workers.

    Attributes:
        session: all state there is.

    Raises:
        MirageError: a parameter is wrong.
    """

    def __init__(self, make_model: ModelFactory, preload: Sequence[str] = (), **kwargs) -> None:
        super().__init__("mirage_node", **kwargs)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        config = parameters.declare(self)
        for name in parameters.unknown_overrides(self):
            self.get_logger().warning(f"There is no parameter '{name}'; is it misspelt?")
        self._make_model, self._preload = make_model, preload
        self.health = Health(self.get_logger().warning, self.get_logger().error)
        buffer = make_buffer(config.plan_history_s)
        self._rig = read_rig(config.rig) if config.rig else ()
        self._robots: RobotPlan | None = None
        if config.robots:
            self._robots = RobotPlan(read_robots(config.robots), buffer, config.world_frame)
            self._rig = self._robots.cameras
            config = replace(config, camera_frame=self._rig[0].frame)
        view, camera = single_camera(config)
        self._single = view
        self.output = Publishers(self, config, [c.output for c in self._rig] or [camera])
        self._guard = self.create_guard_condition(self._on_wake)
        self._retry = self.create_wall_timer(RETRY_S, self._on_retry)
        self._retry.cancel()
        lockstep = config.time_mode == "lockstep"
        self.session = Session(config, buffer, self._host(lockstep), self.health, self._robots)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._worlds = WorldChanges(self.session)
        self._listen()
        self._serve()
        self._watch_time()
        if self._robots is not None:
            self._described = describe(self, self._robots.robots, config.spawnables_folder)
        self._live()

    def keep_this_world(self) -> None:
        """What comes on seed/* begins no other one any more, however long it was quiet there."""
        while self._seed_topics:
            self.destroy_subscription(self._seed_topics.pop())

    @property
    def observed(self) -> int:
        """So many pictures of observe/image were looked at."""
        return self._observations.written

    def close(self) -> bool:
        """Ends recording and worker. False if that did not come to an end in time."""
        self._recording.end()
        return self._life.stop()

    def create_wall_timer(self, period_s: float, callback: Callable[[], None]):
        """A timer that goes on when simulated time stands still."""
        return self.create_timer(period_s, callback, clock=self._steady)

    def on_configure(self, state) -> TransitionCallbackReturn:
        """Succeeds with the model and the first world there; LifeCycle waits for both."""
        self._life.wait_until_loaded()
        if self._life.failed:
            self.on_cleanup(state)
            return FAILURE
        return SUCCESS

    def on_activate(self, state) -> TransitionCallbackReturn:
        if not self.session.check_clock():
            return FAILURE
        self._life.activate()
        self._recording.begin()
        return SUCCESS

    def on_deactivate(self, state) -> TransitionCallbackReturn:
        """Nothing new is rendered; the world stays, and what is rendered waits."""
        self._life.deactivate()
        self._recording.leave_off()
        return SUCCESS

    def on_cleanup(self, state) -> TransitionCallbackReturn:
        """Ends the worker's process, and so gives all of its memory back."""
        self._life.abandon("The node was cleaned up.")
        self.close()
        self._life.clean_up()
        return SUCCESS

    def on_shutdown(self, state) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def on_error(self, state) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def _host(self, lockstep: bool) -> Host:
        """What the session needs done."""
        return Host(
            output=self.output,
            status=self._publish_status,
            clock=SimClock(self) if lockstep else None,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            wake=self._guard.trigger,
            retry=self._retry.reset,
            report_error=self.report_error,
            log=self.get_logger(),
        )

    def _listen(self) -> None:
        """Every subscription of the node."""
        self._seed_topics = []
        self._observations = Observations(self.session)
        self._seeds = LiveSeeds(self.session, self._worlds.begin_live)
        self._prompts = PromptInput(self.session)
        self._driven = EntityCommands(self.session, self)
        self._intake = self._plan_intake()
        self._more_tf = self.create_guard_condition(self._intake.work_off)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # Raw: who sends many poses at once must not keep the services waiting.
        for kind, topic, callback, qos in (
            (TFMessage, "/tf", self._intake.moving, streamed(TF_DEPTH)),
            (TFMessage, "/tf_static", self._intake.static, latched),
            (Path, "plan", self._intake.path, streamed(10)),
        ):
            self.create_subscription(kind, topic, callback, qos, raw=True)
        self.create_subscription(String, PROMPT, self._prompts.add, 10)
        qos = streamed(5, self.session.config.seed_reliability)
        for kind, message_type in zip(KINDS, (Image, CameraInfo, Image), strict=True):
            for topic, add in (("seed", self._seeds.add), ("observe", self._observations.add)):
                on_message = functools.partial(add, kind)
                heard = self.create_subscription(message_type, f"{topic}/{kind}", on_message, qos)
                self._seed_topics += [heard] if topic == "seed" else []

    def _plan_intake(self) -> PlanIntake:
        session, config = self.session, self.session.config
        reactions = Reactions(
            published_ns=lambda: session.last_stamp_ns,
            replan=session.replan_changed,
            take_back=session.take_back,
            path_came=self._path_came,
            start_over=self._start_over,
            go_on=lambda: self._more_tf.trigger(),
        )
        own = {
            frame
            for camera in self.output.cameras
            for frame in (camera.frame_id, camera.scan_frame, camera.lidar_frame)
        }
        own |= {config.start_frame}
        cameras = [c.frame for c in self._rig if c.planned_from_camera is None]
        cameras += [] if self._robots is None else self._robots.frames
        return PlanIntake(
            session.buffer, session.plan, self.health, config, reactions, own, cameras
        )

    def _serve(self) -> None:
        """Every service and action of the node."""
        session, endpoints = self.session, Endpoints(self)
        self._recording = RecordService(
            endpoints,
            self._make_recording,
            lambda: session.config.record,
            self.health,
            self.get_logger(),
        )
        names = [camera.name for camera in self.output.cameras]
        starting_over = StartingOver(
            self._worlds.reset, self._worlds.restart_time, self._shut_down_soon
        )
        self._offered = [
            Entities(session, names, self._rig, endpoints, self._robots and self._robots.camera_pose),
            MemoryServices(session, endpoints),
            RolloutAction(session, self._recording, endpoints),
            Spawning(session, names, endpoints),
            StateServices(session, starting_over, endpoints),
            StepServices(session, endpoints),
            WorldServices(session, self._worlds, endpoints),
        ]

    def _watch_time(self) -> None:
        """The clock, and what has to be done again and again."""
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1)),
            post_callback=self.guarded(self._on_jump),
        )
        self._reporter = Reporter(self, self.health, Condition(self.session), self.output.shared)
        # One that fails must not keep the others from being done.
        chores = (self._seeds.poll, self._observations.poll, self.session.supply, self._say_who_is_silent)
        self._chores = [self.guarded(chore) for chore in chores]
        self.create_wall_timer(PUMP_PERIOD_S, self._pump)
        self.create_wall_timer(CLOCK_CHECK_S, self.session.check_clock)
        self.create_wall_timer(WATCH_S, self._driven.look_around)
        self.create_wall_timer(PERIOD_S, self._reporter.look_around)
        self.create_wall_timer(PERIOD_S, self._reporter.publish)

    def _say_who_is_silent(self) -> None:
        names = self._robots.silent if self._robots else ()
        if names:
            text = f"No new poses of {', '.join(names)} come on TF: they stand where they were, and the others go on"
            self.health.warn("robots", f"{text}; run a base for each, or publish its TF.", once=True)
        else:
            self.health.ok("robots")

    def _live(self) -> None:
        self._life = SessionLife(self.session, self._start_worker, self._worlds.load_first)
        requests = Requests(self.answering, self._recording.when_ended, self.create_wall_timer)
        self._requests = LifeCycle(self, self._life, requests, self.session.config.autostart)

    def _start_worker(self) -> Rollout:
        session, config = self.session, self.session.config

        def mounts(planned: Planned) -> tuple:
            return mounted(self._rig, session.buffer, config.camera_frame, planned), ()

        robots = self._robots
        return Rollout(
            session.plan,
            functools.partial(self._make_model, config),
            worker_config(config, self._rig, self._single, carriers(robots.robots) if robots else ()),
            self._guard.trigger,
            self._preload,
            robots.poses if robots else mounts,
            config.worker_silence_s,
        )

    def _make_recording(self, path: str) -> FrameRecording:
        rate_hz = self.session.config.frame_rate_hz
        return FrameRecording(self, path, self.output.cameras, rate_hz)

    def _publish_status(self, done: Done, session: Session) -> None:
        message = status_to_ros(
            done.chunk,
            session.figures.chunks,
            session.plan.pending(),
            session.rollout.model.name,
            done.seconds,
            session.config.world_frame,
        )
        message.plan_to_first_frame_s = session.plan_to_first_frame_s
        self.output.status(message)

    def _shut_down_soon(self) -> None:
        self.create_wall_timer(QUIT_S, self.context.try_shutdown)

    def _on_parameters(self, wanted: list[Parameter]):
        self.session.config, reason = parameters.changed(self.session.config, wanted)
        return parameters.result(reason)

    def _path_came(self, poses: int) -> None:
        self.session.plan_came()
        self.get_logger().info(f"Got a plan of {poses} poses.")

    def _on_jump(self, jump) -> None:
        lockstep = self.session.host.clock is not None
        if lockstep or jump.clock_change != ClockChange.ROS_TIME_NO_CHANGE:
            return
        self._worlds.time_jumped_back("Time jumped back; the plan starts over with the next poses.")

    def _start_over(self, reason: str) -> bool:
        """The plan starts over, unless poses are rendered that were given as a list."""
        if self.session.pacing is not None and self.session.pacing.priority is not None:
            return False
        self._worlds.time_jumped_back(reason)
        return True

    def _on_retry(self) -> None:
        self._retry.cancel()
        self.session.queue.publish()

    def _on_wake(self) -> None:
        self.session.take_results()
        self.session.queue.publish()
        self._pump()

    def _pump(self) -> None:
        if self.session.rollout is not None:
            for chore in self._chores:
                chore()
        if self.health.take_news():
            self._reporter.publish()


class SimClock:
    """Lockstep: the node owns /clock, alone. Time only goes forward, save by `restart`.

    The message is latched, so a process that comes late, or comes back, learns the time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(ClockMessage, CLOCK, LATCHED)
        self.now_ns: int | None = None
        self._published_ns: int | None = None

    def advance(self, stamp_ns: int) -> None:
        """Time is now that of a frame that exists; an earlier one is left out."""
        if self.now_ns is None or stamp_ns > self.now_ns:
            self.restart(stamp_ns)
            self.publish()

    def restart(self, stamp_ns: int) -> None:
        """Time begins (again) here; others learn it by `publish`."""
        self.now_ns, self._published_ns = stamp_ns, None

    def publish(self) -> None:
        """Publishes the time, once. Somebody else's clock has to be ruled out before."""
        if self.now_ns is not None and self._published_ns != self.now_ns:
            self._publisher.publish(ClockMessage(clock=stamp_to_ros(self.now_ns)))
            self._published_ns = self.now_ns

    def check(self) -> None:
        """Raises MirageError where somebody else publishes /clock, too."""
        names = publishers_of(self._node, CLOCK)
        own = self._node.get_fully_qualified_name()
        if own in names:
            names.remove(own)
        if names:
            known = sorted({name for name in names if not name.endswith(UNNAMED)}) or ["a node whose name is not known yet"]
            raise MirageError(
                f"/clock is also published by {', '.join(known)}; in lockstep the "
                "node owns it: stop the other clock, or set time_mode to stream."
            )

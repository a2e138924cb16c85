"""The node: wiring and thin callbacks, which convert, call and publish."""

from __future__ import annotations

import time
from collections.abc import Callable

from nav_msgs.msg import Path
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from mirage_ros.core.errors import MirageError
from mirage_ros.core.types import WorldModel
from mirage_ros.core.world import WorldConfig
from mirage_ros.ros import parameters
from mirage_ros.ros.cloud_conversions import status_to_ros
from mirage_ros.ros.conversions import stamp_from_ros
from mirage_ros.ros.diagnostics import Figures, Health
from mirage_ros.ros.parameters import NodeConfig
from mirage_ros.ros.plan import Plan, PlanConfig
from mirage_ros.ros.publishers import TF_DEPTH, Publishers, streamed
from mirage_ros.ros.report import Reporter
from mirage_ros.ros.rollout import Rollout
from mirage_ros.ros.seed_input import KINDS, SeedInput, seed_from_ros
from mirage_ros.ros.tf_buffer import make_buffer
from mirage_ros.ros.tf_intake import TfIntake
from mirage_ros.ros.worker import Done, Failed, ModelReady, Reset, WorkerConfig
from mirage_ros.seeds import Seed, level_camera_pose, load_seed

PUMP_PERIOD_S = 0.05
STOP_TIMEOUT_S = 1.0
ModelFactory = Callable[[NodeConfig], WorldModel]


def shipped_model(config: NodeConfig) -> WorldModel:
    """The model that the parameters name."""
    from mirage_ros.models.pretrained import load_model

    return load_model(config.model, device=config.device)


class MirageNode(Node):
    """A camera driver whose world is generated.

    Args:
        make_model: gives the model, in the worker's thread.

    Raises:
        MirageError: a parameter is wrong.
    """

    def __init__(self, make_model: ModelFactory = shipped_model, **kwargs) -> None:
        super().__init__("mirage_node", **kwargs)
        self.config = parameters.declare(self)
        for name in parameters.unknown_overrides(self):
            self.get_logger().warning(f"There is no parameter '{name}'; is it misspelt?")
        self.add_on_set_parameters_callback(self._on_parameters)
        self._health = Health(self.get_logger().warning, self.get_logger().error)
        self._figures = Figures()
        self._buffer = make_buffer(self.config.plan_history_s)
        self._plan = Plan(plan_config(self.config), self._buffer)
        self._tf = TfIntake(self._buffer, self._plan, self._health, self.config)
        self._seed_input = SeedInput()
        self._seed: Callable[[], Seed] | None = None
        self._pose = level_camera_pose()
        self._replies: dict[int, Future] = {}
        self._output = Publishers(self, self.config)
        self._subscribe()
        self._guard = self.create_guard_condition(self._on_results)
        config = self.config
        self.rollout = Rollout(
            self._plan, lambda: make_model(config), worker_config(config), self._guard.trigger
        )
        self._reporter = Reporter(self, self.rollout, self._health, self._figures)
        self._first_world()
        self.create_timer(PUMP_PERIOD_S, self._pump)

    def close(self) -> bool:
        """Ends the worker. False if inference did not come to an end in time."""
        return self.rollout.stop(STOP_TIMEOUT_S)

    @property
    def failed(self) -> bool:
        """The model could not be loaded."""
        return self._reporter.model_failed

    def _subscribe(self) -> None:
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(TFMessage, "/tf", self._tf.moving, streamed(TF_DEPTH))
        self.create_subscription(TFMessage, "/tf_static", self._tf.static, latched)
        self.create_subscription(Path, "plan", self._on_path, streamed(10))
        qos = streamed(5, self.config.seed_reliability)
        for kind, message_type in zip(KINDS, (Image, CameraInfo, Image), strict=True):
            self.create_subscription(message_type, f"seed/{kind}", self._on_seed(kind), qos)
        # A group of its own: while it waits for the worker, the others go on.
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=group)

    def _first_world(self) -> None:
        config = self.config
        if not config.seed:
            return
        hfov_deg = config.seed_hfov_deg
        self._seed = lambda: load_seed(config.seed, hfov_deg=hfov_deg)
        self.rollout.reset(self._seed, None, f"seed '{config.seed}'")

    def _on_parameters(self, wanted: list[Parameter]):
        self.config, reason = parameters.changed(self.config, wanted)
        return parameters.result(reason)

    def _on_path(self, message: Path) -> None:
        try:
            count = self._plan.set_path(message)
        except MirageError as error:
            self._health.error("path", str(error))
            return
        self._health.ok("path")
        self.get_logger().info(f"Got a plan of {count} poses.")

    def _on_seed(self, kind: str):
        def callback(message: Image | CameraInfo) -> None:
            try:
                self._seed_input.add(kind, message, time.monotonic())
            except MirageError as error:
                self._health.error("seed", str(error))

        return callback

    def _new_world(self) -> None:
        """Turns a matched set of seed messages into a reset."""
        now_s = time.monotonic()
        lacking = self._seed_input.unmatched(now_s)
        if lacking:
            self._health.warn("seed", f"A seed lacks {lacking} of the same stamp; send it.")
        world = self.config.world_frame
        ready = self._seed_input.poll(
            now_s, lambda frame, stamp_ns: self._buffer.matrix(world, frame, stamp_ns)
        )
        if ready is None:
            return
        messages, pose = ready
        header = messages["image"].header
        if pose is None:
            pose = self._pose
            self.get_logger().info(
                f"TF has no '{header.frame_id}' at the seed's stamp: the new world starts where "
                "the camera is."
            )
        rectified = self.config.seed_rectified
        self._reset(
            lambda: seed_from_ros(messages, pose, rectified),
            stamp_from_ros(header.stamp),
            "seed/image",
        )

    def _reset(self, load: Callable[[], Seed], stamp_ns: int | None, origin: str) -> Reset | None:
        try:
            return self.rollout.reset(load, stamp_ns, origin)
        except MirageError as error:
            self._health.error("seed", str(error))
            return None

    async def _on_reset(self, request, response):
        """The world back to its seed, the plan forgotten; answers when it is done."""
        self._seed_input.rearm()
        command = self._seed and self._reset(self._seed, None, "~/reset")
        if not command:
            response.success, response.message = False, "There is no seed to go back to."
            return response
        self._plan.forget()
        self._buffer.clear()
        self._replies[id(command)] = Future()
        response.message = await self._replies[id(command)]
        response.success = not response.message
        return response

    def _pump(self) -> None:
        self._new_world()
        self.rollout.pump(self.config, time.monotonic(), self.get_clock().now().nanoseconds)
        self._report_waiting()
        if self._health.take_news():
            self._reporter.publish()

    def _report_waiting(self) -> None:
        rollout = self.rollout
        if not rollout.waiting:
            self._health.ok("plan")
        elif rollout.missing_frame and self._buffer.tracks:
            self._health.error("plan", rollout.waiting)
        else:
            self._health.warn("plan", rollout.waiting)

    def _on_results(self) -> None:
        while (result := self.rollout.take()) is not None:
            if isinstance(result, ModelReady):
                self._reporter.model_ready(result)
            elif isinstance(result, Done):
                self._on_done(result)
            else:
                self._on_failed(result)
            self._pump()

    def _on_done(self, done: Done) -> None:
        if isinstance(done.command, Reset):
            self._on_new_world(done)
        elif done.chunk is not None:
            self._figures.add(done.chunk, done.seconds)
            self._health.ok("world")
            for frame in done.chunk.frames:
                self._output.frame(frame)
            self._output.status(self._status(done))
        if done.chunk is not None:
            self._pose = done.chunk.frames[-1].camera.world_from_camera
        if done.points is not None:
            self._output.cloud(done.points, done.stamp_ns)

    def _on_new_world(self, done: Done) -> None:
        self._figures.new_world(done.chunk)
        self._seed = done.command.load
        self._health.ok("seed")
        self.get_logger().info(f"New world from {done.command.origin}: {done.chunk.tokens} tokens.")
        self._reply(done.command, "")

    def _on_failed(self, failed: Failed) -> None:
        if failed.command is None:
            self._reporter.model_lost(failed.message)
            return
        if isinstance(failed.command, Reset):
            self._seed_input.rearm()
            self._health.error(
                "seed", f"No new world from {failed.command.origin}: {failed.message}"
            )
            self._reply(failed.command, failed.message)
        else:
            self._health.error("world", failed.message)

    def _reply(self, command: Reset, message: str) -> None:
        future = self._replies.pop(id(command), None)
        if future is not None:
            future.set_result(message)

    def _status(self, done: Done):
        return status_to_ros(
            done.chunk,
            self._figures.chunks,
            self._plan.pending(),
            self.rollout.model.name,
            done.seconds,
            self.config.world_frame,
        )


def plan_config(config: NodeConfig) -> PlanConfig:
    return PlanConfig(
        config.world_frame, config.camera_frame, config.frame_rate_hz, config.plan_gap_s
    )


def worker_config(config: NodeConfig) -> WorkerConfig:
    return WorkerConfig(
        world=WorldConfig(
            seed=config.world_seed,
            use_memory=config.use_memory,
            max_memory_bytes=config.max_memory_mb * 2**20,
        ),
        size=(config.image_height, config.image_width) if config.image_width else None,
        hfov_deg=config.hfov_deg,
        period_ns=plan_config(config).period_ns,
    )

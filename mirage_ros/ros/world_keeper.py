"""Which world is loaded, where it came from, and how it gets back there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.protocol import Chunk, Points
from mirage_ros.ros.inputs import seed_from_ros
from mirage_ros.ros.messages.conversions import SECOND_NS, stamp_from_ros
from mirage_ros.ros.services.worlds import SEED, WorldEntry, find_world
from mirage_ros.ros.worker.commands import Done, Failed, Load, Redate, Reset, Unload

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

Then = Callable[[Done | Failed], None]
LIVE = "seed/image"
# A plan that starts further off the start, or where memory shows less, is told.
FAR_M = 2.0
LEAST_SEEN = 0.05
TILT_DEG = 2.0
NO_POINTS = Points(
    np.zeros((0, 3), np.float32),
    np.zeros((0, 3), np.uint8),
    np.zeros(0, np.float32),
    np.zeros(0, np.int64),
)


class WorldKeeper:
    """The world's origin, and what happens to time and plan when the world changes.

    Attributes:
        current: the loaded world, None without one.
        start_pose: world_from_camera where the world begins.
    """

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        self.current: WorldEntry | None = None
        self.first_failed = False
        self._coming = 0
        self.start_pose = level_camera_pose()
        self._origin: Reset | Load | None = None

    @property
    def loading(self) -> bool:
        """A world is on its way."""
        return self._coming > 0

    @property
    def start_ns(self) -> int | None:
        """The time at which a world begins: fixed in lockstep, None in a stream."""
        config = self._node.config
        return round(config.start_time_s * SECOND_NS) if self._node.lockstep else None

    def load_first(self) -> None:
        """The world that the parameters name, if they name one."""
        config = self._node.config
        if not config.seed:
            return
        try:
            entry = find_world(config.seed, config.seed_hfov_deg)
        except MirageError:
            # The worker says what is wrong with it, and which seeds there are.
            entry = WorldEntry(config.seed, config.seed, SEED, config.seed_hfov_deg)
        self._begin(entry.command(self.start_ns), entry, None)

    def load(self, entry: WorldEntry, then: Then) -> None:
        """Another world, and the simulation stopped. What is there stays if that fails."""

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._node.stepper.pause(stopped=True)
            then(result)

        self._begin(entry.command(self.start_ns), entry, finished)

    def reset(self, then: Then | None = None, keep_time: bool = False) -> None:
        """The world as it was when it was loaded. Raises MirageError where none was."""
        if self._origin is None:
            raise MirageError("There is no seed to go back to; load a world first.")
        self._node.seed_input.rearm()
        self._node.rollout.replan()  # the time it is now depends on it
        self._begin(self._again(keep_time), self.current, then, keep_time)

    def restart_time(self, then: Then | None = None) -> None:
        """Time begins again; the world stays as it is. MirageError when too much waits already."""

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._end_what_runs("Time was reset.")
                self._node.cameras.placed(self._node.cameras.first)
                self._node.buffer.clear()
                self._restart_plan()
                self._restart_clock()
            if then is not None:
                then(result)

        self._node.rollout.submit(Redate(), finished, before_chunks=True)

    def jumped_back(self) -> None:
        """ROS time went back, as when a bag begins anew: so does the plan, with the next poses.

        What is rendered for the time before is of no use to anybody any more.
        """
        node = self._node
        if node.rollout is not None:
            node.rollout.replan()
            node.results.tell("Time jumped back.")
        node.outbox.drop_all()
        node.buffer.clear()
        self._restart_plan()
        if node.rollout is not None:
            node.rollout.submit(Redate(), before_chunks=True)

    def unload(self, then: Then) -> None:
        """No world any more. Raises MirageError when too much waits already."""

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._end_what_runs("The world was unloaded.")
                self.current = self._origin = None
                # Poses that come from now on are for the next world, those of before are not.
                self._node.buffer.clear()
                self._restart_plan()
                self._node.figures.new_world(0, 0)
                self._node.outbox.put_cloud(NO_POINTS, self._node.outbox.last_stamp_ns or 0)
                self._node.wake()
            then(result)

        self._node.rollout.submit(Unload(), finished, before_chunks=True)

    def forget(self) -> None:
        """The worker is gone, and the world with it."""
        self.current = self._origin = None
        self._coming, self.first_failed = 0, False

    def _restart_plan(self) -> None:
        node = self._node
        node.plan.forget()
        if node.rollout is not None:
            node.rollout.pacing.forget_plan()
        node.outbox.last_stamp_ns = None
        if node.lockstep:
            node.plan.start_at(self.start_ns)

    def _restart_clock(self) -> None:
        """Lockstep: the time before the first frame, told once the clock is ours."""
        node = self._node
        if node.lockstep:
            node.sim_clock.restart(self.start_ns)
            if node.active:
                node.sim_clock.tell()

    def _end_what_runs(self, reason: str) -> None:
        """What is rendered goes out; who waits for more is told."""
        self._node.outbox.flush()
        self._node.results.tell(reason)

    def take_seed_messages(self) -> None:
        """Turns a matched set of seed messages into a reset."""
        node, now_s = self._node, time.monotonic()
        lacking = node.seed_input.unmatched(now_s)
        if lacking:
            node.health.warn("seed", f"A seed lacks {lacking} of the same stamp; send it.")
        world = node.config.world_frame
        ready = node.seed_input.poll(
            now_s, lambda frame, stamp_ns: node.buffer.matrix(world, frame, stamp_ns)
        )
        if ready is not None:
            self._from_messages(*ready)

    def _from_messages(self, messages: dict, pose: np.ndarray | None) -> None:
        node, header = self._node, messages["image"].header
        if pose is None:
            pose = node.cameras.first
            node.get_logger().info(
                f"TF has no '{header.frame_id}' at the seed's stamp: the new world starts where "
                "the camera is."
            )
        try:
            seed = seed_from_ros(messages, pose, node.config.seed_rectified)
        except MirageError as error:
            node.seed_input.rearm()
            node.health.error("seed", f"No new world from {LIVE}: {error}")
            return
        stamp_ns = self.start_ns if node.lockstep else stamp_from_ros(header.stamp)
        try:
            self._begin(Reset(seed, stamp_ns, LIVE), WorldEntry("live", LIVE, SEED), None, True)
        except MirageError as error:
            node.health.error("seed", str(error))

    def showed(self, done: Done) -> None:
        """A chunk is there. The first one of a world says where the plan starts in it."""
        if "start" in done.values:
            self._moved_to(done.values["start"])
        if self._node.figures.chunks == 0:
            self._check_start(done.chunk)

    def _moved_to(self, start_pose: Float[np.ndarray, "4 4"]) -> None:
        """The seed's camera, and the world with it, was put where the plan begins."""
        node = self._node
        world_from_seed = start_pose @ np.linalg.inv(self.start_pose)
        tilt_deg = np.degrees(np.arccos(np.clip(world_from_seed[2, 2], -1, 1)))
        leans = f"; its up leans {tilt_deg:.0f} degrees there" if tilt_deg > TILT_DEG else ""
        self.start_pose = start_pose
        node.output.start(start_pose)
        node.plan.moved_to(start_pose)
        node.get_logger().info(f"The world was put where the plan starts: {self._start}{leans}.")

    @property
    def _start(self) -> str:
        """The start's position, for people."""
        place = ", ".join(f"{value:.2f}" for value in self.start_pose[:3, 3])
        return f"({place}) m in '{self._node.config.world_frame}'"

    def _check_start(self, chunk: Chunk) -> None:
        node, first = self._node, chunk.frames[0].camera.world_from_camera
        far_m = float(np.linalg.norm(first[:3, 3] - self.start_pose[:3, 3]))
        unseen = node.config.use_memory and chunk.observed_fraction < LEAST_SEEN
        if far_m <= FAR_M and not unseen:
            return
        node.health.warn(
            "start",
            f"The plan starts {far_m:.1f} m from where the world does, and memory shows "
            f"{chunk.observed_fraction:.0%} of its first pictures; what it does not hold is "
            f"imagined. The world starts at {self._start}, as '{node.config.start_frame}' on "
            "/tf_static says; plan from there, or set anchor to tf.",
        )
        # Said of this plan; a next world's is looked at again.
        node.health.ok("start")

    def _again(self, keep_time: bool) -> Reset | Load:
        """The origin once more, at the time it is or at the start."""
        stamp_ns = self._node.plan.cursor_ns if keep_time else self.start_ns
        if isinstance(self._origin, Load):
            return Load(self._origin.path, stamp_ns, redate=stamp_ns is None)
        return Reset(self._origin.seed, stamp_ns, self._origin.origin)

    def _begin(
        self, command: Reset | Load, entry: WorldEntry, then: Then | None, keep_plan: bool = False
    ) -> None:
        """Submits what makes a world; the plan starts over with it unless it is kept.

        It does so when the world is there, because until then the old one may have to go on; but
        where there is none, poses that come meanwhile are for the new one.
        """
        first = self._origin is None

        def finished(result: Done | Failed) -> None:
            self._coming -= 1
            if isinstance(result, Done):
                self._end_what_runs("The world was reset.")
                if not keep_plan:
                    if not first:
                        self._node.buffer.clear()
                        self._restart_plan()
                    self._restart_clock()
                self._changed(result, entry)
            else:
                self.first_failed = self.current is None
            if then is not None:
                then(result)

        self._node.rollout.submit(command, finished, before_chunks=not keep_plan)
        self._coming += 1
        if first and not keep_plan:
            self._restart_plan()

    def _changed(self, done: Done, entry: WorldEntry) -> None:
        """Another world is there."""
        node, command = self._node, done.command
        self.current, self._origin = entry, command
        if done.chunk is not None:
            self.start_pose = done.chunk.frames[-1].camera.world_from_camera
            node.figures.new_world(done.chunk.tokens, done.chunk.memory_bytes)
        else:
            self.start_pose = done.values["world_from_camera"]
            node.figures.new_world(done.values["tokens"], done.values["bytes"])
        node.output.start(self.start_pose)
        node.plan.begin_at(self.start_pose)
        node.cameras.placed(self.start_pose)
        node.health.ok("seed")
        origin = getattr(command, "origin", None) or f"saved '{entry.name}'"
        node.get_logger().info(f"New world from {origin}: {node.figures.tokens} tokens.")
        for warning in done.values.get("warnings", ()):
            node.get_logger().warning(warning)

"""The simulation's state, and steps that are under way.

Where the cameras are and how they move, as of what was published last.

Lockstep: the node owns /clock, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from rclpy.node import Node
from rosgraph_msgs.msg import Clock

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import log_rotation
from mirage_ros.ros.messages.conversions import SECOND_NS, stamp_to_ros
from mirage_ros.ros.topics import LATCHED, publishers_of

if TYPE_CHECKING:
    from mirage_ros.ros.rollout import Rollout


Twist = tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]


class CameraStates:
    """Poses and velocities, in the world.

    Args:
        gap_ns: instants further apart than this are no motion.

    Attributes:
        first: world_from_camera of the first camera.
    """

    def __init__(self, gap_ns: int) -> None:
        self._gap_ns = gap_ns
        self.placed(level_camera_pose())

    def placed(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The first camera was put here, and stands still."""
        self.first = world_from_camera
        self._shown: list[np.ndarray] = []
        self._twists: list[Twist] = []
        self._stamp_ns: int | None = None

    def showed(self, stamp_ns: int, world_from_cameras: Sequence[Float[np.ndarray, "4 4"]]) -> None:
        """Frames of one instant were published, one of each camera."""
        elapsed_ns = None if self._stamp_ns is None else stamp_ns - self._stamp_ns
        moving = elapsed_ns is not None and 0 < elapsed_ns <= self._gap_ns
        self._twists = [
            twist_between(before, now, elapsed_ns / SECOND_NS)
            for before, now in zip(self._shown, world_from_cameras, strict=True)
        ] if moving else []  # fmt: skip
        self._stamp_ns, self._shown = stamp_ns, list(world_from_cameras)
        self.first = self._shown[0]

    def pose(self, index: int) -> Float[np.ndarray, "4 4"] | None:
        """Of a camera; None for one that has shown nothing since the first one was put somewhere."""
        if index == 0:
            return self.first
        return self._shown[index] if self._shown else None

    def twist(self, index: int) -> Twist:
        """Linear (m/s) and angular (rad/s) velocity of a camera, along the world's axes."""
        return self._twists[index] if self._twists else (np.zeros(3), np.zeros(3))


def twist_between(
    before: Float[np.ndarray, "4 4"], now: Float[np.ndarray, "4 4"], seconds: float
) -> Twist:
    """The constant linear and angular velocity that lead from one pose to the other."""
    turn = log_rotation(now[:3, :3] @ before[:3, :3].T)
    return (now[:3, 3] - before[:3, 3]) / seconds, turn / seconds


TOPIC = "/clock"


class SimClock:
    """Publishes the time. It only goes forward, save by `restart`.

    The message is latched, so a process that comes late, or comes back, learns the time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(Clock, TOPIC, LATCHED)
        self.now_ns: int | None = None
        self._told_ns: int | None = None

    def advance(self, stamp_ns: int) -> None:
        """Time is now that of a frame that exists; an earlier one is left out."""
        if self.now_ns is None or stamp_ns > self.now_ns:
            self.restart(stamp_ns)
            self.tell()

    def restart(self, stamp_ns: int) -> None:
        """Time begins (again) here; others learn it by `tell`."""
        self.now_ns, self._told_ns = stamp_ns, None

    def tell(self) -> None:
        """Publishes the time, once. Somebody else's clock has to be ruled out before."""
        if self.now_ns is not None and self._told_ns != self.now_ns:
            self._publisher.publish(Clock(clock=stamp_to_ros(self.now_ns)))
            self._told_ns = self.now_ns

    def check(self) -> None:
        """Raises MirageError where somebody else publishes /clock, too."""
        names = publishers_of(self._node, TOPIC)
        own = self._node.get_fully_qualified_name()
        if own in names:
            names.remove(own)
        if names:
            raise MirageError(
                f"/clock is also published by {', '.join(sorted(set(names)))}; in lockstep the "
                "node owns it: stop the other clock, or set time_mode to stream."
            )


class StepJob:
    """So many frames, published, and then an answer.

    Attributes:
        after_ns: the time at which it began; None where time has not begun.

    Args:
        progress: called with the frames done so far.
        finish: called once, with '' or with why it was not done.
    """

    def __init__(
        self, frames: int, progress: Callable[[int], None], finish: Callable[[str], None]
    ) -> None:
        self.frames, self.done = frames, 0
        self.after_ns: int | None = None
        self._progress, self._finish = progress, finish

    def frame(self, stamp_ns: int) -> bool:
        """One was published; True once it was the last. Frames from before the step don't count."""
        if self.after_ns is not None and stamp_ns <= self.after_ns:
            return False
        self.done += 1
        self._progress(self.done)
        return self.done >= self.frames

    def finish(self, reason: str = "") -> None:
        self._finish(reason)


class Stepper:
    """Playing, paused, or stepping while paused. It sets how many frames may be handed out.

    Attributes:
        ending: the simulator was told to quit.
    """

    def __init__(self, paused: bool) -> None:
        self._rollout: Rollout | None = None
        self.playing = not paused
        self.stopped = self.ending = False
        self.job: StepJob | None = None

    def attach(self, rollout: Rollout | None) -> None:
        """To the supply of a worker that is there now."""
        self._rollout = rollout
        self._apply()

    def play(self) -> None:
        self.playing, self.stopped = True, False
        self._apply()

    def pause(self, stopped: bool = False) -> None:
        """Nothing new is handed out; a step under way is called off.

        A chunk at work still comes, see `Outbox.when_calm`.
        """
        self.playing, self.stopped = False, stopped
        self._take_back()
        self.call_off("The simulation was stopped.")
        self._apply()

    def step(self, job: StepJob) -> None:
        """Begins a step. Raises MirageError unless the simulation is paused and idle."""
        if self.playing:
            raise MirageError("The simulation is playing; pause it before stepping.")
        if self.stopped:
            raise MirageError("The simulation is stopped; pause it before stepping.")
        if self.job is not None:
            raise MirageError(
                f"A step of {self.job.frames} frames is under way; wait for it or cancel it."
            )
        if job.frames == 0:
            job.finish()
            return
        job.after_ns = self._rollout.plan.cursor_ns if self._rollout else None
        self.job = job
        self._apply()

    def frame(self, stamp_ns: int) -> None:
        """Frames of one more instant were published."""
        job = self.job
        if job is not None and job.frame(stamp_ns):
            self.job = None
            self._apply()
            job.finish()

    def call_off(self, reason: str) -> None:
        """Ends a step under way; what is at work already still comes."""
        job, self.job = self.job, None
        if job is not None:
            self._take_back()
            self._apply()
            job.finish(reason)

    def _take_back(self) -> None:
        if self._rollout is not None:
            self._rollout.replan()

    def _apply(self) -> None:
        if self._rollout is None:
            return
        pacing = self._rollout.pacing
        if self.playing:
            pacing.budget = None
        else:
            pacing.budget = self.job.frames - self.job.done if self.job else 0

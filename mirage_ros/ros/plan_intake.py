"""What comes on /tf, /tf_static and plan, checked before it becomes the plan.

A pose far ahead of all others, or in a time that is rendered already, may be a slip of whoever sent
it, which must not carry the plan off; or time itself begins anew, as when a bag is played again.
One such pose is left out. Several in a row are believed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mirage_ros.errors import MirageError
from mirage_ros.protocol import SECOND_NS
from mirage_ros.ros import NodeConfig
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.plan import Plan
from mirage_ros.ros.tf import StampedPoses, Untimed, path_from_bytes, transforms_from_bytes
from mirage_ros.ros.tracks import Pose, TransformError, Transforms

SLICE_S = 0.005
MOST_WAITING_BYTES = 2**25
# So many poses in a row are another time, and poses of the past when they go on for so long.
BELIEVED = 3
RETURN_S = 1.0
# What comes faster than this many times its own stamps is a plan sent again, not a bag.
FASTEST = 20
MOST_STRAYS = 10_000
PATH = ""  # no frame has this name


@dataclass(frozen=True)
class Waiting:
    """A message that is not all taken in. `cleared` is the buffer's when it came."""

    poses: Iterator[Pose | MirageError]
    static: bool
    size: int
    came_s: float
    cleared: int


@dataclass
class Stray:
    """What came out of place, one after the other, of one frame or as Paths."""

    since_s: float
    items: deque[Any] = field(default_factory=lambda: deque(maxlen=MOST_STRAYS))
    first_ns: int = 0
    last_ns: int = 0

    def paced(self, now_s: float) -> bool:
        """It has gone on for a while, at a pace at which things happen."""
        seconds = now_s - self.since_s
        return seconds >= RETURN_S and self.last_ns - self.first_ns < FASTEST * seconds * SECOND_NS


@dataclass(frozen=True)
class Reactions:
    """What the node does.

    Attributes:
        published_ns: gives the stamp of the last frame that went out.
        replan: a camera may stand elsewhere at a time that was handed out already.
        take_back: another plan comes; what is handed out and not at work is not wanted.
        path_came: a Path of so many poses is the plan now.
        start_over: forgets the plan and what was planned, and says why; False while it must not.
        go_on: something is left for `PlanIntake.work_off`, which is to be called soon.
    """

    published_ns: Callable[[], int | None]
    replan: Callable[[], None]
    take_back: Callable[[], None]
    path_came: Callable[[int], None]
    start_over: Callable[[str], bool]
    go_on: Callable[[], None]


class PlanIntake:
    """The callbacks of the plan's topics, which get a message's bytes.

    A bad transform is left out and reported; the others of a message count. A message of many is taken
    in a slice at a time, so that services are answered meanwhile.

    Args:
        own_frames: that the node itself publishes.
        cameras: frames of a rig's cameras that TF mounts.
    """

    def __init__(
        self,
        buffer: Transforms,
        plan: Plan,
        health: Health,
        config: NodeConfig,
        reactions: Reactions,
        own_frames: Collection[str] = (),
        cameras: Collection[str] = (),
    ) -> None:
        self._buffer, self._plan, self._health, self._react = buffer, plan, health, reactions
        self._world, self._planned = config.world_frame, config.camera_frame
        self._cameras = (config.camera_frame, *cameras)
        self._own = own_frames
        self._horizon_ns = round(config.plan_horizon_s * SECOND_NS)
        # In lockstep time never goes back.
        self._may_return = config.time_mode == "stream"
        self._waiting: deque[Waiting] = deque()
        # Of each frame; a slip far ahead does not end what goes on in the past.
        self._past: dict[str, Stray] = {}
        self._ahead: dict[str, Stray] = {}

    def moving(self, data: bytes) -> None:
        """Callback of /tf. What the node itself publishes there is no news."""
        self._take(data, static=False)

    def static(self, data: bytes) -> None:
        """Callback of /tf_static."""
        self._take(data, static=True)

    def path(self, data: bytes) -> None:
        """Callback of plan."""
        try:
            path = path_from_bytes(data)
            if self._plan.knows(path):
                return
            self._react.take_back()
            self._follow(path)
        except Untimed as error:
            # It may come all the time, as from a planner that is there for others.
            self._health.warn("untimed", str(error), once=True)
            self._health.ok("untimed")
        except MirageError as error:
            self._health.error("path", str(error))
        else:
            self._health.ok("path")
            self._react.path_came(len(path.stamps_ns))

    def work_off(self) -> None:
        """As much of what waits as fits into a slice of time."""
        until_s, touched = time.monotonic() + SLICE_S, False
        while self._waiting:
            touched |= self._next(self._waiting[0])
            if time.monotonic() > until_s:
                break
        if touched:
            self._react.replan()
        if self._waiting:
            self._react.go_on()

    def _take(self, data: bytes, static: bool) -> None:
        if len(data) + sum(message.size for message in self._waiting) > MOST_WAITING_BYTES:
            self._health.error(
                "tf",
                f"More than {MOST_WAITING_BYTES >> 20} MiB of transforms wait; what comes on top is "
                "left out: publish fewer.",
            )
            return
        poses, now_s = transforms_from_bytes(data), time.monotonic()
        self._waiting.append(Waiting(poses, static, len(data), now_s, self._buffer.cleared))
        if len(self._waiting) == 1:
            self.work_off()

    def _next(self, message: Waiting) -> bool:
        """One transform more. Whether a camera may stand elsewhere by it."""
        try:
            pose = next(message.poses, None)
        except MirageError as error:
            self._health.error("tf", str(error))
            pose = None
        if pose is None or not message.static and message.cleared != self._buffer.cleared:
            self._waiting.popleft()
            return False
        try:
            if isinstance(pose, MirageError):
                raise pose
            if pose.child in self._own:
                return False
            if message.static:
                self._buffer.add_static(pose)
                return True
            return self._enter(pose, message.came_s)
        except MirageError as error:
            self._health.error("tf", str(error))
            return False

    def _enter(self, pose: Pose, now_s: float) -> bool:
        plan, stamp_ns = self._plan, pose.stamp_ns
        if self._far_ahead(stamp_ns):
            self._enter_ahead(pose, now_s)
            return False
        self._ahead.pop(pose.child, None)
        track = self._buffer.tracks.get(pose.child)
        latest_ns = track.stamps[-1] if track and track.stamps else 0
        known = self._buffer.holds(pose)
        self._buffer.add(pose)
        # Also between the end of the plan and this pose, where frames may have been made up.
        touched = plan.is_past(min(stamp_ns, latest_ns)) and not known
        if self._has_been(stamp_ns, latest_ns) and self._carries_a_camera(pose.child):
            if not known or stamp_ns <= (self._react.published_ns() or 0):
                self._enter_past(pose, now_s)
        elif not known:
            returned = self._past.pop(pose.child, None)
            if returned is not None or pose.child == self._planned:
                self._health.ok("tf")
        return touched and self._carries_a_camera(pose.child)

    def _far_ahead(self, stamp_ns: int) -> bool:
        """Further ahead of all that is known than anybody plans."""
        known = [ns for ns in (self._buffer.newest_ns, self._plan.cursor_ns) if ns is not None]
        return bool(known) and stamp_ns > max(known) + self._horizon_ns

    def _enter_ahead(self, pose: Pose, now_s: float) -> None:
        stray = self._add(self._ahead, pose.child, pose, pose.stamp_ns, now_s)
        if len(stray.items) >= BELIEVED:
            del self._ahead[pose.child]
            for believed in stray.items:
                self._buffer.add(believed)
            return
        self._health.warn(
            "tf",
            f"TF {pose.parent} -> {pose.child} is stamped {pose.stamp_ns} ns, more than "
            f"plan_horizon_s ({self._horizon_ns / SECOND_NS:g} s) after all that is known; it is "
            f"left out, unless {BELIEVED} poses in a row go on from there.",
        )
        self._health.ok("tf")

    def _has_been(self, stamp_ns: int, latest_ns: int) -> bool:
        """Its time is rendered, or forgotten, while its frame was known at later ones; or it is
        further back than any plan is rendered ahead."""
        if self._plan.is_past(stamp_ns + self._horizon_ns):
            return True
        gone = stamp_ns < latest_ns - self._buffer.history_ns
        return stamp_ns < latest_ns and (gone or self._plan.is_past(stamp_ns))

    def _enter_past(self, pose: Pose, now_s: float) -> None:
        """A plan may be sent again, as one burst; a bag that begins anew goes on in the past."""
        text = (
            f"The poses of '{pose.child}' on /tf jump back in time to where frames are rendered "
            "already; they are left out: send later stamps, or call ~/reset to start over"
        )
        if self._may_return:
            stray = self._add(self._past, pose.child, pose, pose.stamp_ns, now_s)
            paced = len(stray.items) >= BELIEVED and stray.paced(now_s)
            if paced and self._return(f"The poses of '{pose.child}' on /tf"):
                return
            text += f". When they go on for {RETURN_S:g} s, the plan starts over by itself"
        self._health.warn("tf", f"{text}.")

    def _return(self, what: str) -> bool:
        """Time begins anew with what came since it jumped back."""
        if not self._react.start_over(
            f"{what} jumped back in time and went on there; the plan starts over with them."
        ):
            return False
        strays, self._past, self._ahead = self._past, {}, {}
        self._health.ok("tf")
        for name, stray in strays.items():
            for pose in stray.items if name != PATH else ():
                self._buffer.add(pose)
        now = self._buffer.cleared
        self._waiting = deque(replace(message, cleared=now) for message in self._waiting)
        return True

    def _follow(self, path: StampedPoses) -> None:
        """Takes a Path as the plan. Raises MirageError for one that is out of place."""
        first_ns, last_ns, now_s = *map(int, path.stamps_ns[[0, -1]]), time.monotonic()
        step_ns = int((path.stamps_ns[1:] - path.stamps_ns[:-1]).max(initial=0))
        horizon = f"plan_horizon_s ({self._horizon_ns / SECOND_NS:g} s)"
        if step_ns > self._horizon_ns:
            raise MirageError(
                f"The plan has two poses {step_ns / SECOND_NS:g} s apart, more than {horizon}; send "
                "poses closer in time."
            )
        if self._plan.cursor_ns is not None and first_ns > self._plan.cursor_ns + self._horizon_ns:
            stray = self._add(self._ahead, PATH, path, first_ns, now_s)
            if len(stray.items) < BELIEVED:
                raise MirageError(
                    f"The plan begins at {first_ns} ns, more than {horizon} after the last frame at "
                    f"{self._plan.cursor_ns} ns; it is left out, unless {BELIEVED} in a row go on "
                    "from there."
                )
        elif self._plan.is_past(last_ns) and self._may_return:
            stray = self._add(self._past, PATH, path, first_ns, now_s)
            far = self._plan.is_past(last_ns + self._horizon_ns)
            if len(stray.items) >= BELIEVED and (far or stray.paced(now_s)):
                self._return("The Paths on plan")
        self._plan.set_path(path)
        self._past.pop(PATH, None)
        self._ahead.pop(PATH, None)

    def _add(
        self,
        strays: dict[str, Stray],
        name: str,
        item: Pose | StampedPoses,
        stamp_ns: int,
        now_s: float,
    ) -> Stray:
        """One more that is out of place, in a row with those before or the first of another one."""
        stray = strays.get(name)
        if stray is None or not 0 < stamp_ns - stray.last_ns <= self._horizon_ns:
            stray = strays[name] = Stray(now_s, first_ns=stamp_ns)
        stray.items.append(item)
        stray.last_ns = stamp_ns
        return stray

    def _carries_a_camera(self, child: str) -> bool:
        """Its transform is one of those between the world and a camera."""
        for camera in self._cameras:
            try:
                if child in self._buffer.links(self._world, camera):
                    return True
            except TransformError:
                continue
        return False

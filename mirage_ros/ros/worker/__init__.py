"""The inference worker, a process of its own: what goes to it and what comes back, plain values without torch or ROS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from mirage_ros.data.seeds import Seed, load_seed
from mirage_ros.protocol import Chunk, EntityChange, FloorPlan, Frame, Points
from mirage_ros.ros import Carrier
from mirage_ros.world.entities import EntityState, RobotBody
from mirage_ros.world.sensors import LidarConfig, MapConfig, ScanConfig
from mirage_ros.world.sightings import Sighting


@dataclass(frozen=True)
class Planned:
    """Frames to render: stamps (ns, rising) and world_from_camera of each.

    Attributes:
        skipped: frames before these that are left out because they are late.
    """

    stamps_ns: tuple[int, ...]
    world_from_camera: Float[np.ndarray, "f 4 4"]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def first(self, count: int) -> Planned:
        """The first `count` frames."""
        return Planned(self.stamps_ns[:count], self.world_from_camera[:count])


@dataclass(frozen=True)
class View:
    """One camera's pictures.

    Attributes:
        size: (height, width) of the pictures; None is the model's.
        hfov_deg: their field of view; 0 is the seed's.
        intrinsics: of `size`, instead of a field of view.
    """

    size: tuple[int, int] | None = None
    hfov_deg: float = 0.0
    intrinsics: Float[np.ndarray, "3 3"] | None = None


@dataclass(frozen=True)
class WorkerConfig:
    """How the world is made.

    Attributes:
        world_seed, use_memory, max_memory_bytes, forget_moving, max_dynamic_share: see WorldConfig.
        period_ns: time between frames.
        views: the cameras, one or more; robots: who carries them.
        anchored: a named seed's camera stands at the first frame's pose, and its world with it.
        snapshots: folder for the worker's own snapshots; None keeps none.
        scan, lidar: the sensors at each camera's place; map: how floor plans are made.
        physics, robot: what bodies do, and the one that carries the cameras.
        spawnables: folder of the user's own models, '' for none.
        reserved: names that no entity may have.
        observe_live: observations come from a camera that looks all the time, see World.keep_up.
    """

    world_seed: int = 0
    use_memory: bool = True
    max_memory_bytes: int = 512 * 2**20
    forget_moving: str = "imagined"
    max_dynamic_share: float = 0.25
    period_ns: int = 100_000_000
    views: tuple[View, ...] = (View(),)
    robots: tuple[Carrier, ...] = (Carrier((0,)),)
    anchored: bool = False
    snapshots: str | None = None
    scan: ScanConfig = field(default_factory=ScanConfig)
    lidar: LidarConfig = LidarConfig((0.0,))
    map: MapConfig = field(default_factory=MapConfig)
    physics: str = "off"
    robot: RobotBody = RobotBody()
    spawnables: str = ""
    reserved: tuple[str, ...] = ()
    observe_live: bool = False


@dataclass(frozen=True)
class SeedName:
    """A seed that the worker loads itself: see `load_seed`."""

    name: str
    hfov_deg: float | None = None

    def load(self) -> Seed:
        return load_seed(self.name, self.hfov_deg)


@dataclass(frozen=True)
class ChangeEntities:
    """Changes of entities, one after the other. Answers {"outcomes": a name or an EntityError for each}."""

    changes: tuple[EntityChange, ...]


@dataclass(frozen=True)
class Reset:
    """A new world.

    Attributes:
        keep_entities: those that are there stay, each where it was spawned.
        seed: what it starts from.
        stamp_ns: its time. Without one, or with one after the plan's first frame, the seed dates from just before that frame.
        origin: where it comes from, for messages.
    """

    seed: Seed | SeedName
    stamp_ns: int | None = None
    origin: str = "seed"
    keep_entities: bool = False


@dataclass(frozen=True)
class Step:
    """Render these frames, and send the cloud if the last one is older than a period.

    Attributes:
        planned: the frames' stamps, and the poses of a single camera.
        poses: world_from_camera of each camera of a rig, empty for a single one; bodies: of each robot that has one.
        sensors: what is measured besides: attributes of Frame, at each camera's place, and "map", the floor plan, if it is due.
    """

    planned: Planned
    cloud_period_s: float = 1.0
    poses: tuple[Float[np.ndarray, "f 4 4"], ...] = ()
    sensors: tuple[str, ...] = ()
    bodies: tuple[Float[np.ndarray, "f 4 4"], ...] = ()


@dataclass(frozen=True)
class Redate:
    """The world's last frame is dated just before whatever frame comes next."""


@dataclass(frozen=True)
class Cloud:
    """Send the cloud as it is now."""


@dataclass(frozen=True)
class Survey:
    """Send the floor plan as it is now."""


@dataclass(frozen=True)
class Save:
    """Write the world to a folder."""

    path: str


@dataclass(frozen=True)
class Load:
    """Take over a saved world.

    Attributes:
        stamp_ns: the time that its last frame is dated to, None leaves it; redate: dates it just before the first frame that is asked for.
        keep_entities: as of Reset; else those that were saved with it.
    """

    path: str
    stamp_ns: int | None = None
    redate: bool = False
    keep_entities: bool = False


@dataclass(frozen=True)
class Erase:
    """Forget what lies in a box of the world."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class Fork:
    """Keep the world as it is now under a name."""

    name: str


@dataclass(frozen=True)
class Restore:
    """The memory back to a fork's; time goes on."""

    name: str


@dataclass(frozen=True)
class Observe:
    """Write a real picture with its depth into the memory, in place of what was imagined, and send the cloud if the last one is older than a period.

    Attributes:
        sightings: of a live camera, to be repeated: what there was before it, see Watch.observe.
    """

    seed: Seed
    stamp_ns: int
    cloud_period_s: float = 1.0
    sightings: tuple[Sighting, ...] | None = None


@dataclass(frozen=True)
class Prompt:
    """What the following chunks are to show, in words."""

    text: str


@dataclass(frozen=True)
class Unload:
    """Forget the world."""


Command = Reset | Step | Redate | Cloud | Survey | Save | Load | Erase | Fork | Restore | Observe | Prompt | Unload | ChangeEntities
CHANGING = (Reset, Step, Redate, Load, Erase, Fork, Restore, Observe, Prompt, Unload, ChangeEntities)


@dataclass(frozen=True)
class ModelReady:
    """The model is loaded; how it looks to the rest of the node."""

    name: str
    size: tuple[int, int]
    chunk_frames: int


@dataclass(frozen=True)
class Done:
    """A command that went well.

    Attributes:
        chunk: what the first camera saw; of a reset the seed itself; None where nothing was seen.
        seconds: wall time of all of it.
        points: the memory's cloud, where it is due.
        floor_plan: the same.
        stamp_ns: planned time of the world's last frame.
        others: the other cameras' frames, in the order of their views.
        values: what else a command answers, such as {"erased": 12}; of a live camera's picture its "sightings", see `repeated`.
        snapshot: folder of a snapshot that holds the world after this command.
        unsaved: why no snapshot can be taken, '' while they can.
        entities: what there is of them, where that is not as it was when it was last said.
    """

    command: Command
    chunk: Chunk | None
    seconds: float
    points: Points | None
    stamp_ns: int
    others: tuple[tuple[Frame, ...], ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    snapshot: str | None = None
    unsaved: str = ""
    floor_plan: FloorPlan | None = None
    entities: tuple[EntityState, ...] | None = None

    def repeated(self, command: Command) -> Command | None:
        """What comes to the same as the command did; None where it changed nothing, as most pictures of a live camera."""
        if "sightings" not in self.values:
            return command
        return None if (seen := self.values["sightings"]) is None else replace(command, sightings=seen)


@dataclass(frozen=True)
class Failed:
    """A command (None: loading the model) that did not; the world is as it was."""

    command: Command | None
    message: str


@dataclass(frozen=True)
class Died:
    """The worker's process is gone; another one is being started."""

    message: str


@dataclass(frozen=True)
class Revived:
    """Another process stands where the last one stood.

    Attributes:
        seconds: since the last one was lost.
        message: what of the world could not be brought back; empty if all of it is there.
    """

    seconds: float
    message: str = ""


Result = ModelReady | Done | Failed | Died | Revived


@dataclass(frozen=True)
class Beat:
    """The worker's loop goes on, and the next sign of it may take `allow_s`."""

    allow_s: float = 0.0


@dataclass(frozen=True)
class Dying:
    """The worker ends itself, and why."""

    message: str


MOST_COMMANDS = 256  # repeating more would take longer than the world is worth waiting for
MOST_BYTES = 128 * 2**20  # of observed pictures with their depth: 60 of 640 x 480


class Journal:
    """The last snapshot and the commands that changed the world since.

    Attributes:
        snapshot: its folder, None without one.
        dropped: commands since then that were too many or too large to be kept.
    """

    def __init__(self) -> None:
        self.snapshot: str | None = None
        self.dropped = 0
        self._begin: Load | None = None
        self._since: list[Command] = []
        # The prompt the model was last given, and the one it had before `_since`.
        self._prompt: Prompt | None = None
        self._prompt_before: Prompt | None = None

    def note(self, command: Command | None, result) -> None:
        """Takes in how a command went."""
        if not isinstance(result, Done) or not isinstance(command, CHANGING):
            return
        if isinstance(command, Prompt):
            self._prompt = command
        if result.snapshot is not None:
            self._start(result.snapshot)
            return
        if isinstance(command, (Reset, Load, Unload)) and not getattr(command, "keep_entities", False):
            self._start(None)  # else what stays was made before
        again = result.repeated(command)
        if again is not None and not isinstance(command, Unload):
            self._since.append(again)
        self._shorten()

    def _start(self, snapshot: str | None) -> None:
        """What was done before now is in a snapshot, or is of no use any more."""
        self.snapshot, self._since, self._prompt_before, self.dropped = snapshot, [], self._prompt, 0
        self._begin = None if snapshot is None else Load(snapshot)

    def _shorten(self) -> None:
        """The oldest commands go, but never the one that the world began with; of observations those whose pictures are too much."""
        begin = int(isinstance(self._since[0], (Reset, Load))) if self._since else 0
        end = begin + max(0, len(self._since) - MOST_COMMANDS)
        for command in self._since[begin:end]:
            if isinstance(command, Prompt):
                self._prompt_before = command
        del self._since[begin:end]
        self.dropped += end - begin
        seen = [kept for kept in self._since if isinstance(kept, Observe)]
        size = sum(_bytes(kept) for kept in seen)
        for oldest in seen:
            if size <= MOST_BYTES:
                break
            size -= _bytes(oldest)
            self._since = [kept for kept in self._since if kept is not oldest]
            self.dropped += 1

    def replay(self) -> Iterator[Command]:
        """What brings a new worker to where the last one was: the same objects every time."""
        yield from [one for one in (self._prompt_before, self._begin, *self._since) if one is not None]

    def leave_out(self, command: Command) -> bool:
        """Takes out a command that cannot be repeated. False for what the world begins with."""
        if isinstance(command, (Reset, Load)):
            return False
        self._since = [kept for kept in self._since if kept is not command]
        self._prompt_before = None if command is self._prompt_before else self._prompt_before
        prompts = [kept for kept in self._since if isinstance(kept, Prompt)]
        self._prompt = prompts[-1] if prompts else self._prompt_before
        return True


def _bytes(command: Observe) -> int:
    depth_m = command.seed.depth_m
    return command.seed.rgb.nbytes + (0 if depth_m is None else depth_m.nbytes)

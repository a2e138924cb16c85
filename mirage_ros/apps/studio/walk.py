"""A world that somebody walks in: one thread owns it, the newest pose wins, other work goes between two pictures.

Nobody waits for a picture: `look` and `ask` only leave a note, and what comes of it is told to a listener. No page is
known here. World time goes on by `PERIOD_NS` a picture, so that a recording plays evenly.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.apps.studio import Elsewhere, Listener, View, survived
from mirage_ros.data.seeds import Seed
from mirage_ros.data.spawning import EntityChanges
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import Footprint, Obstacles
from mirage_ros.physics import Mujoco
from mirage_ros.protocol import SECOND_NS, Chunk, EntityChange, Frame, Move, Spawn
from mirage_ros.recording import Recorder, RecordingConfig
from mirage_ros.recording.formats import guess_format, open_recorder
from mirage_ros.world.collision import obstacles, unyielding
from mirage_ros.world.cycle import Decoded
from mirage_ros.world.entities import STATIC, Entities, RobotBody
from mirage_ros.world.observing import only_seen
from mirage_ros.world.world import World

PERIOD_NS = SECOND_NS // 10
RATES_KEPT, MOST_KEPT = 20, 24
"""The last pictures that tell the rate, and kept moments: the oldest goes when there is one more."""
QUIET = "Looking"
"""Work of a moment, of which no progress is shown."""
STILL_M, STILL = 1e-4, 1e-5
"""A pose that differs by less, in metres and in its rotation matrix, is the one that was shown."""
PHYSICS = OFF, CONTACT, MUJOCO = "off", "contact", "mujoco"
BODY, LOOKED_M = RobotBody(), 2.0
"""Who walks, and how far is looked at once for what stops that."""
ROLLS_ON = 100
"""So many pictures are made of what moves while nobody walks or asks for anything."""


@dataclass(frozen=True)
class Moment:
    """A world to come back to, and what was seen of it."""

    name: str
    state: Any
    frame: Frame


class Stopped(MirageError):
    """Long work was stopped by who had asked for it."""


Job = Callable[[], str | None]


class Walk:
    """Owns a world and the thread that makes its pictures.

    Args:
        world: a World, or one Elsewhere.
        models: the user's own, that may be spawned.

    Attributes:
        world: touched by this thread alone.
        moments: to restore, the oldest first.
        recording: where the pictures are being recorded to, None if they are not.
        worlds: how many were begun or loaded.
        solid: whether surfaces and entities stop who walks.
    """

    def __init__(self, world: World | Elsewhere, listener: Listener, models: Path | None = None) -> None:
        self.world = world
        self._entity_changes = EntityChanges("" if models is None else str(models))
        self.moments: tuple[Moment, ...] = ()
        self.recording: Path | None = None
        self.worlds = 0
        self.solid = False
        self._listener = listener
        self._recorder: Recorder | None = None
        self._bare: Chunk | None = None
        self._changed = threading.Condition()
        self._jobs: deque[tuple[str, Job]] = deque()
        self._wanted: tuple[np.ndarray, float] | None = None
        self._shown: np.ndarray | None = None
        self._alone = 0
        self._ends: deque[float] = deque(maxlen=RATES_KEPT)
        self._stop = self._closing = False
        self._thread = threading.Thread(target=self._run, name="walk", daemon=True)
        self._thread.start()

    def look(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The camera shall be here; in place of what was asked for and not begun yet."""
        with self._changed:
            self._wanted = np.asarray(world_from_camera, np.float64), time.perf_counter()
            self._changed.notify()

    def ask(self, what: str, job: Job) -> None:
        """Has a job done between two pictures, in order; it returns what to tell, or raises MirageError."""
        with self._changed:
            self._jobs.append((what, job))
            self._changed.notify()

    def stop(self) -> None:
        """The long work that is going on ends after its next picture; without any it does nothing."""
        self._stop = True

    def close(self) -> None:
        """Ends the thread and what is being recorded."""
        with self._changed:
            self._closing = self._stop = True
            self._changed.notify()
        if isinstance(self.world, Elsewhere):
            self.world.interrupt()
        self._thread.join()
        with suppress(MirageError):
            self.end_recording()

    # What follows is for jobs: it runs in the thread.

    def join(self) -> str:
        """The world that is there already, from where its camera is."""
        self.worlds += 1
        self._step(self.world.camera.world_from_camera, jumped=True)
        return "Joined the running node."

    def begin(self, seed: Seed) -> str:
        """A new world around a seed; the moments of the old one go."""
        chunk = self._bare = self.world.reset(seed.rgb, seed.camera, seed.depth_m)
        self.moments, self.worlds = (), self.worlds + 1
        self._show(chunk.frames[0], {}, 0.0, 1.0, jumped=True)
        return f"A world around {seed.name}, {chunk.tokens} tokens."

    def save(self, folder: Path) -> str:
        self.world.save(folder)
        return f"Saved as {folder}, {self.world.memory.tokens} tokens."

    def load(self, folder: Path) -> str:
        self.world.load(folder)
        self.moments, self.worlds = (), self.worlds + 1
        self._step(self.world.camera.world_from_camera, jumped=True)
        return f"Loaded {folder}, {self.world.memory.tokens} tokens."

    def keep(self) -> str:
        """Remembers this moment, to be restored."""
        name = f"{len(self.moments) + 1}" if not self.moments else f"{int(self.moments[-1].name) + 1}"
        state = self.world.fork(name) if isinstance(self.world, Elsewhere) else self.world.snapshot()
        self.moments = (*self.moments, Moment(name, state, self._frame))[-MOST_KEPT:]
        return f"Kept as moment {name}."

    def restore(self, name: str) -> str:
        """Back to a moment, with the picture that was seen then."""
        moment = next((one for one in self.moments if one.name == name), None)
        if moment is None:
            raise MirageError(f"There is no moment {name}; keep one first.")
        self.world.restore(moment.state)
        self._bare = None
        self._show(moment.frame, {}, 0.0, 1.0, jumped=True)
        return f"Back at moment {name}."

    def dream_again(self) -> str:
        """Forgets what was imagined, keeps what real pictures showed, and imagines with the next world seed."""
        if isinstance(self.world, Elsewhere):
            raise MirageError("A running node imagines with the world seed that it was started with; start it with another --world-seed.")
        config = replace(self.world.config, seed=self.world.config.seed + 1)
        fresh = World(self.world.model, config, physics=self.world.physics)
        state, forgotten = only_seen(self.world.state)
        fresh.restore(state)
        self.world = fresh
        self._step(self._frame.camera.world_from_camera, jumped=True)
        return f"{forgotten} imagined tokens forgotten; dreaming with world seed {config.seed}."

    def erase(self, low: np.ndarray, high: np.ndarray) -> str:
        """Forgets a box and looks again."""
        count = self.world.erase(low, high)
        self._step(self._frame.camera.world_from_camera, jumped=True)
        return f"{count} tokens erased."

    def spawn(self, name: str, uri: str, place: Float[np.ndarray, "4 4"]) -> str:
        """One more entity, whose lowest point is at the height of a place; returns its own name."""
        (name,) = self._carried_out((Spawn(name, uri, place, rename=True),))
        lowest_m = next(float(body.state.bounds_m[0, 2]) for body in self.world.entities if body.state.name == name)
        pose = place.copy()
        pose[:3, 3] -= lowest_m * place[:3, 2]
        self.change_entities((Move(name, pose),))
        return name

    def change_entities(self, changes: tuple[EntityChange, ...]) -> None:
        """Moves or deletes entities, and shows what comes of it."""
        self._carried_out(changes)
        self._draw_again()

    def _carried_out(self, changes: tuple[EntityChange, ...]) -> list[str]:
        """All changes or none; the name that each is about."""
        if isinstance(self.world, Elsewhere):
            return self.world.change_entities(changes)
        names: list[str] = []

        def changed(entities: Entities, stamp_ns: int) -> Entities:
            after, outcomes = self._entity_changes(entities, stamp_ns, changes)
            for outcome in outcomes:
                if isinstance(outcome, MirageError):
                    raise outcome
            names.extend(outcomes)
            return after

        self.world.change_entities(changed)
        return names

    def set_physics(self, kind: str) -> str:
        """One of PHYSICS: what stops who walks, and whether entities fall and are pushed."""
        if isinstance(self.world, Elsewhere):
            raise MirageError("A running node has the physics that it was started with; start it with -p physics:=mujoco.")
        self.world.physics = Mujoco(BODY) if kind == MUJOCO else None
        self.solid = kind != OFF
        return {OFF: "Nothing stops you.", CONTACT: "Surfaces and entities stop you.",
                MUJOCO: "Surfaces stop you; entities fall, roll and are pushed."}[kind]  # fmt: skip

    def play(self, cameras: Camera) -> str:
        """Walks along a path, picture by picture."""
        for index, pose in enumerate(self._unstopped(cameras.world_from_camera)):
            self._listener.working("Walking the path", index / len(cameras))
            self._step(pose, jumped=True)
        return f"Walked {len(cameras)} pictures."

    def record(self, path: Path) -> str:
        """Every picture from now on goes to a recording, whose format is told by the ending."""
        if self._recorder is not None:
            raise MirageError(f"{self.recording} is being recorded already; end it first.")
        self._recorder = open_recorder(path, guess_format(path), RecordingConfig(SECOND_NS / PERIOD_NS), single=True)
        self._recorder.start_episode("walking in the studio")
        self.recording = path
        return f"Recording to {path}."

    def end_recording(self) -> str:
        recorder, path = self._recorder, self.recording
        if recorder is None:
            raise MirageError("Nothing is being recorded; begin a recording first.")
        self._recorder = self.recording = None
        if not recorder.frames:
            recorder.discard_episode()
            recorder.close()
            raise MirageError("No picture was made while recording, so there is no file; walk a bit while recording.")
        recorder.close()
        return f"{path}: {recorder.frames} pictures."

    def _unstopped(self, poses: np.ndarray) -> Iterator[np.ndarray]:
        for index, pose in enumerate(poses):
            if self._stop:
                raise Stopped(f"Stopped after {index} of {len(poses)} pictures.")
            yield pose

    def _step(self, pose: np.ndarray, jumped: bool = False, asked_s: float | None = None) -> None:
        begun = time.perf_counter() if asked_s is None else asked_s
        camera, wanted = self.world.camera, pose
        if self.solid and not jumped:
            pose = self._stopped(pose)
            jumped = pose is not wanted
        cameras, seen_s = Camera(camera.intrinsics, pose[None], camera.size), []

        def decoded(rgb: UInt8[np.ndarray, "1 h w 3"]) -> None:
            seen_s.append(time.perf_counter())
            self._listener.glimpsed(rgb[0], cameras[0])

        try:
            chunk = self._made(cameras, None if jumped else decoded)
        except BaseException:
            if seen_s:
                self._listener.glimpsed(self._frame.rgb, self._frame.camera)
            raise
        self._ends.append(time.perf_counter())
        self._record(chunk.frames[0])
        self._show(chunk.frames[0], chunk.seconds, (seen_s or self._ends)[-1] - begun, chunk.observed_fraction, jumped)

    def _stopped(self, pose: np.ndarray) -> np.ndarray:
        """The pose, or as far on the way to it as nothing is in the way."""
        place_m, way_m = self._shown[:3, 3], pose[:3, 3] - self._shown[:3, 3]
        for share in np.diff(np.linspace(0, 1, math.ceil(float(np.linalg.norm(way_m)) / LOOKED_M) + 1)):
            ahead_m = place_m + share * way_m
            place_m = self._obstacles(place_m).reached(place_m, ahead_m)
            if np.abs(place_m - ahead_m).max() > STILL_M:
                stopped = pose.copy()
                stopped[:3, 3] = place_m
                return stopped
        return pose

    def _obstacles(self, place_m: np.ndarray) -> Obstacles:
        """What stops somebody who is at a place."""
        state = self.world.state
        found = obstacles(state.memory, state.free_space, state.entities, state.stamp_ns, place_m, BODY)
        if self.world.physics is not None:
            found = unyielding(found, state.entities, place_m, BODY)
        return Obstacles(found.points_m, Footprint(BODY.radius_m, BODY.low_m, max(float(place_m[2]), BODY.low_m)))

    def _made(self, cameras: Camera, decoded: Decoded | None) -> Chunk:
        """The next picture; as it is without entities it is kept, so that a move of one draws it anew and makes none.
        Bodies are drawn by depth, so with any the picture waits for that."""
        stamps = np.array([self.world.stamp_ns + PERIOD_NS])
        if isinstance(self.world, Elsewhere):
            return self.world.step(cameras, stamps)
        self._bare = self.world.bare_step(cameras, stamps, None if len(self.world.entities) else decoded)
        return self.world.drawn(self._bare)

    def _draw_again(self) -> None:
        """The picture of the same place with the entities where they are now; a new one where none is kept or all are recorded."""
        if self._bare is None or self._recorder is not None or isinstance(self.world, Elsewhere):
            self._step(self._shown)
            return
        chunk = self.world.drawn(self._bare)
        self._show(chunk.frames[0], {}, 0.0, chunk.observed_fraction, jumped=False)

    def _record(self, frame: Frame) -> None:
        """A disk that is full ends the recording and not the walk."""
        if self._recorder is None:
            return
        try:
            self._recorder.add(frame)
        except MirageError as error:
            recorder, self._recorder, self.recording = self._recorder, None, None
            with suppress(MirageError):
                recorder.close()
            self._listener.notify(str(error), good=False)

    def _show(self, frame: Frame, seconds: dict, waited_s: float, observed: float, jumped: bool) -> None:
        self._frame, self._shown = frame, frame.camera.world_from_camera
        span = self._ends[-1] - self._ends[0] if len(self._ends) > 1 else 0.0
        rate = (len(self._ends) - 1) / span if span else 0.0
        self._listener.saw(View(frame, self.world.snapshot(), seconds, waited_s, rate, observed, self.worlds), jumped)
        if jumped:  # who wanted to be elsewhere had not seen this
            self._wanted = None

    def _due(self) -> bool:
        """Whether a pose waits that is not the one that is shown."""
        if self._wanted is None or self._shown is None:
            return False
        apart = np.abs(self._wanted[0] - self._shown)
        if apart[:3, 3].max() < STILL_M and apart[:3, :3].max() < STILL:
            self._wanted = None
        return self._wanted is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._jobs or self._due() or self._moves())
                if self._closing:
                    return
                self._stop = False  # here, as Stop may be pressed as soon as the work is shown
                what, job = self._jobs.popleft() if self._jobs else (QUIET, self._look_now())
            self._do(what, job)

    def _look_now(self) -> Job:
        if not self._due():  # time goes on for what moves
            self._alone += 1
            return lambda: self._step(self._shown)
        self._alone = 0
        (pose, asked_s), self._wanted = self._wanted, None
        return lambda: self._step(pose, asked_s=asked_s)

    def _moves(self) -> bool:
        """Whether physics move something."""
        if isinstance(self.world, Elsewhere) or self.world.physics is None or self._shown is None or self._alone >= ROLLS_ON:
            return False
        return any(body.state.category != STATIC and not body.state.resting for body in self.world.entities)

    def _do(self, what: str, job: Job) -> None:
        """Has a job done and tells what came of it, whatever becomes of who listens."""
        if what != QUIET:
            self._alone = 0
            with survived():
                self._listener.working(what, 0.0)
        sentence, good = self._outcome(what, job)
        if sentence is not None:
            with survived():
                self._listener.notify(sentence, good=good)
        if what != QUIET:
            with survived():
                self._listener.working(None, 1.0)

    @staticmethod
    def _outcome(what: str, job: Job) -> tuple[str | None, bool]:
        """A job that fails is told of and harms nothing: the world changes whole or not at all."""
        try:
            return job(), True
        except MirageError as error:
            return str(error), isinstance(error, Stopped)
        except Exception as error:  # noqa: BLE001 - one who walks on is better served than one whose page is dead
            traceback.print_exc()
            return f"{what} failed ({error!r:.200}); the terminal tells more.", False

"""The torch side of the node: works off one command after the other on one world."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mirage_ros.data.seeds import Seed
from mirage_ros.data.spawning import EntityChanges
from mirage_ros.errors import LONG_S, MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import seed_warnings
from mirage_ros.physics import Mujoco
from mirage_ros.protocol import Chunk, FloorPlan, Points, Surfaces, WorldModel
from mirage_ros.ros.worker import (
    CHANGING,
    ChangeEntities,
    Cloud,
    Command,
    Done,
    Erase,
    Fork,
    Load,
    Observe,
    Prompt,
    Redate,
    Reset,
    Restore,
    Save,
    SeedName,
    Step,
    Survey,
    Unload,
    View,
    WorkerConfig,
)
from mirage_ros.ros.worker.robots import Robots, measured, met, resized
from mirage_ros.ros.worker.shared import Snapshots
from mirage_ros.world.entities import Entities, EntityState
from mirage_ros.world.imagining import joined
from mirage_ros.world.sensors import floor_plan
from mirage_ros.world.world import Rig, Watch, World, WorldConfig

MOST_UNDATED, LONGEST_FORK = 16, 100
# At most this share of the time goes into floor plans; they take longer the more views are kept.
MAP_SHARE = 0.1
# What could not be repeated from what lies on disk by then; all else waits for its time.
FORCING = (Load, Fork)


@dataclass(frozen=True)
class Dating:
    """Whether the world's time, and its place, are settled; its first frame settles them.

    Attributes:
        done: it is.
        seed: what the world begins with, to begin again at the time just before that frame.
        changes: what was done to the world since, to be done again then.
        given_ns: the time that the world was given, which holds if it is before that frame.
        movable: the seed's camera is to stand where that frame's does.
    """

    done: bool = True
    seed: Seed | None = None
    changes: tuple[Command, ...] = ()
    given_ns: int | None = None
    movable: bool = False


class Engine:
    """One world and what may be done to it. A command that raises leaves the world as it was."""

    def __init__(self, model: WorldModel, config: WorkerConfig) -> None:
        self.config = config
        self.model = model
        self._snapshots = Snapshots(config.snapshots)
        self._dating = Dating()
        self._cloud_sent_s = self._map_sent_s = -np.inf
        self._map_took_s = 0.0
        self._change, self._said = EntityChanges(config.spawnables, config.reserved), Entities()
        self._robots = Robots(config.robots, self._change.mesh)
        self._change.robots = self._robots.names
        self._start()
        self._actions = {
            Reset: self._reset,
            Step: self._step,
            Redate: self._redate,
            Cloud: self._cloud,
            Survey: self._cloud,
            Save: self._save,
            Load: self._load,
            Erase: self._erase,
            Fork: self._fork,
            Restore: self._restore,
            Observe: self._observe,
            Prompt: self._prompt,
            Unload: self._unload,
            ChangeEntities: self._change_entities,
        }

    def carry_out(self, command: Command) -> Done:
        """Does it and returns what came of it. Raises MirageError for what cannot be done."""
        world, rig, dating = self._world, self._rig, self._dating
        try:
            with world.all_or_nothing():
                return self._carried_out(command)
        except BaseException:
            self._world, self._rig, self._dating = world, rig, dating
            raise

    def _carried_out(self, command: Command) -> Done:
        start_s = time.perf_counter()
        done = self._actions[type(command)](command)
        self._note_undated(done.repeated(command))
        snapshot = None
        if isinstance(command, CHANGING) and self._world.frames_seen and self._dating.done:
            snapshot = self._snapshots.take(self._world, force=isinstance(command, FORCING))
        points, plan = self._due_points(command), self._due_plan(command)
        seconds = time.perf_counter() - start_s
        stamp_ns = self._world.stamp_ns if self._world.frames_seen else 0
        done = replace(done, seconds=seconds, points=points, floor_plan=plan, stamp_ns=stamp_ns)
        return replace(done, snapshot=snapshot, unsaved=self._snapshots.failure, entities=self._news())

    def _news(self) -> tuple[EntityState, ...] | None:
        """The entities, where they are others than were said last."""
        entities = self._world.entities if self._world.frames_seen else Entities()
        said, self._said = self._said, entities
        return None if said is entities or not (len(said) or len(entities)) else entities.states

    def _start(self) -> None:
        config, self._watch = self.config, Watch()
        self._world = World(
            self.model,
            WorldConfig(
                seed=config.world_seed,
                use_memory=config.use_memory,
                max_memory_bytes=config.max_memory_bytes,
                forget_moving=config.forget_moving,
                max_dynamic_share=config.max_dynamic_share,
            ),
            physics=Mujoco(config.robot) if config.physics == "mujoco" else None,
        )
        self._rig = Rig(self._world, len(config.views))

    def _reset(self, command: Reset) -> Done:
        with seed_warnings() as warnings:
            seed = command.seed.load() if isinstance(command.seed, SeedName) else command.seed
            with self._entities_kept(command.keep_entities, at_start=True):
                chunk = self._world.reset(seed.rgb, seed.camera, seed.depth_m, command.stamp_ns or 0)
        self._map_sent_s, self._watch = -np.inf, Watch()  # they were another world's
        movable = self.config.anchored and isinstance(command.seed, SeedName)
        self._dating = Dating(False, seed, given_ns=command.stamp_ns, movable=movable)
        return _done(command, chunk, warnings=tuple(warnings))

    def _step(self, command: Step) -> Done:
        planned = command.planned
        poses = command.poses or (planned.world_from_camera,)
        start = self._settle(planned.stamps_ns[0], poses[0][0])
        stamps = np.array(planned.stamps_ns, np.int64)
        views = self.config.views
        cameras = [self._camera(view, pose) for view, pose in zip(views, poses, strict=True)]
        self._carried(command)
        fitted, hidden = (lambda index, chunk: resized(chunk, views[index].size)), self._robots.hidden
        chunks = list(self._rig.step(cameras, stamps, fitted, hidden))
        how, leaders = (command.sensors, self.config), {carrier.cameras[0] for carrier in self.config.robots}
        for index, chunk in enumerate(chunks):
            chunks[index] = measured(self._world.state, chunk, *how, hidden(index))
            if index in leaders:
                chunks[index] = met(self._world.state, chunks[index], *how, hidden(index))
        others = tuple(chunk.frames for chunk in chunks[1:])
        first = replace(joined(chunks), frames=chunks[0].frames)  # with the figures of all cameras
        return replace(_done(command, first, **start), others=others)

    def _carried(self, command: Step) -> None:
        """The robots' bodies on their ways; they are there as long as the node is."""
        if self._robots.names:
            stamps = np.array(command.planned.stamps_ns, np.int64)
            self._world.change_entities(lambda known, now_ns: self._robots.moved(known, now_ns, stamps, command.bodies))

    def _change_entities(self, command: ChangeEntities) -> Done:
        outcomes = []

        def change(entities: Entities, stamp_ns: int) -> Entities:
            entities, outcomes[:] = self._change(entities, stamp_ns, command.changes)
            return entities

        self._world.change_entities(change)
        return _done(command, outcomes=outcomes)

    @contextmanager
    def _entities_kept(self, wanted: bool, at_start: bool = False) -> Iterator[None]:
        """A block that makes the world anew; its entities stay if that is wanted."""
        wanted = wanted and self._world.frames_seen
        kept, then_ns = (self._world.entities, self._world.stamp_ns) if wanted else (None, 0)
        yield
        if kept is not None:
            self._world.change_entities(
                lambda _, now_ns: kept.at_start(now_ns) if at_start else kept.redated(then_ns, now_ns)
            )

    def _redate(self, command: Redate) -> Done:
        self._world.memory  # noqa: B018 - raises without a world
        dating = self._dating
        self._dating = replace(dating, given_ns=None) if dating.movable else Dating(False)
        return _done(command)

    def _cloud(self, command: Cloud | Survey) -> Done:
        self._world.memory  # noqa: B018 - raises without a world
        return _done(command)

    def _save(self, command: Save) -> Done:
        folder = Path(command.path).absolute()
        self._world.save(folder)
        memory = self._world.memory
        return _done(command, path=str(folder), tokens=memory.tokens, bytes=memory.nbytes)

    def _load(self, command: Load) -> Done:
        with self._entities_kept(command.keep_entities, at_start=True):
            self._world.load(command.path)
        self._map_sent_s, self._watch = -np.inf, Watch()
        self._dating = Dating(command.stamp_ns is not None or not command.redate)
        if command.stamp_ns is not None:
            self._world.redate(command.stamp_ns)
        memory, pose = self._world.memory, self._world.camera.world_from_camera
        return _done(command, tokens=memory.tokens, bytes=memory.nbytes, world_from_camera=pose)

    def _erase(self, command: Erase) -> Done:
        erased = self._world.erase(np.array(command.low), np.array(command.high))
        return _done(command, erased=erased, tokens=self._world.memory.tokens)

    def _fork(self, command: Fork) -> Done:
        plain = command.name.replace("-", "").replace("_", "").isalnum()
        if not plain or len(command.name.encode()) > LONGEST_FORK:
            raise MirageError(
                f"A fork was to be named {command.name!r:.100}; give letters, digits, - and _ only, at "
                f"most {LONGEST_FORK}."
            )
        names = self._snapshots.fork(self._world, command.name)
        return _done(command, names=names)

    def _restore(self, command: Restore) -> Done:
        state = self._snapshots.forked(
            command.name, lambda: World(self._world.model, self._world.config)
        )
        self._world.remember_as(state)
        return _done(command, tokens=self._world.memory.tokens)

    def _observe(self, command: Observe) -> Done:
        seed, world = command.seed, self._world
        picture = seed.rgb, seed.camera, seed.depth_m, command.stamp_ns
        if not self.config.observe_live:
            erased, stored = world.observe(*picture)
            return _done(command, erased=erased, stored=stored, tokens=world.memory.tokens)
        before, sightings = world.state, self._watch.sightings if command.sightings is None else command.sightings
        erased, stored = self._watch.observe(world, *picture, command.sightings)
        seen = None if world.state is before else sightings
        return _done(command, erased=erased, stored=stored, tokens=world.memory.tokens, sightings=seen)

    def _prompt(self, command: Prompt) -> Done:
        if not hasattr(self.model, "set_prompt"):
            raise MirageError(
                f"The model {self.model.name} reads no text and got the prompt {command.text!r}; "
                "run a large model for prompts."
            )
        report(LONG_S)  # a text encoder may be loaded
        self.model.set_prompt(command.text)
        return _done(command)

    def _unload(self, command: Unload) -> Done:
        self._dating = Dating()
        self._start()
        self._snapshots.clear()
        return _done(command)

    def _due_points(self, command: Command) -> Points | None:
        if not self._world.frames_seen or isinstance(command, (Save, Fork, Redate, Survey)):
            return None
        period_s = getattr(command, "cloud_period_s", 0.0)
        now_s = time.monotonic()
        if now_s - self._cloud_sent_s < period_s:
            return None
        self._cloud_sent_s = now_s
        return self._world.memory.to_points()

    def _due_plan(self, command: Command) -> FloorPlan | None:
        """The floor plan where it is asked for, or is wanted and the last one is old enough; it takes its share of
        the time and no more."""
        surveys = isinstance(command, Survey)
        wait_s = self._map_took_s / MAP_SHARE
        if not surveys:
            wait_s = max(wait_s, self.config.map.period_s)
        start_s = time.monotonic()
        if not (surveys or "map" in getattr(command, "sensors", ())) or start_s - self._map_sent_s < wait_s:
            return None
        if not self._world.frames_seen or not isinstance(self._world.memory, Surfaces):
            return None
        state = self._world.state
        plan = floor_plan(state.memory, state.free_space, state.camera.position_world, self.config.map)
        self._map_sent_s = time.monotonic()
        self._map_took_s = self._map_sent_s - start_s
        return plan

    def _settle(self, first_ns: int, first_pose: Float[np.ndarray, "4 4"]) -> dict[str, np.ndarray]:
        """A world begins before its first frame, whatever clock its stamp is from.

        Returns:
            {"start": world_from_camera} where the world was moved to the first frame's pose.
        """
        dating, self._dating = self._dating, Dating()
        moves = dating.movable and dating.seed is not None
        dated = dating.done or (dating.given_ns is not None and dating.given_ns < first_ns)
        if dated and not moves:
            return {}
        stamp_ns, seed = dating.given_ns if dated else first_ns - self.config.period_ns, dating.seed
        if seed is None:
            self._world.redate(stamp_ns)
            return {}
        camera = seed.camera
        if moves:
            camera = Camera(camera.intrinsics, first_pose, camera.size)
            self._cloud_sent_s = -np.inf  # the one that was sent stands elsewhere
        with self._entities_kept(True):
            with seed_warnings():  # given before
                self._world.reset(seed.rgb, camera, seed.depth_m, stamp_ns)
            for command in dating.changes:
                self._actions[type(command)](command)
        return {"start": first_pose} if moves else {}

    def _note_undated(self, command: Command | None) -> None:
        """A world to which much is done keeps the dates that it has: its seed's age is wrong."""
        dating = self._dating
        if isinstance(command, (Erase, Restore, Observe)) and dating.seed is not None:
            changes = (*dating.changes, command)
            seed = dating.seed if len(changes) <= MOST_UNDATED else None
            self._dating = replace(dating, seed=seed, changes=changes if seed else ())

    def _camera(self, view: View, world_from_camera: np.ndarray) -> Camera:
        seen = self._world.camera
        if view.intrinsics is not None:
            return Camera(view.intrinsics, world_from_camera, view.size)
        if view.hfov_deg:
            return Camera.from_hfov(view.hfov_deg, view.size or seen.size, world_from_camera)
        return Camera(seen.intrinsics, world_from_camera, seen.size)


def _done(command: Command, chunk: Chunk | None = None, **values) -> Done:
    return Done(command, chunk, 0.0, None, 0, values=values)

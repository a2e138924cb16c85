"""Worlds: how they are loaded, reset, saved, erased in part and forked, and the services for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from simulation_interfaces.msg import Resource, WorldResource
from simulation_interfaces.srv import (
    GetAvailableWorlds,
    GetCurrentWorld,
    LoadWorld,
    UnloadWorld,
)

from mirage_ros.data.seeds import Seed
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.geometry.camera import check_place
from mirage_ros.protocol import Points
from mirage_ros.ros.callbacks import Deferred, Endpoints
from mirage_ros.ros.chunks import Then
from mirage_ros.ros.services import (
    FAILED,
    INCORRECT_STATE,
    NOT_FOUND,
    answered,
    outcome,
    tags_match,
)
from mirage_ros.ros.session import NO_WORLD, Session
from mirage_ros.ros.worker import (
    Command,
    Done,
    Erase,
    Failed,
    Fork,
    Load,
    Redate,
    Reset,
    Restore,
    Save,
    Unload,
)
from mirage_ros.ros.worlds import (
    SAVED,
    SEED,
    UnknownWorld,
    UnsupportedWorld,
    WorldEntry,
    available_worlds,
    find_world,
)
from mirage_ros.srv import EraseRegion, ForkWorld, RestoreWorld, SaveWorld

LIVE = "seed/image"
NO_POINTS = Points(
    np.zeros((0, 3), np.float32),
    np.zeros((0, 3), np.uint8),
    np.zeros(0, np.float32),
    np.zeros(0, np.int64),
)


class WorldChanges:
    """Each is queued for the worker, and takes effect when the worker has done it. All raise MirageError when too
    much waits already."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def load_first(self) -> None:
        """The world that the parameters name, if they name one."""
        session = self._session
        seed, hfov_deg = session.config.seed, session.config.seed_hfov_deg
        if not seed:
            return
        try:
            entry = find_world(seed, hfov_deg)
        except MirageError:
            # The worker says what is wrong with it, and which seeds there are.
            entry = WorldEntry(seed, seed, SEED, hfov_deg)
        self._begin(entry.command(session.start_ns), entry, None)

    def load(self, entry: WorldEntry, then: Then) -> None:
        """Another world, and the simulation stopped. What is there stays if that fails."""

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._session.stepper.pause(stopped=True)
            then(result)

        self._begin(entry.command(self._session.start_ns), entry, finished)

    def begin_live(self, seed: Seed, stamp_ns: int) -> None:
        """A world from a live picture; the plan goes on."""
        session = self._session
        stamp_ns = stamp_ns if session.start_ns is None else session.start_ns
        self._begin(Reset(seed, stamp_ns, LIVE), WorldEntry("live", LIVE, SEED), None, True)

    def reset(self, then: Then | None = None, keep_time: bool = False, keep_entities: bool = False) -> None:
        """The world as it was when it was loaded. Raises MirageError where none was.

        Args:
            keep_entities: those that are there stay, each where it was spawned.
        """
        session = self._session
        if session.world.origin is None:
            raise MirageError("There is no seed to go back to; load a world first.")
        session.want_seed()
        session.take_back()  # the time it is now depends on it
        command = session.world.again(session.plan.cursor_ns if keep_time else session.start_ns)
        self._begin(replace(command, keep_entities=keep_entities), session.world.current, then, keep_time)

    def restart_time(self, then: Then | None = None) -> None:
        """Time begins again; the world stays as it is."""
        session = self._session

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._end_what_runs("Time was reset.")
                session.cameras.placed(session.cameras.first)
                session.buffer.clear()
                session.restart_plan()
                session.restart_clock()
            if then is not None:
                then(result)

        session.submit(Redate(), finished, before_chunks=True)

    def time_jumped_back(self, reason: str) -> None:
        """ROS time went back, as when a bag begins anew: so does the plan, with the next poses.

        What is rendered for the time before is of no use to anybody any more.
        """
        session = self._session
        if session.rollout is not None:
            session.take_back()
            session.end_waits("Time jumped back.")
        session.queue.drop_all()
        session.buffer.clear()
        session.restart_plan()
        if session.rollout is not None:
            session.submit(Redate(), before_chunks=True)
        session.host.log.warning(reason)

    def unload(self, then: Then) -> None:
        """No world any more."""
        session = self._session

        def finished(result: Done | Failed) -> None:
            if isinstance(result, Done):
                self._end_what_runs("The world was unloaded.")
                session.world.current = session.world.origin = None
                # Poses that come from now on are for the next world, those of before are not.
                session.buffer.clear()
                session.restart_plan()
                session.figures.new_world(0, 0)
                session.queue.put(session.host.output.cloud, NO_POINTS, session.last_stamp_ns or 0)
                session.host.wake()
            then(result)

        session.submit(Unload(), finished, before_chunks=True)

    def _begin(
        self, command: Reset | Load, entry: WorldEntry, then: Then | None, keep_plan: bool = False
    ) -> None:
        """Submits what makes a world; the plan starts over with it unless it is kept.

        It does so when the world is there, because until then the old one may have to go on; but
        where there is none, poses that come meanwhile are for the new one.
        """
        session, world = self._session, self._session.world
        first = world.origin is None

        def finished(result: Done | Failed) -> None:
            world.coming -= 1
            if isinstance(result, Done):
                self._end_what_runs("The world was reset.")
                if not keep_plan:
                    if not first:
                        session.buffer.clear()
                        session.restart_plan()
                    session.restart_clock()
                self._changed(result, entry)
            else:
                world.first_failed = world.current is None
            if then is not None:
                then(result)

        session.submit(command, finished, before_chunks=not keep_plan)
        world.coming += 1
        if first and not keep_plan:
            session.restart_plan()

    def _end_what_runs(self, reason: str) -> None:
        """What is rendered goes out; who waits for more gets to know."""
        self._session.queue.flush()
        self._session.end_waits(reason)

    def _changed(self, done: Done, entry: WorldEntry) -> None:
        """Another world is there."""
        session, world, command = self._session, self._session.world, done.command
        world.current, world.origin = entry, command
        if done.chunk is not None:
            world.start_pose = done.chunk.frames[-1].camera.world_from_camera
            session.figures.new_world(done.chunk.tokens, done.chunk.memory_bytes)
        else:
            world.start_pose = done.values["world_from_camera"]
            session.figures.new_world(done.values["tokens"], done.values["bytes"])
        session.host.output.start(world.start_pose)
        session.plan.begin_at(world.start_pose)
        session.cameras.placed(world.start_pose)
        session.health.ok("seed")
        origin = getattr(command, "origin", None) or f"saved '{entry.name}'"
        session.host.log.info(f"New world from {origin}: {session.figures.tokens} tokens.")
        for warning in done.values.get("warnings", ()):
            session.host.log.warning(warning)


class MemoryServices:
    """save_world, erase_region, fork, restore. Each answers when it is done."""

    def __init__(self, session: Session, endpoints: Endpoints) -> None:
        self._session = session
        endpoints.service(SaveWorld, "~/save_world", self._save)
        endpoints.service(EraseRegion, "~/erase_region", self._erase)
        endpoints.service(ForkWorld, "~/fork", self._fork)
        endpoints.service(RestoreWorld, "~/restore", self._restore)

    def _save(self, request, response):
        if not request.path:
            response.message = "No folder was named; give the path of the folder to write."
            return response
        try:
            folder = user_path(request.path).absolute()
        except MirageError as error:
            response.message = str(error)
            return response
        return self._do(Save(str(folder)), response)

    def _erase(self, request, response):
        low, high = (
            tuple(float(value) for value in (point.x, point.y, point.z))
            for point in (request.min, request.max)
        )
        if not np.isfinite([low, high]).all():
            response.message = f"The box {low} to {high} is not finite; give finite corners."
            return response
        try:
            check_place(np.array([low, high]), "A corner of the box")
        except MirageError as error:
            response.message = str(error)
            return response
        return self._do(Erase(low, high), response)

    def _fork(self, request, response):
        return self._do(Fork(request.name), response)

    def _restore(self, request, response):
        return self._do(Restore(request.name), response)

    def _do(self, command: Command, response):
        """Submits; the values of what was done go into the response's fields of the same names."""
        deferred = Deferred()

        def then(result) -> None:
            response.success = not isinstance(result, Failed)
            if isinstance(result, Failed):
                response.message = result.message
            else:
                for name, value in result.values.items():
                    setattr(response, name, value)
            deferred.finish(response)

        try:
            self._session.require()
            self._session.submit(command, then)
        except MirageError as error:
            response.success, response.message = False, str(error)
            return response
        return deferred


DESCRIPTIONS = {
    SAVED: "A world that was saved, with all that was seen of it.",
    SEED: "A picture that a world grows from.",
}


def world_to_ros(entry: WorldEntry) -> WorldResource:
    return WorldResource(
        name=entry.name,
        world_resource=Resource(uri=entry.uri),
        description=DESCRIPTIONS[entry.kind],
        tags=[entry.kind],
    )


class WorldServices:
    """load_world, unload_world, get_current_world, get_available_worlds."""

    def __init__(self, session: Session, worlds: WorldChanges, endpoints: Endpoints) -> None:
        self._session, self._worlds = session, worlds
        endpoints.service(LoadWorld, "~/load_world", self._load)
        endpoints.service(UnloadWorld, "~/unload_world", self._unload)
        endpoints.service(GetCurrentWorld, "~/get_current_world", self._current)
        endpoints.service(GetAvailableWorlds, "~/get_available_worlds", self._available)

    def _load(self, request, response):
        kind = LoadWorld.Response
        reason = self._session.lacking(world=False)
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        resource = request.world_resource
        if not resource.uri:
            if resource.resource_string:
                reason = "A world as a string is not supported; give a uri."
                return answered(response, kind.UNSUPPORTED_FORMAT, reason)
            return answered(response, kind.NO_RESOURCE, "No world was named; give a uri.")
        try:
            entry = find_world(resource.uri, self._session.config.seed_hfov_deg)
        except UnknownWorld as error:
            return answered(response, NOT_FOUND, str(error))
        except UnsupportedWorld as error:
            return answered(response, kind.UNSUPPORTED_FORMAT, str(error))
        return self._when_loaded(entry, response)

    def _when_loaded(self, entry: WorldEntry, response):
        deferred = Deferred()

        def then(result) -> None:
            if isinstance(result, Failed):
                code = LoadWorld.Response.RESOURCE_PARSE_ERROR
                deferred.finish(answered(response, code, result.message))
                return
            response.world = world_to_ros(entry)
            deferred.finish(answered(response))

        try:
            self._worlds.load(entry, then)
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred

    def _unload(self, request, response):
        reason = self._session.lacking()
        if reason:
            code = UnloadWorld.Response.NO_WORLD_LOADED if reason == NO_WORLD else INCORRECT_STATE
            return answered(response, code, reason)
        deferred = Deferred()
        try:
            self._worlds.unload(lambda result: deferred.finish(outcome(response, result)))
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred

    def _current(self, request, response):
        current = self._session.world.current
        if current is None:
            return answered(response, GetCurrentWorld.Response.NO_WORLD_LOADED, NO_WORLD)
        response.world = world_to_ros(current)
        return answered(response)

    def _available(self, request, response):
        folder = self._session.config.worlds_folder
        found, failed = available_worlds(folder, list(request.additional_sources))
        if failed and not request.continue_on_error:
            default = failed[0] == folder
            code = GetAvailableWorlds.Response.DEFAULT_SOURCES_FAILED if default else NOT_FOUND
            reason = f"There is no folder {failed[0]}; give an existing one."
            return answered(response, code, reason)
        response.worlds = [
            world_to_ros(entry) for entry in found if tags_match(request.filter, [entry.kind])
        ]
        text = f"Left out: {', '.join(failed)}." if failed else ""
        return answered(response, text=text)

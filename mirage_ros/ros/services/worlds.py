"""Worlds: a seed, or a folder in which a world was saved.

Worlds that can be loaded: seeds and saved worlds, by name, path or file:// URI.

The world's memory: saved to disk, erased in part, forked and restored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from simulation_interfaces.msg import Resource, WorldResource
from simulation_interfaces.srv import (
    GetAvailableWorlds,
    GetCurrentWorld,
    LoadWorld,
    UnloadWorld,
)

from mirage_ros.data.seeds import MissingSeed, find_seed, shipped_seeds
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import check_place
from mirage_ros.memory.files import WORLD, header_of_world, world_file
from mirage_ros.resources import user_path
from mirage_ros.ros.callbacks import Deferred, create_service
from mirage_ros.ros.services.answers import (
    FAILED,
    INCORRECT_STATE,
    NO_WORLD,
    NOT_FOUND,
    answered,
    lacking,
    outcome,
    ready,
    tags_match,
)
from mirage_ros.ros.worker.commands import (
    Command,
    Erase,
    Failed,
    Fork,
    Load,
    Reset,
    Restore,
    Save,
    SeedName,
)
from mirage_ros.srv import EraseRegion, ForkWorld, RestoreWorld, SaveWorld

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


SEED, SAVED = "seed", "saved"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class UnknownWorld(MirageError):
    """There is no such world."""


class UnsupportedWorld(MirageError):
    """There is something, but no world."""


@dataclass(frozen=True)
class WorldEntry:
    """A world.

    Attributes:
        name: short, not unique.
        uri: what loads it.
        kind: seed or saved.
        hfov_deg: of a picture without intrinsics.
    """

    name: str
    uri: str
    kind: str
    hfov_deg: float | None = None

    def command(self, stamp_ns: int | None) -> Reset | Load:
        """What the worker has to do. `stamp_ns` is the time from which on it shall go."""
        if self.kind == SAVED:
            return Load(str(user_path(self.uri).absolute()), stamp_ns, redate=stamp_ns is None)
        seed = SeedName(self.uri, self.hfov_deg)
        return Reset(seed, stamp_ns, f"{self.kind} '{self.name}'")


def find_world(uri: str, hfov_deg: float | None = None) -> WorldEntry:
    """The world that a URI, a path (see `user_path`) or a shipped name stands for.

    Raises:
        UnknownWorld, UnsupportedWorld: both MirageError.
    """
    try:
        return _find(uri, hfov_deg)
    except (UnknownWorld, UnsupportedWorld):
        raise
    except MissingSeed as error:
        raise UnknownWorld(f"There is no world: {error}") from error
    except MirageError as error:
        raise UnsupportedWorld(str(error)) from error
    except OSError as error:
        raise UnsupportedWorld(
            f"The world '{uri}' cannot be looked up ({error.strerror}); give a readable path."
        ) from error


def _find(uri: str, hfov_deg: float | None) -> WorldEntry:
    folder = user_path(uri)
    if world_file(folder, WORLD).exists():
        return WorldEntry(folder.name, uri, SAVED)
    path, _ = find_seed(uri)
    if path.is_file() and path.suffix.lower() not in PICTURES:
        raise UnsupportedWorld(f"{path} is no picture; give a picture, a seed or a saved world.")
    name = path.stem if path.is_file() else folder.name
    return WorldEntry(name, uri, SEED, hfov_deg)


def available_worlds(folder: str, more: list[str]) -> tuple[list[WorldEntry], list[str]]:
    """The shipped seeds, what lies in the folder and in others; and the sources that failed."""
    found = [WorldEntry(name, name, SEED) for name in shipped_seeds()]
    failed = []
    for source in ([folder] if folder else []) + more:
        try:
            path = user_path(source)
            children = [path, *sorted(path.iterdir())]
        except (OSError, MirageError):
            failed.append(source)
            continue
        found += [entry for child in children if (entry := _entry(child)) is not None]
    return found, failed


def _entry(folder: Path) -> WorldEntry | None:
    """The world in a folder; None without one, or where nobody lets us look."""
    try:
        saved = header_of_world(world_file(folder, WORLD)) is not None
        if not saved and not (folder / "camera.yaml").is_file():
            return None
    except OSError:
        return None
    return WorldEntry(folder.name, folder.absolute().as_uri(), SAVED if saved else SEED)


class MemoryServices:
    """save_world, erase_region, fork, restore. Each answers when it is done."""

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        create_service(node, SaveWorld, "~/save_world", self._save)
        create_service(node, EraseRegion, "~/erase_region", self._erase)
        create_service(node, ForkWorld, "~/fork", self._fork)
        create_service(node, RestoreWorld, "~/restore", self._restore)

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
            ready(self._node)
            self._node.rollout.submit(command, then)
        except MirageError as error:
            response.success, response.message = False, str(error)
            return response
        return deferred


DESCRIPTIONS = {
    SAVED: "A world that was saved, with all that was seen of it.",
    "seed": "A picture that a world grows from.",
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

    def __init__(self, node: MirageNode) -> None:
        self._node = node
        create_service(node, LoadWorld, "~/load_world", self._load)
        create_service(node, UnloadWorld, "~/unload_world", self._unload)
        create_service(node, GetCurrentWorld, "~/get_current_world", self._current)
        create_service(node, GetAvailableWorlds, "~/get_available_worlds", self._available)

    def _load(self, request, response):
        node, kind = self._node, LoadWorld.Response
        reason = lacking(node, world=False)
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        resource = request.world_resource
        if not resource.uri:
            if resource.resource_string:
                reason = "A world as a string is not supported; give a uri."
                return answered(response, kind.UNSUPPORTED_FORMAT, reason)
            return answered(response, kind.NO_RESOURCE, "No world was named; give a uri.")
        try:
            entry = find_world(resource.uri, node.config.seed_hfov_deg)
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
            self._node.world.load(entry, then)
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred

    def _unload(self, request, response):
        node = self._node
        reason = lacking(node)
        if reason:
            code = UnloadWorld.Response.NO_WORLD_LOADED if reason == NO_WORLD else INCORRECT_STATE
            return answered(response, code, reason)
        deferred = Deferred()
        try:
            node.world.unload(lambda result: deferred.finish(outcome(response, result)))
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return deferred

    def _current(self, request, response):
        current = self._node.world.current
        if current is None:
            return answered(response, GetCurrentWorld.Response.NO_WORLD_LOADED, NO_WORLD)
        response.world = world_to_ros(current)
        return answered(response)

    def _available(self, request, response):
        folder = self._node.config.worlds_folder
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

"""Worlds: a seed, or a folder in which a world was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation_interfaces.msg import Resource, WorldResource
from simulation_interfaces.srv import (
    GetAvailableWorlds,
    GetCurrentWorld,
    LoadWorld,
    UnloadWorld,
)

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.deferred import Deferred, create_service
from mirage_ros.ros.services.answers import (
    FAILED,
    INCORRECT_STATE,
    NO_WORLD,
    NOT_FOUND,
    answered,
    lacking,
    outcome,
    tags_match,
)
from mirage_ros.ros.worker import Failed
from mirage_ros.ros.worlds import (
    SAVED,
    UnknownWorld,
    UnsupportedWorld,
    WorldEntry,
    available_worlds,
    find_world,
)

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

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

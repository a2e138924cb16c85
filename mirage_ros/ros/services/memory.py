"""The world's memory: saved to disk, erased in part, forked and restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mirage_ros.core.camera import check_place
from mirage_ros.core.errors import MirageError
from mirage_ros.resources import user_path
from mirage_ros.ros.deferred import Deferred, create_service
from mirage_ros.ros.services.answers import ready
from mirage_ros.ros.worker import Command, Erase, Failed, Fork, Restore, Save
from mirage_ros.srv import EraseRegion, ForkWorld, RestoreWorld, SaveWorld

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode


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

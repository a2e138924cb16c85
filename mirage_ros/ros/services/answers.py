"""Results of the standard services: a code always, and a sentence where it is not OK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulation_interfaces.msg import Result, TagsFilter

from mirage_ros.errors import MirageError, legible
from mirage_ros.ros.worker.commands import Done, Failed

if TYPE_CHECKING:
    from mirage_ros.ros.mirage_node import MirageNode

OK = Result.RESULT_OK
UNSUPPORTED = Result.RESULT_FEATURE_UNSUPPORTED
NOT_FOUND = Result.RESULT_NOT_FOUND
INCORRECT_STATE = Result.RESULT_INCORRECT_STATE
FAILED = Result.RESULT_OPERATION_FAILED
NO_WORLD = "No world is loaded; call load_world first."
LOADING = "A world is being loaded; wait for it."


def answered(response: Any, code: int = OK, text: str = "") -> Any:
    """The response with its result filled in."""
    response.result = Result(result=code, error_message=legible(text))
    return response


def outcome(response: Any, result: Done | Failed) -> Any:
    """The response to what the worker made of it."""
    if isinstance(result, Failed):
        return answered(response, FAILED, result.message)
    return answered(response)


def lacking(node: MirageNode, world: bool = True) -> str:
    """Why nothing can be done now, '' where it can."""
    if node.rollout is not None and node.rollout.ended:
        return node.rollout.ended
    if node.rollout is None or node.rollout.model is None:
        return "The node is not configured; configure it, or wait until it has loaded its model."
    if world and not node.rollout.has_world:
        return NO_WORLD
    return ""


def ready(node: MirageNode, world: bool = True) -> None:
    """Raises MirageError where nothing can be done now."""
    reason = lacking(node, world)
    if reason:
        raise MirageError(reason)


def tags_match(wanted: TagsFilter, tags: list[str]) -> bool:
    """Whether tags pass a filter; an empty one lets everything pass."""
    if not wanted.tags:
        return True
    every = wanted.filter_mode == TagsFilter.FILTER_MODE_ALL
    return (all if every else any)(tag in tags for tag in wanted.tags)

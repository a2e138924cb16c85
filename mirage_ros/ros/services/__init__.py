"""The node's services and actions, a module for each subject; here the results of the standard ones.

A result is a code always, and a sentence where it is not OK.
"""

from __future__ import annotations

from typing import Any

from simulation_interfaces.msg import Result, TagsFilter

from mirage_ros.errors import legible
from mirage_ros.ros.worker.commands import Done, Failed

OK = Result.RESULT_OK
UNSUPPORTED = Result.RESULT_FEATURE_UNSUPPORTED
NOT_FOUND = Result.RESULT_NOT_FOUND
INCORRECT_STATE = Result.RESULT_INCORRECT_STATE
FAILED = Result.RESULT_OPERATION_FAILED
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


def tags_match(wanted: TagsFilter, tags: list[str]) -> bool:
    """Whether tags pass a filter; an empty one lets everything pass."""
    if not wanted.tags:
        return True
    every = wanted.filter_mode == TagsFilter.FILTER_MODE_ALL
    return (all if every else any)(tag in tags for tag in wanted.tags)

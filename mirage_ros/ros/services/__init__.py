"""The node's services and actions, a module for each subject; here what several have: results, and changes of entities.

A result is a code always, and a sentence where it is not OK.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose
from jaxtyping import Float
from simulation_interfaces.msg import EntityCategory, EntityInfo, Result, TagsFilter

from mirage_ros.errors import MirageError, legible
from mirage_ros.protocol import EntityChange
from mirage_ros.ros.callbacks import Deferred
from mirage_ros.ros.chunks import Then
from mirage_ros.ros.messages import pose_from_ros
from mirage_ros.ros.worker import ChangeEntities, Command, Done, Failed
from mirage_ros.world.entities import EntityError, EntityState

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


CODES = {
    "name_not_unique": "NAME_NOT_UNIQUE",
    "name_invalid": "NAME_INVALID",
    "namespace_invalid": "NAMESPACE_INVALID",
    "unsupported_format": "UNSUPPORTED_FORMAT",
    "no_resource": "NO_RESOURCE",
    "parse": "RESOURCE_PARSE_ERROR",
    "missing_assets": "MISSING_ASSETS",
    "unsupported_assets": "UNSUPPORTED_ASSETS",
    "pose": "INVALID_POSE",
}
"""Which constant of a response stands for which kind of EntityError."""
LABEL = "label="
"""The tag of a body that tells its number, by which `labels/image` and `contacts` name it."""
CAMERA = EntityInfo(
    category=EntityCategory(category=EntityCategory.CATEGORY_ROBOT), description="A camera.", tags=["camera"]
)


def refused(response: Any, error: EntityError | MirageError) -> Any:
    """The response with the code of an error that it has one for."""
    kind = getattr(error, "kind", "")
    code = getattr(type(response), CODES.get(kind, ""), NOT_FOUND if kind == "not_found" else FAILED)
    return answered(response, code, str(error))


def carried_out(
    submit: Callable[[Command, Then], None],
    response: Any,
    changes: Sequence[EntityChange],
    then: Callable[[list], Any] | None = None,
) -> Any:
    """Has entities changed, and answers when that is done.

    Args:
        submit: of the session.
        then: the response to the outcomes, a name or an EntityError for each; without, the only one's.
    """
    deferred = Deferred()

    def finished(result: Done | Failed) -> None:
        if isinstance(result, Failed):
            deferred.finish(answered(response, FAILED, result.message))
            return
        outcomes = result.values["outcomes"]
        if then is not None:
            deferred.finish(then(outcomes))
        elif isinstance(outcomes[0], EntityError):
            deferred.finish(refused(response, outcomes[0]))
        else:
            deferred.finish(answered(response))

    try:
        submit(ChangeEntities(tuple(changes)), finished)
    except MirageError as error:
        return answered(response, FAILED, str(error))
    return deferred


def placed(
    frame: str, pose: Pose, bodies: Collection[str], world_from: Callable[[str], Float[np.ndarray, "4 4"]]
) -> tuple[Float[np.ndarray, "4 4"], str]:
    """A pose in the world, and ''; or one beside a body, and its name.

    Args:
        world_from: the pose of other frames; what it raises is raised.

    Raises:
        MirageError: it is no pose.
    """
    found = pose_from_ros(pose, "An entity's pose")
    return (found, frame) if frame in bodies else (world_from(frame) @ found, "")


def info(body: EntityState | None) -> EntityInfo:
    """What is said of a body, or of a camera, which is None here. A body's last tag is its number, as `own_tags` knows."""
    if body is None:
        return CAMERA
    category = EntityCategory(category=body.category)
    return EntityInfo(category=category, description=body.description, tags=[*body.tags, f"{LABEL}{body.number}"])


def own_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Those that the number gives no body."""
    return tuple(tag for tag in tags if not tag.startswith(LABEL))


def found(name: str, lacking: str, cameras: Sequence[str], bodies: Collection[str]) -> tuple[int, str]:
    """OK and '' if there is an entity of the name; else a result's code and the reason.

    Args:
        lacking: what keeps the session from answering, '' for nothing.
    """
    if lacking:
        return INCORRECT_STATE, lacking
    if name in cameras or name in bodies:
        return OK, ""
    return NOT_FOUND, unknown(name, [*cameras, *bodies])


def unknown(name: str, there: Sequence[str]) -> str:
    """Says that there is no such entity, and which there are."""
    more = f" and {len(there) - 20} more" if len(there) > 20 else ""
    return f"There is no entity '{name:.200}'; there are {', '.join(there[:20])}{more}."

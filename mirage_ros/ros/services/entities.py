"""The cameras as entities: where they are, and where they shall be.

Which entities a filter of the standard lets pass: by name, and by where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import regex
from jaxtyping import Float
from simulation_interfaces.msg import Bounds, EntityFilters, EntityState, NamedPose
from simulation_interfaces.srv import (
    GetEntities,
    GetEntitiesStates,
    GetEntityState,
    GetNamedPoses,
    SetEntityState,
)

from mirage_ros.errors import MirageError
from mirage_ros.ros.callbacks import Endpoints
from mirage_ros.ros.cameras import RigCamera
from mirage_ros.ros.messages.conversions import (
    pose_from_ros,
    pose_to_ros,
    stamp_to_ros,
    twist_to_ros,
)
from mirage_ros.ros.services import (
    FAILED,
    INCORRECT_STATE,
    NOT_FOUND,
    OK,
    UNSUPPORTED,
    answered,
    tags_match,
)
from mirage_ros.ros.session import Session
from mirage_ros.ros.tracks import TransformError

# So much of a filter is worth repeating.
SHOWN = 200
# Longer ones are no filter of a name, and take long to compile.
MOST_CHARACTERS = 500
# The search holds up everybody else meanwhile.
SEARCH_S = 0.02


class UnsupportedFilter(MirageError):
    """A filter of a kind that is not offered."""


def check_kinds(filters: EntityFilters) -> None:
    """Raises UnsupportedFilter for what cameras do not have, and for hulls."""
    given = {"categories": bool(filters.categories), "tags": bool(filters.tags.tags)}
    unsupported = [name for name, there in given.items() if there]
    if unsupported:
        raise UnsupportedFilter(
            f"A filter by {' and '.join(unsupported)} is not supported; filter by name or bounds."
        )
    if filters.bounds.type not in (Bounds.TYPE_EMPTY, Bounds.TYPE_SPHERE, Bounds.TYPE_BOX):
        raise UnsupportedFilter(
            f"Bounds of type {filters.bounds.type} are not supported; give a sphere or a box."
        )


def name_filter(text: str) -> Callable[[str], bool]:
    """Whether a name matches a POSIX extended regular expression.

    Raises MirageError for an expression that cannot be used; so does the function, for one that takes too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise MirageError(
            f"The filter is a regular expression of {len(text)} characters; give one of at most {MOST_CHARACTERS}."
        )
    try:
        pattern = regex.compile(text)
    except (regex.error, OverflowError, RecursionError) as error:
        raise MirageError(
            f"The filter '{text[:SHOWN]}' is no usable regular expression ({error}); simplify it."
        ) from error

    def matches(name: str) -> bool:
        try:
            return pattern.search(name, timeout=SEARCH_S) is not None
        except TimeoutError as error:
            raise MirageError(
                f"The filter '{text[:SHOWN]}' is a regular expression that takes more than {SEARCH_S} s; simplify it."
            ) from error

    return matches


def place_filter(bounds: Bounds) -> Callable[[Float[np.ndarray, "3"]], bool]:
    """Whether a point of the world overlaps the bounds, which are the world's, too.

    Raises:
        MirageError: the points of the bounds make no volume.
    """
    if bounds.type == Bounds.TYPE_EMPTY:
        return lambda position: True
    points = np.array([[point.x, point.y, point.z] for point in bounds.points])
    if len(points) != 2 or not np.isfinite(points).all():
        raise MirageError(
            f"The bounds have {len(points)} points, or some that are not finite; give 2: centre "
            "and radius of a sphere, or two opposite corners of a box."
        )
    if bounds.type == Bounds.TYPE_BOX:
        low, high = points.min(axis=0), points.max(axis=0)
        return lambda position: bool(((low <= position) & (position <= high)).all())
    centre, radius = points[0], points[1, 0]
    if radius < 0:
        raise MirageError(f"The sphere has the radius {radius} m; give 0 or more.")
    return lambda position: bool(np.linalg.norm(position - centre) <= radius)


START = "start"


class Entities:
    """get_entities, get_entities_states, get_entity_state, set_entity_state, get_named_poses.

    Args:
        names: of the cameras.
        rig: the same cameras with their mounts; empty for one camera without a rig.
    """

    def __init__(
        self, session: Session, names: Sequence[str], rig: Sequence[RigCamera], endpoints: Endpoints
    ) -> None:
        self._session, self._names, self._rig = session, list(names), rig
        endpoints.service(GetEntities, "~/get_entities", self._list)
        endpoints.service(GetEntitiesStates, "~/get_entities_states", self._states)
        endpoints.service(GetEntityState, "~/get_entity_state", self._get)
        endpoints.service(SetEntityState, "~/set_entity_state", self._set)
        endpoints.service(GetNamedPoses, "~/get_named_poses", self._poses)

    def _list(self, request, response):
        reason = self._session.lacking()
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        try:
            response.entities = self._matching(request.filters)
        except UnsupportedFilter as error:
            return answered(response, UNSUPPORTED, str(error))
        except MirageError as error:
            return answered(response, FAILED, str(error))
        return answered(response)

    def _states(self, request, response):
        self._list(request, response)
        response.states = [self._state(name) for name in response.entities]
        return response

    def _matching(self, filters: EntityFilters) -> list[str]:
        """Names of the cameras that pass; a camera is where its centre is."""
        check_kinds(filters)
        matches, inside = name_filter(filters.filter), place_filter(filters.bounds)
        return [
            name
            for name in self._names
            if matches(name) and inside(self._pose(name)[:3, 3])
        ]

    def _get(self, request, response):
        code, reason = self._refusal(request.entity)
        if reason:
            return answered(response, code, reason)
        response.state = self._state(request.entity)
        return answered(response)

    def _state(self, entity: str) -> EntityState:
        session = self._session
        state = EntityState(pose=pose_to_ros(self._pose(entity)))
        state.twist = twist_to_ros(*session.cameras.twist(self._names.index(entity)))
        state.header.frame_id = session.config.world_frame
        state.header.stamp = stamp_to_ros(self._session.now_ns)
        return state

    def _set(self, request, response):
        code, reason = self._refusal(request.entity)
        if reason:
            return answered(response, code, reason)
        if moves(request):
            reason = (
                "A camera keeps no velocity of its own; set twist and acceleration to zero, or "
                "plan poses on TF or as a Path."
            )
            return answered(response, FAILED, reason)
        if not request.set_pose:
            return answered(response)
        if request.entity != self._names[0]:
            reason = f"'{request.entity}' is mounted on the rig; set '{self._names[0]}'."
            return answered(response, FAILED, reason)
        if self._session.plan.pending():
            reason = "The camera follows the plan on TF; it has poses that are not rendered yet."
            return answered(response, FAILED, reason)
        return self._move(request.state, response)

    def _move(self, state, response):
        session, world = self._session, self._session.config.world_frame
        frame = state.header.frame_id or world
        try:
            pose = pose_from_ros(state.pose)
        except MirageError as error:
            return answered(response, SetEntityState.Response.INVALID_POSE, str(error))
        try:
            if frame != world:
                pose = session.buffer.matrix(world, frame, self._session.now_ns) @ pose
        except TransformError as error:
            return answered(response, NOT_FOUND, str(error))
        session.take_back()
        planned = pose @ np.linalg.inv(self._mount(0))
        session.plan.rest_at(planned)
        session.cameras.placed(pose)
        return answered(response)

    def _poses(self, request, response):
        reason = self._session.lacking()
        if reason:
            return answered(response, INCORRECT_STATE, reason)
        if tags_match(request.tags, [START]):
            pose = pose_to_ros(self._session.world.start_pose)
            text = "Where the world's seed was taken from."
            response.poses = [NamedPose(name=START, description=text, tags=[START], pose=pose)]
        return answered(response)

    def _refusal(self, entity: str) -> tuple[int, str]:
        reason = self._session.lacking()
        if reason:
            return INCORRECT_STATE, reason
        if entity not in self._names:
            reason = f"There is no entity '{entity}'; there are {', '.join(self._names)}."
            return NOT_FOUND, reason
        return OK, ""

    def _pose(self, entity: str) -> np.ndarray:
        index = self._names.index(entity)
        pose = self._session.cameras.pose(index)
        if pose is not None:
            return pose
        first_from_world = np.linalg.inv(self._mount(0))
        return self._session.cameras.first @ first_from_world @ self._mount(index)

    def _mount(self, index: int) -> np.ndarray:
        """planned_from_camera; where only TF knows it, as of now."""
        session = self._session
        if not self._rig:
            return np.eye(4)
        camera = self._rig[index]
        if camera.planned_from_camera is not None:
            return camera.planned_from_camera
        try:
            return session.buffer.matrix(session.config.camera_frame, camera.frame, self._session.now_ns)
        except TransformError:
            return np.eye(4)


def moves(request: SetEntityState.Request) -> bool:
    """Whether a velocity or an acceleration is asked for that is not zero."""
    wanted = [request.state.twist] * request.set_twist
    wanted += [request.state.acceleration] * request.set_acceleration
    parts = [part for motion in wanted for part in (motion.linear, motion.angular)]
    return any(value != 0 for part in parts for value in (part.x, part.y, part.z))

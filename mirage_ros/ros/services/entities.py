"""Cameras and spawned bodies as entities: where they are, and where they shall be.

Which entities a filter of the standard lets pass: by name, and by where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import regex
from geometry_msgs.msg import Pose
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
from mirage_ros.protocol import Move
from mirage_ros.ros.callbacks import Endpoints
from mirage_ros.ros.cameras import RigCamera
from mirage_ros.ros.messages import (
    pose_from_ros,
    pose_to_ros,
    stamp_to_ros,
    twist_from_ros,
    twist_to_ros,
)
from mirage_ros.ros.services import (
    FAILED,
    INCORRECT_STATE,
    NOT_FOUND,
    UNSUPPORTED,
    answered,
    carried_out,
    found,
    info,
    placed,
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
    """Raises UnsupportedFilter for hulls."""
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


def place_filter(bounds: Bounds) -> Callable[[Float[np.ndarray, "2 3"]], bool]:
    """Whether a box along the world's axes (lower and upper corner) overlaps the bounds, which are the world's, too.

    Raises:
        MirageError: the points of the bounds make no volume.
    """
    if bounds.type == Bounds.TYPE_EMPTY:
        return lambda box: True
    points = np.array([[point.x, point.y, point.z] for point in bounds.points])
    if len(points) != 2 or not np.isfinite(points).all():
        raise MirageError(
            f"The bounds have {len(points)} points, or some that are not finite; give 2: centre "
            "and radius of a sphere, or two opposite corners of a box."
        )
    if bounds.type == Bounds.TYPE_BOX:
        low, high = points.min(axis=0), points.max(axis=0)
        return lambda box: bool(((low <= box[1]) & (box[0] <= high)).all())
    centre, radius = points[0], points[1, 0]
    if radius < 0:
        raise MirageError(f"The sphere has the radius {radius} m; give 0 or more.")
    return lambda box: bool(np.linalg.norm(centre.clip(*box) - centre) <= radius)


START = "start"


class Entities:
    """get_entities, get_entities_states, get_entity_state, set_entity_state, get_named_poses.

    Args:
        names: of the cameras.
        rig: the same cameras with their mounts; empty for one camera without a rig.
        of_robot: where a camera is at a time that is not of one rig, but of robots; None for one rig.
    """

    def __init__(
        self,
        session: Session,
        names: Sequence[str],
        rig: Sequence[RigCamera],
        endpoints: Endpoints,
        of_robot: Callable[[int, int], Float[np.ndarray, "4 4"]] | None = None,
    ) -> None:
        self._session, self._names, self._rig, self._of_robot = session, list(names), rig, of_robot
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
        """Names of the cameras and bodies that pass; a camera is where its centre is, a body where its box is."""
        check_kinds(filters)
        matches, inside = name_filter(filters.filter), place_filter(filters.bounds)
        categories = {category.category for category in filters.categories}

        def said(name: str) -> bool:
            what = info(self._session.bodies.get(name))
            return tags_match(filters.tags, what.tags) and (not categories or what.category.category in categories)

        names = [*self._names, *self._session.bodies]
        return [name for name in names if matches(name) and said(name) and inside(self._box(name))]

    def _box(self, entity: str) -> Float[np.ndarray, "2 3"]:
        if entity in self._names:
            return np.stack([self._pose(entity)[:3, 3]] * 2)
        return self._session.bodies[entity].box_at(self._session.now_ns)

    def _get(self, request, response):
        code, reason = self._refusal(request.entity)
        if reason:
            return answered(response, code, reason)
        response.state = self._state(request.entity)
        return answered(response)

    def _state(self, entity: str) -> EntityState:
        session = self._session
        if entity in self._names:
            pose, twist = self._pose(entity), session.cameras.twist(self._names.index(entity))
        else:
            body = session.bodies[entity]
            pose, twist = body.pose_at(session.now_ns), body.twist_at(session.now_ns)
        state = EntityState(pose=pose_to_ros(pose), twist=twist_to_ros(*twist))
        state.header.frame_id = session.config.world_frame
        state.header.stamp = stamp_to_ros(self._session.now_ns)
        return state

    def _set(self, request, response):
        code, reason = self._refusal(request.entity)
        if reason:
            return answered(response, code, reason)
        if request.entity not in self._names:
            return self._move_body(request, response)
        if moves(request):
            reason = (
                "A camera keeps no velocity of its own; set twist and acceleration to zero, or "
                "plan poses on TF or as a Path."
            )
            return answered(response, FAILED, reason)
        if not request.set_pose:
            return answered(response)
        if request.entity != self._names[0]:
            other = f"is mounted on the rig; set '{self._names[0]}'" if self._of_robot is None else "goes where TF says"
            reason = f"'{request.entity}' {other}."
            return answered(response, FAILED, reason)
        if self._session.plan.pending():
            reason = "The camera follows the plan on TF; it has poses that are not rendered yet."
            return answered(response, FAILED, reason)
        return self._move(request.state, response)

    def _move(self, state, response):
        session = self._session
        try:
            pose = pose_from_ros(state.pose)
        except MirageError as error:
            return answered(response, SetEntityState.Response.INVALID_POSE, str(error))
        try:
            pose = session.world_from(state.header.frame_id) @ pose
        except TransformError as error:
            return answered(response, NOT_FOUND, str(error))
        session.take_back()
        planned = pose @ np.linalg.inv(self._mount(0))
        session.plan.rest_at(planned)
        session.cameras.placed(pose)
        return answered(response)

    def _move_body(self, request, response):
        """A body is put elsewhere, or gets a velocity that it keeps, in whatever frame the state is."""
        session, state, name = self._session, request.state, request.entity
        frame = state.header.frame_id
        accelerates = SetEntityState.Request(state=state, set_acceleration=request.set_acceleration)
        if moves(accelerates):
            return answered(response, FAILED, "A body keeps a velocity and no acceleration; set acceleration to zero.")
        try:
            pose, beside = placed(frame, state.pose if request.set_pose else Pose(), session.bodies, session.world_from)
        except TransformError as error:
            return answered(response, NOT_FOUND, str(error))
        except MirageError as error:
            return answered(response, SetEntityState.Response.INVALID_POSE, str(error))
        twist = None
        if request.set_twist:
            turn = np.eye(3) if beside == name else self._turn(frame)
            twist = tuple(turn @ part for part in twist_from_ros(state.twist))
        wanted = pose if request.set_pose else None
        return carried_out(session.submit, response, [Move(name, wanted, twist, beside == name, beside=beside)])

    def _turn(self, frame: str) -> Float[np.ndarray, "3 3"]:
        """From a frame's, or a body's, axes to the world's."""
        session = self._session
        pose = session.bodies[frame].pose_at(session.now_ns) if frame in session.bodies else session.world_from(frame)
        return pose[:3, :3]

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
        return found(entity, self._session.lacking(), self._names, self._session.bodies)

    def _pose(self, entity: str) -> np.ndarray:
        index = self._names.index(entity)
        pose = self._session.cameras.pose(index)
        if pose is not None:
            return pose
        if self._of_robot is not None:
            return self._of_robot(index, self._session.now_ns)
        first_from_world = np.linalg.inv(self._mount(0))
        return self._session.cameras.first @ first_from_world @ self._mount(index)

    def _mount(self, index: int) -> np.ndarray:
        """planned_from_camera; where only TF knows it, as of now."""
        session = self._session
        if not self._rig or self._of_robot is not None:
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

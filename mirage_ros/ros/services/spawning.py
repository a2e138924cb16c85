"""Entities of the world: how they are spawned and deleted, what can be, what is said of them, and topics that move them.

The worker changes them, between two chunks, and answers what became of each; the session holds what there is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped, Vector3
from nav_msgs.msg import Path as PathMessage
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState
from simulation_interfaces.msg import Bounds, EntityCategory, Resource, Spawnable, SpawnResult
from simulation_interfaces.srv import (
    DeleteEntity,
    GetEntityBounds,
    GetEntityInfo,
    GetSpawnables,
    SetEntityInfo,
    SpawnEntities,
    SpawnEntity,
)
from std_msgs.msg import String

from mirage_ros.data.meshes import SHAPE_SCHEME, SHAPES, Spawnables, description_of
from mirage_ros.data.robot_models import MODELS
from mirage_ros.errors import MirageError
from mirage_ros.files import share_path, user_path
from mirage_ros.geometry.rigid import Track, from_rows
from mirage_ros.protocol import SECOND_NS, Delete, Describe, Move, Spawn
from mirage_ros.ros.callbacks import Endpoints
from mirage_ros.ros.messages import COMMAND_TYPES, command_publishers, twist_from_ros
from mirage_ros.ros.services import (
    FAILED,
    INCORRECT_STATE,
    OK,
    answered,
    carried_out,
    found,
    info,
    own_tags,
    placed,
    refused,
)
from mirage_ros.ros.robots import Robot
from mirage_ros.ros.session import Session
from mirage_ros.ros.tf import poses_from_bytes, untimed
from mirage_ros.ros.topics import LATCHED
from mirage_ros.ros.tracks import TransformError
from mirage_ros.ros.worker import ChangeEntities, Done, Failed
from mirage_ros.world.entities import FASTEST, EntityError

CATEGORIES = (
    EntityCategory.CATEGORY_OBJECT,
    EntityCategory.CATEGORY_ROBOT,
    EntityCategory.CATEGORY_HUMAN,
    EntityCategory.CATEGORY_DYNAMIC_OBJECT,
    EntityCategory.CATEGORY_STATIC_OBJECT,
)
MOST_LISTED, MOST_AT_ONCE = 1000, 1000
DESCRIPTION = "robot_description"


def spawnable(uri: str, text: str) -> Spawnable:
    return Spawnable(entity_resource=Resource(uri=uri), description=text)


def shapes() -> Iterator[Spawnable]:
    for kind, measures in SHAPES.items():
        usual = ", ".join(f"{name}={','.join(f'{v:g}' for v in values)}" for name, values in measures.items())
        yield spawnable(f"{SHAPE_SCHEME}://{kind}", f"A {kind}: ?{usual.replace(', ', '&')}&color=RRGGBB, in metres.")


def models(paths: Iterable[Path]) -> Iterator[Spawnable]:
    share = share_path("config").parent
    for path in paths:
        shipped = path.is_relative_to(share)
        uri = f"package://mirage_ros/{path.relative_to(share).as_posix()}" if shipped else path.absolute().as_uri()
        yield spawnable(uri, path.stem)


class Spawning:
    """spawn_entity, spawn_entities, delete_entity, get_spawnables, get_entity_bounds, get and set_entity_info.

    Args:
        names: of the cameras, which are neither spawned nor deleted.
    """

    def __init__(self, session: Session, names: Sequence[str], endpoints: Endpoints) -> None:
        self._session, self._cameras = session, frozenset(names)
        endpoints.service(SpawnEntity, "~/spawn_entity", self._spawn)
        endpoints.service(SpawnEntities, "~/spawn_entities", self._spawn_all)
        endpoints.service(DeleteEntity, "~/delete_entity", self._delete)
        endpoints.service(GetSpawnables, "~/get_spawnables", self._spawnables)
        endpoints.service(GetEntityBounds, "~/get_entity_bounds", self._bounds)
        endpoints.service(GetEntityInfo, "~/get_entity_info", self._info)
        endpoints.service(SetEntityInfo, "~/set_entity_info", self._describe)

    def _spawn(self, request, response):
        if reason := self._session.lacking():
            return answered(response, INCORRECT_STATE, reason)

        def then(outcomes: list) -> Any:
            return _spawned(response, outcomes[0])

        change = self._change(request, ())
        if not isinstance(change, Spawn):
            return _spawned(response, change)
        return carried_out(self._session.submit, response, [change], then)

    def _spawn_all(self, request, response):
        if reason := self._session.lacking():
            return answered(response, INCORRECT_STATE, reason)
        wanted = request.spawn_requests
        if len(wanted) > MOST_AT_ONCE:
            return answered(response, FAILED, f"{len(wanted)} entities at once; give at most {MOST_AT_ONCE}.")
        names = [spawn.name for spawn in wanted]
        changes = [self._change(spawn, names[:index]) for index, spawn in enumerate(wanted)]

        def then(outcomes: list) -> Any:
            came = iter(outcomes)
            outcomes = [next(came) if isinstance(change, Spawn) else change for change in changes]
            response.results = [_spawned(SpawnResult(), outcome) for outcome in outcomes]
            failed = sum(isinstance(outcome, MirageError) for outcome in outcomes)
            if not failed:
                return answered(response)
            text = f"{failed} of {len(outcomes)} entities were not spawned; each result says why."
            return answered(response, SpawnEntities.Response.ENTITIES_SPAWN_FAILED, text)

        return carried_out(self._session.submit, response, [c for c in changes if isinstance(c, Spawn)], then)

    def _change(self, wanted, coming: Sequence[str]) -> Spawn | EntityError:
        """What the worker is to do for a SpawnEntity, or why it cannot be done."""
        initial, resource = wanted.initial_pose, wanted.entity_resource
        try:
            there = {*self._session.bodies, *coming}
            pose, beside = placed(initial.header.frame_id, initial.pose, there, self._session.world_from)
        except TransformError as error:
            return EntityError(str(error), "not_found")
        except MirageError as error:
            return EntityError(str(error), "pose")
        rename, namespace = wanted.allow_renaming, wanted.entity_namespace
        return Spawn(wanted.name, resource.uri, pose, rename, resource.resource_string, namespace, beside)

    def _delete(self, request, response):
        name = request.entity
        if reason := self._session.lacking():
            return answered(response, INCORRECT_STATE, reason)
        if name in self._cameras:
            return answered(response, FAILED, f"'{name}' is a camera of the node, which cannot be deleted.")
        return carried_out(self._session.submit, response, [Delete(name)])

    def _spawnables(self, request, response):
        own = self._session.config.spawnables_folder
        spawnables = Spawnables(user_path(own) if own else None)
        paths, left_out = dict.fromkeys(islice(spawnables.files(MODELS), MOST_LISTED)), []
        for source in request.sources:
            try:
                root = spawnables.path_of(source)
            except MirageError:
                root = None
            if root is None or not root.is_dir():
                left_out.append(source)
            else:
                paths |= dict.fromkeys(islice(Spawnables(root).files(MODELS), MOST_LISTED))
        response.spawnables = [*shapes(), *models(paths)]
        text = f"No folders that models are read from: {', '.join(left_out):.300}." if left_out else ""
        return answered(response, text=text)

    def _bounds(self, request, response):
        if not self._there(request.entity, response):
            return response
        if request.entity not in self._cameras:
            low, high = self._session.bodies[request.entity].bounds_m.tolist()
            corners = [Vector3(x=x, y=y, z=z) for x, y, z in (high, low)]
            response.bounds = Bounds(type=Bounds.TYPE_BOX, points=corners)
        return response

    def _info(self, request, response):
        if self._there(request.entity, response):
            response.info = info(self._session.bodies.get(request.entity))
        return response

    def _describe(self, request, response):
        name, wanted = request.entity, request.info
        if not self._there(name, response):
            return response
        if name in self._cameras:
            return answered(response, FAILED, f"'{name}' is a camera of the node, which stays what it is.")
        if wanted.category.category not in CATEGORIES:
            text = f"There is no category {wanted.category.category}; give one of {', '.join(map(str, CATEGORIES))}."
            return answered(response, FAILED, text)
        change = Describe(name, wanted.category.category, wanted.description, own_tags(wanted.tags))
        return carried_out(self._session.submit, response, [change])

    def _there(self, name: str, response) -> bool:
        """Whether there is an entity of the name; the response says so."""
        code, reason = found(name, self._session.lacking(), sorted(self._cameras), self._session.bodies)
        answered(response, code, reason)
        return code == OK


def describe(node: Node, robots: Iterable[Robot], folder: str) -> list[Publisher]:
    """Publishes NAMESPACE/robot_description of each robot with a body, for RViz and whoever comes."""
    publishers = []
    for robot in robots:
        if robot.body:
            text = description_of(robot.body, robot.namespace, Spawnables(user_path(folder) if folder else None))
            publishers.append(node.create_publisher(String, f"{robot.namespace}/{DESCRIPTION}", LATCHED))
            publishers[-1].publish(String(data=text))
    return publishers


def _spawned(response: Any, outcome: str | EntityError) -> Any:
    """A response, or one of many results, with what became of a request."""
    if isinstance(outcome, EntityError):
        return refused(response, outcome)
    response.entity_name = outcome
    return answered(response)


ENTITIES = "entities"
LISTENED = {
    "cmd_vel": COMMAND_TYPES,
    "path": {"nav_msgs/msg/Path": PathMessage},
    "joint_states": {"sensor_msgs/msg/JointState": JointState},
}
"""Topics of each body, with the types that are heard there."""
MOST_PATH_POSES = 10_000
STANDING = np.zeros(3), np.zeros(3)


class EntityCommands:
    """Moves bodies by what is published on entities/NAME/cmd_vel, as Twist or TwistStamped of any stamp, and on
    entities/NAME/path; their joints by entities/NAME/joint_states, those of a robot by NAME/joint_states. A topic is
    subscribed to once somebody publishes there: most bodies are never moved so. One change is with the worker at a time;
    meanwhile the newest command of each body waits.
    """

    def __init__(self, session: Session, node: Node) -> None:
        self._session, self._node = session, node
        # By body and topic: the type that is heard.
        self._heard: dict[tuple[str, str], tuple[str, Subscription]] = {}
        self._waiting, self._joints = dict[str, Move](), dict[str, dict[str, float]]()
        self._at_work = False

    def look_around(self) -> None:
        """Subscribes to what is published now, in the type that it is, and leaves what is not, or whose body is gone."""
        bodies = self._session.bodies if self._session.has_world else {}
        if not (bodies or self._heard):
            return
        for key in [key for key in self._heard if key[0] not in bodies]:
            self._node.destroy_subscription(self._heard.pop(key)[1])
        known = {topic for topic, _ in self._node.get_topic_names_and_types()}
        for name, body in bodies.items():
            for part in LISTENED:
                of_robot = body.carried and part == "joint_states"
                topic = self._node.resolve_topic_name(f"{name if of_robot else f'{ENTITIES}/{name}'}/{part}")
                if topic in known:
                    self._listen(name, part, topic)
        self._pass_on()  # what a full queue kept waiting

    def _listen(self, name: str, part: str, topic: str) -> None:
        published = command_publishers(self._node, topic, LISTENED[part])
        heard = self._heard.get((name, part))
        # What was published once is heard on: its last message may be on its way.
        if not published or heard is not None and heard[0] in published:
            return
        if heard is not None:
            self._node.destroy_subscription(heard[1])
        kind, take = next(iter(published)), {"cmd_vel": self._on_command, "path": self._on_path}.get(part, self._on_joints)
        on_message = functools.partial(take, name)
        subscription = self._node.create_subscription(LISTENED[part][kind], topic, on_message, 10, raw=part == "path")
        self._heard[name, part] = kind, subscription

    def _on_joints(self, name: str, message: JointState) -> None:
        self._joints[name] = self._joints.get(name, {}) | dict(zip(message.name, message.position, strict=False))
        self._pass_on()

    def _on_command(self, name: str, message: Twist | TwistStamped) -> None:
        twist = twist_from_ros(message if isinstance(message, Twist) else message.twist)
        if not (np.abs(np.concatenate(twist)) <= FASTEST).all():
            text = f"entities/{name}/cmd_vel holds NaN, infinity or more than {FASTEST:g} m/s or rad/s; it is ignored."
            self._session.health.error(ENTITIES, text)
            return
        self._waiting[name] = Move(name, None, twist, True, round(self._session.config.entity_timeout_s * SECOND_NS))
        self._pass_on()

    def _on_path(self, name: str, data: bytes) -> None:
        """A path to follow at its stamps, or at a speed where it has none; one without poses stops the body."""
        config, what = self._session.config, f"the path of '{name}'"
        try:
            path = poses_from_bytes(data, what, MOST_PATH_POSES, "the rest when those are passed")
            if path.frame not in ("", config.world_frame):
                raise MirageError(f"The path of '{name}' is in frame '{path.frame}'; send it in '{config.world_frame}'.")
        except MirageError as error:
            self._session.health.error(ENTITIES, str(error))
            return
        if len(path.poses):
            speed_mps = config.entity_speed_mps if untimed(path.stamps_ns) else 0.0
            route = Track(tuple(path.stamps_ns.tolist()), from_rows(path.poses))
            self._waiting[name] = Move(name, route=route, speed_mps=speed_mps)
        else:
            self._waiting[name] = Move(name, twist=STANDING)
        self._pass_on()

    def _pass_on(self) -> None:
        session = self._session
        if self._at_work or not (self._waiting or self._joints):
            return
        if session.has_world:
            moves = [*self._waiting.values()]
            moves += [Move(name, joints=tuple(joints.items())) for name, joints in self._joints.items() if joints]
            session.submit(ChangeEntities(tuple(moves)), self._done)
            self._at_work = True
        # Passed on, or for bodies that are gone with their world.
        self._waiting.clear()
        self._joints.clear()

    def _done(self, result: Done | Failed) -> None:
        self._at_work = False
        outcomes = [result.message] if isinstance(result, Failed) else result.values["outcomes"]
        failed = outcomes if isinstance(result, Failed) else [o for o in outcomes if isinstance(o, MirageError)]
        if failed:
            self._session.health.error(ENTITIES, str(failed[0]))
        else:
            self._session.health.ok(ENTITIES)
        self._pass_on()

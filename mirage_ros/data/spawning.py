"""Changes of a world's entities, carried out where its models are read.

The node does so in its worker: a large model holds up a chunk, not the services. What was read last is kept, so that
a hundred chairs are one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from mirage_ros.data.meshes import Spawnables, stamp_of
from mirage_ros.data.robot_models import Model, read_model
from mirage_ros.geometry.rigid import Track
from mirage_ros.protocol import Delete, Describe, EntityChange, Move, Spawn
from mirage_ros.world.entities import Entities, EntityError, Mesh, Motion, plain_name

MOST_KEPT = 16
NAMELESS = "entity"
TURN_RPS = np.pi
"""A body that follows a path without stamps turns no faster."""


class EntityChanges:
    """Carries changes out.

    Args:
        folder: of the user's own models, '' for none.
        reserved: names that no entity may have.

    Attributes:
        robots: names of entities that go where their robots are, whatever is asked.
    """

    def __init__(self, folder: str, reserved: Collection[str] = ()) -> None:
        self._reserved = reserved
        self.robots: Collection[str] = ()
        self._spawnables = Spawnables(Path(folder) if folder else None)
        self._kept: OrderedDict[tuple, Model] = OrderedDict()
        # By name and number: where joints were put last.
        self._joints: dict[tuple[str, int], dict[str, float]] = {}

    def __call__(
        self, entities: Entities, stamp_ns: int, changes: tuple[EntityChange, ...]
    ) -> tuple[Entities, list[str | EntityError]]:
        """The entities after all changes that can be done, and the name or the refusal of each."""
        outcomes: list[str | EntityError] = []
        for change in changes:
            try:
                entities, name = self._changed(entities, stamp_ns, change)
                outcomes.append(name)
            except EntityError as error:
                outcomes.append(error)
        return entities, outcomes

    def _changed(self, entities: Entities, stamp_ns: int, change: EntityChange) -> tuple[Entities, str]:
        if isinstance(change, Spawn):
            return self._spawned(entities, stamp_ns, change)
        if isinstance(change, Delete | Move) and change.name in self.robots and not getattr(change, "joints", ()):
            raise EntityError(
                f"'{change.name}' is a robot of the node, which goes where TF says and stays; drive its base, on "
                f"{change.name}/cmd_vel."
            )
        if isinstance(change, Delete):
            return entities.without(change.name), change.name
        if isinstance(change, Move) and change.joints:
            return self._jointed(entities, change), change.name
        if isinstance(change, Move):
            return _moved(entities, stamp_ns, change), change.name
        if isinstance(change, Describe):
            more = change.category, change.description, change.tags
            return entities.described(change.name, *more), change.name
        return entities.cleared(), ""

    def _spawned(self, entities: Entities, stamp_ns: int, change: Spawn) -> tuple[Entities, str]:
        model = self._model(change.uri, change.text)
        name = change.name or model.name
        if not name and not change.rename:
            raise EntityError("An entity without a name; give one, or allow renaming.", "name_invalid")
        namespace = change.namespace.strip("/")
        if namespace and not plain_name(namespace):
            raise EntityError(
                f"An entity was to have the namespace '{namespace:.200}'; give letters, digits and _, parted by /.",
                "namespace_invalid",
            )
        name = "/".join(part for part in (namespace, name or NAMELESS) if part)
        if change.rename:
            name = entities.free_name(name, self._reserved)
        elif name in self._reserved:
            raise EntityError(f"'{name}' is the name of a camera or a robot; choose another name.", "name_not_unique")
        pose = _placed(entities, stamp_ns, change.pose, change.beside)
        return entities.spawned(name, model.mesh, pose, stamp_ns, source=change.uri or change.text), name

    def mesh(self, uri: str) -> Mesh:
        """A model's. Raises EntityError for one that cannot be drawn."""
        return self._model(uri, "").mesh

    def _jointed(self, entities: Entities, change: Move) -> Entities:
        """An entity with some of its joints elsewhere; the others stay."""
        state = entities.known(change.name).state
        source = state.source
        model = self._model("", source) if source.lstrip().startswith("<") else self._model(source, "")
        if model.posed is None:
            raise EntityError(f"'{change.name}' was made of {source:.100}, which has no joints; spawn URDF or MJCF.", "unsupported_assets")
        positions = self._joints.get((state.name, state.number), {}) | dict(change.joints)
        mesh = model.posed(positions)
        self._joints = {key: value for key, value in self._joints.items() if key[0] in entities.bodies}
        self._joints[state.name, state.number] = positions
        return entities.put(replace(state, bounds_m=mesh.bounds_m, resting=0), mesh)

    def _model(self, uri: str, text: str) -> Model:
        """A model; one that was read before is the same object."""
        key = (uri, text, stamp_of(uri, self._spawnables))
        if key not in self._kept:
            self._kept[key] = read_model(uri, self._spawnables, text)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _moved(entities: Entities, stamp_ns: int, change: Move) -> Entities:
    if change.route is not None:
        return entities.led(change.name, stamp_ns, _timed(entities, stamp_ns, change))
    pose = None if change.pose is None else _placed(entities, stamp_ns, change.pose, change.beside)
    until_ns = None if change.lasts_ns is None else stamp_ns + change.lasts_ns
    motion = None if change.twist is None else Motion(*change.twist, change.in_body, until_ns)
    return entities.moved(change.name, stamp_ns, pose, motion)


def _timed(entities: Entities, stamp_ns: int, change: Move) -> Track:
    """The path that a body is to follow, from where it is where the path does not say when."""
    if not change.speed_mps:
        return change.route
    poses = np.concatenate([entities.known(change.name).state.pose_at(stamp_ns)[None], change.route.poses])
    return Track.at_speed(stamp_ns, poses, change.speed_mps, TURN_RPS)


def _placed(entities: Entities, stamp_ns: int, pose: np.ndarray, beside: str) -> np.ndarray:
    return entities.known(beside).state.pose_at(stamp_ns) @ pose if beside else pose

"""Bodies that stand in a world and are none of its memory: their triangles, where they are, and how they move.

A registry is a value: each change gives another one, so that a change that fails leaves the old one. Numbers are never
given twice. A body moves by a constant velocity since a stamp; where it is at any later time follows from that alone.
Drawing is in drawing.py, so that whoever asks only where things are needs no compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import check_pose
from mirage_ros.geometry.rigid import Track, exp, exp_rotation, orthonormal
from mirage_ros.protocol import SECOND_NS

MOST_TRIANGLES = 200_000
MOST_ENTITIES = 1000
LARGEST_M, FASTEST = 1000.0, 1000.0
CREASE = 0.77
"""Cosine of the angle up to which faces that meet are shaded as one round surface."""
LONGEST_NAME = 200
PHYSICS, WIDEST_M = ("off", "contact", "mujoco"), 1.5
STATIC, ROBOT = 5, 1
"""Categories of simulation_interfaces; bodies of the first one physics leave where they are."""


class EntityError(MirageError):
    """What was asked of entities cannot be done.

    Attributes:
        kind: which of the reasons of the standard services it is, such as "name_not_unique"; "" for none of them.
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in a body's own axes: x ahead, y left, z up, metres.

    Attributes:
        vertices_m, faces: each place is there once, and used.
        normals: of each face's corners; those of round surfaces lie between the faces'.
        colours: of faces.
        closed: no face is ever seen from its back.
    """

    vertices_m: Float32[np.ndarray, "v 3"]
    faces: Int32[np.ndarray, "f 3"]
    normals: Float32[np.ndarray, "f 3 3"]
    colours: UInt8[np.ndarray, "f 3"]
    closed: bool

    @classmethod
    def of(cls, vertices_m: np.ndarray, faces: np.ndarray, colours: np.ndarray | Sequence, what: str = "The mesh") -> Mesh:
        """A mesh of raw triangles; `colours` is one for all, or one for each face. EntityError for what is none."""
        check_triangles(len(faces), what)
        vertices_m, faces = np.asarray(vertices_m, np.float64), np.asarray(faces, np.int64)
        if not len(faces):
            raise EntityError(f"{what} has no triangle; give one with a surface.", "parse")
        if faces.min() < 0 or faces.max() >= len(vertices_m):
            raise EntityError(f"{what} names vertices that it does not have; mend the file.", "parse")
        used = vertices_m[faces]
        if not np.isfinite(used).all():
            raise EntityError(f"{what} has vertices that are NaN or infinite; mend the file.", "parse")
        if np.abs(used).max() > LARGEST_M:
            far = f"{what} reaches {np.abs(used).max():.4g} m from its origin"
            raise EntityError(f"{far}, at most {LARGEST_M:g} m are drawn; scale it to metres.", "parse")
        vertices, faces = _merged(used)
        colours = np.broadcast_to(np.asarray(colours, np.uint8)[..., :3], (len(faces), 3))
        crosses = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
        kept = np.linalg.norm(crosses, axis=1) > 0
        if not kept.any():
            raise EntityError(f"{what} has no triangle with an area; give one with a surface.", "parse")
        vertices, faces = _merged(vertices[faces[kept]])
        normals = _corner_normals(vertices, faces)
        whole = vertices.astype(np.float32), faces.astype(np.int32)
        return cls(*whole, normals, colours[kept].copy(), _closed(vertices, faces))

    @property
    def bounds_m(self) -> Float32[np.ndarray, "2 3"]:
        """Lower and upper corner of the box along the body's axes."""
        return np.stack([self.vertices_m.min(0), self.vertices_m.max(0)])


def check_triangles(count: int, what: str) -> None:
    """Raises EntityError for more than are drawn."""
    if count > MOST_TRIANGLES:
        text = f"{what} has {count:,} triangles, at most {MOST_TRIANGLES:,} are drawn; simplify it."
        raise EntityError(text, "unsupported_assets")


def _merged(corners: Float[np.ndarray, "f 3 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of triangles, each place once."""
    places, index = np.unique(corners.reshape(-1, 3).astype(np.float32), axis=0, return_inverse=True)
    return places.astype(np.float64), index.reshape(-1, 3)


def _corner_normals(vertices: np.ndarray, faces: np.ndarray) -> Float32[np.ndarray, "f 3 3"]:
    corners = vertices[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    smooth = np.zeros_like(vertices)
    for corner in range(3):  # each face counts by its angle there, however it was cut into triangles
        one, two = (corners[:, (corner + step) % 3] - corners[:, corner] for step in (1, 2))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        angle = np.arccos(np.clip((one * two).sum(1) / np.maximum(lengths, 1e-30), -1, 1))
        np.add.at(smooth, faces[:, corner], angle[:, None] * flat)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-30)
    around = smooth[faces]
    alike = np.einsum("fci,fi->fc", around, flat) >= CREASE
    return np.where(alike[..., None], around, flat[:, None]).astype(np.float32)


def _closed(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether each edge is there once in either direction, and the faces look outwards."""
    starts, ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    one, back = np.sort(starts * len(vertices) + ends), np.sort(ends * len(vertices) + starts)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return bool((one == back).all() and (np.diff(one) > 0).all() and (a * np.cross(b, c)).sum() > 0)


@dataclass(frozen=True, eq=False)
class Motion:
    """A constant velocity.

    Attributes:
        linear: m/s; angular: rad/s.
        in_body: along the body's own axes, else along the world's.
        until_ns: it stands still from then on; None is never.
    """

    linear: Float[np.ndarray, "3"]
    angular: Float[np.ndarray, "3"]
    in_body: bool = False
    until_ns: int | None = None

    def __post_init__(self) -> None:
        values = np.concatenate([self.linear, self.angular])
        if not (np.abs(values) <= FASTEST).all():  # neither is NaN
            raise EntityError(
                f"A velocity is {values.tolist()}; give finite numbers up to {FASTEST:g} m/s and rad/s.", "pose"
            )


STILL = Motion(np.zeros(3), np.zeros(3))


@dataclass(frozen=True, eq=False)
class EntityState:
    """All of a body but its triangles.

    Attributes:
        name, number: both its own as long as the world lasts; the number is its pixels' label.
        pose: world_from_entity at `stamp_ns`; `start_pose`: when it was spawned.
        motion: since then.
        bounds_m: lower and upper corner along its own axes.
        category: of simulation_interfaces/EntityCategory.
        source: what it was made of.
        passed: where physics took it before `stamp_ns`; route: the path that it follows, whatever physics say.
        resting: where physics found it at rest, what was around it then, as a number; 0 elsewhere.
        carried: it goes where its robot is, whatever physics say; it is no part of a saved world.
    """

    name: str
    number: int
    pose: Float[np.ndarray, "4 4"]
    stamp_ns: int
    bounds_m: Float32[np.ndarray, "2 3"]
    start_pose: Float[np.ndarray, "4 4"]
    motion: Motion = STILL
    category: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()
    source: str = ""
    passed: Track | None = None
    route: Track | None = None
    resting: int = 0
    carried: bool = False

    @property
    def stays(self) -> bool:
        """Physics leave it where it is."""
        return self.category == STATIC or self.carried or self.route is not None

    def pose_at(self, stamp_ns: int) -> Float[np.ndarray, "4 4"]:
        """world_from_entity; before `stamp_ns` as it was then, but for where physics took it."""
        if self.passed is not None and stamp_ns < self.stamp_ns:
            return self.passed.at(stamp_ns)
        if self.route is not None:
            return self.route.at(max(stamp_ns, self.stamp_ns))
        motion = self.motion
        end_ns = stamp_ns if motion.until_ns is None else min(stamp_ns, motion.until_ns)
        seconds = max(0, end_ns - self.stamp_ns) / SECOND_NS
        if motion is STILL or not seconds:
            return self.pose
        if motion.in_body:
            return orthonormal(self.pose @ exp(seconds * np.concatenate([motion.linear, motion.angular])))
        pose = self.pose.copy()
        pose[:3, 3] += seconds * motion.linear
        pose[:3, :3] = exp_rotation(seconds * motion.angular) @ pose[:3, :3]
        return orthonormal(pose)

    def twist_at(self, stamp_ns: int) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Linear and angular velocity along the world's axes."""
        if self.route is not None:
            return self.route.twist_at(stamp_ns)
        motion = self.motion
        if motion.until_ns is not None and stamp_ns >= motion.until_ns:
            return np.zeros(3), np.zeros(3)
        turn = self.pose_at(stamp_ns)[:3, :3] if motion.in_body else np.eye(3)
        return turn @ motion.linear, turn @ motion.angular

    def box_at(self, stamp_ns: int) -> Float[np.ndarray, "2 3"]:
        """Lower and upper corner of its box along the world's axes."""
        pose = self.pose_at(stamp_ns)
        corners = np.stack(np.meshgrid(*self.bounds_m.T.astype(np.float64), indexing="ij"), -1).reshape(-1, 3)
        placed = corners @ pose[:3, :3].T + pose[:3, 3]
        return np.stack([placed.min(0), placed.max(0)])


@dataclass(frozen=True, eq=False)
class Body:
    """An entity with what is drawn of it."""

    state: EntityState
    mesh: Mesh


@dataclass(frozen=True, eq=False)
class Entities:
    """Which bodies there are, by name. Every change gives another registry, or raises EntityError."""

    bodies: Mapping[str, Body] = field(default_factory=lambda: MappingProxyType({}))
    next_number: int = 1

    def __len__(self) -> int:
        return len(self.bodies)

    def __iter__(self) -> Iterator[Body]:
        return iter(self.bodies.values())

    @property
    def states(self) -> tuple[EntityState, ...]:
        return tuple(body.state for body in self)

    def spawned(self, name: str, mesh: Mesh, pose: Float[np.ndarray, "4 4"], stamp_ns: int, **more) -> Entities:
        """With one more body at a pose; `more` are other attributes of EntityState."""
        _check_name(name)
        if name in self.bodies:
            raise EntityError(f"There is an entity '{name}' already; choose another name.", "name_not_unique")
        if len(self) >= MOST_ENTITIES:
            raise EntityError(f"There are {len(self)} entities, which is the most; delete some first.")
        pose = _checked(pose)
        state = EntityState(name, self.next_number, pose, stamp_ns, mesh.bounds_m, pose, **more)
        return self._with(Body(state, mesh), self.next_number + 1)

    def free_name(self, wanted: str, reserved: Collection[str] = ()) -> str:
        """The name, or one with a number that nobody has."""
        number, name = 1, wanted
        while name in self.bodies or name in reserved:
            name = f"{wanted}_{number}"
            number += 1
        return name

    def without(self, name: str) -> Entities:
        """One body less."""
        self.known(name)
        return self._of({key: body for key, body in self.bodies.items() if key != name})

    def but(self, names: Collection[str]) -> Entities:
        """As who does not see these sees them."""
        hidden = self.bodies.keys() & set(names)
        return self._of({key: body for key, body in self.bodies.items() if key not in hidden}) if hidden else self

    def put(self, state: EntityState, mesh: Mesh | None = None) -> Entities:
        """A body as it is now, with another mesh where one is given."""
        return self._with(Body(state, mesh or self.known(state.name).mesh))

    def cleared(self) -> Entities:
        """No body; numbers go on."""
        return self._of({})

    def known(self, name: str) -> Body:
        if name not in self.bodies:
            there = ", ".join(list(self.bodies)[:20]) or "none"
            raise EntityError(f"There is no entity '{name}'; there are: {there}.", "not_found")
        return self.bodies[name]

    def moved(
        self, name: str, stamp_ns: int, pose: Float[np.ndarray, "4 4"] | None = None, motion: Motion | None = None
    ) -> Entities:
        """A body elsewhere, or in another motion, from a time on."""
        body = self.known(name)
        at = body.state.pose_at(stamp_ns) if pose is None else _checked(pose)
        motion = body.state.motion if motion is None else motion
        return self._with(replace(body, state=_anew(body.state, at, stamp_ns, motion)))

    def led(self, name: str, stamp_ns: int, route: Track) -> Entities:
        """A body on a path from a time on; until the path begins it goes there, evenly."""
        body, (first_ns, end_ns) = self.known(name), (route.stamps_ns[0], route.end_ns)
        if end_ns <= stamp_ns:
            ends_s, now_s = end_ns / SECOND_NS, stamp_ns / SECOND_NS
            raise EntityError(f"The path of '{name}' ends at {ends_s:.3f} s, the world is at {now_s:.3f} s; send times to come.")
        if first_ns > stamp_ns:
            poses = np.concatenate([body.state.pose_at(stamp_ns)[None], route.poses])
            route = Track((stamp_ns, *route.stamps_ns), poses)
        if route.fastest_mps > FASTEST:
            raise EntityError(f"The path of '{name}' asks for {route.fastest_mps:.4g} m/s, at most {FASTEST:g} are allowed; give it more time.")
        return self.put(replace(_anew(body.state, route.at(stamp_ns), stamp_ns, STILL), route=route))

    def described(self, name: str, category: int, description: str, tags: tuple[str, ...]) -> Entities:
        return self.put(replace(self.known(name).state, category=category, description=description, tags=tags))

    def at_start(self, stamp_ns: int) -> Entities:
        """Every body where it was spawned, at rest."""
        return self.each(lambda s: _anew(s, s.start_pose, stamp_ns, STILL))

    def redated(self, then_ns: int, now_ns: int) -> Entities:
        """Every body as it was at one time, from another time on."""

        def moved(state: EntityState) -> EntityState:
            motion = state.motion
            if motion.until_ns is not None:
                motion = replace(motion, until_ns=motion.until_ns + now_ns - then_ns)
            route = state.route and state.route.later(now_ns - then_ns)
            return replace(_anew(state, state.pose_at(then_ns), now_ns, motion), resting=state.resting, route=route)

        return self.each(moved)

    def numbered_after(self, other: Entities) -> Entities:
        """The same, whose numbers to come are none that either has given."""
        return replace(self, next_number=max(self.next_number, other.next_number))

    def each(self, change: Callable[[EntityState], EntityState]) -> Entities:
        """Every body changed."""
        return self._of({name: replace(body, state=change(body.state)) for name, body in self.bodies.items()})

    def _with(self, body: Body, next_number: int | None = None) -> Entities:
        bodies = MappingProxyType({**self.bodies, body.state.name: body})
        return Entities(bodies, next_number or self.next_number)

    def _of(self, bodies: dict[str, Body]) -> Entities:
        return Entities(MappingProxyType(bodies), self.next_number)


def _anew(state: EntityState, pose: np.ndarray, stamp_ns: int, motion: Motion) -> EntityState:
    """The body in another pose or motion from a time on, whatever physics knew of it."""
    return replace(state, pose=pose, stamp_ns=stamp_ns, motion=motion, passed=None, route=None, resting=0)


@dataclass(frozen=True)
class RobotBody:
    """An upright cylinder below the camera of a robot.

    Attributes:
        radius_m: 0 is no body; low_m: z of its lower end, what lies below is driven over; floor_m: of the floor.
    """

    radius_m: float = 0.2
    low_m: float = 0.1
    floor_m: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.radius_m <= WIDEST_M and np.isfinite(self.low_m) and np.isfinite(self.floor_m)):
            raise MirageError(
                f"A robot got a radius of {self.radius_m:g} m and a lower end at {self.low_m:g} m; give finite numbers, "
                f"the radius from 0 to {WIDEST_M:g} m."
            )


def plain_name(name: str) -> bool:
    """Whether ROS takes it for a name with its namespaces."""
    return len(name) <= LONGEST_NAME and all(part.isidentifier() and part.isascii() for part in name.split("/"))


def _check_name(name: str) -> None:
    if not plain_name(name):
        raise EntityError(
            f"An entity was to be named '{name:.300}'; give letters, digits and _, not a digit first, at most "
            f"{LONGEST_NAME}; namespaces are parted by /.",
            "name_invalid",
        )


def _checked(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    pose = np.array(pose, np.float64)
    try:
        check_pose(pose, "An entity")
    except MirageError as error:
        raise EntityError(str(error), "pose") from error
    return pose

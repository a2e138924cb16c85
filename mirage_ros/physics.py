"""Entities fall, rest, roll and are pushed: MuJoCo steps them against the surfaces that memory holds.

For a stretch of time a small model is made of the bodies that move and of what is solid around them alone, is stepped,
and is thrown away: all that goes on is in the entities' registry. So the same world and plan give the same motion, whoever
steps it, and a body that rests costs nothing as long as nothing around it changes.
"""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int
from transforms3d.quaternions import mat2quat, quat2mat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import Track
from mirage_ros.protocol import SECOND_NS, FreeSpace, Patches
from mirage_ros.world.collision import ABOVE_M, boxes_of, solid
from mirage_ros.world.entities import FASTEST, STILL, Body, Entities, EntityState, Mesh, Motion, RobotBody

STEP_S, SPAN_S = 0.004, 0.5
"""Of MuJoCo; and what is solid around the bodies is looked up so often."""
MOST_S = 5.0
"""Of a gap between two frames so much is stepped: all rests by then."""
GRAVITY_M_S2 = 9.80665
DENSITY_KG_M3 = 150.0
FRICTION = (0.7, 0.005, 0.0005)
AROUND_M, NEAR_M = 0.25, 0.05
CAUGHT_M = 0.1
"""Where nobody saw a floor it goes on as far as it is known; if what is held lies deeper than this below it, so far below that."""
STILL_MPS, STILL_RPS, STILL_M, LEAST_REST_S = 0.03, 0.15, 0.004, 0.08
MOST_CORNERS, THINNEST_M = 96, 0.005
JUMP_MPS = 5.0
"""A camera that is faster does not push: it was put elsewhere."""


def check_installed() -> None:
    """Raises MirageError where MuJoCo is missing."""
    if importlib.util.find_spec("mujoco") is None:
        raise MirageError("Physics need MuJoCo and it is not installed; pip install 'mirage_ros[physics]', or set physics to contact.")


@dataclass(frozen=True)
class Way:
    """Where the robot's camera was at rising times, the world's last frame first."""

    stamps_ns: Int[np.ndarray, "n"]
    cameras_m: Float[np.ndarray, "n 3"]

    def at(self, stamp_ns: int) -> Float[np.ndarray, "3"]:
        return np.array([np.interp(stamp_ns, self.stamps_ns, axis) for axis in self.cameras_m.T])

    def pushes(self, begin_ns: int, end_ns: int) -> bool:
        """Whether it went there rather than being put there."""
        far = np.linalg.norm(self.at(end_ns) - self.at(begin_ns))
        return bool(far <= JUMP_MPS * (end_ns - begin_ns) / SECOND_NS)


class Mujoco:
    """Physics of a world's entities; see `World`.

    Args:
        robot: what carries the camera, and pushes.

    Raises:
        MirageError: MuJoCo is not installed.
    """

    def __init__(self, robot: RobotBody = RobotBody()) -> None:
        check_installed()
        self._mujoco: ModuleType = importlib.import_module("mujoco")
        self._robot = robot
        self._shapes: WeakKeyDictionary[Mesh, dict[str, Any]] = WeakKeyDictionary()

    def stepped(
        self,
        entities: Entities,
        memory: object,
        free_space: FreeSpace,
        stamps_ns: Int[np.ndarray, "n"],
        cameras_m: Float[np.ndarray, "n 3"],
    ) -> Entities:
        """The entities at the last of the stamps, each with its way there.

        Args:
            stamps_ns: the world's last frame's, then those of the frames that come.
            cameras_m: where the robot's camera is then.
        """
        way = Way(np.asarray(stamps_ns, np.int64), np.asarray(cameras_m, np.float64))
        after = entities.each(lambda state: _arrived(state, int(stamps_ns[0])))
        tracks: dict[str, list[tuple[int, np.ndarray]]] = {}
        for begin_ns, end_ns, frames_ns in _spans(way.stamps_ns.tolist()):
            after = self._span(after, memory, free_space, way, (begin_ns, end_ns), frames_ns, tracks)
        return after.each(lambda s: _with_track(s, entities.known(s.name).state, tracks.get(s.name, []), way.stamps_ns.tolist()))

    def _span(
        self, entities: Entities, memory: object, free_space: FreeSpace, way: Way, span: tuple[int, int],
        frames_ns: Sequence[int], tracks: dict,
    ) -> Entities:  # fmt: skip
        """A stretch of time, and the bodies' poses at the frames in it."""
        entities = entities.each(lambda s: replace(s, stamp_ns=span[0]) if not (s.stays or s.resting) else s)
        boxes = {body.state.name: _swept(body.state, *span) for body in entities if not body.state.stays}
        if not boxes:
            return entities
        patches = solid(memory, free_space, *(np.stack(ends) for ends in zip(*boxes.values(), strict=True)))
        prints = {name: _print(patches, entities, name, span[0]) for name in boxes}
        moving = self._awake(entities, boxes, prints, way, span)
        if not moving:
            return entities
        scene = _Scene(self._mujoco, self._robot, span[0])
        scene.add_surfaces(_among(patches, [boxes[name] for name in moving]))
        for body in entities:
            scene.add_body(body, self._shape(body.mesh), body.state.name in moving)
        if self._robot.radius_m and way.pushes(*span) and not _inside(entities, way.at(span[0]), span[0], moving):
            scene.add_robot(way)
        scene.run(span[1], frames_ns, tracks)
        after = scene.states()
        return entities.each(lambda s: _settled(s, after[s.name], prints[s.name], span) if s.name in after else s)

    def _awake(
        self, entities: Entities, boxes: dict, prints: dict, way: Way, span: tuple[int, int]
    ) -> list[str]:
        """Names of the bodies that do not rest, or are about to be met by what moves."""
        states = {body.state.name: body.state for body in entities}
        movers = []
        if self._robot.radius_m:
            ends = np.stack([way.at(stamp_ns) for stamp_ns in span])
            if np.ptp(ends, axis=0).max() > 1e-6:
                reach = np.array([self._robot.radius_m, self._robot.radius_m, 0])
                low, high = ends.min(0) - reach, ends.max(0) + reach
                movers.append((np.append(low[:2], self._robot.low_m), high + [0, 0, ABOVE_M]))
        on_paths = [state for state in states.values() if state.route is not None]
        movers += [_around([state.box_at(stamp_ns) for stamp_ns in span]) for state in on_paths]
        found = [name for name, state in states.items() if name in boxes and state.resting != prints[name]]
        movers += [boxes[name] for name in found]
        for name, box in boxes.items():
            tight = states[name].box_at(span[0]) + [[-0.02], [0.02]]
            if name not in found and any((tight[0] < high).all() and (low < tight[1]).all() for low, high in movers):
                found.append(name)
        return found

    def _shape(self, mesh: Mesh) -> dict[str, Any]:
        """What MuJoCo takes a body for: a box or a ball where it is one, else its convex hull."""
        if mesh not in self._shapes:
            self._shapes[mesh] = _shape_of(mesh, self._mujoco.mjtGeom)
        return self._shapes[mesh]


class _Scene:
    """A MuJoCo model of a few bodies and what is around them, for a stretch of time."""

    def __init__(self, mujoco: ModuleType, robot: RobotBody, begin_ns: int) -> None:
        self._mujoco, self._robot, self._begin_ns = mujoco, robot, begin_ns
        self._spec = mujoco.MjSpec()
        self._spec.option.gravity = (0, 0, -GRAVITY_M_S2)
        self._spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self._states: list[EntityState] = []
        self._way: Way | None = None
        self._driven: dict[int, Motion] = {}
        self._led: list[EntityState] = []

    def add_surfaces(self, patches: Patches) -> None:
        """What memory holds, and the floor where it holds none."""
        world, kinds = self._spec.worldbody, self._mujoco.mjtGeom
        floor_m, lowest_m = self._robot.floor_m, float(patches.corners_m[..., 2].min(initial=np.inf))
        floor_m = floor_m if lowest_m > floor_m - CAUGHT_M else lowest_m - CAUGHT_M
        world.add_geom(type=kinds.mjGEOM_PLANE, size=(0, 0, 1), pos=(0, 0, floor_m), friction=FRICTION)
        for position, half, rotation in boxes_of(patches):
            world.add_geom(type=kinds.mjGEOM_BOX, size=half, pos=position, quat=mat2quat(rotation), friction=FRICTION)

    def add_body(self, body: Body, shape: dict[str, Any], moves: bool) -> None:
        pose = body.state.pose_at(self._begin_ns)
        place = {"pos": pose[:3, 3], "quat": mat2quat(pose[:3, :3])}
        more = dict(shape)
        if "uservert" in more:
            name = f"hull{len(self._spec.meshes)}"
            self._spec.add_mesh(name=name, uservert=more.pop("uservert"))
            more["meshname"] = name
        if moves:
            parent = self._spec.worldbody.add_body(name=body.state.name, **place)
            parent.add_freejoint()
            if body.state.motion.until_ns is not None and body.state.motion.until_ns > self._begin_ns:
                self._driven[len(self._states)] = body.state.motion
            self._states.append(body.state)
        else:
            parent = self._spec.worldbody.add_body(**place, mocap=body.state.route is not None)
            self._led += [body.state] if body.state.route is not None else []
        parent.add_geom(density=DENSITY_KG_M3, friction=FRICTION, condim=6, **more)

    def add_robot(self, way: Way) -> None:
        """An upright cylinder below the camera, which nothing stops; comes after all bodies."""
        self._way = way
        camera = way.at(self._begin_ns)
        self._half = max(0.01, (camera[2] + ABOVE_M - self._robot.low_m) / 2)
        body = self._spec.worldbody.add_body(name="robot of the camera", mocap=True, pos=self._robot_at(self._begin_ns))
        kind = self._mujoco.mjtGeom.mjGEOM_CYLINDER
        body.add_geom(type=kind, size=(self._robot.radius_m, self._half, 0), friction=(0.3, 0.005, 0.0005))

    def _robot_at(self, stamp_ns: int) -> tuple[float, float, float]:
        x, y, _ = self._way.at(stamp_ns)
        return x, y, self._robot.low_m + self._half

    def run(self, end_ns: int, frames_ns: Sequence[int], tracks: dict) -> None:
        """Steps to the end, and notes the bodies' poses at the frames."""
        mujoco = self._mujoco
        self._model = self._spec.compile()
        self._data = mujoco.MjData(self._model)
        for index, state in enumerate(self._states):
            linear, angular = state.twist_at(self._begin_ns)
            turn = state.pose_at(self._begin_ns)[:3, :3]
            self._data.qvel[6 * index : 6 * index + 6] = np.concatenate([linear, turn.T @ angular])
        now_ns = self._begin_ns
        for stamp_ns in sorted({*frames_ns, end_ns}):
            steps = max(1, round((stamp_ns - now_ns) / SECOND_NS / STEP_S))
            self._model.opt.timestep = (stamp_ns - now_ns) / SECOND_NS / steps
            for step in range(steps):
                self._drive(now_ns + (stamp_ns - now_ns) * (step + 1) // steps)
                mujoco.mj_step(self._model, self._data)
            now_ns = stamp_ns
            if stamp_ns in frames_ns:
                for index, state in enumerate(self._states):
                    tracks.setdefault(state.name, []).append((stamp_ns, self._pose(index)))

    def _drive(self, stamp_ns: int) -> None:
        """The robot and bodies on paths go on, and those that are driven have their velocity along the floor; these fall
        all the same."""
        for index, state in enumerate(self._led):
            pose = state.pose_at(stamp_ns)
            self._data.mocap_pos[index], self._data.mocap_quat[index] = pose[:3, 3], mat2quat(pose[:3, :3])
        if self._way is not None:
            self._data.mocap_pos[len(self._led)] = self._robot_at(stamp_ns)
        for index, motion in self._driven.items():
            if stamp_ns < motion.until_ns:
                turn = self._pose(index)[:3, :3]
                linear, angular = (turn @ v if motion.in_body else v for v in (motion.linear, motion.angular))
                speeds = self._data.qvel[6 * index : 6 * index + 6]
                speeds[:2] = linear[:2]
                speeds[2] = linear[2] if linear[2] > 1e-9 else speeds[2]
                speeds[3:] = turn.T @ angular

    def _pose(self, index: int) -> Float[np.ndarray, "4 4"]:
        values, pose = self._data.qpos[7 * index : 7 * index + 7], np.eye(4)
        pose[:3, 3], pose[:3, :3] = values[:3], quat2mat(values[3:])
        return pose

    def states(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pose, linear and angular velocity along the world's axes of each body that moved; none where numbers got lost."""
        lost = any(self._data.warning[kind].number for kind in (self._mujoco.mjtWarning.mjWARN_BADQPOS,
                   self._mujoco.mjtWarning.mjWARN_BADQVEL, self._mujoco.mjtWarning.mjWARN_BADQACC))  # fmt: skip
        found = {}
        for index, state in enumerate(self._states):
            speeds, pose = self._data.qvel[6 * index : 6 * index + 6], self._pose(index)
            if lost or not np.isfinite(pose).all():
                pose, speeds = state.pose_at(self._begin_ns), np.zeros(6)
            found[state.name] = pose, speeds[:3].clip(-FASTEST, FASTEST), pose[:3, :3] @ speeds[3:].clip(-FASTEST, FASTEST)
        return found


def _spans(stamps_ns: Sequence[int]) -> list[tuple[int, int, list[int]]]:
    """Stretches of at most SPAN_S from the first stamp to the last, and which of the stamps lie in each."""
    spans: list[tuple[int, int, list[int]]] = []
    longest_ns = round(SPAN_S * SECOND_NS)
    for begin_ns, end_ns in zip(stamps_ns, stamps_ns[1:], strict=False):
        begin_ns = max(begin_ns, end_ns - round(MOST_S * SECOND_NS))
        if spans and spans[-1][1] == begin_ns and end_ns - spans[-1][0] <= longest_ns:
            spans[-1] = spans[-1][0], end_ns, [*spans[-1][2], end_ns]
            continue
        while end_ns - begin_ns > longest_ns:
            spans.append((begin_ns, begin_ns + longest_ns, []))
            begin_ns += longest_ns
        spans.append((begin_ns, end_ns, [end_ns]))
    return spans


def _arrived(state: EntityState, stamp_ns: int) -> EntityState:
    """A body whose path has ended is one as others are again, at rest where that led."""
    if state.route is None or state.route.end_ns > stamp_ns:
        return state
    return replace(state, pose=state.route.at(stamp_ns), stamp_ns=stamp_ns, route=None)


def _around(boxes: Sequence[Float[np.ndarray, "2 3"]]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the box around boxes."""
    return np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]


def _swept(state: EntityState, begin_ns: int, end_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """A box that a body does not leave meanwhile, with what is around it."""
    seconds, (low, high) = (end_ns - begin_ns) / SECOND_NS, state.box_at(begin_ns)
    if state.resting:
        return low - AROUND_M, high + AROUND_M
    linear, angular = state.twist_at(begin_ns)
    reach = np.abs(linear) * seconds + np.linalg.norm(angular) * seconds * 0.1 + AROUND_M
    drop = np.array([0, 0, 0.5 * GRAVITY_M_S2 * seconds**2])
    return low - reach - drop, high + reach


def _among(patches: Patches, boxes: Sequence[tuple[np.ndarray, np.ndarray]]) -> Patches:
    """Those whose middle lies in one of the boxes."""
    middles = patches.corners_m.mean(1)
    kept = np.zeros(len(middles), bool)
    for low, high in boxes:
        kept |= ((middles >= low) & (middles <= high)).all(1)
    return patches.of(kept)


def _print(patches: Patches, entities: Entities, name: str, stamp_ns: int) -> int:
    """A number that is another one when something around a body changes; never 0."""
    low, high = entities.known(name).state.box_at(stamp_ns) + [[-NEAR_M], [NEAR_M]]
    around = [np.round(_among(patches, [(low, high)]).corners_m, 4).astype(np.float32)]
    for other in entities:
        box = other.state.box_at(stamp_ns)
        if other.state.name != name and (box[0] < high).all() and (low < box[1]).all():
            around.append(np.round(other.state.pose_at(stamp_ns), 4).astype(np.float32))
    return zlib.crc32(b"".join(part.tobytes() for part in around)) or 1


def _inside(entities: Entities, camera_m: np.ndarray, stamp_ns: int, moving: Sequence[str]) -> bool:
    """Whether the robot's middle stands in a body that moves, which it would throw away; along the body's own axes."""
    for body in entities:
        pose, (low, high) = body.state.pose_at(stamp_ns), body.state.bounds_m
        middle_m = (pose[:3, :3] @ ((low + high) / 2) + pose[:3, 3])[2]
        place = pose[:3, :3].T @ (np.append(camera_m[:2], min(middle_m, camera_m[2])) - pose[:3, 3])
        if body.state.name in moving and (low < place).all() and (place < high).all():
            return True
    return False


def _settled(state: EntityState, after: tuple, print_of: int, span: tuple[int, int]) -> EntityState:
    """A body at the end of a stretch, at rest where it hardly moved: it would creep."""
    (pose, linear, angular), seconds = after, (span[1] - span[0]) / SECOND_NS
    turned = np.linalg.norm(pose[:3, :3] - state.pose[:3, :3])
    calm = np.linalg.norm(linear) < STILL_MPS and np.linalg.norm(angular) < STILL_RPS
    near = np.linalg.norm(pose[:3, 3] - state.pose[:3, 3]) < STILL_M and turned < 0.02
    driven = state.motion.until_ns is not None
    if calm and near and not driven and seconds >= LEAST_REST_S:
        return replace(state, stamp_ns=span[1], motion=STILL, resting=print_of)
    motion = state.motion if driven else Motion(linear, angular)
    return replace(state, pose=pose, stamp_ns=span[1], motion=motion, resting=0)


def _with_track(state: EntityState, before: EntityState, track: list, stamps_ns: Sequence[int]) -> EntityState:
    """A body with its way through all stretches; one that is driven no more stands still."""
    if not track:
        return state
    track = [*((stamp, before.pose_at(stamps_ns[0])) for stamp in stamps_ns if stamp < track[0][0]), *track]
    stamps, poses = zip(*track, strict=True)
    over = state.motion.until_ns is not None and state.motion.until_ns <= stamps_ns[-1]
    return replace(state, motion=STILL if over else state.motion, passed=Track(stamps, np.stack(poses)))


def _shape_of(mesh: Mesh, kinds: Any) -> dict[str, Any]:
    low, high = mesh.bounds_m.astype(np.float64)
    middle, half, vertices = (low + high) / 2, np.maximum((high - low) / 2, THINNEST_M / 2), mesh.vertices_m
    far = np.linalg.norm(vertices - middle, axis=1)
    if len(vertices) > 40 and np.ptp(far) < 0.02 * far.max():
        return {"type": kinds.mjGEOM_SPHERE, "size": (far.max(), 0, 0), "pos": middle}
    at_corners = np.abs(np.abs(vertices - middle) - half).max() < 0.01 * half.max()
    if at_corners or (high - low).min() < THINNEST_M:
        return {"type": kinds.mjGEOM_BOX, "size": half, "pos": middle}
    return {"type": kinds.mjGEOM_MESH, "uservert": _corners(vertices).reshape(-1)}


def _corners(vertices: np.ndarray) -> np.ndarray:
    """The vertices that stick out most, in directions all around: their hull is nearly that of all."""
    turns = np.arange(8 * MOST_CORNERS) + 0.5
    z = 1 - 2 * turns / len(turns)
    angle = np.pi * (1 + 5**0.5) * turns
    around = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)
    found, counts = np.unique((vertices @ around.T.astype(np.float32)).argmax(0), return_counts=True)
    return vertices[found[np.argsort(-counts, kind="stable")[:MOST_CORNERS]]].astype(np.float64)

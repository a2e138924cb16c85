"""Robots as the worker has them: bodies that go where the plan says, hidden from their own cameras, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from mirage_ros.geometry.rigid import Track, twist_between
from mirage_ros.protocol import SECOND_NS, Chunk, Frame, Surfaces
from mirage_ros.ros import Carrier
from mirage_ros.ros.worker import WorkerConfig
from mirage_ros.world.collision import joined, obstacles, touched, touching, unyielding
from mirage_ros.world.drawing import Solid
from mirage_ros.world.entities import ROBOT, Entities, EntityState, Mesh, Motion
from mirage_ros.world.sensors import lidar, scan
from mirage_ros.world.state import WorldState


class Robots:
    """The bodies of those that have one, and which camera is whose.

    Args:
        mesh_of: reads a model; what it raises is raised.
    """

    def __init__(self, carriers: Sequence[Carrier], mesh_of: Callable[[str], Mesh]) -> None:
        self.carriers = tuple(carriers)
        self._bodies = {carrier.name: carrier.body for carrier in carriers if carrier.body}
        self._meshes = {name: mesh_of(uri) for name, uri in self._bodies.items()}
        self.names = tuple(self._meshes)

    def hidden(self, camera: int) -> tuple[str, ...]:
        """Names of the bodies that a camera does not see: its own robot's."""
        return tuple(c.name for c in self.carriers if camera in c.cameras and c.name in self._meshes)

    def moved(
        self, entities: Entities, stamp_ns: int, stamps_ns: Int[np.ndarray, "n"], poses: Sequence[Float[np.ndarray, "n 4 4"]]
    ) -> Entities:
        """The entities with each body on its way at the frames that come.

        Args:
            stamp_ns: the last frame's before them.
            poses: of each robot that has a body.
        """
        for (name, mesh), way in zip(self._meshes.items(), poses, strict=True):
            if name not in entities.bodies or not entities.known(name).state.carried:
                what = {"category": ROBOT, "source": self._bodies[name], "carried": True}
                entities = entities.but([name]).spawned(name, mesh, way[0], stamp_ns, **what)
            entities = entities.put(_along(entities.known(name).state, stamp_ns, stamps_ns, way))
        return entities


def _along(state: EntityState, stamp_ns: int, stamps_ns: np.ndarray, way: np.ndarray) -> EntityState:
    stamps = (stamp_ns, *stamps_ns.tolist())
    poses = np.concatenate([state.pose_at(stamp_ns)[None], way])
    velocity = twist_between(poses[-2], poses[-1], (stamps[-1] - stamps[-2]) / SECOND_NS)
    # Its velocity is known at the last frame, and leads nowhere beyond it: the next frames say where it is.
    motion = Motion(*velocity, until_ns=stamps[-1] + 1)
    return replace(state, pose=poses[-1], stamp_ns=stamps[-1], motion=motion, passed=Track(stamps, poses))


def measured(state: WorldState, chunk: Chunk, sensors: Sequence[str], config: WorkerConfig, hidden: Sequence[str]) -> Chunk:
    """With what the sensors at a camera's place measure, all that the chunk wrote being there."""
    if not isinstance(state.memory, Surfaces):
        return chunk
    frames, seen = [], state.entities.but(hidden)
    for frame in chunk.frames:
        solid, pose = Solid(state.memory, seen, frame.stamp_ns), frame.camera.world_from_camera
        if "scan" in sensors:
            frame = replace(frame, scan=scan(solid, state.free_space, pose, config.scan))
        if "lidar" in sensors:
            frame = replace(frame, lidar=lidar(solid, pose, config.lidar))
        frames.append(frame)
    return replace(chunk, frames=tuple(frames))


def met(state: WorldState, chunk: Chunk, sensors: Sequence[str], config: WorkerConfig, hidden: Sequence[str]) -> Chunk:
    """With what a robot and entities touch, and what may stop the robot from where it is at last."""
    wanted = {"contacts", "obstacles"} & set(sensors)
    if config.physics == "off" or not wanted:
        return chunk
    body, frames, others = config.robot, list(chunk.frames), state.entities.but(hidden)
    for index, frame in enumerate(frames):
        last, place = index == len(frames) - 1, frame.camera.position_world
        if last or "contacts" in wanted:
            found = obstacles(state.memory, state.free_space, others, frame.stamp_ns, place, body)
            contacts = joined(touched(found, place, body), *touching(others, frame.stamp_ns)) if "contacts" in wanted else None
            if config.physics == "mujoco":
                found = unyielding(found, others, place, body)
            frames[index] = replace(frame, contacts=contacts, obstacles=found if last else None)
    return replace(chunk, frames=tuple(frames))


def resized_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at another size (height, width): smooth colours, nearest depth and mask."""
    if frame.rgb.shape[:2] == size:
        return frame
    import cv2

    smaller = size[0] < frame.rgb.shape[0]
    smooth = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    whole, nearest = size[::-1], cv2.INTER_NEAREST_EXACT
    observed = cv2.resize(frame.observed.astype(np.uint8), whole, interpolation=nearest)
    return Frame(
        frame.stamp_ns,
        frame.camera.resized(size),
        cv2.resize(frame.rgb, whole, interpolation=smooth),
        cv2.resize(frame.depth_m, whole, interpolation=nearest),
        observed.astype(bool),
    )


def resized(chunk: Chunk, size: tuple[int, int] | None) -> Chunk:
    if size is None:
        return chunk
    return replace(chunk, frames=tuple(resized_frame(frame, size) for frame in chunk.frames))

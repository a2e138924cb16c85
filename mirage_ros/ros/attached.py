"""The world of a running node, behind the face of `World`: the plan goes out on TF, pictures come in, its services do the rest.

Who walks in it knows no ROS. A step says on TF where the camera is, again and again with the time it is, until the
picture from there has come; then it is silent, so that a node that nobody moves renders nothing. Messages are taken in by a
thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import Point, PoseStamped
from jaxtyping import Float
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from simulation_interfaces.msg import Bounds, EntityState, Resource, Result, SimulationState
from simulation_interfaces.srv import (DeleteEntity, GetEntitiesStates, GetEntityBounds, LoadWorld, SetEntityState,
                                       SetSimulationState, SpawnEntity)  # fmt: skip
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from mirage_ros.data.meshes import box_mesh
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.msg import RolloutStatus
from mirage_ros.protocol import SECOND_NS, STAGES, Chunk, EntityChange, Frame, Move, Points, Spawn
from mirage_ros.recording.pictures import write_seed
from mirage_ros.recording.topics import COLOR, COLOR_INFO, DEPTH, OBSERVED, POINTS, STATUS, TF, TF_STATIC
from mirage_ros.ros.image_messages import depth_from_ros, mask_from_ros, picture_from_ros
from mirage_ros.ros.messages import (camera_from_ros, cloud_from_ros, pose_from_ros, pose_to_ros, stamp_from_ros,
                                      transform_from_ros, transform_to_ros)  # fmt: skip
from mirage_ros.srv import EraseRegion, ForkWorld, RestoreWorld, SaveWorld
from mirage_ros.world.entities import Body
from mirage_ros.world.entities import EntityState as BodyState

TELL_S, LOOK_S = 1 / 30, 0.1
"""Between two publications of a pose, and two looks whether the node is still there."""
STEP_S, ANSWER_S, FIND_S = 30.0, 300.0, 15.0
"""How long a picture, an answer, and the node may take to come."""
THERE = 1e-3
"""A picture is of a pose that differs by less, in metres and in its rotation matrix."""
STAMPS_KEPT = 16
BODIES_S = 1.0
"""Between two questions where entities are."""
PARTS = {COLOR: (Image, picture_from_ros), COLOR_INFO: (CameraInfo, camera_from_ros),
         DEPTH: (Image, depth_from_ros), OBSERVED: (Image, mask_from_ros)}  # fmt: skip
NAMES = ("time_mode", "world_frame", "camera_frame", "rendered_camera_frame", "start_frame")
# The node never waits for who only looks on; a picture that is lost is asked for again by the pose that is published on.
NEWEST = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class Cloud:
    """The node's memory, as far as it is published.

    Attributes:
        nbytes: that memory has, as the node's status tells.
        from_real: unknown here.
    """

    points: Points
    nbytes: int = 0
    from_real: None = None

    @property
    def tokens(self) -> int:
        return len(self.points.xyz)

    @property
    def positions_m(self) -> np.ndarray:
        return self.points.xyz

    def to_points(self) -> Points:
        return self.points


EMPTY = Cloud(Points(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32), np.zeros(0, np.int64)))


@dataclass(frozen=True)
class AttachedState:
    """What there is now.

    Attributes:
        name: under which the node keeps it, '' where it does not.
    """

    memory: Cloud
    name: str = ""
    free_space: None = None
    entities: tuple[Body, ...] = ()


class AttachedWorld:
    """Finds the node and joins it.

    Args:
        folder: seeds that a world is begun from are written below it, for the node to read.
        namespace: of the node.
        step_s: how long a picture may take to come.

    Raises:
        MirageError: no node is there, or it runs in lockstep.
    """

    def __init__(self, folder: Path, namespace: str = "", find_s: float = FIND_S, step_s: float = STEP_S) -> None:
        self._folder, self._step_s = folder, step_s
        self._changed, self._closing = threading.Condition(), False
        self._parts: dict[int, dict[str, Any]] = {}
        self._frame: Frame | None = None
        self._start: np.ndarray | None = None
        self._memory, self._status, self._clients = EMPTY, RolloutStatus(), {}
        self._bodies: tuple[Body, ...] = ()
        self._boxes, self._bodies_s = {}, -BODIES_S
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("mirage_studio", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="ros", daemon=True)
        self._thread.start()
        try:
            self._names = self._parameters(find_s)
            self._subscribe()
        except MirageError:
            self.close()
            raise

    def interrupt(self) -> None:
        """Ends what waits for the node, in any thread and from now on."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Leaves the node as it is."""
        self.interrupt()
        rclpy.try_shutdown(context=self._context)
        self._thread.join()
        self._executor.shutdown()

    @property
    def memory(self) -> Cloud:
        return self._memory

    @property
    def stamp_ns(self) -> int:
        return self._frame.stamp_ns if self._frame else 0

    @property
    def camera(self) -> Camera:
        """The last picture's; where the world starts before there is one."""
        if self._frame is not None:
            return self._frame.camera
        if not self._came(lambda: self._start is not None, FIND_S):
            raise MirageError("The node has no world yet; wait for its log to tell of one, or begin one here.")
        return Camera.from_hfov(60.0, (240, 320), self._start)

    @property
    def entities(self) -> tuple[Body, ...]:
        """As the node last told of them, each with the box around it for a mesh."""
        return self._bodies

    def snapshot(self) -> AttachedState:
        if time.monotonic() - self._bodies_s > BODIES_S:  # others may spawn, too
            with suppress(MirageError):
                self._read_bodies()
        return AttachedState(self._memory, entities=self._bodies)

    def fork(self, name: str) -> AttachedState:
        """Has the node keep its memory under a name."""
        self._ask(ForkWorld, "fork", name=f"studio-{name}")
        return AttachedState(self._memory, f"studio-{name}", entities=self._bodies)

    def restore(self, state: AttachedState) -> None:
        self._ask(RestoreWorld, "restore", name=state.name)

    def save(self, folder: Path) -> None:
        self._ask(SaveWorld, "save_world", path=str(folder.absolute()))

    def erase(self, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> int:
        corners = [Point(**dict(zip("xyz", map(float, corner), strict=True))) for corner in (low, high)]
        return int(self._ask(EraseRegion, "erase_region", min=corners[0], max=corners[1]).erased)

    def change_entities(self, changes: tuple[EntityChange, ...]) -> list[str]:
        """Spawns, moves and deletes, one after the other; the name of each. Raises MirageError with the node's own sentence."""
        names = []
        for change in changes:
            kind, service, fields = self._asked(change)
            answer = self._call(kind, service, **fields)
            if answer.result.result != Result.RESULT_OK:
                raise MirageError(f"The node refused to change its entities: {answer.result.error_message}")
            names.append(getattr(answer, "entity_name", change.name))
        self._read_bodies()
        return names

    def load(self, folder: Path) -> None:
        """A saved world or a seed folder, and the simulation goes on."""
        before, self._start = self._start, None
        answer = self._call(LoadWorld, "load_world", world_resource=Resource(uri=str(folder.absolute())))
        if answer.result.result != Result.RESULT_OK:
            self._start = before
            raise MirageError(f"The node did not load {folder}: {answer.result.error_message}")
        with self._changed:  # what was of the world before counts no more
            self._frame = None
            self._parts.clear()
        self._call(SetSimulationState, "set_simulation_state", state=SimulationState(state=SimulationState.STATE_PLAYING))

    def reset(self, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None = None) -> Chunk:
        """A new world around a picture, which the node reads from the folder."""
        write_seed(self._folder, rgb, camera, depth_m)
        self.load(self._folder)
        return self._step(camera.world_from_camera)

    def step(self, cameras: Camera, _stamps_ns: np.ndarray) -> Chunk:
        """The picture of one camera pose; of the node's own size, lens and time."""
        return self._step(cameras.world_from_camera[0])

    # What waits.

    def _step(self, pose: Float[np.ndarray, "4 4"]) -> Chunk:
        # What was planned before was drawn before, perhaps without what a service has changed since.
        since_ns, deadline = self._node.get_clock().now().nanoseconds, time.monotonic() + self._step_s
        frames = (self._names["world_frame"], self._names["camera_frame"])
        while True:
            stamp_ns = self._node.get_clock().now().nanoseconds
            self._tf.publish(TFMessage(transforms=[transform_to_ros(pose, *frames, stamp_ns)]))
            with self._changed:
                if self._changed.wait_for(lambda: self._closing or self._arrived(pose, since_ns) is not None, TELL_S):
                    break
            if time.monotonic() > deadline:
                raise MirageError(
                    f"No picture of this place came within {self._step_s:g} s; is the node paused, busy, or gone? "
                    "`mirage doctor` looks, and its log tells more."
                )
        self._check_open()
        with self._changed:
            self._frame = self._arrived(pose, since_ns)
        status = self._status
        seconds = {stage: float(getattr(status, f"{stage}_s")) for stage in STAGES}
        return Chunk((self._frame,), seconds, float(status.observed_fraction), self._memory.tokens, self._memory.nbytes)

    def _arrived(self, pose: np.ndarray, since_ns: int) -> Frame | None:
        """The newest whole picture since a time, if it is of a pose."""
        whole = [stamp for stamp, parts in self._parts.items() if stamp >= since_ns and len(parts) == len(PARTS) + 1]
        for stamp_ns in sorted(whole, reverse=True):
            parts = self._parts[stamp_ns]
            if np.abs(parts[TF] - pose).max() < THERE:
                lens = parts[COLOR_INFO]
                camera = Camera(lens.intrinsics, parts[TF], lens.size)
                return Frame(stamp_ns, camera, parts[COLOR], parts[DEPTH], parts[OBSERVED])
        return None

    def _asked(self, change: EntityChange) -> tuple[type, str, dict[str, object]]:
        """The service for a change of an entity, and what it is asked."""
        header = Header(frame_id=self._names["world_frame"])
        if isinstance(change, Spawn):
            pose = PoseStamped(header=header, pose=pose_to_ros(change.pose))
            return SpawnEntity, "spawn_entity", {"name": change.name, "allow_renaming": change.rename,
                                                 "entity_resource": Resource(uri=change.uri), "initial_pose": pose}  # fmt: skip
        if isinstance(change, Move):
            state = EntityState(header=header, pose=pose_to_ros(change.pose))
            return SetEntityState, "set_entity_state", {"entity": change.name, "set_pose": True, "state": state}
        return DeleteEntity, "delete_entity", {"entity": change.name}

    def _read_bodies(self) -> None:
        """Asks where the entities are, and of new ones how large they are; cameras have no bounds."""
        answer, self._bodies_s = self._call(GetEntitiesStates, "get_entities_states"), time.monotonic()
        poses = {name: pose_from_ros(state.pose) for name, state in zip(answer.entities, answer.states, strict=True)}
        self._boxes = {name: box for name, box in self._boxes.items() if name in poses}
        for name in poses.keys() - self._boxes.keys():
            bounds = self._call(GetEntityBounds, "get_entity_bounds", entity=name).bounds
            if bounds.type == Bounds.TYPE_BOX:
                self._boxes[name] = box_mesh(np.array([[corner.x, corner.y, corner.z] for corner in bounds.points]))
        self._bodies = tuple(
            Body(BodyState(name, 0, poses[name], self.stamp_ns, box.bounds_m, poses[name]), box) for name, box in self._boxes.items()
        )

    def _ask(self, kind: type, service: str, **fields: object) -> Any:
        """An answer that says success. Raises MirageError with the node's own sentence."""
        answer = self._call(kind, service, **fields)
        if not answer.success:
            raise MirageError(f"The node refused {service}: {answer.message}")
        return answer

    def _call(self, kind: type, service: str, find_s: float = FIND_S, **fields: object) -> Any:
        name = f"mirage_node/{service}"
        if name not in self._clients:
            self._clients[name] = self._node.create_client(kind, name)
        client = self._clients[name]
        if not self._came(client.service_is_ready, find_s):
            raise MirageError(
                f"There is no {client.service_name}; start `mirage node --seed room --params config/drive.yaml` in the same "
                "ROS domain, or give its --namespace."
            )
        future = client.call_async(kind.Request(**fields))
        future.add_done_callback(self._wake)
        in_time = self._came(lambda: future.done() or not client.service_is_ready(), ANSWER_S)
        if not future.done() or future.result() is None:
            within = f"within {ANSWER_S:g} s" if not in_time else "and is gone"
            raise MirageError(f"The node did not answer {service} {within}; its log tells more.")
        return future.result()

    def _came(self, true: Callable[[], bool], patience_s: float) -> bool:
        """Whether something came true in time. Raises MirageError as the studio ends."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            while not self._closing and not true():
                if time.monotonic() > deadline:
                    return False
                self._changed.wait(LOOK_S)
        self._check_open()
        return True

    def _check_open(self) -> None:
        if self._closing:
            raise MirageError("The studio is ending.")

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    # What comes in.

    def _parameters(self, find_s: float) -> dict[str, str]:
        values = self._call(GetParameters, "get_parameters", find_s, names=list(NAMES)).values
        names = {name: value.string_value for name, value in zip(NAMES, values, strict=True)}
        if names["time_mode"] != "stream":
            raise MirageError(
                f"The node runs in {names['time_mode']}, where time waits for its planner; start it with "
                "`--params config/drive.yaml` for the studio."
            )
        return names

    def _subscribe(self) -> None:
        node = self._node
        self._tf = node.create_publisher(TFMessage, TF, QoSProfile(depth=100))
        for name, (kind, convert) in PARTS.items():
            node.create_subscription(kind, name, self._keeper(name, convert), NEWEST)
        node.create_subscription(TFMessage, TF, self._on_transforms, QoSProfile(depth=100))
        node.create_subscription(TFMessage, TF_STATIC, self._on_transforms, LATCHED)
        node.create_subscription(PointCloud2, POINTS, self._on_points, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        node.create_subscription(RolloutStatus, STATUS, self._on_status, NEWEST)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _keeper(self, name: str, convert: Callable) -> Callable:
        def keep(message: Any) -> None:
            try:
                self._keep(stamp_from_ros(message.header.stamp), name, convert(message))
            except MirageError as error:
                self._node.get_logger().warning(str(error), once=True)

        return keep

    def _keep(self, stamp_ns: int, name: str, value: object) -> None:
        with self._changed:
            self._parts.setdefault(stamp_ns, {})[name] = value
            for old in sorted(self._parts)[:-STAMPS_KEPT]:
                del self._parts[old]
            self._changed.notify_all()

    def _on_transforms(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._names["rendered_camera_frame"]:
                self._keep(stamp_from_ros(transform.header.stamp), TF, transform_from_ros(transform))
            elif transform.child_frame_id == self._names["start_frame"]:
                with self._changed:
                    self._start = transform_from_ros(transform)
                    self._changed.notify_all()

    def _on_points(self, message: PointCloud2) -> None:
        cloud, stamp_ns = cloud_from_ros(message), stamp_from_ros(message.header.stamp)
        written_ns = stamp_ns - np.rint(cloud["age"].astype(np.float64) * SECOND_NS).astype(np.int64)
        points = Points(cloud["xyz"], cloud["rgb"], cloud["confidence"], written_ns)
        self._memory = Cloud(points, int(self._status.cache_bytes))

    def _on_status(self, message: RolloutStatus) -> None:
        self._status = message

"""How right physics are in worlds whose truth is known: a base that is driven at a wall, a box that falls, a box that is
pushed, in MuJoCo rooms of which the world was given one picture with its depth.

The drive and the push are as the node makes them: the base knows what stopped it in the last chunk, and each chunk is
generated where it went. Distances are to true surfaces, by rays cast in the room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from mirage_ros.data.meshes import shape
from mirage_ros.evaluation.bench_sensors import Place, Truth, begin
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import exp_rotation
from mirage_ros.loop import Footprint, LiveBase, LiveBaseConfig, Obstacles, live_base_under
from mirage_ros.physics import Mujoco
from mirage_ros.protocol import SECOND_NS, WorldModel
from mirage_ros.world.collision import ABOVE_M, obstacles, unyielding
from mirage_ros.world.entities import RobotBody
from mirage_ros.world.world import World

PERIOD_NS = SECOND_NS // 5
SPEED_MPS = 0.5
LONGEST_S = 24.0
BODY = RobotBody(floor_m=-2.0)
"""That a floor is where it is has to come from memory."""
BOX_M, DROP_M, WATCH_S = 0.4, 1.0, 4.0
BOX = f"shape://box?size={BOX_M},{BOX_M},{BOX_M}&color=c8503c"
HEADINGS_DEG = np.arange(-30.0, 31, 5).tolist()


@dataclass(frozen=True)
class StopFigures:
    """A base that is driven at a wall.

    Attributes:
        driven_m: how far it came.
        gap_m: from its body to the nearest true surface, where it stopped; negative inside of it.
        passed: whether it went through: its middle was behind the wall.
    """

    seed: int
    driven_m: float
    gap_m: float
    passed: bool


@dataclass(frozen=True)
class DropFigures:
    """A box that falls onto the floor.

    Attributes:
        off_m: of its lower side at rest from the true floor, by its lowest corner.
        tilt_deg: of its upright.
        moved_m: in as long again once it rested.
        share: of a core that physics took while it fell.
    """

    seed: int
    off_m: float
    tilt_deg: float
    moved_m: float
    share: float


@dataclass(frozen=True)
class PushFigures:
    """A box on the floor that a base drives at.

    Attributes:
        base_m, box_m: how far either came along the way.
        off_m: of the box's lower side from the true floor after that.
        share: of a core that physics took meanwhile.
    """

    seed: int
    base_m: float
    box_m: float
    off_m: float
    share: float


class Timed:
    """Physics, and how long they took of how much of the world's time."""

    def __init__(self, physics: Mujoco) -> None:
        self._physics, self.took_s, self.passed_s = physics, 0.0, 0.0

    def stepped(self, entities, memory, free_space, stamps_ns, cameras_m):
        start_s = time.process_time()
        after = self._physics.stepped(entities, memory, free_space, stamps_ns, cameras_m)
        self.took_s += time.process_time() - start_s
        self.passed_s += (stamps_ns[-1] - stamps_ns[0]) / SECOND_NS
        return after


class Drive:
    """A base in a world, on its way along a heading from the seed's camera."""

    def __init__(self, world: World, place: Place, heading_rad: float) -> None:
        self.world, self.camera = world, place.camera
        world.restore(place.state)
        pose = place.camera.world_from_camera.copy()
        pose[:3, :3] = exp_rotation(np.array([0, 0, heading_rad])) @ pose[:3, :3]
        start, self._base_from_camera = live_base_under(pose, "diff")
        self.base = LiveBase(start, LiveBaseConfig(max_speed_mps=SPEED_MPS, timeout_s=10.0))
        self.now_ns = world.stamp_ns + SECOND_NS
        self.base.advance(self.now_ns)
        self.way: list[np.ndarray] = [start[:3, 3]]
        self._look(place.camera.position_world)

    def _look(self, camera_m: np.ndarray) -> None:
        state = self.world.state
        found = obstacles(state.memory, state.free_space, state.entities, state.stamp_ns, camera_m, BODY)
        if self.world.physics is not None:
            found = unyielding(found, state.entities, camera_m, BODY)
        body = Footprint(BODY.radius_m, BODY.low_m, camera_m[2] + ABOVE_M)
        self.base.obstacles = Obstacles(found.points_m, body)

    def chunk(self, speed_mps: float = SPEED_MPS) -> None:
        """Drives for as long as a chunk lasts, and has it generated."""
        poses, stamps = [], []
        for _ in range(self.world.model.chunk_frames):
            self.base.command(np.array([speed_mps, 0, 0, 0, 0, 0]), self.now_ns)
            for _ in range(10):
                self.now_ns += PERIOD_NS // 10
                self.base.advance(self.now_ns)
                self.way.append(self.base.odom_from_base[:3, 3].copy())
            poses.append(self.base.odom_from_base @ self._base_from_camera)
            stamps.append(self.now_ns)
        self.world.step(Camera(self.camera.intrinsics, np.stack(poses), self.camera.size), np.array(stamps))
        self._look(poses[-1][:3, 3])

    @property
    def driven_m(self) -> float:
        return float(np.linalg.norm(self.way[-1] - self.way[0]))

    def rests(self) -> bool:
        """Whether it stood still throughout the last chunk."""
        steps = 10 * self.world.model.chunk_frames
        return len(self.way) > steps and float(np.ptp(self.way[-steps:], axis=0).max()) < 1e-3


def judge_stop(world: World, place: Place, seed: int) -> StopFigures:
    """Drives at the widest wall in view until it stops."""
    truth, camera_m = Truth(place.scene), place.camera.position_world
    heading = np.radians(min(HEADINGS_DEG, key=lambda deg: _unevenness(truth, place, deg)))
    drive = Drive(world, place, heading)
    wall_m = _ranges(truth, place, np.degrees(heading)).min()
    while not drive.rests() and drive.now_ns < LONGEST_S * SECOND_NS + place.state.stamp_ns:
        drive.chunk()
    gap_m = min(gap_of(truth, np.append(where[:2], 0), camera_m[2]) for where in drive.way[:: len(drive.way) // 40 + 1] + drive.way[-1:])
    return StopFigures(seed, drive.driven_m, gap_m, bool(drive.driven_m > wall_m))


def gap_of(truth: Truth, place_m: Float[np.ndarray, "3"], high_m: float) -> float:
    """From a robot's body at a place to the nearest true surface beside it."""
    angles = np.radians(np.arange(0, 360, 5))
    heights = np.linspace(BODY.low_m + 0.02, high_m, 8)
    ranges = [truth.cast(np.array([*place_m[:2], z]), np.array([np.cos(a), np.sin(a), 0])) for z in heights for a in angles]
    return float(min(ranges)) - BODY.radius_m


def _ranges(truth: Truth, place: Place, heading_deg: float) -> Float[np.ndarray, "n"]:
    """To what a body as wide as the robot meets along a heading, over its width and height."""
    ahead = exp_rotation(np.array([0, 0, np.radians(heading_deg)])) @ place.camera.world_from_camera[:3, 2]
    ahead = np.array([*ahead[:2], 0]) / np.linalg.norm(ahead[:2])
    side, (x, y, z) = np.array([-ahead[1], ahead[0], 0]), place.camera.position_world
    across = np.linspace(-BODY.radius_m, BODY.radius_m, 5)
    return np.array([truth.cast(np.array([x, y, h]) + s * side, ahead) for s in across for h in np.linspace(0.15, z, 5)])


def _unevenness(truth: Truth, place: Place, heading_deg: float) -> float:
    ranges = _ranges(truth, place, heading_deg)
    usable = np.isfinite(ranges).all() and ranges.min() > 0.8
    return float(np.ptp(ranges)) if usable else np.inf


def free_floor(place: Place, beyond_m: float = 0.0) -> Float[np.ndarray, "2"] | None:
    """A spot ahead where the box has room above the floor, all of which the seed shows; the middle of the view first.

    Args:
        beyond_m: as much more room behind it.
    """
    truth, camera = Truth(place.scene), place.camera
    ahead = np.arctan2(*camera.world_from_camera[[1, 0], 2])
    offsets = np.stack(np.meshgrid(*[np.linspace(-BOX_M / 2, BOX_M / 2, 5) * 1.2] * 2), -1).reshape(-1, 2)
    beyond = np.arange(0, beyond_m + 0.01, BOX_M / 2)
    for away in np.arange(1.2, 3.6, 0.2):
        for angle in np.radians([0, 6, -6, 12, -12, 18, -18, 24, -24]):
            along = np.array([np.cos(ahead + angle), np.sin(ahead + angle)])
            spot = camera.position_world[:2] + away * along
            flat = (spot + offsets + beyond[:, None, None] * along).reshape(-1, 2)
            points = np.column_stack([flat, np.full(len(flat), DROP_M + BOX_M + 0.1)])
            depth = np.array([truth.cast(point, np.array([0, 0, -1.0])) for point in points])
            floor = points - np.column_stack([0 * flat, depth])
            if np.abs(floor[:, 2]).max() < 0.01 and place.shows(floor).all():
                return spot
    return None


def judge_drop(world: World, physics: Timed, place: Place, seed: int) -> DropFigures | None:
    """A box falls from a metre, and is watched on; None where the seed shows no free floor."""
    spot = free_floor(place)
    if spot is None:
        return None
    world.restore(place.state)
    physics.took_s = physics.passed_s = 0.0
    _spawn(world, spot, DROP_M, place)
    _wait(world, place)
    share, rested = physics.took_s / physics.passed_s, world.entities.known("box").state.pose
    _wait(world, place)
    pose = world.entities.known("box").state.pose
    tilt_deg = float(np.degrees(np.arccos(np.clip(np.abs(pose[2, :3]).max(), -1, 1))))
    moved_m = float(np.linalg.norm(pose[:3, 3] - rested[:3, 3]))
    return DropFigures(seed, lowest_m(pose), tilt_deg, moved_m, share)


def judge_push(world: World, physics: Timed, place: Place, seed: int) -> PushFigures | None:
    """The base drives at a box on the floor; None where the seed shows no free floor."""
    spot = free_floor(place, beyond_m=0.8)
    if spot is None:
        return None
    eye, ahead = place.camera.position_world[:2], place.camera.world_from_camera[:2, 2]
    bearing = np.arctan2(*(spot - eye)[::-1]) - np.arctan2(*ahead[::-1])
    drive = Drive(world, place, bearing)
    physics.took_s = physics.passed_s = 0.0
    _spawn(world, spot, 0.02, place, np.arctan2(*(spot - eye)[::-1]))
    before = world.entities.known("box").state.pose[:2, 3]
    reach_m = np.linalg.norm(spot - eye) + 0.5
    while drive.driven_m < reach_m and not drive.rests() and drive.now_ns < LONGEST_S * SECOND_NS + place.state.stamp_ns:
        drive.chunk()
    pose = world.entities.known("box").state.pose
    box_m = float(np.linalg.norm(pose[:2, 3] - before))
    return PushFigures(seed, drive.driven_m, box_m, lowest_m(pose), physics.took_s / physics.passed_s)


def lowest_m(pose: Float[np.ndarray, "4 4"]) -> float:
    """z of the lowest corner of the box."""
    return float(pose[2, 3] - BOX_M / 2 * np.abs(pose[2, :3]).sum())


def _spawn(world: World, spot: np.ndarray, above_m: float, place: Place, yaw_rad: float | None = None) -> None:
    pose = np.eye(4)
    yaw = np.arctan2(*place.camera.world_from_camera[[1, 0], 2]) if yaw_rad is None else yaw_rad
    pose[:3, :3], pose[:3, 3] = exp_rotation(np.array([0, 0, yaw])), (*spot, above_m + BOX_M / 2)
    world.change_entities(lambda entities, stamp_ns: entities.spawned("box", shape(BOX), pose, stamp_ns))


def _wait(world: World, place: Place) -> None:
    """Time passes, the camera where it was."""
    frames = world.model.chunk_frames
    for _ in range(int(np.ceil(WATCH_S * SECOND_NS / PERIOD_NS / 2 / frames))):
        poses = np.repeat(place.camera.world_from_camera[None], frames, 0)
        world.step(
            Camera(place.camera.intrinsics, poses, place.camera.size),
            world.stamp_ns + 2 * PERIOD_NS * np.arange(1, frames + 1),
        )


def run_bench(model: WorldModel, seeds: Sequence[int], kind: str) -> dict:
    """Judges physics in each room."""
    physics = Timed(Mujoco(BODY))
    world, still = World(model, physics=physics), World(model)
    rows: dict[str, list] = {"stops": [], "drops": [], "pushes": []}
    for seed in tqdm(seeds, unit="room", desc="bench"):
        place = begin(model, seed, kind)
        rows["stops"].append(judge_stop(still, place, seed))
        rows["drops"].append(judge_drop(world, physics, place, seed))
        rows["pushes"].append(judge_push(world, physics, place, seed))
    return {"kind": kind} | {name: [asdict(row) for row in found if row is not None] for name, found in rows.items()}


def describe(report: dict) -> str:
    """The report as tables."""
    lines = ["a base that is driven at a wall", f"{'room':>8} {'driven':>8} {'gap':>9} {'passed':>7}"]
    for row in report["stops"]:
        lines.append(f"{row['seed']:>8} {row['driven_m']:>6.2f} m {1e3 * row['gap_m']:>6.0f} mm {'yes' if row['passed'] else 'no':>7}")
    lines += ["", f"a box of {BOX_M} m that falls from {DROP_M:g} m",
              f"{'room':>8} {'off':>9} {'tilt':>7} {'then moved':>11} {'of a core':>10}"]
    for row in report["drops"]:
        lines.append(f"{row['seed']:>8} {1e3 * row['off_m']:>6.0f} mm {row['tilt_deg']:>4.1f} dg {1e3 * row['moved_m']:>8.1f} mm "
                     f"{row['share']:>10.1%}")  # fmt: skip
    off = [abs(row["off_m"]) for row in report["drops"]]
    if off:
        lines.append(f"{'':>8} median {1e3 * np.median(off):.0f} mm, worst {1e3 * max(off):.0f} mm")
    lines += ["", "a box that the base drives at",
              f"{'room':>8} {'base':>8} {'box':>8} {'off':>9} {'of a core':>10}"]
    for row in report["pushes"]:
        lines.append(f"{row['seed']:>8} {row['base_m']:>6.2f} m {row['box_m']:>6.2f} m {1e3 * row['off_m']:>6.0f} mm {row['share']:>10.1%}")
    return "\n".join(lines)

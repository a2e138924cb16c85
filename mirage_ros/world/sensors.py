"""What sensors measure in a world, and changes nothing: ranges from its memory, inertia from planned motion.

A scan is a ring of up to four pinhole readouts of one row each, 90 degrees wide, whose columns are at least as
fine as the beams; a lidar's are as high as its rings need. What no surface stops is `inf` in a scan where views saw
the space to be free, and NaN where nobody saw anything. A floor plan looks again through each view that is kept of free
space: a cell is occupied where one of its pixels shows a surface between the floor and the robot's height, free where
all heights of it were seen free, and unknown else. No torch is imported here: the node's own process knows the configs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import log_rotation
from mirage_ros.protocol import (
    FREE,
    OCCUPIED,
    SECOND_NS,
    UNKNOWN,
    FloorPlan,
    FreeSpace,
    ImuSample,
    LidarCloud,
    Scan,
    Surfaces,
)

SCAN_MARGIN = 0.05
"""Share of its depth by which a point has to lie before the surface behind it to be seen free."""
STEP_M = 0.1
"""Free space is looked up along a beam in steps of this."""
BLIND_M = 2.0
"""Space so near to the sensor may be unseen where the beam is free beyond: the robot itself stands there, and a
camera does not see below itself."""
COLUMNS_PER_BEAM = 2
FINEST_DEG, FINEST_LIDAR_DEG = 0.05, 0.2
STEEPEST_DEG, MOST_RINGS = 60.0, 128
FINER, VIEWS_AT_ONCE = 4, 8
"""Pixels to a side of each cell of a view; and views that are measured at once for a map: more take more memory."""
PLAN_MARGIN = 0.02
"""The same for a floor plan, which looks through finer pixels."""
BEHIND = 0.01
"""Surfaces are marked so much farther off than they are measured, as a share of depth: a face right at the border
of a cell marks the one that it belongs to, rather than the free one before it."""
LAYER_M = 0.05
MOST_CELLS = 4000


@dataclass(frozen=True)
class ScanConfig:
    """A planar range scanner.

    Attributes:
        fov_deg: centred ahead; 360 is all around.
        resolution_deg: from one beam to the next.
        range_min_m, range_max_m: what is nearer is -inf, what is farther inf.
        height_m: of the plane above z = 0 of the world; 0 is the camera's height.
    """

    fov_deg: float = 360.0
    resolution_deg: float = 1.0
    range_min_m: float = 0.1
    range_max_m: float = 10.0
    height_m: float = 0.0

    def __post_init__(self) -> None:
        if not FINEST_DEG <= self.resolution_deg <= self.fov_deg <= 360:
            raise MirageError(
                f"A scan got a field of view of {self.fov_deg:g} degrees and a resolution of {self.resolution_deg:g}; "
                f"give at most 360, and a resolution from {FINEST_DEG:g} to the field of view."
            )
        _check_ranges("scan", self.range_min_m, self.range_max_m)

    @property
    def angles_rad(self) -> Float[np.ndarray, "n"]:
        """Of the beams, from the right to the left; 0 is ahead."""
        return _around(self.fov_deg, self.resolution_deg)


@dataclass(frozen=True)
class LidarConfig:
    """A lidar whose rings are measured at once.

    Attributes:
        elevations_deg: of the rings, rising.
        azimuth_step_deg: from one beam of a ring to the next.
        fov_deg: centred ahead; 360 is all around.
        range_min_m, range_max_m: what is nearer or farther gives no point.
        height_m: above z = 0 of the world; 0 is the camera's height.
    """

    elevations_deg: tuple[float, ...]
    azimuth_step_deg: float = 1.0
    fov_deg: float = 360.0
    range_min_m: float = 0.3
    range_max_m: float = 30.0
    height_m: float = 0.0

    def __post_init__(self) -> None:
        rings = np.array(self.elevations_deg, np.float64)
        rise = (np.abs(rings) <= STEEPEST_DEG).all() and (np.diff(rings) > 0).all()
        if not rise or not 1 <= len(rings) <= MOST_RINGS:
            raise MirageError(
                f"A lidar got {len(rings)} rings at {str(list(self.elevations_deg))[:60]} degrees; give 1 to "
                f"{MOST_RINGS} that rise, within {STEEPEST_DEG:g} degrees of level."
            )
        if not FINEST_LIDAR_DEG <= self.azimuth_step_deg <= self.fov_deg <= 360:
            raise MirageError(
                f"A lidar got a field of view of {self.fov_deg:g} degrees and steps of {self.azimuth_step_deg:g}; give "
                f"at most 360, and steps from {FINEST_LIDAR_DEG:g} to the field of view."
            )
        _check_ranges("lidar", self.range_min_m, self.range_max_m)

    @property
    def beams(self) -> Float[np.ndarray, "r b 3"]:
        """Unit directions in the lidar's axes."""
        azimuth, elevation = _around(self.fov_deg, self.azimuth_step_deg), np.radians(self.elevations_deg)[:, None]
        flat, up = np.cos(elevation), np.sin(elevation) * np.ones_like(azimuth)
        return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), up], -1)


def _check_ranges(what: str, least_m: float, most_m: float) -> None:
    if not 0 <= least_m < most_m < np.inf:
        raise MirageError(
            f"A {what} got ranges from {least_m:g} to {most_m:g} m; give a least one of 0 or more, below the largest."
        )


def _around(fov_deg: float, step_deg: float) -> Float[np.ndarray, "n"]:
    """Angles in radians, from the right to the left; 0 is ahead. A full turn does not end where it began."""
    steps = int(np.floor(fov_deg / step_deg + 1e-9))
    beams = steps if fov_deg >= 360 else steps + 1
    return np.radians(step_deg) * (np.arange(beams) - steps / 2)


def scan_pose(world_from_camera: Float[np.ndarray, "4 4"], height_m: float) -> Float[np.ndarray, "4 4"]:
    """world_from_scan, x ahead, y left, z up: where the camera is and looks, level, at a height (0: the camera's)."""
    rotation, pose = world_from_camera[:3, :3], np.eye(4)
    # Looking straight up or down, ahead is where the top of the picture, or its bottom, points.
    ahead = rotation[:2, 2] if np.hypot(*rotation[:2, 2]) > 1e-6 else np.sign(rotation[2, 2]) * rotation[:2, 1]
    cosine, sine = ahead / np.hypot(*ahead)
    pose[:2, :2] = [[cosine, -sine], [sine, cosine]]
    pose[:3, 3] = world_from_camera[:3, 3]
    if height_m:
        pose[2, 3] = height_m
    return pose


def scan(
    memory: Surfaces, free_space: FreeSpace, world_from_camera: Float[np.ndarray, "4 4"], config: ScanConfig
) -> Scan:
    """What a scanner at a camera's place measures.

    Args:
        memory, free_space: of a WorldState.
    """
    pose, angles = scan_pose(world_from_camera, config.height_m), config.angles_rad
    ranges = _ranges(memory, pose, angles, np.zeros(1), config.resolution_deg)[0]
    unstopped = np.flatnonzero(np.isnan(ranges) | (ranges > config.range_max_m))
    ranges[unstopped] = np.where(_free(free_space, pose, angles[unstopped], config), np.inf, np.nan)
    ranges[ranges < config.range_min_m] = -np.inf
    step = float(np.radians(config.resolution_deg))
    return Scan(ranges, float(angles[0]), step, config.range_min_m, config.range_max_m, pose)


def lidar(memory: Surfaces, world_from_camera: Float[np.ndarray, "4 4"], config: LidarConfig) -> LidarCloud:
    """What a lidar at a camera's place measures."""
    pose = scan_pose(world_from_camera, config.height_m)
    azimuth, elevation = _around(config.fov_deg, config.azimuth_step_deg), np.radians(config.elevations_deg)
    ranges = _ranges(memory, pose, azimuth, elevation, config.azimuth_step_deg)
    ranges[(ranges < config.range_min_m) | (ranges > config.range_max_m)] = np.nan
    return LidarCloud((ranges[..., None] * config.beams).astype(np.float32), pose)


def _ranges(
    memory: Surfaces, world_from_scan: np.ndarray, angles: np.ndarray, elevations: np.ndarray, step_deg: float
) -> Float32[np.ndarray, "r n"]:
    """To the first surface along the beams of each ring; NaN where there is none."""
    sector = np.rint(angles / (np.pi / 2)).astype(int)
    within = angles - sector * (np.pi / 2)
    width = 2 * int(np.ceil(COLUMNS_PER_BEAM / np.radians(step_deg)))
    focal = width / 2
    # A ring is no straight line in a pinhole's picture: it rises towards both sides.
    rise = np.tan(elevations)[:, None] / np.cos(within)
    above, below = (int(np.ceil(focal * max(edge, 0))) for edge in (rise.max(), -rise.min()))
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, above], [0, 0, 1.0]])
    sectors = np.unique(sector)
    poses = np.stack([world_from_scan @ _ahead_along(k * np.pi / 2) for k in sectors])
    depth_m, _ = memory.measure(Camera(intrinsics, poses, (above + below + 1, width)))
    column = np.rint((width - 1) / 2 - focal * np.tan(within)).astype(int).clip(0, width - 1)
    row = np.rint(above - focal * rise).astype(int).clip(0, above + below)
    found = depth_m[np.searchsorted(sectors, sector), row, column]
    return found / (np.cos(within) * np.cos(elevations)[:, None]).astype(np.float32)


def _ahead_along(angle_rad: float) -> Float[np.ndarray, "4 4"]:
    """scan_from_camera of a level camera that looks along an angle."""
    pose, cosine, sine = np.eye(4), np.cos(angle_rad), np.sin(angle_rad)
    pose[:3, :3] = np.array([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]])
    return pose


def _free(
    free_space: FreeSpace, world_from_scan: np.ndarray, angles: np.ndarray, config: ScanConfig
) -> Bool[np.ndarray, "n"]:
    """Which beams views saw to be free up to the largest range, but for what lies right at the sensor."""
    distances = np.append(np.arange(STEP_M, config.range_max_m, STEP_M), config.range_max_m)
    away = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], -1) @ world_from_scan[:3, :3].T
    free = np.zeros(len(angles), bool)
    # Far points decide most beams: only those that are free there are looked at whole.
    at_end = world_from_scan[:3, 3] + config.range_max_m * away
    some = np.flatnonzero(free_space.seen_free(at_end, SCAN_MARGIN))
    points = world_from_scan[:3, 3] + distances[None, :, None] * away[some, None]
    seen = free_space.seen_free(points.reshape(-1, 3), SCAN_MARGIN).reshape(points.shape[:2])
    first = seen.argmax(1)
    gap = ~seen & (np.arange(len(distances)) >= first[:, None])
    free[some] = ~gap.any(1) & (distances[first] <= max(BLIND_M, STEP_M))
    return free


GRAVITY_M_S2 = 9.80665


@dataclass(frozen=True)
class ImuConfig:
    """An inertial sensor at a camera.

    Attributes:
        gyro_noise, accel_noise: densities of white noise, rad/s and m/s^2 per square root of Hz.
        seed: of the noise.
        gap_ns: poses further apart than this are no motion.
    """

    gyro_noise: float = 0.0
    accel_noise: float = 0.0
    seed: int = 0
    gap_ns: int = SECOND_NS


class Imu:
    """Differentiates a camera's poses, as they come.

    Angular velocity is the mean since the pose before, acceleration the change between the last two mean velocities:
    who adds the samples up, step by step, comes to the poses again. The noise of a stamp is always the same.
    """

    def __init__(self, config: ImuConfig) -> None:
        self.config = config
        self._poses: deque[tuple[int, np.ndarray]] = deque(maxlen=3)

    def moved(self, stamp_ns: int, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The next pose. After a gap, or back in time, motion begins anew."""
        if self._poses and not 0 < stamp_ns - self._poses[-1][0] <= self.config.gap_ns:
            self._poses.clear()
        self._poses.append((stamp_ns, world_from_camera))

    def measure(self) -> ImuSample:
        """At the last pose; where there are too few before it the sensor was at rest, or in even motion."""
        poses, config = list(self._poses), self.config
        stamp_ns, now = poses[-1]
        steps = [((b - a) / SECOND_NS, one, two) for (a, one), (b, two) in zip(poses, poses[1:], strict=False)]
        turning, change = np.zeros(3), np.zeros(3)
        if steps:
            seconds, before, _ = steps[-1]
            turning = log_rotation(before[:3, :3].T @ now[:3, :3]) / seconds
        if len(steps) == 2:
            earlier, later = ((two[:3, 3] - one[:3, 3]) / seconds for seconds, one, two in steps)
            change = (later - earlier) / (0.5 * (steps[0][0] + steps[1][0]))
        force = now[:3, :3].T @ (change + [0.0, 0.0, GRAVITY_M_S2])
        rate = 1 / steps[-1][0] if steps else 0.0
        gyro_std, accel_std = config.gyro_noise * rate**0.5, config.accel_noise * rate**0.5
        noise = np.random.default_rng([config.seed, stamp_ns]).standard_normal((2, 3))
        return ImuSample(turning + gyro_std * noise[0], force + accel_std * noise[1], gyro_std, accel_std)


@dataclass(frozen=True)
class MapConfig:
    """How a floor plan is made.

    Attributes:
        resolution_m: side of a cell.
        size_m: sides of the square around the camera beyond which nothing is drawn.
        floor_m: z of the floor.
        floor_margin_m: surfaces up to this above the floor are floor.
        robot_height_m: surfaces above this do not matter.
        imagined: what was imagined counts as known; else only what real pictures showed.
        period_s: least wall time between two plans.
    """

    resolution_m: float = 0.05
    size_m: float = 40.0
    floor_m: float = 0.0
    floor_margin_m: float = 0.1
    robot_height_m: float = 0.5
    imagined: bool = True
    period_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor_margin_m < self.robot_height_m < np.inf:
            raise MirageError(
                f"A map got a floor margin of {self.floor_margin_m:g} m and a robot {self.robot_height_m:g} m high; "
                "give a margin from 0 to below the robot's height."
            )
        if not 0 < self.resolution_m <= self.size_m <= MOST_CELLS * self.resolution_m:
            raise MirageError(
                f"A map got cells of {self.resolution_m:g} m and a size of {self.size_m:g} m; give cells above 0 "
                f"and 1 to {MOST_CELLS} of them to a side."
            )

    @property
    def heights_m(self) -> Float[np.ndarray, "n"]:
        """z of the points of a cell that have to be free."""
        low, high = self.floor_m + self.floor_margin_m, self.floor_m + self.robot_height_m
        return np.linspace(low, high, max(2, int(np.ceil((high - low) / LAYER_M - 1e-9)) + 1))


def floor_plan(
    memory: Surfaces, free_space: FreeSpace, centre: Float[np.ndarray, "3"], config: MapConfig
) -> FloorPlan:
    """The plan of what is known around a point. One cell, unknown, where that is nothing.

    Args:
        memory, free_space: of a WorldState.
    """
    cameras, depth_m, reached, stopping = _looked_through(memory, free_space, config)
    corners = centre[:2] - config.size_m / 2, centre[:2] + config.size_m / 2
    places = np.floor(np.clip(reached, *corners) / config.resolution_m).astype(int)
    if not len(places):
        return FloorPlan(np.full((1, 1), UNKNOWN, np.int8), np.array(centre[:2], float), config.resolution_m)
    first = places.min(0)
    plan = FloorPlan(
        np.full(tuple(places.max(0) - first + 1)[::-1], UNKNOWN, np.int8),
        first * config.resolution_m,
        config.resolution_m,
    )
    nearest = _nearest_around(depth_m).astype(np.float16)
    seen = replace(free_space, cameras=cameras, reach_m=nearest, real=np.ones(len(nearest), bool))
    _mark_free(plan, seen, config)
    column, row = np.floor((stopping - plan.origin_m) / plan.resolution_m + 1e-9).astype(int).T
    inside = (row >= 0) & (row < plan.cells.shape[0]) & (column >= 0) & (column < plan.cells.shape[1])
    plan.cells[row[inside], column[inside]] = OCCUPIED
    return plan


def _looked_through(memory: Surfaces, free_space: FreeSpace, config: MapConfig):
    """The kept views with finer pixels (Camera), how far each pixel sees (v, h, w), corners of the ground that they see (k, 2),
    and points of surfaces that stop the robot (n, 2)."""
    kept = free_space.real | config.imagined
    reach = free_space.reach_m[kept].astype(np.float32).repeat(FINER, 1).repeat(FINER, 2)
    cameras, (low, high) = free_space.cameras[kept].resized(reach.shape[1:]), config.heights_m[[0, -1]]
    depths, reached, stopping = [reach[:0]], [cameras.position_world[:, :2]], [np.empty((0, 2))]
    for start in range(0, len(reach), VIEWS_AT_ONCE):
        some = cameras[start : start + VIEWS_AT_ONCE]
        depth, real = memory.measure(some)
        if not config.imagined:
            depth[~real] = np.nan
        # What a view kept of a cell is the nearest that it saw there: tokens that reach in front of it are too wide.
        depth = np.fmax(depth, reach[start : start + VIEWS_AT_ONCE])
        ends = _lifted(some, np.where(np.isinf(depth), config.size_m, depth * (1 + BEHIND)))
        if len(known := ends[~np.isnan(depth)][:, :2]):
            reached += [known.min(0)[None], known.max(0)[None]]
        surfaces = ends[np.isfinite(depth)]
        depths.append(depth)
        stopping.append(surfaces[(surfaces[:, 2] >= low) & (surfaces[:, 2] <= high), :2])
    return cameras, *(np.concatenate(one) for one in (depths, reached, stopping))


def _lifted(cameras: Camera, depth_m: Float[np.ndarray, "v h w"]) -> Float[np.ndarray, "v h w 3"]:
    """As Camera.lift, in a fifth of the time and not to the same bit."""
    height, width = cameras.size
    points = (cameras.rays() * depth_m[..., None]).reshape(len(depth_m), height * width, 3)
    pose = cameras.world_from_camera
    return (points @ pose[:, :3, :3].swapaxes(1, 2) + pose[:, None, :3, 3]).reshape(*depth_m.shape, 3)


def _nearest_around(depth_m: Float32[np.ndarray, "v h w"]) -> Float32[np.ndarray, "v h w"]:
    """The least of each pixel and its neighbours, of those that are known."""
    wide = np.pad(depth_m, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    rows = np.fmin(np.fmin(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
    return np.fmin(np.fmin(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def _mark_free(plan: FloorPlan, seen: FreeSpace, config: MapConfig) -> None:
    """Marks the cells that are free at all heights."""
    row, column = np.indices(plan.cells.shape).reshape(2, -1)
    for height_m in config.heights_m:
        points = np.stack([column + 0.5, row + 0.5, np.zeros(len(row))], -1) * plan.resolution_m
        points += [*plan.origin_m, height_m]
        free = seen.seen_free(points, PLAN_MARGIN)
        row, column = row[free], column[free]
    plan.cells[row, column] = FREE

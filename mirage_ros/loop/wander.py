"""A small vision policy: wander, and avoid what depth pictures show.

A dynamic window (Fox, Burgard and Thrun, "The Dynamic Window Approach to Collision Avoidance",
1997) over a map of obstacles, which knows depth pictures and the base's own odometry and nothing
else. The map remembers what has left the narrow view: the body is blind to its sides and its back,
so it only goes forward, and all that was ever seen there counts.

The map holds voxels with the evidence for and against each. Generated depth is not measured depth: it
flickers from frame to frame, its edges smear, and a surface looked at from its back may be missing from
a picture. So a single picture never takes anything out of the map. A voxel goes when many pictures saw
well past it, from the side that it was seen from, and far more of them than ever showed it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import inverse
from mirage_ros.loop import STILL, BasePose, Command, Footprint, distances_m

NEAREST_M = 0.05
AXIS_BITS = 20


@dataclass(frozen=True)
class MapConfig:
    """How obstacles are remembered.

    Attributes:
        cell_m: edge of a voxel.
        reach_m: what is farther away from the robot than this is forgotten.
        past_factor, past_m: a picture speaks against a voxel when the depth that it shows there
            is greater than the voxel's by this factor and this much,
        past_px: in all pixels up to this far from it,
        past_range_m: and the voxel is no farther away than this,
        same_side: and the cosine between the directions it is seen from now and was seen from at
            first, on the floor, is at least this.
        misses, misses_per_hit: a voxel is forgotten after so many pictures against it, and so many
            times as many as showed it.
    """

    cell_m: float = 0.08
    reach_m: float = 12.0
    past_factor: float = 1.25
    past_m: float = 0.15
    past_px: int = 2
    past_range_m: float = 3.0
    same_side: float = 0.5
    misses: int = 6
    misses_per_hit: float = 2.0


class ObstacleMap:
    """Points of the world at the body's height, each the first that was seen in its voxel.

    Attributes:
        points: (n, 3).
        hits, misses: (n,) pictures that showed the voxel, and that saw past it.
    """

    def __init__(self, config: MapConfig = MapConfig()) -> None:
        self.config = config
        self.points: Float[np.ndarray, "n 3"] = np.zeros((0, 3))
        self.hits: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self.misses: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self._keys: Int[np.ndarray, "n"] = np.zeros(0, np.int64)
        self._sides: Float[np.ndarray, "n 2"] = np.zeros((0, 2))

    def __len__(self) -> int:
        return len(self.points)

    def look(
        self, points: Float[np.ndarray, "m 3"], depth_m: Float[np.ndarray, "h w"], view: Camera
    ) -> None:
        """Takes in one picture.

        Args:
            points: of it, those that the body can touch.
            depth_m: all of it; what is not finite says nothing, but +inf is far away.
            view: its camera.
        """
        self._count_misses(depth_m, view)
        self._count_hits(points, view)
        config = self.config
        enough = np.maximum(config.misses, config.misses_per_hit * self.hits)
        away = np.linalg.norm(self.points[:, :2] - view.position_world[:2], axis=1)
        self._keep((self.misses < enough) & (away < config.reach_m))

    def _count_hits(self, points: np.ndarray, view: Camera) -> None:
        """Voxels are kept in the order of their keys, so that old ones are found by bisection."""
        keys, first = np.unique(_keys_of(points, self.config.cell_m), return_index=True)
        place = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), bool)
        known[place < len(self)] = self._keys[place[place < len(self)]] == keys[place < len(self)]
        self.hits[place[known]] += 1
        fresh, at = points[first[~known]], place[~known]
        self._keys = np.insert(self._keys, at, keys[~known])
        self.points = np.insert(self.points, at, fresh, axis=0)
        self.hits = np.insert(self.hits, at, 1)
        self.misses = np.insert(self.misses, at, 0)
        self._sides = np.insert(self._sides, at, _sides(fresh, view), axis=0)

    def _count_misses(self, depth_m: np.ndarray, view: Camera) -> None:
        config = self.config
        pixels, along_m = view.project(self.points)
        height, width = view.size
        u, v = np.round(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(int).T
        inside = (along_m > NEAREST_M) & (along_m < config.past_range_m)
        inside &= (u >= 0) & (u < width) & (v >= 0) & (v < height)
        inside &= (_sides(self.points, view) * self._sides).sum(1) >= config.same_side
        shown_m = _nearest_around(depth_m, config.past_px)[v[inside], u[inside]]
        with np.errstate(invalid="ignore"):
            past = shown_m > config.past_factor * along_m[inside] + config.past_m
        self.misses[np.flatnonzero(inside)[past]] += 1

    def _keep(self, rows: Bool[np.ndarray, "n"]) -> None:
        self.points, self._keys = self.points[rows], self._keys[rows]
        self.hits, self.misses, self._sides = self.hits[rows], self.misses[rows], self._sides[rows]


def _keys_of(points: Float[np.ndarray, "n 3"], cell_m: float) -> Int[np.ndarray, "n"]:
    """One number for each point's voxel."""
    half = 1 << (AXIS_BITS - 1)
    x, y, z = np.clip(np.floor(points / cell_m).astype(np.int64) + half, 0, 2 * half - 1).T
    return (x << 2 * AXIS_BITS) | (y << AXIS_BITS) | z


def _sides(points: Float[np.ndarray, "n 3"], view: Camera) -> Float[np.ndarray, "n 2"]:
    """Unit directions on the floor from points to the camera."""
    back = view.position_world[:2] - points[:, :2]
    return back / np.maximum(np.linalg.norm(back, axis=1, keepdims=True), 1e-9)


def _nearest_around(depth_m: Float[np.ndarray, "h w"], reach: int) -> Float[np.ndarray, "h w"]:
    """The least depth of each pixel's square neighbourhood; NaN where any of it is unknown."""
    nearest = np.asarray(depth_m, np.float64)
    for axis in (0, 1):
        padded = np.pad(nearest, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        count = nearest.shape[axis]
        parts = [padded.take(range(i, i + count), axis) for i in range(2 * reach + 1)]
        nearest = np.minimum.reduce(parts)
    return nearest


ARC_STEP_M = 0.06
ARCS = 9
COLUMN_M = 0.04
TRAIL_STEP_M = 0.2
TRAIL_POSES = 60
FRESH_POSES = 8
WHOLE_TURN = 2 * math.pi


@dataclass(frozen=True)
class Gait:
    """How fast, as a share of the fastest, and how near the body may come to obstacles."""

    share: float
    margin_m: float


@dataclass(frozen=True)
class WanderConfig:
    """How it drives.

    Attributes:
        footprint: of the base.
        gaits: the slower, the nearer to obstacles; the last is for when a whole turn on the spot
            has shown no way for the others.
        speed_mps, turn_rps: the fastest it goes.
        commit_s: how long a command is carried out before the next picture is heeded.
        look_ahead_m: how far arcs are followed.
        leave_m: free way that ends a turn on the spot.
        map: how obstacles are remembered.
    """

    footprint: Footprint = Footprint()
    gaits: tuple[Gait, ...] = (Gait(1.0, 0.25), Gait(0.5, 0.18), Gait(0.25, 0.1))
    speed_mps: float = 0.6
    turn_rps: float = 0.7
    commit_s: float = 0.8
    look_ahead_m: float = 2.0
    leave_m: float = 1.2
    map: MapConfig = MapConfig()


class Wanderer:
    """Looks at every depth picture, and decides when it is asked.

    Args:
        base_from_camera: where the camera is mounted.
    """

    def __init__(
        self,
        base_from_camera: Float[np.ndarray, "4 4"],
        config: WanderConfig = WanderConfig(),
    ) -> None:
        self.config, self._mount = config, base_from_camera
        self.map = ObstacleMap(config.map)
        self._trail: deque[np.ndarray] = deque(maxlen=TRAIL_POSES)
        self._pose = BasePose()
        self._turned_rad = 0.0
        self._cornered = False

    def look(self, depth_m: Float[np.ndarray, "h w"], camera: Camera, pose: BasePose) -> None:
        """Takes the picture into the map.

        Args:
            depth_m: along z; what is not finite says nothing.
            camera: its intrinsics; the pose is not used.
            pose: the base's odometry when it was taken, in any frame that stays.
        """
        self._track(pose)
        view = Camera(camera.intrinsics, pose.world_from_base @ self._mount, camera.size)
        points = view.lift(depth_m).reshape(-1, 3)
        points = points[np.isfinite(points).all(-1)]
        self.map.look(points[self.config.footprint.at_its_height(points)], depth_m, view)

    def decide(self, last: Command = STILL) -> Command:
        """The next command, given the one that was carried out until now."""
        near, config = self._near(), self.config
        turning = last.speed_mps == 0 and last.turn_rps != 0
        if not turning:
            self._turned_rad = 0.0
        # After a whole turn without a good way any will do, until there is a good one again.
        self._cornered = self._cornered or self._turned_rad >= WHOLE_TURN
        for gait in config.gaits if self._cornered else config.gaits[:-1]:
            command, free_m = self._best_arc(near, gait, last)
            good = free_m >= config.leave_m
            enough = free_m >= command.speed_mps * config.commit_s
            if command.speed_mps and (good or (enough and (self._cornered or not turning))):
                self._cornered = self._cornered and not (good and gait == config.gaits[0])
                return command
        return self._turn(near, last if turning else STILL)

    def _track(self, pose: BasePose) -> None:
        """Keeps the way in mind, and how far the base has turned on the spot."""
        place = np.array([pose.x_m, pose.y_m])
        self._turned_rad += abs(math.remainder(pose.yaw_rad - self._pose.yaw_rad, WHOLE_TURN))
        if not self._trail or np.linalg.norm(place - self._trail[-1]) > TRAIL_STEP_M:
            self._trail.append(place)
        self._pose = pose

    def _near(self) -> Float[np.ndarray, "n 2"]:
        """Obstacles that an arc could meet, on the floor, from the base."""
        base_from_odom = inverse(self._pose.world_from_base)
        points = self.map.points[:, :2] @ base_from_odom[:2, :2].T + base_from_odom[:2, 3]
        points = points[np.linalg.norm(points, axis=1) < self.config.look_ahead_m + 1.5]
        _, first = np.unique(np.floor(points / COLUMN_M), axis=0, return_index=True)
        return points[first]

    def _best_arc(self, near: np.ndarray, gait: Gait, last: Command) -> tuple[Command, float]:
        """The arc to follow and its free length in metres."""
        config, best, best_score, best_free_m = self.config, STILL, -np.inf, 0.0
        for turn in np.linspace(-config.turn_rps, config.turn_rps, ARCS):
            command = Command(config.speed_mps * gait.share, float(turn) * gait.share)
            free_m, clear_m = self._free(near, command, gait.margin_m)
            score = free_m + 0.5 * min(clear_m, 1.0) - 0.25 * abs(turn)
            score += 0.6 * self._novelty(command, free_m)
            score -= 0.15 * abs(turn - last.turn_rps)
            if score > best_score:
                best, best_score, best_free_m = command, score, free_m
        return best, best_free_m

    def _free(self, near: np.ndarray, command: Command, margin_m: float) -> tuple[float, float]:
        """How far an arc is free of obstacles, and its clearance that far, in metres.

        Where the body already is nearer to something than the margin, it may go away from it.
        """
        count = int(self.config.look_ahead_m / ARC_STEP_M)
        period_s = ARC_STEP_M / command.speed_mps
        poses = BasePose().along(command, period_s, count)
        centres = np.array([(0.0, 0.0), *((pose.x_m, pose.y_m) for pose in poses)])
        clear_m = distances_m(near, centres) - self.config.footprint.radius_m
        needed_m = np.minimum(margin_m, np.maximum.accumulate(clear_m)[:-1])
        blocked = np.flatnonzero(clear_m[1:] < needed_m)
        free = blocked[0] if len(blocked) else count
        return free * ARC_STEP_M, float(clear_m[1 : max(free, 1) + 1].min())

    def _novelty(self, command: Command, free_m: float) -> float:
        """How far from the way so far an arc leads, metres, at most 1."""
        if len(self._trail) <= FRESH_POSES or not free_m:
            return 0.0
        pose = self._pose.after(command, free_m / command.speed_mps)
        old = np.array(self._trail)[:-FRESH_POSES]
        return min(float(distances_m(old, np.array([[pose.x_m, pose.y_m]]))[0]), 1.0)

    def _turn(self, near: np.ndarray, last: Command) -> Command:
        """On the spot: on in the same direction, or to the side with more room."""
        if last.turn_rps:
            return Command(0.0, math.copysign(self.config.turn_rps, last.turn_rps))
        ahead = near[near[:, 0] > -0.2]
        left_m, right_m = (
            float(np.mean(np.minimum(np.linalg.norm(side, axis=1), 3.0))) if len(side) else 3.0
            for side in (ahead[ahead[:, 1] > 0], ahead[ahead[:, 1] <= 0])
        )
        return Command(0.0, math.copysign(self.config.turn_rps, left_m - right_m))

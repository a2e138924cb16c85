"""A small vision policy: wander, and avoid what the depth picture shows.

A dynamic window (Fox, Burgard and Thrun, "The Dynamic Window Approach to Collision Avoidance",
1997) over a local map of obstacle points, which knows depth pictures and the base's own odometry
and nothing else. The map remembers what has left the narrow view, and forgets what a newer picture
sees through.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mirage_ros.core.camera import Camera
from mirage_ros.loop.base import STILL, BasePose, Command
from mirage_ros.loop.footprint import Footprint, distances_m

ARC_STEP_M = 0.08
TRAIL_STEP_M = 0.2
TRAIL_POSES = 60
FRESH_POSES = 8


@dataclass(frozen=True)
class WanderConfig:
    """How it drives.

    Attributes:
        footprint: of the base.
        margin_m: kept between the body and any obstacle.
        speed_mps, turn_rps: the fastest it goes.
        commit_s: how long a command is carried out before the next picture is heeded.
        look_ahead_m: how far arcs are followed.
        leave_m: free way that ends a turn on the spot.
        map_m: how far the local map reaches.
        cell_m: its resolution.
        see_through: a map point is forgotten when a picture shows depth beyond it by this factor.
    """

    footprint: Footprint = Footprint()
    margin_m: float = 0.15
    speed_mps: float = 0.6
    turn_rps: float = 0.7
    commit_s: float = 0.8
    look_ahead_m: float = 2.0
    leave_m: float = 1.2
    map_m: float = 3.5
    cell_m: float = 0.08
    see_through: float = 1.2


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
        self._obstacles = np.zeros((0, 3))
        self._trail: deque[np.ndarray] = deque(maxlen=TRAIL_POSES)
        self._pose = BasePose()
        self._turned_rad = 0.0

    def look(self, depth_m: Float[np.ndarray, "h w"], camera: Camera, pose: BasePose) -> None:
        """Takes the picture's obstacles into the map, and out of it what is seen through.

        Args:
            depth_m: along z; what is not finite says nothing.
            camera: its intrinsics; the pose is not used.
            pose: the base's odometry when it was taken, in any frame that stays.
        """
        self._track(pose)
        view = Camera(camera.intrinsics, pose.world_from_base @ self._mount, camera.size)
        keep = ~self._seen_through(depth_m, view)
        points = view.lift(depth_m).reshape(-1, 3)
        points = points[np.isfinite(points).all(-1)]
        points = points[self.config.footprint.at_its_height(points)]
        both = np.concatenate([points, self._obstacles[keep]])
        away = np.linalg.norm(both[:, :2] - (pose.x_m, pose.y_m), axis=1)
        both = both[away < self.config.map_m]
        _, first = np.unique(np.floor(both / self.config.cell_m), axis=0, return_index=True)
        self._obstacles = both[first]

    def decide(self, last: Command = STILL) -> Command:
        """The next command, given the one that was carried out until now."""
        base_from_odom = np.linalg.inv(self._pose.world_from_base)
        near = self._obstacles @ base_from_odom[:3, :3].T + base_from_odom[:3, 3]
        turning = last.speed_mps == 0 and last.turn_rps != 0
        if not turning:
            self._turned_rad = 0.0
        needed_m = self.config.speed_mps * self.config.commit_s
        # After a whole turn without a good way out any way will do.
        patient = turning and self._turned_rad < 2 * math.pi
        best, free_m = self._best_arc(near, last)
        if free_m >= (self.config.leave_m if patient else needed_m):
            return best
        if free_m >= needed_m / 2 and not patient:
            return Command(best.speed_mps / 2, best.turn_rps / 2)
        return self._turn(near, last if turning else STILL)

    def _track(self, pose: BasePose) -> None:
        """Keeps the way in mind, and how far the base has turned on the spot."""
        place = np.array([pose.x_m, pose.y_m])
        self._turned_rad += abs(math.remainder(pose.yaw_rad - self._pose.yaw_rad, 2 * math.pi))
        if not self._trail or np.linalg.norm(place - self._trail[-1]) > TRAIL_STEP_M:
            self._trail.append(place)
        self._pose = pose

    def _seen_through(self, depth_m: np.ndarray, view: Camera) -> np.ndarray:
        """Map points in front of what the picture shows at their place."""
        pixels, along_m = view.project(self._obstacles)
        height, width = view.size
        u, v = np.round(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(int).T
        inside = (along_m > 0.05) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        shown_m = np.full(len(u), np.nan)
        shown_m[inside] = depth_m[v[inside], u[inside]]
        return shown_m > self.config.see_through * along_m

    def _best_arc(self, near: np.ndarray, last: Command) -> tuple[Command, float]:
        """The arc to follow and its free length in metres."""
        config, best, best_score, best_free_m = self.config, STILL, -np.inf, 0.0
        for turn in np.linspace(-config.turn_rps, config.turn_rps, 9):
            command = Command(config.speed_mps, float(turn))
            free_m, clear_m = self._free(near, command)
            score = free_m + 0.5 * min(clear_m, 1.0) - 0.25 * abs(turn)
            score += 0.6 * self._novelty(command, free_m) - 0.15 * abs(turn - last.turn_rps)
            if score > best_score:
                best, best_score, best_free_m = command, score, free_m
        return best, best_free_m

    def _free(self, near: np.ndarray, command: Command) -> tuple[float, float]:
        """How far an arc is free of obstacles, and its clearance that far, in metres."""
        count = int(self.config.look_ahead_m / ARC_STEP_M)
        period_s = ARC_STEP_M / command.speed_mps
        centres = np.array(
            [(pose.x_m, pose.y_m) for pose in BasePose().along(command, period_s, count)]
        )
        clear_m = distances_m(near, centres) - self.config.footprint.radius_m
        blocked = np.flatnonzero(clear_m < self.config.margin_m)
        free = blocked[0] if len(blocked) else count
        return free * ARC_STEP_M, float(clear_m[: max(free, 1)].min())

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
            float(np.mean(np.minimum(np.linalg.norm(side[:, :2], axis=1), 3.0)))
            if len(side) else 3.0
            for side in (ahead[ahead[:, 1] > 0], ahead[ahead[:, 1] <= 0])
        )  # fmt: skip
        return Command(0.0, math.copysign(self.config.turn_rps, left_m - right_m))

"""A camera path that leaves a view, looks at what was never seen, and comes back to it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.geometry.rigid import rotations_about

SHORTEST_FRAMES = 3
UNKNOWN_DEPTH_M = 3.0
LOOK_AROUND_DEG = 75.0
FORWARD_SHARE = 0.35
LOOP_SHARE = 0.10
CLEARANCE_SHARE = 0.6
BODY_M = 0.3
GLANCE_DEG = 7.0
PARALLAX_SHARE = 0.15
APPROACH_SHARE = 0.10


def plan_tour(
    camera: Camera,
    frames: int,
    depth_m: Float[np.ndarray, "h w"] | None = None,
    scene_depth_m: float | None = None,
) -> Camera:
    """The path of `frames` cameras; the first and the last are exactly the given one.

    With measured depth the camera walks into the free space that the depth shows, turns by 75 deg
    to the side with more room, and returns another way. Without it, it moves in an arc to either
    side, a share of the assumed scene depth, so that parallax shows, and turns outward a little.

    Args:
        camera: the seed's, a single one.
        depth_m: the seed's depth picture, or None.
        scene_depth_m: median distance of the scene; measured from `depth_m` when None.

    Raises:
        MirageError: fewer than 3 frames.
    """
    if frames < SHORTEST_FRAMES:
        raise MirageError(f"A tour of {frames} frames was asked for; give at least 3.")
    scale = scene_depth_m or central_depth_m(depth_m)
    progress = np.linspace(0, 1, frames)
    if depth_m is None:
        yaw_rad, right_m, forward_m = _glance(progress, scale)
    else:
        forward_m = min(FORWARD_SHARE * scale, CLEARANCE_SHARE * clearance_m(camera, depth_m))
        yaw_rad, right_m, forward_m = _look_around(progress, forward_m)
        if not _more_room_on_the_right(depth_m):
            yaw_rad, right_m = -yaw_rad, -right_m
    poses = _poses(camera.world_from_camera, yaw_rad, right_m, forward_m)
    poses[-1] = poses[0] = camera.world_from_camera
    return Camera(camera.intrinsics, poses, camera.size)


def central_depth_m(depth_m: Float[np.ndarray, "h w"] | None) -> float:
    """Median depth of the picture's central third, 3 m when unknown."""
    if depth_m is None:
        return UNKNOWN_DEPTH_M
    height, width = depth_m.shape
    middle = depth_m[height // 3 : -(height // 3), width // 3 : -(width // 3)]
    for part in (middle, depth_m):
        if np.isfinite(part).any():
            return float(np.median(part[np.isfinite(part)]))
    return UNKNOWN_DEPTH_M


def clearance_m(camera: Camera, depth_m: Float[np.ndarray, "h w"]) -> float:
    """Free way ahead of a body 0.6 m wide and high around the camera; inf when nothing is seen."""
    up, ahead, right = floor_axes(camera.world_from_camera)
    points = camera.lift(depth_m).reshape(-1, 3) - camera.position_world
    points = points[np.isfinite(points).all(-1)]
    beside = (np.abs(points @ right) < BODY_M) & (np.abs(points @ up) < BODY_M)
    return float(np.percentile(points[beside] @ ahead, 1)) if beside.any() else float("inf")


def _look_around(progress: np.ndarray, reach_m: float) -> tuple[np.ndarray, ...]:
    """Turn right, stay turned for a while, return on the other side of a narrow loop."""
    turned = _smooth(progress / 0.42) - _smooth((progress - 0.58) / 0.42)
    there_and_back = np.sin(np.pi * progress) ** 2
    yaw_rad = np.radians(LOOK_AROUND_DEG) * turned
    loop_m = LOOP_SHARE / FORWARD_SHARE * reach_m
    right_m = loop_m * there_and_back * np.sin(2 * np.pi * progress)
    return yaw_rad, right_m, reach_m * there_and_back


def _glance(progress: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    """To the right and to the left, turning only a little that way, so most stays in view."""
    swing = np.sin(2 * np.pi * progress) * _smooth(progress / 0.1) * _smooth((1 - progress) / 0.1)
    right_m = PARALLAX_SHARE * scale * swing
    forward_m = APPROACH_SHARE * scale * np.sin(np.pi * progress) ** 2
    return np.radians(GLANCE_DEG) * swing, right_m, forward_m


def _smooth(value: np.ndarray) -> np.ndarray:
    """From 0 to 1 with no jump in speed or acceleration."""
    value = np.clip(value, 0, 1)
    return value**3 * (10 - 15 * value + 6 * value**2)


def _more_room_on_the_right(depth_m: np.ndarray) -> bool:
    width = depth_m.shape[1]
    left, right = depth_m[:, : width // 3], depth_m[:, -(width // 3) :]
    sides = [float(np.nanmedian(side)) if not np.isnan(side).all() else 0 for side in (left, right)]
    return sides[1] >= sides[0]


def _poses(start: np.ndarray, yaw_rad, right_m, forward_m) -> Float[np.ndarray, "f 4 4"]:
    """Poses turned clockwise about the world's up by `yaw_rad` and moved along its floor."""
    up, ahead, right = floor_axes(start)
    poses = np.repeat(start[None], len(yaw_rad), 0)
    poses[:, :3, :3] = rotations_about(up, -yaw_rad) @ start[:3, :3]
    poses[:, :3, 3] += right_m[:, None] * right + forward_m[:, None] * ahead
    return poses

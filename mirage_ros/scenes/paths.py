"""Camera paths: smooth, at real speeds, clear of solids, looking at something."""

from __future__ import annotations

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.scenes.movers import Scene

CLEARANCE_M = 0.35
LOOP_SHARE = 0.6
CANDIDATES = 160
ENOUGH = 5  # good candidates, of which the one that sees most is taken
MAX_SPEED_MPS, MAX_TURN_DPS = 1.3, 65.0
# motion: heights (m), pitch (deg, positive looks up), share of sideways motion, shake (deg)
MOTIONS = {
    "robot": ((0.3, 1.2), (-12, 3), 0.0, 0.0),
    "handheld": ((1.1, 1.7), (-18, 4), 0.6, 0.7),
    "drone": ((0.5, 2.4), (-30, 8), 0.8, 0.3),
    "arm": ((0.7, 1.4), (-45, 0), 1.0, 0.0),
}


def camera_path(
    scene: Scene,
    seed: int,
    frames: int,
    *,
    motion: str | None = None,
    hfov_deg: float | None = None,
    size: tuple[int, int] = (128, 160),
    period_s: float = 0.1,
) -> Camera:
    """A batch of `frames` cameras, the same for the same arguments.

    About six in ten paths return to near their start. Where a scene leaves no path of the
    asked kind, the one with the most room is taken, shrunk towards its freest point.

    Args:
        motion: one of `MOTIONS`; None draws one.
        hfov_deg: horizontal field of view; None draws one in 50..90.
        period_s: time between frames.
    Raises:
        MirageError: an unknown motion.
    """
    rng = np.random.default_rng([seed, 21])
    drawn = str(rng.choice(list(MOTIONS), p=[0.45, 0.25, 0.2, 0.1]))
    motion = drawn if motion is None else motion
    if motion not in MOTIONS:
        raise MirageError(f"There is no motion {motion!r}; choose one of {', '.join(MOTIONS)}.")
    drawn_hfov = float(rng.uniform(50, 90))
    hfov_deg = drawn_hfov if hfov_deg is None else hfov_deg
    positions, angles = _best_path(scene, rng, frames, motion, period_s)
    return Camera.from_hfov(hfov_deg, size, _poses(positions, angles))


def _best_path(scene: Scene, rng, frames: int, motion: str, period_s: float):
    """Of the first few good paths the best one, of none the one with the most room; as of _candidate."""
    loop = bool(rng.random() < LOOP_SHARE)
    starts = _free_points(scene, rng, motion)
    best, best_score, good = None, -np.inf, 0
    for _ in range(CANDIDATES):
        start = starts[rng.integers(len(starts))]
        path = _candidate(scene, rng, start, motion, loop, frames, period_s)
        score, fine = _judge(scene, path, period_s)
        good += fine
        if score > best_score:
            best, best_score = path, score
        if good >= ENOUGH:
            break
    return best


def best_view(
    scene: Scene, seed: int, *, hfov_deg: float, size: tuple[int, int], room_m: float = 1.5
) -> Camera:
    """A batch of one still camera with free floor around it, looking where most things are."""
    rng = np.random.default_rng([seed, 22])
    points = rng.uniform(scene.low + room_m * 0.5, scene.high - room_m * 0.5, (1500, 3))
    points[:, 2] = rng.uniform(0.6, 1.2, len(points))
    lowest, highest = (scene.solids.centres[:, 2] + s * scene.solids.halves[:, 2] for s in (-1, 1))
    upright = scene.solids.where((lowest < 1.5) & (highest > 0.1))
    room = upright.distance(points)
    points = points[room >= min(room_m, np.sort(room)[-40])]
    best, best_score = None, -np.inf
    for point in points[:60]:
        for yaw in np.arange(0, 2 * np.pi, np.pi / 8) + rng.uniform(0, 0.4):
            angles = np.array([[yaw, np.radians(-6), 0.0]])
            seen = _seen_depths(scene, point[None], angles)
            score = _things_seen(scene, point[None], angles) - 3 * (seen.min() < 1.5)
            if score > best_score:
                best, best_score = (point[None], angles), score
    return Camera.from_hfov(hfov_deg, size, _poses(*best))


def _free_points(scene: Scene, rng, motion: str) -> np.ndarray:
    """Points inside with room around them; the freest ones of many."""
    heights = MOTIONS[motion][0]
    low, high = scene.low + CLEARANCE_M, scene.high - CLEARANCE_M
    points = rng.uniform(low, high, (400, 3))
    points[:, 2] = rng.uniform(heights[0], min(heights[1], high[2]), len(points))
    room = scene.solids.distance(points)
    wanted = CLEARANCE_M + (0.1 if motion == "arm" else 0.25)
    if (room > wanted).sum() >= 8:
        return points[room > wanted]
    return points[np.argsort(room)[-8:]]


def _smooth_noise(rng, frames: int, knots: int) -> np.ndarray:
    """A C1 random signal of about unit size over the frames."""
    values = rng.normal(0, 1, knots + 3)
    place = np.linspace(0, knots - 1e-6, frames)
    index = place.astype(int)
    t = place - index
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return sum(w * values[index + k] for k, w in enumerate(weights)) / 6 * 1.6


def _progress(rng, frames: int, loop: bool) -> np.ndarray:
    """How far along its way the camera is, 0..1 (and back to 0 for a loop), eased."""
    t = np.linspace(0, 1, frames)
    if loop:
        reach = rng.uniform(0.9, 1.0)
        return (0.5 - 0.5 * np.cos(2 * np.pi * t * reach)) / 1.0
    ease = t * t * (3 - 2 * t)
    share = rng.uniform(0, 1)
    return share * ease + (1 - share) * t


def _candidate(scene, rng, start, motion, loop, frames, period_s):
    """Positions (f, 3) and (yaw, pitch, roll) (f, 3) in radians."""
    heights, pitches, sideways, shake = MOTIONS[motion]
    length_s = max(frames - 1, 1) * period_s
    way = _progress(rng, frames, loop)
    # Eased progress peaks above its mean: keep the peak under the limits.
    peak = max(np.abs(np.diff(way)).max(initial=0) / period_s, 1e-6)
    reach = min(rng.uniform(0.3, 1.2) / peak, 4.5)
    if motion == "arm":
        reach = min(reach, rng.uniform(0.2, 0.5))
    turn_limit = np.radians(rng.uniform(5, 58)) / peak
    turn_total = min(turn_limit, np.radians(150)) * rng.choice([-1, 1])
    if rng.random() < 0.3:
        turn_total *= 0.3
    yaw0 = _first_look(scene, rng, start)
    yaw = yaw0 + turn_total * way
    style = rng.random()
    if style < 0.2:
        reach *= 0.15  # turning on the spot
    slide = sideways * rng.uniform(-1, 1) * np.pi / 2
    if motion == "robot" and rng.random() < 0.2:
        slide = np.pi  # driving backwards
    fine = np.linspace(0, 1, 64)
    headings = yaw0 + slide + turn_total * fine
    steps = np.stack([np.cos(headings), np.sin(headings)], -1) * reach / len(fine)
    track = np.concatenate([[[0, 0]], np.cumsum(steps, 0)])
    place = np.clip(way, 0, 1) * len(fine)
    offset = np.stack([np.interp(place, np.arange(len(track)), track[:, k]) for k in (0, 1)], -1)
    positions = np.empty((frames, 3))
    positions[:, :2] = start[:2] + offset
    rise = 0.0 if motion == "robot" else rng.normal(0, {"drone": 0.5, "arm": 0.2}.get(motion, 0.05))
    positions[:, 2] = start[2] + rise * way
    base = rng.uniform(*pitches)
    if motion in ("drone", "arm"):
        base = np.clip(-25 * (start[2] - 0.7) + rng.normal(0, 6), *pitches)
    pitch = np.radians(base + rng.normal(0, 0.0 if motion == "robot" else 5) * way)
    angles = np.stack([yaw, pitch, np.zeros(frames)], -1)
    return _shaken(rng, positions, angles, shake, length_s) if shake else (positions, angles)


def _shaken(rng, positions, angles, shake_deg: float, length_s: float):
    """A path as a hand or a drone holds the camera."""
    frames = len(positions)
    wobble = [_smooth_noise(rng, frames, max(2, int(length_s * 1.5))) for _ in range(3)]
    angles[:, 0] += np.radians(shake_deg) * wobble[0]
    angles[:, 1] += np.radians(shake_deg) * wobble[1]
    angles[:, 2] = np.radians(shake_deg) * 1.2 * wobble[2]
    positions[:, 2] += 0.012 * _smooth_noise(rng, frames, max(2, int(length_s * 3)))
    return positions, angles


def _first_look(scene, rng, start) -> float:
    points = scene.points_of_interest
    if len(points) and rng.random() < 0.75:
        away = points[:, :2] - start[:2]
        far = np.linalg.norm(away, axis=1)
        fit = away[(far > 1.2) & (far < 7)]
        if len(fit):
            aim = fit[rng.integers(len(fit))]
            return float(np.arctan2(aim[1], aim[0]) + rng.normal(0, 0.25))
    return float(rng.uniform(0, 2 * np.pi))


def _judge(scene, path, period_s) -> tuple[float, bool]:
    """How good a path is, and whether it keeps every rule."""
    positions, angles = path
    step = max(1, len(positions) // 24)
    some, turned = positions[::step], angles[::step]
    room = scene.solids.distance(some).min()
    edge = min((some - scene.low).min(), (scene.high - some).min())
    room = min(room, edge)
    times = np.arange(len(positions))[::step] * period_s
    rays = np.stack([np.cos(turned[:, 0]), np.sin(turned[:, 0])], -1)
    watched = 0.0  # share of the views with a moving body ahead
    for mover in scene.movers:
        body = mover.position(times) + [0, 0, mover.radius_m]
        gap = np.linalg.norm(body - some, axis=1).min() - mover.radius_m
        room = min(room, gap - 0.1)
        away = (body - some)[:, :2]
        ahead = (away * rays).sum(1) > 0.9 * np.linalg.norm(away, axis=1)
        watched = max(watched, float(ahead.mean()))
    if room < CLEARANCE_M:
        return room - 10, False
    seen = _seen_depths(scene, some, turned)
    centre, overall = seen[:, 0].min(), float(np.median(seen))
    speed = np.linalg.norm(np.diff(positions, axis=0), axis=1).max(initial=0) / period_s
    turn = np.degrees(np.abs(np.diff(angles[:, 0])).max(initial=0)) / period_s
    fine = centre > 0.8 and overall > 1.3 and speed < MAX_SPEED_MPS and turn < MAX_TURN_DPS
    roomy = -0.3 * abs(np.log(overall / 3.0))
    interest = 0.25 * min(_things_seen(scene, some, turned), 6.0)
    return (0.0 if fine else -5.0) + min(centre, 1.5) + roomy + interest + 2 * watched, bool(fine)


def _things_seen(scene, positions, angles) -> float:
    """Mean number of points of interest ahead, 1 to 8 m away (hidden or not)."""
    away = scene.points_of_interest[None] - positions[:, None]
    far = np.linalg.norm(away, axis=-1)
    rays = np.stack([np.cos(angles[:, 0]), np.sin(angles[:, 0]), np.sin(angles[:, 1])], -1)
    ahead = np.einsum("mnk,mk->mn", away, rays) > np.cos(np.radians(30)) * far
    return float((ahead & (far > 1) & (far < 8)).sum(1).mean())


def _seen_depths(scene, positions, angles) -> np.ndarray:
    """Distances along five rays of each view, at most 12 m; (m, 5)."""
    depths = []
    for yaw, pitch in ((0, 0), (0.35, 0), (-0.35, 0), (0.2, -0.2), (-0.2, 0.15)):
        y, p = angles[:, 0] + yaw, angles[:, 1] + pitch
        rays = np.stack([np.cos(y) * np.cos(p), np.sin(y) * np.cos(p), np.sin(p)], -1)
        depths.append(np.minimum(scene.solids.cast(positions, rays), 12.0))
    return np.stack(depths, -1)


def _poses(positions: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(f, 4, 4) world_from_camera out of positions and (yaw, pitch, roll)."""
    yaw, pitch, roll = angles.T
    zero = np.zeros_like(yaw)
    forward = np.stack(
        [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], -1
    )
    level = np.stack([np.sin(yaw), -np.cos(yaw), zero], -1)
    below = np.cross(forward, level)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, :3, 0] = c * level + s * below
    poses[:, :3, 1] = c * below - s * level
    poses[:, :3, 2] = forward
    poses[:, :3, 3] = positions
    return poses

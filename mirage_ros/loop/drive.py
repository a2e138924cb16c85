"""The closed loop (look, decide, move, look again), the worlds that it drives in, and what a drive leaves.

A robot drives through a generated world, and through a MuJoCo scene as ground truth. A drive leaves a
trace, of which figures are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.data.seeds import Seed
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import BasePose, Command, Footprint, base_under, distances_m
from mirage_ros.loop.wander import WanderConfig, Wanderer
from mirage_ros.protocol import Frame, Points

if TYPE_CHECKING:
    from mirage_ros.scenes import Scene
    from mirage_ros.world.world import World

CELL_M = 0.5
EDGE_M = 0.1
KINDS = ("room", "corridor", "hall", "warehouse", "doorway", "yard")
TEXTURE_PX = 512


@runtime_checkable
class Simulator(Protocol):
    """What `drive` needs of a world.

    Attributes:
        chunk_frames: frames that one step makes.
    """

    chunk_frames: int

    def start(self) -> Frame:
        """The first frame, at stamp 0."""

    def step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> tuple[Frame, ...]:
        """The frames of a batch of cameras."""

    def points(self) -> Points:
        """What the world holds by now."""


@dataclass
class GeneratedWorld:
    """A `World` grown from a seed."""

    world: World
    seed: Seed

    @property
    def chunk_frames(self) -> int:
        return self.world.model.chunk_frames

    def start(self) -> Frame:
        seed = self.seed
        return self.world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]

    def step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> tuple[Frame, ...]:
        return self.world.step(cameras, stamps_ns).frames

    def points(self) -> Points:
        return self.world.memory.to_points()


class MujocoWorld:
    """A procedural scene seen by a perfect camera; what it holds are its solids' surfaces."""

    def __init__(self, scene: Scene, camera: Camera, chunk_frames: int) -> None:
        from mirage_ros.scenes import Renderer

        self.chunk_frames, self._camera = chunk_frames, camera
        self._renderer = Renderer(scene, camera.size)
        self._points = solid_points(scene)

    def close(self) -> None:
        """Gives the drawing context back."""
        self._renderer.close()

    def start(self) -> Frame:
        return self.step(Camera.stack([self._camera]), np.zeros(1, np.int64))[0]

    def step(self, cameras: Camera, stamps_ns: Int[np.ndarray, "f"]) -> tuple[Frame, ...]:
        clip = self._renderer.render(cameras)
        return tuple(
            Frame(int(stamp), cameras[i], clip.rgb[i], clip.depth_m[i], ~clip.sky[i])
            for i, stamp in enumerate(stamps_ns)
        )

    def points(self) -> Points:
        return self._points


def solid_points(scene: Scene, step_m: float = EDGE_M) -> Points:
    """Points on the upright sides of a scene's boxes."""
    solids, parts = scene.solids, []
    for centre, half, yaw in zip(solids.centres, solids.halves, solids.yaws, strict=True):
        sides = _sides(half, step_m)
        cos, sin = np.cos(yaw), np.sin(yaw)
        turned = sides @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        parts.append(turned + centre)
    xyz = np.concatenate(parts or [np.zeros((0, 3))]).astype(np.float32)
    count = len(xyz)
    grey = np.full((count, 3), 150, np.uint8)
    return Points(xyz, grey, np.ones(count, np.float32), np.zeros(count, np.int64))


def _sides(half: Float[np.ndarray, "3"], step_m: float) -> Float[np.ndarray, "n 3"]:
    """Points of the four upright faces of a box around the origin."""
    x, y, z = (np.linspace(-h, h, max(2, int(2 * h / step_m) + 1)) for h in half)
    across, up = np.meshgrid(x, z)
    faces = [np.stack([across, np.full_like(across, side), up], -1) for side in (-half[1], half[1])]
    across, up = np.meshgrid(y, z)
    faces += [
        np.stack([np.full_like(across, side), across, up], -1) for side in (-half[0], half[0])
    ]
    return np.concatenate([face.reshape(-1, 3) for face in faces])


def render_seed(folder: Path, seed: int, kind: str) -> Scene:
    """Writes the scene's seed folder and returns the scene. MirageError without MuJoCo."""
    try:
        from mirage_ros.scenes import make_scene, write_seed
    except ImportError as error:
        raise MirageError(
            f"Scenes need MuJoCo ({error}); pip install 'mirage_ros[scenes]', or give a seed."
        ) from error
    write_seed(folder, seed, kind)
    return make_scene(seed, kind, moving=False, texture_px=TEXTURE_PX)


@dataclass(frozen=True)
class Snap:
    """One frame of a drive: the picture and where the base stood."""

    stamp_ns: int
    pose: BasePose
    camera: Camera
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    observed: Bool[np.ndarray, "h w"]

    @property
    def sha256(self) -> str:
        """Of the picture and its depth: equal only for equal bits."""
        content = np.ascontiguousarray(self.rgb).tobytes() + np.float32(self.depth_m).tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass
class Trace:
    """A drive, frame by frame.

    Attributes:
        start: where the base stood first.
        snaps: in order of time.
        commands: one for each chunk of frames.
        clear_m: for each frame, on the floor, from the body to the nearest point at its height
            that was held when the motion was decided; below 0 the body is in it.
        points, colours: (n, 3) what is held at the end.
    """

    start: BasePose
    snaps: list[Snap] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    clear_m: list[float] = field(default_factory=list)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    colours: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8))

    @property
    def positions_xy(self) -> Float[np.ndarray, "m 2"]:
        """Where the base was, the start first."""
        poses = [self.start, *(snap.pose for snap in self.snaps)]
        return np.array([(pose.x_m, pose.y_m) for pose in poses])

    @property
    def length_m(self) -> float:
        """Of the way driven."""
        return float(np.linalg.norm(np.diff(self.positions_xy, axis=0), axis=1).sum())

    def cameras(self) -> Camera:
        """A batch of all cameras."""
        return Camera.stack([snap.camera for snap in self.snaps])


def clearances_m(
    footprint: Footprint, points: Float[np.ndarray, "n 3"], positions_xy: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m"]:
    """From the body at each position to the nearest point at its height; below 0 it is inside."""
    return distances_m(points[footprint.at_its_height(points)], positions_xy) - footprint.radius_m


def trace_figures(trace: Trace, footprint: Footprint) -> dict:
    """Length, room covered, and how close the body came to what was and is held."""
    clear = np.array(trace.clear_m)
    final = clearances_m(footprint, trace.points, trace.positions_xy[1:])
    cells = np.unique(np.floor(trace.positions_xy / CELL_M), axis=0)
    return {
        "frames": len(trace.snaps),
        "decisions": len(trace.commands),
        "length_m": trace.length_m,
        "cells_of_half_a_metre_visited": len(cells),
        "turns_on_the_spot": sum(command.speed_mps == 0 for command in trace.commands),
        "least_clearance_m": _finite(clear.min(initial=np.inf)),
        "frames_inside_a_held_surface": int((clear < 0).sum()),
        "least_clearance_to_final_memory_m": _finite(final.min(initial=np.inf)),
        "frames_inside_the_final_memory": int((final < 0).sum()),
        "points_held": len(trace.points),
        "observed_fraction": float(np.mean([snap.observed.mean() for snap in trace.snaps])),
    }


def compare(generated: Trace, truth: Trace) -> dict:
    """How two drives from one start part: distances between their bases, frame by frame."""
    count = min(len(generated.positions_xy), len(truth.positions_xy))
    apart = np.linalg.norm(generated.positions_xy[:count] - truth.positions_xy[:count], axis=1)
    parted = np.flatnonzero(apart > CELL_M)
    first, second = generated.commands, truth.commands
    same = [
        abs(a.turn_rps - b.turn_rps) < 1e-6 and abs(a.speed_mps - b.speed_mps) < 1e-6
        for a, b in zip(first, second, strict=False)
    ]
    return {
        "frames_compared": count,
        "mean_distance_m": float(apart.mean()),
        "greatest_distance_m": float(apart.max()),
        "frames_until_half_a_metre_apart": int(parted[0]) if len(parted) else None,
        "equal_commands_at_first": int(np.argmin([*same, False])),
        "equal_commands_share": float(np.mean(same)) if same else None,
        "length_ratio": generated.length_m / truth.length_m if truth.length_m else None,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class DriveConfig:
    """How long and how fast.

    Attributes:
        length_m: the drive ends after so long a way,
        decisions: or after so many decisions, whichever comes first.
        period_s: time between frames.
        wander: the policy's.
        still_steps: steps at first in which the base stands still.
    """

    length_m: float = 21.0
    decisions: int = 250
    period_s: float = 0.2
    wander: WanderConfig = WanderConfig()
    still_steps: int = 0


def drive(
    simulator: Simulator, config: DriveConfig, on_decision: Callable[[Trace], None] = lambda t: None
) -> Trace:
    """Drives until the way is long enough; one chunk of frames is one decision.

    Args:
        on_decision: called after each chunk.
    """
    frame = simulator.start()
    pose, mount = base_under(frame.camera.world_from_camera)
    policy = Wanderer(mount, config.wander)
    policy.look(frame.depth_m, frame.camera, pose)
    trace, command, period_ns = Trace(pose), Command(), round(config.period_s * 1e9)
    while trace.length_m < config.length_m and len(trace.commands) < config.decisions:
        still = len(trace.commands) < config.still_steps
        command = Command() if still else policy.decide(command)
        poses = list(pose.along(command, config.period_s, simulator.chunk_frames))
        positions_xy = np.array([(after.x_m, after.y_m) for after in poses])
        held = simulator.points().xyz
        trace.clear_m += clearances_m(config.wander.footprint, held, positions_xy).tolist()
        stamps = frame.stamp_ns + period_ns * np.arange(1, len(poses) + 1)
        frames = simulator.step(_cameras(frame, poses, mount), stamps)
        trace.commands.append(command)
        for frame, pose in zip(frames, poses, strict=True):
            policy.look(frame.depth_m, frame.camera, pose)
            trace.snaps.append(_snap(frame, pose))
        on_decision(trace)
    points = simulator.points()
    trace.points, trace.colours = points.xyz, points.rgb
    return trace


def _cameras(frame: Frame, poses: list[BasePose], mount: np.ndarray) -> Camera:
    maps = np.stack([pose.world_from_base @ mount for pose in poses])
    return Camera(frame.camera.intrinsics, maps, frame.camera.size)


def _snap(frame: Frame, pose: BasePose) -> Snap:
    return Snap(frame.stamp_ns, pose, frame.camera, frame.rgb, frame.depth_m, frame.observed)

"""Worlds that a robot can drive in: a generated one, and a MuJoCo scene as ground truth.

A MuJoCo scene and the seed picture taken in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from mirage_ros.data.seeds import Seed
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame, Points

if TYPE_CHECKING:
    from mirage_ros.scenes import Scene
    from mirage_ros.world.world import World


KINDS = ("room", "corridor", "hall", "warehouse", "doorway", "yard")
TEXTURE_PX = 512


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


EDGE_M = 0.1


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

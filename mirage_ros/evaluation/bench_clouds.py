"""Latent memories of any size for timing: random depth in every cell of many jittered views.

Random depth is the hard case: every token has its own place, none hides behind a tidy wall, and
all of them lie in the view of one camera.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from mirage_ros.core.camera import Camera
from mirage_ros.core.memory import LatentMemory, MemoryConfig

HFOV_DEG = 70.0
NEAREST_M, FARTHEST_M = 1.5, 12.0
PLACE_PITCH_M = 60.0
BATCH = 16
LOOK_ALONG_Y = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def empty_memory(channels: int, tokens: int, **options) -> LatentMemory:
    """A memory with room for so many tokens, and other options of MemoryConfig."""
    cap = max(2**24, tokens * (4 * channels + 400))
    return LatentMemory(MemoryConfig(channels, cap, **options))


def view(place: int, size: tuple[int, int], count: int = 1) -> Camera:
    """`count` cameras at latent size that look at one place from a few centimetres apart."""
    poses = np.repeat(LOOK_ALONG_Y[None], count, 0)
    poses[:, 0, 3] = PLACE_PITCH_M * place + 0.03 * (np.arange(count) - (count - 1) / 2)
    return Camera.from_hfov(HFOV_DEG, size, poses)


def fill_place(memory: LatentMemory, place: int, tokens: int, size: tuple[int, int]) -> None:
    """Writes random cells until the place holds about `tokens` more."""
    rng, goal = np.random.default_rng(place), memory.tokens + tokens
    values = rng.standard_normal((BATCH, memory.config.channels, *size), np.float32)
    latents, colours = torch.from_numpy(values), np.zeros((BATCH, *size, 3), np.uint8)
    while (missing := goal - memory.tokens) > 0:
        cameras = _jittered(view(place, size, BATCH), rng)
        shape = (BATCH, *size)
        share = min(1.0, missing / np.prod(shape))
        depth = rng.uniform(NEAREST_M, FARTHEST_M, shape)
        memory.write(
            latents,
            cameras,
            depth,
            rng.random(shape) < share,
            np.zeros(BATCH, np.int64),
            colours,
            np.arange(BATCH),
        )


def _jittered(cameras: Camera, rng: np.random.Generator) -> Camera:
    """Turned by up to about half a degree and moved by up to 5 cm each."""
    poses = cameras.world_from_camera.copy()
    for pose in poses:
        pose[:3, :3] = pose[:3, :3] @ _turn(rng.uniform(-0.01, 0.01, 3))
        pose[:3, 3] += rng.uniform(-0.05, 0.05, 3)
    return Camera(cameras.intrinsics, poses, cameras.size)


def _turn(angles: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation by a vector of radians (Rodrigues)."""
    angle = float(np.linalg.norm(angles))
    x, y, z = angles / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross

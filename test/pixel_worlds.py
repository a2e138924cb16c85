"""Worlds on a model without a network, a way out and back, and what is shown on it."""

import numpy as np
import torch
from analytic import look
from fakes import PixelModel

from mirage_ros.geometry.camera import Camera
from mirage_ros.world.world import World, WorldConfig

SIZE = (64, 80)


class NoisyModel(PixelModel):
    """Imagines noise from its seed, and keeps what it was given."""

    preceding_frames, reference_frames = 2, 2

    def __init__(self):
        super().__init__()
        self.calls = []

    def generate(self, readout, cameras, preceding, references, seed):
        self.calls.append((preceding.clone(), references.clone(), seed))
        noise = torch.randn(readout.latents.shape, generator=torch.Generator().manual_seed(seed))
        seen = torch.from_numpy(readout.visible)[:, None]
        return torch.where(seen, readout.latents, noise.clamp(-1, 1))


HALF_A_STEP = 2
"""Grey levels that a pixel is off at most when memory keeps it as one of 63 steps (int6)."""


def picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def camera(size=SIZE):
    return Camera.from_hfov(70.0, size, look((0, 0, 1), (0, 1, 1)))


def out_and_back(count=16, reach=1.5):
    """To the right and back, ending at the start."""
    half = np.concatenate([np.linspace(0, reach, count // 2), np.linspace(reach, 0, count // 2)])
    poses = np.stack([look((x, 0, 1), (x, 1, 1)) for x in half])
    return Camera(camera().intrinsics, poses, SIZE), np.arange(1, count + 1) * 100_000_000


def started(model=None, **options):
    world = World(model or NoisyModel(), WorldConfig(**options))
    world.reset(picture(), camera())
    return world


def frames(chunks):
    return [frame for chunk in chunks for frame in chunk.frames]


def same(one, other):
    return all(
        np.array_equal(a.rgb, b.rgb) and a.stamp_ns == b.stamp_ns
        for a, b in zip(one, other, strict=True)
    )

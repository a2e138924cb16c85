"""Imported once where workers are forked from: compiled code is loaded here, not in each of them.

Loading numba's compiled functions takes a second, the first call of torch some more. One tiny world
is run on one thread, because threads do not survive a fork.
"""

from __future__ import annotations

import numpy as np
import torch

from mirage_ros.core.camera import Camera
from mirage_ros.core.types import Perception
from mirage_ros.core.world import World, WorldConfig

SIZE, STRIDE, CHANNELS = (32, 32), 8, 4


class TinyModel:
    """The least that a world can be run with."""

    name, stride, channels, size = "tiny", STRIDE, CHANNELS, SIZE
    chunk_frames, preceding_frames, reference_frames = 2, 1, 1

    def encode(self, rgb):
        return torch.zeros(len(rgb), CHANNELS, SIZE[0] // STRIDE, SIZE[1] // STRIDE)

    def decode(self, latents):
        return np.zeros((len(latents), *SIZE, 3), np.uint8)

    def generate(self, readout, cameras, preceding, references, seed):
        return readout.latents.float()

    def perceive(self, rgb, cameras, anchor_depth_m):
        shape = rgb.shape[:3]
        nothing = np.zeros(shape, bool)
        return Perception(np.full(shape, 2.0, np.float32), nothing, nothing)


def warm() -> None:
    """Runs everything of the core once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    world = World(TinyModel(), WorldConfig(max_memory_bytes=2**20))
    camera = Camera.from_hfov(60.0, SIZE)
    world.reset(np.zeros((*SIZE, 3), np.uint8), camera, np.full(SIZE, 2.0, np.float32))
    poses = np.stack([np.eye(4)] * 2)
    poses[:, 0, 3] = [0.1, 0.4]
    world.step(Camera(camera.intrinsics, poses, SIZE), np.array([1, 2]))
    world.erase(np.full(3, -9.0), np.full(3, 9.0))
    torch.set_num_threads(threads)


warm()

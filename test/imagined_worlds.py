"""Worlds of a model that imagines cells of random colours, without weights."""

from __future__ import annotations

import numpy as np
import torch
from fakes import PixelModel

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Readout, Views, WorldModel
from mirage_ros.world.state import WorldConfig
from mirage_ros.world.world import World

SIZE, FAR_M = (64, 80), 4.0


class ImaginingModel(PixelModel):
    """Imagines cells of random colours, `far_m` away; sky in the upper `sky_rows`."""

    def __init__(self, sky_rows: int = 0, **settings):
        super().__init__(SIZE, far_m=FAR_M, **settings)
        self.sky_rows, self.asked = sky_rows, 0

    def aligned(self, readout: Readout):
        return readout.latents.float()

    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        self.asked += 1
        assert len(style.latents) == len(style.cameras) == len(style.depth_m)
        colours = torch.rand(readout.latents.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
        depth = np.where(readout.visible, readout.depth_m, np.float32(FAR_M))
        depth[:, : self.sky_rows] = np.inf
        seen = torch.from_numpy(readout.visible)[:, None]
        return Views(torch.where(seen, readout.latents.float(), colours), depth, camera)

    def generate(self, *_):
        raise AssertionError("an Imaginer is not asked to generate")


def level(yaw_deg: np.ndarray) -> Camera:
    """Cameras in one place, turned to the left."""
    yaw, zero = np.radians(yaw_deg), np.zeros(len(yaw_deg))
    pose = np.tile(np.eye(4), (len(yaw), 1, 1))
    pose[:, :3, 0] = np.stack([np.sin(yaw), -np.cos(yaw), zero], 1)
    pose[:, :3, 1], pose[:, 2, 3] = (0, 0, -1), 1.2
    pose[:, :3, 2] = np.stack([np.cos(yaw), np.sin(yaw), zero], 1)
    return Camera.from_hfov(70.0, SIZE, pose)


THERE_AND_BACK = np.concatenate([np.linspace(4, 40, 10), np.linspace(36, 0, 10)])


def walked(model: WorldModel, chunk: int, config: WorldConfig = WorldConfig(), yaw_deg=THERE_AND_BACK):
    """The frames of a turn there and back, in chunks; a world that has seen a wall 4 m away."""
    world = World(model, config)
    picture = np.random.default_rng(0).integers(0, 255, (*model.size, 3), np.uint8)
    world.reset(picture, level(np.zeros(1))[0].resized(model.size), np.full(model.size, FAR_M, np.float32))
    cameras, stamps = level(yaw_deg).resized(model.size), (1 + np.arange(len(yaw_deg))) * 100_000_000
    chunks = [world.step(cameras[i : i + chunk], stamps[i : i + chunk]) for i in range(0, len(stamps), chunk)]
    return world, [frame for chunk in chunks for frame in chunk.frames]


def pictures(frames) -> np.ndarray:
    return np.stack([frame.rgb for frame in frames])


def begun(model: WorldModel) -> World:
    return walked(model, 1, yaw_deg=np.empty(0))[0]

"""The policy in a world whose depth is guessed, flickers, and leaves surfaces out.

That is what generated pictures are like, whatever the weights: what is seen for the first time is
placed wrongly by some per cent and stays where it was placed; later pictures jitter around that,
and now and then one shows nothing of what memory holds. Memory is the real one: it shows surfaces
from their front alone, and keeps all that it was once told.
"""

from __future__ import annotations

import numpy as np
import pytest
from analytic import Quad, raycast, room
from fakes import PixelModel

from mirage_ros.data.seeds import Seed, level_camera_pose
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop.drive import DriveConfig, GeneratedWorld, drive, trace_figures
from mirage_ros.protocol import Perception
from mirage_ros.world.world import World

SIZE = (64, 80)
LENGTH_M = 8.0


def screen(x: float, y: float, angle: float, width_m: float = 0.5) -> Quad:
    """A low upright screen."""
    along = (width_m * np.cos(angle), width_m * np.sin(angle), 0.0)
    return Quad((x, y, 0.0), along, (0.0, 0.0, 0.75))


class Guessing(PixelModel):
    """Depth of a room with low screens.

    Args:
        guess: error of what is seen for the first time, as a share of its depth.
        jitter: error of what memory holds already.
        blind: share of pictures that heed memory nowhere.
    """

    def __init__(self, seed: int, guess: float = 0.08, jitter: float = 0.02, blind: float = 0.2):
        super().__init__(SIZE)
        self.rng = np.random.default_rng(seed)
        self.guess, self.jitter, self.blind = guess, jitter, blind
        places = self.rng.uniform(-1.9, 1.9, (40, 2))
        places = places[np.linalg.norm(places, axis=1) > 0.9][:5]
        angles = self.rng.uniform(0, 2 * np.pi, 5)
        self.quads = room(5.0, 5.0)[:6] + [
            screen(*place, angle) for place, angle in zip(places, angles, strict=True)
        ]

    def perceive(self, rgb, cameras: Camera, anchor_depth_m):
        true = raycast(cameras, self.quads)[0]
        depth = true * self._errors(len(true), self.guess)
        if anchor_depth_m is not None:
            held = anchor_depth_m.repeat(self.stride, 1).repeat(self.stride, 2)
            heeded = np.isfinite(held) & (self.rng.random((len(true), 1, 1)) > self.blind)
            depth = np.where(heeded, held * self._errors(len(true), self.jitter), depth)
        nothing = np.zeros(depth.shape, bool)
        return Perception(depth.astype(np.float32), nothing, nothing)

    def _errors(self, frames: int, size: float) -> np.ndarray:
        return np.exp(self.rng.normal(0, size, (frames, 1, 1)))


@pytest.mark.parametrize("seed", [2, 3])
def test_the_body_keeps_clear_of_all_that_memory_holds(seed):
    rgb = np.full((*SIZE, 3), 128, np.uint8)
    camera = Camera.from_hfov(75.0, SIZE, level_camera_pose(0.9))
    config = DriveConfig(length_m=LENGTH_M, decisions=80)
    world = GeneratedWorld(World(Guessing(seed)), Seed("screens", rgb, camera, None))
    trace = drive(world, config)
    figures = trace_figures(trace, config.wander.footprint)
    assert figures["length_m"] >= LENGTH_M
    assert figures["frames_inside_a_held_surface"] == 0, figures

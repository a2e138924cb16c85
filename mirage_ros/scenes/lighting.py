"""Lamps and suns, as keyword arguments of MjSpec's add_light, and skies with clouds for MuJoCo's skybox."""

from __future__ import annotations

import cv2
import numpy as np

from mirage_ros.scenes.gl import mujoco
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


def spot(rng, place, aim, strength, *, shadow, cutoff=80.0) -> dict:
    """A lamp at `place` shining towards `aim`."""
    tint = 1 + 0.12 * (colour(rng, 0.3) / 255 - 0.5)
    aim = np.asarray(aim, float) - place
    return dict(
        pos=np.asarray(place, float),
        dir=aim / np.linalg.norm(aim),
        type=mujoco.mjtLightType.mjLIGHT_SPOT,
        diffuse=strength * tint,
        ambient=(0, 0, 0),
        specular=np.full(3, 0.2),
        cutoff=cutoff,
        exponent=1.0,
        attenuation=(1, 0, 0.012),
        castshadow=shadow,
    )


def sun(rng, direction, strength, *, shadow=False, centre=(0, 0, 0)) -> dict:
    """Parallel light along `direction`; shadows fall within the map around `centre`."""
    direction = np.asarray(direction, float) / np.linalg.norm(direction)
    return dict(
        pos=np.asarray(centre, float) - 12 * direction,
        dir=direction,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        diffuse=strength * np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.82, 1.0)]),
        ambient=(0, 0, 0),
        specular=np.full(3, 0.1),
        castshadow=shadow,
    )


def indoor_lights(rng, rooms) -> tuple[np.ndarray, list[dict]]:
    """Ambient light, and a ceiling lamp in each of `rooms` (x, y, wide, deep, high) with fills.

    The first lamp throws shadows, the others seldom: each costs two more draws of the scene.
    """
    ambient = rng.uniform(0.36, 0.5) * (1 + 0.12 * (colour(rng, 0.5) / 255 - 0.5))
    lights = []
    for index, (x, y, wide, deep, high) in enumerate(rooms):
        place = np.array([x, y, high - 0.12])
        place[:2] += rng.uniform(-0.25, 0.25, 2) * (wide, deep)
        shadow = index == 0 or rng.random() < 0.15
        lights.append(spot(rng, place, (x, y, 0), rng.uniform(0.5, 0.8), shadow=shadow))
    # Fills without shadows give every wall its own shade; one comes from below, for ceilings.
    for vertical in (-0.5, 0.8):
        turn = rng.uniform(0, 2 * np.pi)
        direction = (np.cos(turn), np.sin(turn), vertical)
        lights.append(sun(rng, direction, rng.uniform(0.18, 0.35)))
    return ambient, lights


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

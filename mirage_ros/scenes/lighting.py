"""Lamps and suns, as keyword arguments of MjSpec's add_light."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.noise import colour


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

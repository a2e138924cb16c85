"""Drives test rooms that MuJoCo renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image
from tqdm import tqdm

import mirage_ros.env  # noqa: F401 - registers the environment

FIRST_TEST_ROOM = 2_000_000
STEPS, PERIOD_S = 30, 0.5
SIZE = (64, 80)
SHOWN = 6
Driver = Callable[[np.ndarray], np.ndarray]


def arrivals(
    drivers: Mapping[str, Driver], rooms: Sequence[int], folder: Path
) -> dict[str, list[bool]]:
    """Whether each driver (a picture in, an action out) reaches the box, for each room.

    What they saw in the first rooms is drawn into the folder, a sheet for each driver.
    """
    env = gymnasium.make(
        "mirage/Navigate-v0",
        backend="mujoco",
        size=SIZE,
        period_s=PERIOD_S,
        max_episode_steps=STEPS,
    )
    arrived: dict[str, list[bool]] = {name: [] for name in drivers}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in drivers}
    for room in tqdm(rooms, desc="evaluate"):
        for name, driver in drivers.items():
            seen, success = _drive(env, driver, room)
            arrived[name].append(success)
            if len(rows[name]) < SHOWN:
                rows[name].append(np.concatenate([seen[i] for i in _spread(len(seen))], 1))
    env.close()
    for name, sheet in rows.items():
        Image.fromarray(np.concatenate(sheet)).save(folder / f"{name.replace(' ', '_')}.png")
    return arrived


def _drive(env, driver: Driver, room: int) -> tuple[list[np.ndarray], bool]:
    observation, info = env.reset(options={"start": f"boxes:{room}"})
    seen, ended = [observation["rgb"]], False
    while not ended:
        observation, _, terminated, truncated, info = env.step(driver(observation["rgb"]))
        seen.append(observation["rgb"])
        ended = terminated or truncated
    return seen, bool(info["is_success"])


def interval(arrived: list) -> tuple[float, float]:
    """95 % confidence interval of the rate (Wilson 1927)."""
    n, p, z = len(arrived), float(np.mean(arrived)), 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _spread(count: int) -> list[int]:
    return np.linspace(0, count - 1, SHOWN).round().astype(int).tolist()

"""Planned camera poses that tests send, and what has to come of them."""

from __future__ import annotations

import numpy as np
from ros_client import PICTURES, Client

from mirage_ros.data.seeds import load_seed

START = 4_000_000_000 * 10**9 // 2 + 987_654_321  # far in the future: that is what a plan is
PERIOD = 100_000_000


def stamps(count: int, first: int = START) -> list[int]:
    return [first + index * PERIOD for index in range(count)]


def sideways(seed_folder, count: int, step_m: float = 0.02) -> list[np.ndarray]:
    """Poses from the seed's on, to the camera's right."""
    start = load_seed(seed_folder).camera.world_from_camera
    poses = [start.copy() for _ in range(count)]
    for index, pose in enumerate(poses):
        pose[:3, 3] += start[:3, 0] * step_m * index
    return poses


def expect_the_plan(client: Client, planned: list[int]) -> None:
    """All pictures of all planned frames came, with the plan's stamps and no others."""
    client.wait_for_frames(len(planned))
    client.spin(lambda: len(client.stamps("/tf")) >= len(planned))
    for name in (*PICTURES, "/tf"):
        assert client.stamps(name) == planned, name

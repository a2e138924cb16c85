"""Frames to record: made up, different from each other, with every kind of depth in them."""

from __future__ import annotations

import numpy as np

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame
from mirage_ros.recording import Feature, RecordingConfig

SIZE = (64, 80)
RATE_HZ = 10
FEATURES = {
    "action": Feature((2,), "float32", ("forward_m_s", "turn_rad_s")),
    "observation.state": Feature((3,), "float64"),
    "next.done": Feature((1,), "bool"),
    "next.score": Feature((1,), "int64"),
}


def config(**changes) -> RecordingConfig:
    return RecordingConfig(**{"rate_hz": float(RATE_HZ), "features": FEATURES} | changes)


def frame(number: int, episode: int = 0, size: tuple[int, int] = SIZE) -> Frame:
    """Frame `number` of an episode: smooth colours that move, NaN and infinite depth in it."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    waves = [
        np.sin((x * a + y * b) / 9 + number / 5 + episode) for a, b in ((1, 0), (0, 1), (1, 1))
    ]
    depth_m = 1.5 + 0.02 * x + 0.01 * y + 0.03 * number + episode
    depth_m[:4], depth_m[-2:] = np.inf, np.nan
    angle = 0.1 * number
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = [0.1 * number, episode, 1.0]
    return Frame(
        1_700_000_000_123_456_789 + number * 10**9 // RATE_HZ,
        Camera.from_hfov(65.0, size, pose),
        (np.stack(waves, -1) * 100 + 128).astype(np.uint8),
        depth_m.astype(np.float32),
        x < 8 * (1 + number % 8),
    )


def values(number: int, episode: int = 0) -> dict[str, np.ndarray]:
    return {
        "action": np.array([0.5 * number, -1.25], np.float32),
        "observation.state": np.array([number, episode, 0.1]),
        "next.done": np.array([number == 7]),
        "next.score": np.array([number * 10**10]),
    }


def record(recorder, frames: int, episode: int = 0) -> None:
    """Adds one episode."""
    recorder.start_episode(f"task {episode % 2}", {"seed": episode})
    for number in range(frames):
        recorder.add(frame(number, episode), values(number, episode))
    recorder.end_episode()

"""Where the cameras are and how they move, as of what was published last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from transforms3d.axangles import mat2axangle

from mirage_ros.ros.conversions import SECOND_NS
from mirage_ros.seeds import level_camera_pose

Twist = tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]


class CameraStates:
    """Poses and velocities, in the world.

    Args:
        gap_ns: instants further apart than this are no motion.

    Attributes:
        first: world_from_camera of the first camera.
    """

    def __init__(self, gap_ns: int) -> None:
        self._gap_ns = gap_ns
        self.placed(level_camera_pose())

    def placed(self, world_from_camera: Float[np.ndarray, "4 4"]) -> None:
        """The first camera was put here, and stands still."""
        self.first = world_from_camera
        self._shown: list[np.ndarray] = []
        self._twists: list[Twist] = []
        self._stamp_ns: int | None = None

    def showed(self, stamp_ns: int, world_from_cameras: Sequence[Float[np.ndarray, "4 4"]]) -> None:
        """Frames of one instant were published, one of each camera."""
        elapsed_ns = None if self._stamp_ns is None else stamp_ns - self._stamp_ns
        moving = elapsed_ns is not None and 0 < elapsed_ns <= self._gap_ns
        self._twists = [
            twist_between(before, now, elapsed_ns / SECOND_NS)
            for before, now in zip(self._shown, world_from_cameras, strict=True)
        ] if moving else []  # fmt: skip
        self._stamp_ns, self._shown = stamp_ns, list(world_from_cameras)
        self.first = self._shown[0]

    def pose(self, index: int) -> Float[np.ndarray, "4 4"] | None:
        """Of a camera; None for one that has shown nothing since the first one was put somewhere."""
        if index == 0:
            return self.first
        return self._shown[index] if self._shown else None

    def twist(self, index: int) -> Twist:
        """Linear (m/s) and angular (rad/s) velocity of a camera, along the world's axes."""
        return self._twists[index] if self._twists else (np.zeros(3), np.zeros(3))


def twist_between(
    before: Float[np.ndarray, "4 4"], now: Float[np.ndarray, "4 4"], seconds: float
) -> Twist:
    """The constant linear and angular velocity that lead from one pose to the other."""
    axis, angle = mat2axangle(now[:3, :3] @ before[:3, :3].T)
    return (now[:3, 3] - before[:3, 3]) / seconds, axis * angle / seconds

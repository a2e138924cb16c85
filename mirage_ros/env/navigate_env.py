"""`mirage/Navigate-v0`: drive a robot to the red box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mirage_ros.data.seeds import Seed
from mirage_ros.env.camera_env import CameraEnv, driven
from mirage_ros.env.stepping import Start
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import orthonormal
from mirage_ros.protocol import Frame

if TYPE_CHECKING:
    from mirage_ros.scenes.worlds import GoalRoom

GOAL_RADIUS_M = 0.7
REACHED, BLOCKED, PER_STEP = 10.0, -0.1, -0.01


SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of a step that something may leave


def drive_in(
    room: GoalRoom, camera: Camera, forward_m: float, left_rad: float
) -> tuple[Camera, bool]:
    """Where the robot comes to, and whether something stopped it: it drives as far as it can."""
    for share in SHARES:
        pose = driven(camera.world_from_camera, share * forward_m, left_rad)
        moved = Camera(camera.intrinsics, orthonormal(pose), camera.size)
        if not room.blocked(moved):
            break
    return moved, share < 1


class NavigateEnv(CameraEnv):
    """Drives to a red box of half a metre that stands in the first picture.

    Every reset renders a new furnished room (MuJoCo) and generates all pictures after the first.
    The robot begins 2 to 4.5 m from the box, up to 30 degrees off its direction; furniture and
    walls of the true room stop it: it drives up to them and turns on the spot.

    Reward: metres won on the box in this step, -0.01 for the step, -0.1 if something stopped the
    robot, +10 on arrival. Terminates when the camera is within 0.7 m of the box's centre along
    the floor. Truncated after 100 steps (20 s). Observations as `mirage/Camera-v0`: where the box
    is stands in `info` (goal_world, distance_m, is_success, blocked), not in them.
    """

    @classmethod
    def defaults(cls) -> dict:
        return {"action": "drive", "starts": "boxes"}

    def __init__(self, render_mode: str | None = None, **options) -> None:
        super().__init__(render_mode, **options)
        if self.config.action != "drive":
            raise MirageError(f"The robot cannot {self.config.action}; use action='drive'.")
        self._blocked = False

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self._blocked = False
        return super().reset(seed=seed, options=options)

    @property
    def distance_m(self) -> float:
        """From the camera to the box's centre, along the floor."""
        return self._start.room.distance_m(self._frame.camera)

    def _moved(self, camera: Camera, action: np.ndarray) -> Camera:
        return self._drive(camera, action)[0]

    def _drive(self, camera: Camera, action: np.ndarray) -> tuple[Camera, bool]:
        config = self.config
        forward_m = float(action[0] * config.speed_mps * config.period_s)
        left_rad = float(action[1] * config.turn_rps * config.period_s)
        return drive_in(self._start.room, camera, forward_m, left_rad)

    def _judge(self, before: Frame, after: Frame) -> tuple[float, bool]:
        room = self._start.room
        distance_m = room.distance_m(after.camera)
        won_m = room.distance_m(before.camera) - distance_m
        arrived = bool(distance_m <= GOAL_RADIUS_M)
        reward = won_m + PER_STEP + BLOCKED * self._blocked + REACHED * arrived
        return float(reward), arrived

    def step(self, action):
        action = self._checked(action)
        self._blocked = self._drive(self._frame.camera, action)[1]
        return super().step(action)

    def _choose_start(self, number: int, wanted: str | Seed | None) -> Start:
        if wanted is not None:
            kind, _, tail = str(wanted).partition(":")
            if kind != "boxes" or not tail.isdigit():
                raise MirageError(
                    f"The start is {wanted!r}; a room with a box is named such as 'boxes:7'."
                )
            number = int(tail)
        start = super()._choose_start(number, None)
        if start.room is None:
            raise MirageError(f"The seed {start.seed.name} has no box; use starts='boxes'.")
        return start

    def _info(self) -> dict:
        distance_m = self.distance_m
        return super()._info() | {
            "goal_world": self._start.room.goal_world.copy(),
            "distance_m": distance_m,
            "is_success": bool(distance_m <= GOAL_RADIUS_M),
            "blocked": bool(self._blocked),
        }

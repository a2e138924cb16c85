"""`mirage/Camera-v0`, a free camera in a generated world, and `mirage/Navigate-v0`, a robot that drives to
a red box; their options, and how actions move the camera.

Six-axis motion is a body twist in the camera's optical axes (x right, y down, z forward): three
linear numbers, then the rotation vector. Driving is a unicycle: forward along the floor, turn to
the left (REP 103).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8
from transforms3d.quaternions import mat2quat

from mirage_ros.data.seeds import Seed
from mirage_ros.env import Start, WorldFrames, draw_start
from mirage_ros.errors import MirageError
from mirage_ros.geometry import rigid
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.models import load_model
from mirage_ros.protocol import Frame

if TYPE_CHECKING:
    from mirage_ros.scenes.worlds import GoalRoom

ACTIONS = {"drive": 2, "twist": 6, "delta": 6}
BACKENDS = ("world", "mujoco")
GOAL_RADIUS_M = 0.7
REACHED, BLOCKED, PER_STEP = 10.0, -0.1, -0.01
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of a step that something may leave


@dataclass(frozen=True)
class EnvConfig:
    """What `gymnasium.make` takes as keyword arguments.

    Attributes:
        model: checkpoint, or a WorldModel.
        backend: "world" generates the pictures, "mujoco" renders the true scene, where there is
            one: the same task with ground truth, to evaluate on.
        action: "drive" (forward, left turn), "twist" (velocities of all six axes) or "delta" (a
            motion in all six axes); see `mirage_ros.env.environments`. Elements are in [-1, 1]:
            for drive and twist shares of the speeds below, for delta of what they do in a step.
        period_s: simulated time of a step.
        speed_mps, turn_rps: what an action element of 1 means.
        starts: where worlds start: "shipped" pictures, "scenes" or "boxes" (procedural, need
            MuJoCo), or names and paths of seeds.
        max_memory_bytes: cap of the latent memory.
        max_depth_m: depth beyond it is shown as this.
        size: (height, width) of the pictures with backend "mujoco"; the model's own otherwise.
    """

    model: object = "mini"
    backend: str = "world"
    action: str = "twist"
    period_s: float = 0.2
    speed_mps: float = 0.8
    turn_rps: float = 1.0
    starts: str | Sequence[str] = "shipped"
    max_memory_bytes: int = 512 * 2**20
    max_depth_m: float = 100.0
    size: Sequence[int] = (128, 160)

    def __post_init__(self) -> None:
        for name, known in (("action", ACTIONS), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise MirageError(
                    f"The {name} is {getattr(self, name)!r}; give one of {', '.join(known)}."
                )
        for name in ("period_s", "speed_mps", "turn_rps", "max_depth_m"):
            if not getattr(self, name) > 0:
                raise MirageError(f"{name} is {getattr(self, name)}; give a number above 0.")

    @classmethod
    def of(cls, options: dict) -> EnvConfig:
        """The config of keyword arguments; unknown ones raise MirageError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise MirageError(
                f"The environment got the options {unknown}; it knows {', '.join(known)}."
            )
        return cls(**options)


def driven(
    world_from_camera: Float[np.ndarray, "4 4"], forward_m: float, left_rad: float
) -> Float[np.ndarray, "4 4"]:
    """The pose after driving an arc of `forward_m` metres that turns by `left_rad` radians."""
    up, ahead, right = floor_axes(world_from_camera)
    chord_m = forward_m * np.sinc(left_rad / 2 / np.pi)
    middle = left_rad / 2
    pose = np.array(world_from_camera)
    pose[:3, :3] = rigid.exp_rotation(left_rad * up) @ pose[:3, :3]
    pose[:3, 3] += chord_m * (np.cos(middle) * ahead - np.sin(middle) * right)
    return pose


def flown(
    world_from_camera: Float[np.ndarray, "4 4"], motion: Float[np.ndarray, "6"]
) -> Float[np.ndarray, "4 4"]:
    """The pose after a body motion (metres, radians) at a constant twist."""
    return world_from_camera @ rigid.exp(motion)


FARTHEST_M = 1000.0
_shared_model = lru_cache(maxsize=2)(load_model)


class CameraEnv(gymnasium.Env):
    """Moves a camera; every reset is a new world, every reward 0, and it never terminates.

    Observations, a dict:
        rgb: (h, w, 3) uint8.
        depth: (h, w) float32 metres along z; 0 invalid, `max_depth_m` that or beyond.
        observed: (h, w) uint8; 1 where the pixel comes from memory, 0 where it was imagined.
        camera_pose: (7,) float32, world_from_camera as x y z (metres) and quaternion wxyz.

    Actions: see EnvConfig; outside of [-1, 1] they are clipped. `reset(options={"start": name})`
    starts from one seed (a name, a path or a Seed). Frames are equal for equal seeds and actions
    on one machine with one number of torch threads.
    """

    metadata = {"render_modes": ["rgb_array", "panels"], "render_fps": 5}

    def __init__(self, render_mode: str | None = None, **options) -> None:
        self.config = EnvConfig.of(self.defaults() | options)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise MirageError(
                f"The render mode is {render_mode!r}; give one of {self.metadata['render_modes']}."
            )
        self.render_mode = render_mode
        self._frames = self._frame_source()
        self._frame: Frame | None = None
        self.action_space = spaces.Box(-1, 1, (ACTIONS[self.config.action],), np.float32)
        self.observation_space = spaces.Dict(_views(self._frames.size, self.config.max_depth_m))

    @classmethod
    def defaults(cls) -> dict:
        """Options that differ from EnvConfig's."""
        return {}

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31))
        noise = int(self.np_random.integers(2**31))
        self._start = self._choose_start(number, (options or {}).get("start"))
        if self.config.backend == "mujoco":
            self._frame = self._frames.reset(self._true_scene(), self._start.seed.camera)
        else:
            self._frame = self._frames.reset(self._start.seed, noise)
        return self._observation(), self._info()

    def step(self, action):
        action = self._checked(action)
        previous = self._frame
        camera = self._moved(previous.camera, action)
        self._frame = self._frames.advance(camera)
        reward, terminated = self._judge(previous, self._frame)
        return self._observation(), reward, terminated, False, self._info()

    def render(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The picture; mode "panels" adds depth and what was remembered, side by side."""
        if self.render_mode is None or self._frame is None:
            return None
        if self.render_mode == "rgb_array":
            return self._frame.rgb.copy()
        return _panels(self._frame, self.config.max_depth_m)

    def close(self) -> None:
        if hasattr(self._frames, "close"):
            self._frames.close()

    def _judge(self, before: Frame, after: Frame) -> tuple[float, bool]:
        """Reward, and whether the task is done."""
        return 0.0, False

    def _moved(self, camera: Camera, action: np.ndarray) -> Camera:
        """Where an action leads."""
        config, pose = self.config, camera.world_from_camera
        step_m, step_rad = config.speed_mps * config.period_s, config.turn_rps * config.period_s
        if config.action == "drive":
            pose = driven(pose, float(action[0] * step_m), float(action[1] * step_rad))
        else:
            pose = flown(pose, action * np.repeat([step_m, step_rad], 3))
        return Camera(camera.intrinsics, rigid.orthonormal(pose), camera.size)

    def _frame_source(self):
        if self.config.backend == "mujoco":
            from mirage_ros.env import TrueFrames

            return TrueFrames(tuple(self.config.size), self.config.period_s)
        model = self.config.model
        model = _shared_model(model) if isinstance(model, str) else model
        return WorldFrames(model, self.config.period_s, self.config.max_memory_bytes)

    def _choose_start(self, number: int, wanted: str | Seed | None) -> Start:
        if isinstance(wanted, Seed):
            return Start(wanted)
        source = self.config.starts if wanted is None else (wanted,)
        return draw_start(source, number, self._frames.size)

    def _true_scene(self):
        if self._start.scene is None:
            raise MirageError(
                f"The seed {self._start.seed.name} is a picture without a scene to render; use "
                "starts='scenes' or 'boxes' with backend='mujoco'."
            )
        return self._start.scene

    def _checked(self, action) -> np.ndarray:
        if self._frame is None:
            raise MirageError("The environment has no world yet; call reset first.")
        given = np.asarray(action, np.float64)
        if given.shape != self.action_space.shape or not np.isfinite(given).all():
            raise MirageError(
                f"The action is {action!r}; give {self.action_space.shape[0]} finite numbers."
            )
        return np.clip(given, -1, 1)

    def _observation(self) -> dict[str, np.ndarray]:
        frame = self._frame
        pose = frame.camera.world_from_camera
        place = np.clip(pose[:3, 3], -FARTHEST_M, FARTHEST_M)
        depth = np.nan_to_num(frame.depth_m, nan=0.0, posinf=self.config.max_depth_m)
        return {
            "rgb": frame.rgb.copy(),
            "depth": np.clip(depth, 0, self.config.max_depth_m).astype(np.float32),
            "observed": frame.observed.astype(np.uint8),
            "camera_pose": np.concatenate([place, mat2quat(pose[:3, :3])]).astype(np.float32),
        }

    def _info(self) -> dict:
        return {
            "start": self._start.seed.name,
            "stamp_ns": self._frame.stamp_ns,
            "observed_fraction": float(self._frame.observed.mean()),
        }


def _views(size: tuple[int, int], max_depth_m: float) -> dict[str, spaces.Box]:
    """The space of each part of an observation."""
    reach = np.array([FARTHEST_M] * 3 + [1.0] * 4, np.float32)
    return {
        "rgb": spaces.Box(0, 255, (*size, 3), np.uint8),
        "depth": spaces.Box(0, max_depth_m, size, np.float32),
        "observed": spaces.Box(0, 1, size, np.uint8),
        "camera_pose": spaces.Box(-reach, reach, dtype=np.float32),
    }


def _panels(frame: Frame, max_depth_m: float) -> UInt8[np.ndarray, "h w 3"]:
    """Picture | nearness | what memory showed (the rest dimmed)."""
    depth = np.nan_to_num(frame.depth_m, nan=max_depth_m, posinf=max_depth_m)
    near = np.clip(255 / np.maximum(depth, 1.0), 0, 255).astype(np.uint8)
    share = np.where(frame.observed[..., None], 1.0, 0.3)
    remembered = (frame.rgb * share).astype(np.uint8)
    return np.concatenate([frame.rgb, np.repeat(near[..., None], 3, -1), remembered], 1)


def drive_in(
    room: GoalRoom, camera: Camera, forward_m: float, left_rad: float
) -> tuple[Camera, bool]:
    """Where the robot comes to, and whether something stopped it: it drives as far as it can."""
    for share in SHARES:
        pose = driven(camera.world_from_camera, share * forward_m, left_rad)
        moved = Camera(camera.intrinsics, rigid.orthonormal(pose), camera.size)
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

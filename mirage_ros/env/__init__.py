"""Generated worlds as Gymnasium environments, which importing this registers; and the frames that they show.

    import gymnasium
    import mirage_ros.env
    env = gymnasium.make("mirage/Navigate-v0")

`mirage/Camera-v0` moves a free camera through a world and pays nothing; `mirage/Navigate-v0` drives a robot to a red
box (needs MuJoCo for the rooms); both are in environments.py. No ROS.

An environment learns each camera only when its action comes, so every frame is drawn by itself.

Worlds start from shipped pictures, procedural scenes, or rooms with a box. Of a scene MuJoCo renders
the ground truth in the same way (TrueFrames).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from mirage_ros.data.seeds import Seed, load_seed, shipped_seeds
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import SECOND_NS, Frame, WorldModel
from mirage_ros.world.world import World, WorldConfig

if TYPE_CHECKING:
    from mirage_ros.scenes.render import Renderer
    from mirage_ros.scenes.worlds import GoalRoom, Scene

PROCEDURAL = ("scenes", "boxes")


@dataclass(frozen=True)
class Start:
    """A seed and, where it was rendered, what it was rendered from.

    Attributes:
        scene: the true scene, None for pictures.
        room: the robot's task in it, None where there is none.
    """

    seed: Seed
    scene: Scene | None = None
    room: GoalRoom | None = None


def draw_start(
    source: str | Sequence[str], number: int, size: tuple[int, int], hfov_deg: float | None = None
) -> Start:
    """The start of a number (at least 0), the same for the same arguments.

    Args:
        source: "shipped", "scenes", "boxes", or names and paths of seeds; see EnvConfig.
        size: (height, width) of rendered pictures.
        hfov_deg: of photographs without intrinsics, and of procedural scenes.
    Raises:
        MirageError: an unknown source, or MuJoCo missing where it is needed.
    """
    if source == "boxes":
        return _box_start(number, tuple(size))
    if source == "scenes":
        return _scene_start(number, size, hfov_deg)
    names = shipped_seeds() if source == "shipped" else source
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise MirageError("The starts are an empty list; give 'shipped' or names of seeds.")
    return Start(load_seed(names[number % len(names)], hfov_deg))


def check_starts(source: str | Sequence[str]) -> None:
    """Raises MirageError where `draw_start` would, for any number, before anything is drawn."""
    if source in PROCEDURAL:
        _need_mujoco()
        return
    names = () if source == "shipped" else (source,) if isinstance(source, str) else source
    for name in names:
        if name in ("shipped", *PROCEDURAL):
            raise MirageError(
                f"The starts are {list(names)}; give {name} alone, or names and paths of seeds."
            )
        load_seed(name)


@lru_cache(maxsize=4)
def _box_start(number: int, size: tuple[int, int]) -> Start:
    _need_mujoco()
    from mirage_ros.scenes.worlds import make_goal_room

    room = make_goal_room(number, size)
    return Start(_rendered(f"boxes:{number}", room.scene, room.start), room.scene, room)


def _scene_start(number: int, size, hfov_deg: float | None) -> Start:
    _need_mujoco()
    from mirage_ros.scenes.paths import best_view
    from mirage_ros.scenes.worlds import make_scene

    scene = make_scene(number, moving=False)
    camera = best_view(scene, number, hfov_deg=hfov_deg or 75.0, size=size)[0]
    return Start(_rendered(f"scenes:{number}", scene, camera), scene)


def _rendered(name: str, scene: Scene, camera: Camera) -> Seed:
    from mirage_ros.scenes.render import Renderer

    with Renderer(scene, camera.size) as renderer:
        clip = renderer.render(Camera.stack([camera]))
    return Seed(name, np.ascontiguousarray(clip.rgb[0]), camera, clip.depth_m[0])


def _need_mujoco() -> None:
    try:
        import mirage_ros.scenes.gl  # noqa: F401
    except ImportError as error:
        raise MirageError(
            f"Procedural starts need MuJoCo ({error}); pip install 'mirage_ros[scenes]' or use "
            "starts='shipped'."
        ) from error


class WorldFrames:
    """Frames of a generated world, one camera at a time."""

    def __init__(self, model: WorldModel, period_s: float, max_memory_bytes: int) -> None:
        self._model, self._period_ns = model, round(period_s * SECOND_NS)
        self._config = WorldConfig(max_memory_bytes=max_memory_bytes)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return self._model.size

    def reset(self, seed: Seed, noise: int) -> Frame:
        """A new world; its first frame is the seed as the model shows it, stamped 0."""
        self._world = World(self._model, replace(self._config, seed=noise))
        return self._world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]

    def advance(self, camera: Camera) -> Frame:
        """The next frame; `camera` is of the pictures' size."""
        stamps = np.array([self._world.stamp_ns + self._period_ns])
        return self._world.step(Camera.stack([camera]), stamps).frames[0]


class TrueFrames:
    """Like WorldFrames, but every pixel is rendered and none imagined."""

    def __init__(self, size: tuple[int, int], period_s: float) -> None:
        self.size = (int(size[0]), int(size[1]))
        self._period_ns = round(period_s * SECOND_NS)
        self._renderer: Renderer | None = None

    def reset(self, scene: Scene, camera: Camera) -> Frame:
        """The first frame of a scene, stamped 0."""
        from mirage_ros.scenes.render import Renderer

        self.close()
        self._renderer = Renderer(scene, self.size)
        self._stamp_ns = -self._period_ns
        return self.advance(camera)

    def advance(self, camera: Camera) -> Frame:
        """The next frame."""
        clip = self._renderer.render(Camera.stack([camera]))
        self._stamp_ns += self._period_ns
        seen = np.ones(self.size, bool)
        rgb = np.ascontiguousarray(clip.rgb[0])
        return Frame(self._stamp_ns, camera, rgb, clip.depth_m[0], seen)

    def close(self) -> None:
        """Gives the drawing context back."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


_HOMES = {
    "CameraEnv": "environments",
    "EnvConfig": "environments",
    "NavigateEnv": "environments",
}
__all__ = sorted(_HOMES)

IDS = {
    "mirage/Camera-v0": ("mirage_ros.env.environments:CameraEnv", 200),
    "mirage/Navigate-v0": ("mirage_ros.env.environments:NavigateEnv", 100),
}
for _name, (_entry, _steps) in IDS.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=_entry, max_episode_steps=_steps)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

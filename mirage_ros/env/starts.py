"""Where an environment's worlds start: shipped pictures, procedural scenes, rooms with a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.seeds import Seed, load_seed, shipped_seeds

if TYPE_CHECKING:
    from mirage_ros.scenes.goals import GoalRoom
    from mirage_ros.scenes.worlds import Scene

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
    from mirage_ros.scenes.goals import make_goal_room

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

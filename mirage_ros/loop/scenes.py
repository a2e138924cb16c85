"""A MuJoCo scene and the seed picture taken in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mirage_ros.core.errors import MirageError

if TYPE_CHECKING:
    from mirage_ros.scenes import Scene

KINDS = ("room", "corridor", "hall", "warehouse", "doorway", "yard")
TEXTURE_PX = 512


def render_seed(folder: Path, seed: int, kind: str) -> Scene:
    """Writes the scene's seed folder and returns the scene. MirageError without MuJoCo."""
    try:
        from mirage_ros.scenes import make_scene, write_seed
    except ImportError as error:
        raise MirageError(
            f"Scenes need MuJoCo ({error}); pip install 'mirage_ros[scenes]', or give a seed."
        ) from error
    write_seed(folder, seed, kind)
    return make_scene(seed, kind, moving=False, texture_px=TEXTURE_PX)

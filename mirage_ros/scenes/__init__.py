"""Procedural MuJoCo worlds: training data and ground truth.

    from mirage_ros.scenes import make_clip
    clip = make_clip(seed=7, frames=16, size=(128, 160))

Textures alone (`mirage_ros.scenes.textures`) need no MuJoCo; the rest is loaded on first use.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Clip": "render",
    "Renderer": "render",
    "Scene": "movers",
    "make_scene": "worlds",
    "camera_path": "paths",
    "make_clip": "render",
    "write_preview": "render",
    "write_seed": "render",
    "make_texture": "textures",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

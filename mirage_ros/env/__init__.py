"""Generated worlds as Gymnasium environments; importing this registers them.

    import gymnasium
    import mirage_ros.env
    env = gymnasium.make("mirage/Navigate-v0")

`mirage/Camera-v0` moves a free camera through a world and pays nothing; `mirage/Navigate-v0`
drives a robot to a red box (needs MuJoCo for the rooms). No ROS.
"""

from __future__ import annotations

import importlib

import gymnasium

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
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

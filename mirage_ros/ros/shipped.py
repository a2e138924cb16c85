"""The model that the node's parameters name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from mirage_ros.core.errors import MirageError
from mirage_ros.ros.config import NodeConfig

if TYPE_CHECKING:
    from mirage_ros.core.types import WorldModel

PRELOAD = ("mirage_ros.models.pretrained",)


def shipped_model(config: NodeConfig) -> WorldModel:
    """Loads it; runs in the worker's process."""
    from mirage_ros.models.pretrained import load_model

    return load_model(config.model, device=config.device, settings=model_settings(config))


def model_settings(config: NodeConfig) -> dict:
    """What the parameters say of a large model's settings; MirageError when it is no mapping."""
    try:
        settings = yaml.safe_load(config.model_settings) or {}
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise MirageError(
            f"model_settings is {config.model_settings!r}; give a mapping such as "
            "'{steps: 4, size: [480, 832]}'."
        )
    return settings | ({"prompt": config.prompt} if config.prompt else {})

"""What is installed: versions, devices, shipped seeds, the model's card."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import mirage_ros
from mirage_ros.data.seeds import shipped_seeds
from mirage_ros.errors import MirageError
from mirage_ros.models.pretrained import load_model

PACKAGES = ("torch", "diffusers", "peft", "numba", "rclpy", "mcap", "mujoco")


def describe(model_name: str = "mini") -> str:
    """A table of lines. A model that cannot be loaded is told, not raised."""
    rows = [
        ("mirage_ros", f"{mirage_ros.__version__}  ({Path(mirage_ros.__file__).parent})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, _version(name)) for name in PACKAGES),
        ("devices", _devices()),
        ("shipped seeds", ", ".join(shipped_seeds()) or "none"),
        ("model", _model(model_name)),
    ]
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    names = [f"cpu, {len(os.sched_getaffinity(0))} cores"]
    for index in range(torch.cuda.device_count()):
        names.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    return "; ".join(names)


def _model(name: str) -> str:
    try:
        model = load_model(name)
    except MirageError as error:
        return f"{name}: {error}"
    height, width = model.size
    return (
        f"{model.name}: {width}x{height} pictures, {model.channels} channels at stride "
        f"{model.stride}, {model.chunk_frames} frames a chunk"
    )

"""`mirage doctor`: faults of the machine and its ROS graph; `mirage info`: what is installed."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mirage_ros
from mirage_ros.cli.arguments import add_command, add_model
from mirage_ros.errors import MirageError

PACKAGES = ("torch", "diffusers", "peft", "numba", "rclpy", "mcap", "mujoco")


def add_doctor(parsers) -> None:
    parser = add_command(
        parsers,
        "doctor",
        doctor,
        "look for what is wrong with this machine and its ROS graph, and say what to do",
        "examples:\n  mirage doctor\n  mirage doctor --frames base_link --listen 10\n\n"
        "checks node names, QoS of every connection, clocks, transforms, reported errors, DDS's\n"
        "shared memory and the GPU's; exit code 1 with a fault.",
    )
    parser.add_argument(
        "--listen", type=float, default=5.0, metavar="S", help="seconds to listen (default: 5)"
    )
    parser.add_argument("--world-frame", default="world", help="(default: world)")
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FRAME", help="frames that must be on TF"
    )
    parser.add_argument(
        "--need-shm", type=float, default=64.0, metavar="MIB",
        help="least free shared memory (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--need-gpu", type=float, default=1024.0, metavar="MIB",
        help="least free memory of a GPU, where there is one (default: 1024)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_info(parsers) -> None:
    parser = add_command(
        parsers, "info", info, "tell versions, devices, shipped seeds and the model's card"
    )
    add_model(parser)


def doctor(arguments: argparse.Namespace) -> int:
    from mirage_ros.machine import describe, exit_code
    from mirage_ros.ros.doctor import DoctorConfig, examine

    findings = examine(
        DoctorConfig(
            arguments.listen,
            arguments.world_frame,
            arguments.frames,
            arguments.need_shm,
            arguments.need_gpu,
        )
    )
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print(describe(findings))
    return exit_code(findings)


def info(arguments: argparse.Namespace) -> int:
    print(installed(arguments.model))
    return 0


def installed(model_name: str = "mini") -> str:
    """A table of versions, devices, shipped seeds and the model; a model that cannot be loaded is a line of it."""
    from mirage_ros.data.seeds import shipped_seeds

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
    import torch

    names = [f"cpu, {len(os.sched_getaffinity(0))} cores"]
    for index in range(torch.cuda.device_count()):
        names.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    return "; ".join(names)


def _model(name: str) -> str:
    from mirage_ros.models.pretrained import load_model

    try:
        model = load_model(name)
    except MirageError as error:
        return f"{name}: {error}"
    height, width = model.size
    return (
        f"{model.name}: {width}x{height} pictures, {model.channels} channels at stride "
        f"{model.stride}, {model.chunk_frames} frames a chunk"
    )

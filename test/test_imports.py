"""The walls between the layers: imports go one way, and ROS stays in mirage_ros/ros."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mirage_ros").rglob("*.py"))

# What each layer may import of the project, beside itself and `core`. Anything not named here
# (cli, env, demo, seeds, ...) is the outermost layer and may import all.
MAY_IMPORT = {
    "core": set(),
    "models": {"resources"},
    "training": {"models", "scenes", "evaluation", "resources", "seeds"},
    "evaluation": {"models", "recording", "scenes", "resources", "seeds"},
    "scenes": {"models", "resources"},
    "recording": {"models", "resources"},
    "resources": set(),
    "seeds": {"evaluation", "resources"},
}
CORE_LIBRARIES = {"numpy", "torch", "numba", "jaxtyping", "safetensors"} | sys.stdlib_module_names
ROS_LIBRARIES = {
    "rclpy",
    "tf2_ros",
    "cv_bridge",
    "message_filters",
    "ament_index_python",
    "rosidl_runtime_py",
    "builtin_interfaces",
    "rcl_interfaces",
    "launch",
    "launch_ros",
}


def layer(path: Path) -> str:
    """`core` for mirage_ros/core/camera.py, `seeds` for mirage_ros/seeds.py."""
    return path.relative_to(ROOT / "mirage_ros").parts[0].removesuffix(".py")


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names of everything a module imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def complaints(path: Path, source: str) -> list[str]:
    """One sentence for each import of a module that breaks a wall."""
    own = layer(path)
    found = []
    for name in imported(source, path.relative_to(ROOT).parent.parts):
        top, *rest = name.split(".")
        if top == "mirage_ros":
            target = rest[0] if rest else "__init__"
            if own in MAY_IMPORT and target not in MAY_IMPORT[own] | {own, "core", "__version__"}:
                found.append(f"{own} imports {name}")
            if target == "msg" and own != "ros":
                found.append(f"{own} imports messages ({name})")
        elif own != "ros" and (top in ROS_LIBRARIES or top.endswith("_msgs")):
            found.append(f"{own} imports ROS ({name})")
        elif own == "core" and top not in CORE_LIBRARIES:
            found.append(f"core imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_walls(path: Path):
    assert complaints(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/world.py", "import cv2"),
        ("core/world.py", "from mirage_ros.models import codec"),
        ("core/world.py", "from ..models import codec"),
        ("core/world.py", "def f():\n    import mirage_ros.ros.node"),
        ("models/codec.py", "from mirage_ros.training.loop import train"),
        ("recording/mcap_writer.py", "from sensor_msgs.msg import Image"),
        ("scenes/rooms.py", "from mirage_ros import ros"),
        ("cli.py", "import rclpy"),
        ("env.py", "from mirage_ros.msg import RolloutStatus"),
    ],
)
def test_a_broken_wall_is_found(path: str, source: str):
    assert complaints(ROOT / "mirage_ros" / path, source)


def test_a_kept_wall_is_left_alone():
    source = "import torch\nfrom mirage_ros.core.camera import Camera\nfrom . import errors"
    assert complaints(ROOT / "mirage_ros/core/world.py", source) == []
    source = (
        "import rclpy\nfrom sensor_msgs.msg import Image\nfrom mirage_ros.msg import RolloutStatus"
    )
    assert complaints(ROOT / "mirage_ros/ros/node.py", source) == []


def test_python_imports_this_checkout():
    import mirage_ros

    assert Path(mirage_ros.__file__).parent == ROOT / "mirage_ros"

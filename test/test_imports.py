"""The walls between the layers: imports go one way, and ROS stays in mirage_ros/ros."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from mirage_ros.cli import COMMANDS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mirage_ros").rglob("*.py"))

# Each folder or module of the package may import what stands in a line before its own, and itself.
ORDER = """
    errors
    files geometry
    protocol machine
    memory
    world
    models data physics
    scenes recording
    env training evaluation loop
    ros
    apps
    cli
"""
RANK = {name: rank for rank, line in enumerate(ORDER.split("\n")) for name in line.split()}
# What the inner folders may import from elsewhere: their numbers run without the rest.
INNER = ("errors", "files", "geometry", "protocol", "memory", "world")
INNER_LIBRARIES = {"numpy", "torch", "numba", "jaxtyping", "safetensors", "transforms3d"} | sys.stdlib_module_names
# Modules that the build makes of msg/, srv/ and action/.
INTERFACES = {"msg", "srv", "action"}
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


def folder_of(path: Path) -> str:
    """`geometry` for mirage_ros/geometry/camera.py, `machine` for mirage_ros/machine.py."""
    return path.relative_to(ROOT / "mirage_ros").parts[0].removesuffix(".py")


parsed = cache(ast.parse)  # many tests read the same modules


@cache
def imported(source: str, package: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute dotted names of everything a module imports, also inside functions."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{name}.{alias.name}" for alias in node.names]
    return tuple(found)


def complaints(path: Path, source: str) -> list[str]:
    """One sentence for each import of a module that breaks a wall."""
    own = folder_of(path)
    found = []
    for name in imported(source, path.relative_to(ROOT).parent.parts):
        top, *rest = name.split(".")
        if top == "mirage_ros":
            target = rest[0] if rest else "__init__"
            if target in INTERFACES:
                found += [f"{own} imports messages ({name})"] if own != "ros" else []
            elif target != own and not target.startswith("__") and RANK[target] >= RANK.get(own, -1):
                found.append(f"{own} imports {name}")
        elif own != "ros" and (top in ROS_LIBRARIES or top.endswith("_msgs")):
            found.append(f"{own} imports ROS ({name})")
        elif own in INNER and top not in INNER_LIBRARIES:
            found.append(f"{own} imports {name}")
    return found


def module_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def graph(paths: Iterable[Path]) -> dict[str, set[str]]:
    """What each module imports of the others, also inside functions and for type checks alone."""
    sources = {module_of(path): path for path in paths}
    found = {}
    for module, path in sources.items():
        names = imported(path.read_text(), path.relative_to(ROOT).parent.parts)
        ends = {name if name in sources else name.rpartition(".")[0] for name in names}
        found[module] = {end for end in ends if end in sources and end != module}
    return found


def commands() -> dict[str, set[str]]:
    """What the command line imports by name: the modules of its commands."""
    return {"mirage_ros.cli": {f"mirage_ros.cli.{module}" for module in COMMANDS.values()}}


def test_no_modules_import_each_other_in_a_circle():
    known = graph(MODULES)
    for module, named in commands().items():
        assert named <= set(known)
        known[module] |= named
    TopologicalSorter(known).prepare()


def longest_chain(known: dict[str, set[str]]) -> list[str]:
    """The longest way from a module to one that it needs, to one that this needs, and so on."""
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter(known).static_order():  # what is needed comes first
        below = max((chains[end] for end in known[module]), key=len, default=[])
        chains[module] = [module, *below]
    return max(chains.values(), key=len)


def test_no_chain_of_imports_is_long():
    """Whoever follows an import to its end meets at most twelve modules."""
    chain = longest_chain(graph(MODULES))
    assert len(chain) <= 12, " <- ".join(chain)


def test_a_long_chain_is_found():
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]


def too_long(path: Path, source: str) -> list[str]:
    """One sentence if the file has more than 400 lines, and one for each function with more than 40."""
    found, lines = [], len(source.splitlines())
    if lines > 400:
        found.append(f"{path.name} has {lines} lines; move a part to where its subject is.")
    for node in ast.walk(parsed(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > 40:
                found.append(f"{path.name}: {node.name} has {lines} lines; cut it into steps with names.")
    return found


def test_files_and_functions_are_short():
    assert [line for path in MODULES for line in too_long(path, path.read_text())] == []


def test_long_files_and_functions_are_found():
    body = "    pass\n" * 40
    assert len(too_long(Path("a.py"), f"def outer():\n  def inner():\n{body}" + "x = 1\n" * 400)) == 3
    assert too_long(Path("a.py"), "def f():\n" + "    pass\n" * 39) == []


def test_a_circle_of_imports_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    paths = [tmp_path / "mirage_ros" / name for name in ("a.py", "b.py")]
    paths[0].parent.mkdir()
    paths[0].write_text("def f():\n    from mirage_ros import b")
    paths[1].write_text("if TYPE_CHECKING:\n    from mirage_ros.a import f")
    with pytest.raises(CycleError):
        TopologicalSorter(graph(paths)).prepare()


def test_the_session_needs_no_ros():
    """What it stands on in ros/ neither: it can be tried and read without ROS."""
    known, waiting, seen = graph(MODULES), ["mirage_ros.ros.session"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting += [name for name in known[module] if name.startswith("mirage_ros.ros.") and name not in seen]
    for path in MODULES:
        if module_of(path) in seen:
            tops = {name.split(".")[0] for name in imported(path.read_text(), path.relative_to(ROOT).parent.parts)}
            assert not {top for top in tops if top in ROS_LIBRARIES or top.endswith("_msgs")}, path
    assert len(seen) > 10


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_walls(path: Path):
    assert complaints(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("world/world.py", "import cv2"),
        ("world/world.py", "from mirage_ros.models.mini import codec"),
        ("world/world.py", "from ..models import codec"),
        ("memory/__init__.py", "def f():\n    import mirage_ros.ros.node"),
        ("memory/__init__.py", "from mirage_ros.world.world import World"),
        ("models/codec.py", "from mirage_ros.training import train"),
        ("recording/mcap.py", "from sensor_msgs.msg import Image"),
        ("scenes/homes.py", "from mirage_ros import ros"),
        ("cli/node.py", "import rclpy"),
        ("env.py", "from mirage_ros.msg import RolloutStatus"),
        ("news.py", "from mirage_ros import errors"),
    ],
)
def test_a_broken_wall_is_found(path: str, source: str):
    assert complaints(ROOT / "mirage_ros" / path, source)


def test_a_kept_wall_is_left_alone():
    source = "import torch\nfrom mirage_ros.geometry.camera import Camera\nfrom . import errors"
    assert complaints(ROOT / "mirage_ros/world/world.py", source) == []
    source = (
        "import rclpy\nfrom sensor_msgs.msg import Image\nfrom mirage_ros.msg import RolloutStatus"
    )
    assert complaints(ROOT / "mirage_ros/ros/node.py", source) == []


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Imports that run when a module is imported: none of functions and for type checks alone."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and "TYPE_CHECKING" not in ast.unparse(
            getattr(node, "test", ast.Constant(0))
        ):
            yield from at_import(getattr(node, "body", []))


def loaded(module: str) -> set[str]:
    """Top names of all packages that come with the import of a module."""
    sources, seen, found, todo = {module_of(path): path for path in MODULES}, set(), set(), [module]
    while todo:
        name = todo.pop()
        while name and name not in sources:
            name = name.rpartition(".")[0]
        if not name or name in seen:
            continue
        seen.add(name)
        path = sources[name]
        tree = ast.Module(list(at_import(parsed(path.read_text()).body)), [])
        names = list(imported(ast.unparse(tree), path.relative_to(ROOT).parent.parts))
        todo += [name for name in names if name.startswith("mirage_ros")] + [name.rpartition(".")[0]]
        todo += commands().get(name, ())
        found |= {name.partition(".")[0] for name in names}
    return found


@pytest.mark.parametrize("module", ["world.world", "apps.generate", "env.environments",
                                    "loop.drive", "apps.loop", "recording.video", "cli"])  # fmt: skip
def test_extras_come_only_with_what_needs_them(module: str):
    extras = {"ray", "av", "OpenEXR", "pyarrow", "mujoco", "matplotlib", "tensorboardX", "rclpy"}
    assert not loaded(f"mirage_ros.{module}") & extras


def test_extras_are_found():
    assert "mujoco" in loaded("mirage_ros.scenes.render")


def private_names(path: Path, owner: str) -> set[str]:
    """Methods and attributes of a class that begin with one underscore."""
    body = next(node for node in parsed(path.read_text()).body if getattr(node, "name", "") == owner)
    names = {node.name for node in ast.walk(body) if isinstance(node, ast.FunctionDef)}
    names |= {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def reached_into(path: Path, names: set[str]) -> list[str]:
    """Uses of these names on anything but `self`."""
    nodes = [node for node in ast.walk(parsed(path.read_text())) if isinstance(node, ast.Attribute)]
    return [ast.unparse(node) for node in nodes if node.attr in names and ast.unparse(node.value) != "self"]


def test_nobody_else_reaches_into_a_world(tmp_path):
    world = ROOT / "mirage_ros/world"
    names = private_names(world / "world.py", "World") | private_names(world / "cycle.py", "Cycle")
    assert {"_state", "_context"} <= names
    assert {path.name: found for path in MODULES if (found := reached_into(path, names))} == {}
    friend = tmp_path / "friend.py"
    friend.write_text("world._state = replace(world.state, stamp_ns=1)")
    assert reached_into(friend, names) == ["world._state"]


def test_python_imports_this_checkout():
    import mirage_ros

    assert Path(mirage_ros.__file__).parent == ROOT / "mirage_ros"

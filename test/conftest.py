"""What every test has: shapes checked at run time, few threads, its own ROS domain if asked."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
from pathlib import Path

import pytest

# Threads that spin while they wait for each other would take the cores from the test beside this one. Has to come before
# torch; nodes inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "mirage_ros"
# Half a minute and more, the longest first. Workers take file after file: were a long one the last, its worker would
# end with it while the others have nothing left to do.
LONG = ("studio", "generate", "wan_recipe", "training", "setup", "doctor", "lifecycle", "bad_input", "node", "loop_ros",
        "interruptions", "env", "worker", "evaluate_recordings", "transports", "replan", "dreamer", "behaviour_cloning",
        "demo", "evaluate", "soak")  # fmt: skip


def modules_with_shapes() -> list[str]:
    """Modules whose signatures give shapes, save those whose functions numba compiles."""
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path, source in sorted(sources.items())
        if "from jaxtyping import" in source
        and "import numba" not in source
        and "from numba import" not in source
    ]


# Has to come before anything imports the package.
install_import_hook(modules_with_shapes(), "beartype.beartype")
# MuJoCo settles how it draws when it is first imported; without it, or without a way to draw, the
# tests that need it say so.
with contextlib.suppress(Exception):
    importlib.import_module("mirage_ros.scenes.gl")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
# On a busy machine Fast DDS loses a request now and then; as with all of `mirage`, it is sent again at once.
importlib.import_module("mirage_ros.machine").repair_soon()
_count = itertools.count(os.getpid())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: measures time, so nothing else may run beside it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; the Makefile keeps xdist from ordering files by how many tests they have."""
    rank = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> int:
    """A ROS domain that nobody uses; child processes inherit it."""
    from mirage_ros.machine import free_domain

    domain = free_domain(next(_count))
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return domain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small seed folder."""
    from make_seed import write_seed

    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def connected(tmp_path_factory, folder):
    """A client of a node in lockstep with a model that needs no weights."""
    from sim_client import LOCKSTEP, simulated

    arguments = ("-p", f"seed:={folder}", "-p", f"worlds_folder:={folder.parent}")
    yield from simulated(tmp_path_factory.mktemp("log"), *LOCKSTEP, *arguments)


@pytest.fixture
def sim(connected, folder):
    """Paused at the start, the seed's world loaded."""
    from sim_client import start_again

    start_again(connected, folder)
    return connected


def recorded(frames, size):
    """Frames of a walk there and back in MuJoCo, as a depth camera would record them."""
    pytest.importorskip("mujoco")
    import numpy as np

    from mirage_ros.data.seeds import PosedFrame
    from mirage_ros.evaluation.worlds import scene_world

    world = scene_world(2000101, frames, size)
    depth = np.where(np.isfinite(world.depth_m), world.depth_m, np.nan).astype(np.float32)
    return [PosedFrame(*parts) for parts in zip(world.rgb, depth, world.cameras, strict=True)]


@pytest.fixture(scope="session")
def walked():
    """A few frames, far apart."""
    return recorded(7, (96, 128))


@pytest.fixture(scope="session")
def filmed():
    """The first frames of a video: finer, and close after each other."""
    return recorded(25, (192, 256))[:9]

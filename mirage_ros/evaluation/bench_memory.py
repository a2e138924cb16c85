"""`mirage bench memory`: readout time, bytes and growth, beside a cloud of coloured points.

Everything in the table is measured in the run that prints it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_ros.core.grids import readout_cells
from mirage_ros.core.memory import LatentMemory
from mirage_ros.core.store import SURFEL_FIELDS, row_bytes
from mirage_ros.core.types import WorldModel
from mirage_ros.evaluation.bench_clouds import empty_memory, fill_place, view
from mirage_ros.evaluation.bench_walk import Grid, compare, grow, linear_patches, render_walk
from mirage_ros.evaluation.timing import describe_machine, measure, streaming_bytes_per_s

SURFEL_BYTES = sum(np.dtype(d).itemsize * math.prod(s) for d, s in SURFEL_FIELDS.values())
PARTS = ("stored", "view", "files", "walk", "loops")


@dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
        cells: (height, width) of the view; channels: of its tokens.
        stored: sizes of the memory while at most `in_view` tokens lie in view.
        viewed: sizes of a memory that lies in view as a whole.
        views: cameras of a chunk.
        seed: of the walk's scene; frames: of the walk, every second is remembered.
        large: (height, width) of the pictures with the 48-channel codec of stride 16.
    """

    cells: tuple[int, int] = (44, 80)
    channels: int = 48
    stored: tuple[int, ...] = (10_000, 100_000, 200_000, 1_000_000, 10_000_000)
    in_view: int = 200_000
    viewed: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    views: int = 9
    seed: int = 2000100
    frames: int = 18
    large: tuple[int, int] = (704, 1280)
    rounds: int = 10
    repeats: int = 7
    parts: tuple[str, ...] = PARTS


QUICK = BenchConfig(
    cells=(11, 20),
    channels=8,
    stored=(500, 2_000),
    in_view=1_000,
    viewed=(500, 2_000),
    views=2,
    frames=4,
    large=(64, 128),
    rounds=2,
    repeats=1,
)


def run_bench(
    model: WorldModel,
    config: BenchConfig = BenchConfig(),
    keep: Callable[[dict], object] = lambda report: None,
) -> dict:
    """All parts: machine, and a list of rows for each part.

    Args:
        model: whose codec stands for the small one (its size, stride and channels).
        keep: called with the report as it grows, after each part.
    """
    bandwidth = streaming_bytes_per_s()
    report = {"machine": describe_machine() | {"streaming_gb_per_s": bandwidth / 1e9}}
    report["config"] = asdict(config)
    steps = {
        "stored": lambda: list(_stored(config, bandwidth)),
        "view": lambda: list(_viewed(config, bandwidth)),
        "files": lambda: list(_files(config)),
        "walk": lambda: list(_walks(model, config)),
        "loops": lambda: list(_loops(model, config)),
    }
    for name in tqdm([n for n in PARTS if n in config.parts], desc="bench", unit="part"):
        report[name] = steps[name]()
        keep(report)
    return report


def grids(model: WorldModel, config: BenchConfig) -> tuple[Grid, Grid, Grid]:
    """The small codec as it is; a large one's grid, at the same size and at its own, with the
    cheapest encoder that there is (bytes do not depend on what it has learned)."""
    told = model.size, model.stride, model.channels, model.encode
    small = Grid(f"{model.name} codec", *told, by_parts=readout_cells(model) > 1)
    patches = linear_patches(48, 16)
    return (
        small,
        Grid("48 channels, linear patches", model.size, 16, 48, patches),
        Grid("48 channels, linear patches, large", config.large, 16, 48, patches),
    )


def _stored(config: BenchConfig, bandwidth: float) -> Iterator[dict]:
    """Ever more tokens elsewhere, while what is in view stays the same."""
    memory, place = empty_memory(config.channels, max(config.stored)), 0
    for goal in tqdm(config.stored, desc="stored", unit="size", leave=False):
        while memory.tokens < 0.99 * goal:
            room = config.in_view * (place + 1) - memory.tokens
            fill_place(memory, place, min(room, goal - memory.tokens), config.cells)
            place += memory.tokens >= 0.99 * config.in_view * (place + 1)
        for views in (1, config.views):
            in_view = min(memory.tokens, config.in_view)
            yield _time_read(memory, in_view, views, config, bandwidth)


def _viewed(config: BenchConfig, bandwidth: float) -> Iterator[dict]:
    memory = empty_memory(config.channels, max(config.viewed))
    for goal in tqdm(config.viewed, desc="in view", unit="size", leave=False):
        fill_place(memory, 0, goal - memory.tokens, config.cells)
        for views in (1, config.views):
            yield _time_read(memory, memory.tokens, views, config, bandwidth)


def _files(config: BenchConfig) -> Iterator[dict]:
    """Saving, loading and forking the largest memory that lies in view."""
    memory = empty_memory(config.channels, max(config.viewed))
    fill_place(memory, 0, max(config.viewed), config.cells)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory"
        steps = {
            "save": lambda: memory.save(path),
            "load": lambda: LatentMemory.load(path),
            "fork": memory.fork,
        }
        for name, step in steps.items():
            timing = measure(step, config.repeats, warm_up=1)
            row = {"step": name, "tokens": memory.tokens, "ms": 1e3 * timing.median_s}
            yield row | {"slowest_ms": 1e3 * timing.slowest_s, "file_bytes": path.stat().st_size}


def _time_read(memory, in_view: int, views: int, config: BenchConfig, bandwidth: float) -> dict:
    cameras, stamps = view(0, config.cells, views), np.zeros(views, np.int64)
    timing = measure(lambda: memory.read(cameras, stamps), config.repeats, warm_up=2)
    # What no reader can do without: each view's surfels once, each winner's latent once.
    cells, dtype = views * math.prod(config.cells), memory.config.dtype
    latent_bytes = row_bytes(config.channels, dtype) - row_bytes(0, dtype)
    needed = views * in_view * SURFEL_BYTES + cells * latent_bytes
    return {
        "stored": memory.tokens,
        "in_view": in_view,
        "views": views,
        "read_ms": 1e3 * timing.median_s,
        "fastest_ms": 1e3 * timing.fastest_s,
        "slowest_ms": 1e3 * timing.slowest_s,
        "bytes": memory.nbytes,
        "bus_share": needed / bandwidth / timing.median_s,
    }


def _walks(model: WorldModel, config: BenchConfig) -> Iterator[dict]:
    for grid in tqdm(grids(model, config), desc="walk", unit="codec", leave=False):
        walk = render_walk(config.seed, config.frames, grid.size)
        # A large picture of points takes seconds: fewer of them tell as much.
        large = grid.size == config.large
        views, repeats = (min(config.views, 3), 1) if large else (config.views, config.repeats)
        yield from compare(walk, grid, views, repeats)


def _loops(model: WorldModel, config: BenchConfig) -> Iterator[dict]:
    small = grids(model, config)[0]
    for shaken in (False, True):
        yield from grow(config.seed, config.frames, small, config.rounds, shaken)

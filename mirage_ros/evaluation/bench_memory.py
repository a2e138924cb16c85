"""The memory benchmark: readout time, bytes and growth, beside a cloud of coloured points, as a table and a plot.

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

from mirage_ros.evaluation.bench_common import (
    Grid,
    compare,
    describe_machine,
    empty_memory,
    fill_region,
    grow,
    linear_patches,
    measure,
    render_walk,
    streaming_bytes_per_s,
    view,
)
from mirage_ros.files import atomic_file
from mirage_ros.memory import LatentMemory
from mirage_ros.memory.rows import SURFEL_FIELDS
from mirage_ros.memory.store import row_bytes
from mirage_ros.protocol import WorldModel, readout_cells

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
    small = Grid(
        f"{model.name} codec", model.size, model.stride, model.channels, model.encode,
        by_parts=readout_cells(model) > 1,
    )  # fmt: skip
    patches = linear_patches(48, 16)
    return (
        small,
        Grid("48 channels, linear patches", model.size, 16, 48, patches),
        Grid("48 channels, linear patches, large", config.large, 16, 48, patches),
    )


def _stored(config: BenchConfig, bandwidth: float) -> Iterator[dict]:
    """Ever more tokens elsewhere, while what is in view stays the same."""
    memory, region = empty_memory(config.channels, max(config.stored)), 0
    for goal in tqdm(config.stored, desc="stored", unit="size", leave=False):
        while memory.tokens < 0.99 * goal:
            room = config.in_view * (region + 1) - memory.tokens
            fill_region(memory, region, min(room, goal - memory.tokens), config.cells)
            region += memory.tokens >= 0.99 * config.in_view * (region + 1)
        for views in (1, config.views):
            in_view = min(memory.tokens, config.in_view)
            yield _time_read(memory, in_view, views, config, bandwidth)


def _viewed(config: BenchConfig, bandwidth: float) -> Iterator[dict]:
    memory = empty_memory(config.channels, max(config.viewed))
    for goal in tqdm(config.viewed, desc="in view", unit="size", leave=False):
        fill_region(memory, 0, goal - memory.tokens, config.cells)
        for views in (1, config.views):
            yield _time_read(memory, memory.tokens, views, config, bandwidth)


def _files(config: BenchConfig) -> Iterator[dict]:
    """Saving, loading and forking the largest memory that lies in view."""
    memory = empty_memory(config.channels, max(config.viewed))
    fill_region(memory, 0, max(config.viewed), config.cells)
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
    cameras = view(0, config.cells, views)
    timing = measure(lambda: memory.read(cameras), config.repeats, warm_up=2)
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


def describe(report: dict) -> str:
    """The tables, machine first."""
    machine, config = report["machine"], report["config"]
    height, width = config["cells"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores ({machine['torch_threads']} torch "
        f"threads, load {machine['load_average']}), {machine['device']}, Python "
        f"{machine['python']}, torch {machine['torch']}",
        f"Streaming read of main memory by all cores: {machine['streaming_gb_per_s']:.1f} GB/s. "
        f"Times are medians of {config['repeats']}; of large pictures of points, one each.",
    ]
    title = f"{height}x{width} cells, {config['channels']} channels"
    if "stored" in report:
        lines += ["", f"Ever more stored, at most {config['in_view']:,} in view ({title})"]
        lines += _times(report["stored"])
    if "view" in report:
        lines += ["", f"All stored is in view ({title})", *_times(report["view"])]
    if "files" in report:
        lines += ["", f"Files and forks ({config['channels']} channels)", *_file_lines(report["files"])]
    if "walk" in report:
        lines += ["", "The same walk: bytes, and reading views never taken", *_walk(report["walk"])]
    if "loops" in report:
        lines += ["", "Rounds of one closed walk", *_loop_lines(report["loops"])]
    return "\n".join(lines)


def _times(rows: list[dict]) -> list[str]:
    lines = ["     stored    in view  views   read ms  (min to max)        share of bus time"]
    return lines + [
        f"{row['stored']:>11,}{row['in_view']:>11,}{row['views']:>7}{row['read_ms']:>10.2f}  "
        f"({row['fastest_ms']:.2f} to {row['slowest_ms']:.2f})".ljust(60)
        + f"{row['bus_share']:>12.0%}"
        for row in rows
    ]


def _file_lines(rows: list[dict]) -> list[str]:
    return [
        f"  {row['step']}  {row['tokens']:,} tokens, {row['file_bytes'] / 2**20:.0f} MiB:"
        f"{row['ms']:>10.3f} ms (at most {row['slowest_ms']:.3f})"
        for row in rows
    ]


def _walk(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        if row["cache"] == "latent tokens":
            height, width = row["cells"]
            lines += [
                f"{row['codec']}, {row['size'][0]}x{row['size'][1]} pixels, {height}x{width} "
                f"cells: {row['frames']} frames remembered, {row['views']} others read",
                "  cache                                 things        bytes   times"
                "   bare*  times    read ms  (draw)  times  visible",
            ]
        lines.append(
            f"  {row['cache']:<33}{row['things']:>11,}{row['bytes']:>13,}{row['times_bytes']:>8.1f}"
            f"{row['bare_bytes'] / 2**20:>6.1f}M{row['times_bare_bytes']:>7.1f}"
            f"{row['read_ms']:>11.2f}{row['draw_ms']:>8.0f}{row['times_slower']:>7.0f}"
            f"{row['visible']:>9.1%}"
        )
    return [
        *lines,
        "  Reading points is drawing them and encoding the picture with the codec named.",
        "  Points are counted as densely as tokens are stored (view, pixel and depth in 8 bytes).",
        "  * 11 bytes a point, position and rgb, without views and index.",
    ]


def _loop_lines(rows: list[dict]) -> list[str]:
    lines = ["  camera   round     tokens  growth  visible   merged points  growth"]
    for shaken in (False, True):
        part = [row for row in rows if row["shaken"] == shaken]
        for row in part:
            lines.append(
                f"  {'shaken' if shaken else 'same':<8}{row['round']:>6}{row['tokens']:>11,}"
                f"{row['tokens'] / part[0]['tokens'] - 1:>8.1%}{row['visible']:>9.1%}"
                f"{row['merged_points']:>16,}"
                f"{row['merged_points'] / part[0]['merged_points'] - 1:>8.1%}"
            )
    return lines


def draw(report: dict, path: Path) -> None:
    """The parts that were measured, in one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), constrained_layout=True)
    machine = report["machine"]
    figure.suptitle(
        f"Latent memory: {machine['processor']}, {machine['cores']} cores, {machine['device']}"
    )
    _draw_times(axes[0, 0], report.get("stored", []), "stored", "tokens stored, in view as many")
    _draw_times(axes[0, 1], report.get("view", []), "in_view", "tokens stored, all in view")
    _draw_walk(axes[1, 0], report.get("walk", []))
    _draw_loops(axes[1, 1], report.get("loops", []))
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _draw_times(axis, rows: list[dict], across: str, label: str) -> None:
    for views in sorted({row["views"] for row in rows}):
        part = [row for row in rows if row["views"] == views]
        axis.loglog(
            [row[across] for row in part],
            [row["read_ms"] for row in part],
            marker="o",
            label=f"{views} view{'s' * (views > 1)} in one call",
        )
    axis.set(xlabel=label, ylabel="readout, ms", title="Readout time")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend()


def _draw_walk(axis, rows: list[dict]) -> None:
    import numpy as np

    rows = [row for row in rows if not row["cache"].startswith("latent tokens,")]
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    for number, cache in enumerate(caches):
        part = [row for row in rows if row["cache"] == cache]
        place = np.arange(len(codecs)) + 0.2 * number
        bars = axis.bar(place, [row["bytes"] / 2**20 for row in part], 0.18, label=cache)
        axis.bar_label(bars, [f"x{row['times_bytes']:.0f}" for row in part], fontsize=8)
    axis.set_xticks(np.arange(len(codecs)) + 0.3, codecs, fontsize=8)
    axis.set(ylabel="MiB", yscale="log", title="Bytes after the same walk")
    if rows:
        axis.legend(fontsize=8)


def _draw_loops(axis, rows: list[dict]) -> None:
    for shaken, style in ((False, "-"), (True, "--")):
        part = [row for row in rows if row["shaken"] == shaken]
        rounds, name = [row["round"] for row in part], "shaken" if shaken else "same path"
        for key, colour in (("bytes", "C0"), ("merged_bytes", "C1"), ("all_bytes", "C2")):
            label = {"bytes": "latent tokens", "merged_bytes": "points, 1 cm voxels"}
            axis.semilogy(
                rounds,
                [row[key] / 2**20 for row in part],
                style,
                color=colour,
                label=f"{label.get(key, 'points, all kept')}, {name}",
            )
    axis.set(xlabel="rounds of one closed walk", ylabel="MiB", title="Growth")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(fontsize=8)

"""What a chunk of the large model costs, stage by stage, beside conditioning by an RGB cache.

The cycle is run on a walk through a rendered room whose first picture it is given. Beside it the
same walk's true frames are remembered twice, as latents and as coloured points, and each
chunk's conditioning is made from both for the same backbone: the latent readout, and the
points drawn at every frame and encoded by the backbone's own VAE, as RGB-cache systems do.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch

from mirage_ros.evaluation.bench_common import (
    REWRITE_LOG_SCALE,
    Walk,
    describe_machine,
    render_walk,
)
from mirage_ros.evaluation.point_cloud import BARE_POINT_BYTES, CloudConfig
from mirage_ros.evaluation.rgb_cache import RgbMemory, fill_holes
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_colours
from mirage_ros.memory import LatentMemory
from mirage_ros.models.mini.codec import condition_from_readout
from mirage_ros.models.wan import WanModel
from mirage_ros.world.observing import memory_config
from mirage_ros.world.state import anchor_frames
from mirage_ros.world.world import World, WorldConfig

MIB = 2**20
CLOUDS = {"merged 1 cm": CloudConfig(voxel_m=0.01), "unmerged": CloudConfig(voxel_m=None)}
#: Of conditioning by points.
STEPS = ("drawing", "encoding")
Made = TypeVar("Made")


@dataclass(frozen=True)
class BenchConfig:
    """Attributes:
    chunks: of the walk.
    steps: denoising steps; one run of the cycle for each.
    seed: of the rendered room.
    overlap: run each cycle a second time with overlap_decode.
    """

    chunks: int = 5
    steps: tuple[int, ...] = (20, 4)
    seed: int = 2_000_017
    overlap: bool = False


def run_bench(model: WanModel, config: BenchConfig) -> dict:
    """Every figure as one JSON-able report."""
    frames = 1 + config.chunks * model.chunk_frames
    walk = render_walk(config.seed, frames, model.size)
    report = {
        "machine": describe_machine(),
        "model": _described(model),
        "conditioning": compare_conditioning(model, walk, config.chunks),
        "cycle": {},
    }
    for steps in config.steps:
        model.config = replace(model.config, steps=steps)
        for overlap in (False, True)[: 1 + config.overlap]:
            name = f"{steps} steps" + (", overlapped" if overlap else "")
            report["cycle"][name] = run_cycle(model, walk, config.chunks, overlap)
    return report


def run_cycle(model: WanModel, walk: Walk, chunks: int, overlap: bool = False) -> dict:
    """The cycle over the walk: seconds by stage and chunk, frames/s, bytes."""
    meter = Meter(model)
    world = World(meter, WorldConfig(overlap_decode=overlap))
    stamps = np.arange(len(walk), dtype=np.int64) * 100_000_000
    world.reset(walk.rgb[0], walk.cameras[0], walk.depth_m[0], 0)
    planned = slice(1, 1 + chunks * model.chunk_frames)
    rows, start_s = [], time.perf_counter()
    for chunk in world.rollout(walk.cameras[planned], stamps[planned]):
        seconds = time.perf_counter() - start_s
        rows.append({"seconds": seconds, "stages": chunk.seconds, "tokens": chunk.tokens,
                     "memory_bytes": chunk.memory_bytes})  # fmt: skip
        start_s = time.perf_counter()
    # The first chunk compiles and warms up what later ones find ready; beside the last one of an
    # overlapped run nothing is generated.
    steady = rows[1 : len(rows) - overlap] or rows
    stages = {name: median(row["stages"][name] for row in steady) for name in rows[0]["stages"]}
    return {
        "chunks": rows,
        "seconds_by_stage": stages,
        "frames_per_s": model.chunk_frames / median(row["seconds"] for row in steady),
        "peak_bytes_by_stage": meter.peaks,
        "peak_bytes": max(meter.whole, *meter.peaks.values()),
    }


def compare_conditioning(model: WanModel, walk: Walk, chunks: int) -> dict:
    """Seconds per chunk and bytes of latent memory and RGB caches that hold the same frames."""
    latents = model.codec.encode(model.video_from_rgb(walk.rgb))[0].transpose(0, 1).cpu()
    memory = LatentMemory(memory_config(model, WorldConfig()))
    clouds = {name: RgbMemory(model.encode, model.stride, c) for name, c in CLOUDS.items()}
    _remember(model, memory, clouds, walk, latents, slice(0, 1), 0)
    _from_latents(model, memory, walk, next(_chunks(model, 1)))  # compiles, as drawing does
    for cloud in clouds.values():
        cloud.cloud.draw(walk.cameras[:1])
    reading: list[float] = []
    drawing: dict[str, list[float]] = {name: [] for name in clouds}
    encoding: dict[str, list[float]] = {name: [] for name in clouds}
    for number, part in enumerate(_chunks(model, chunks)):
        reading.append(_timed(_from_latents, model, memory, walk, part)[0])
        for name, cloud in clouds.items():
            seconds, drawn = _timed(_drawn, model, cloud, walk, part)
            drawing[name].append(seconds)
            encoding[name].append(_timed(_encoded, model, drawn)[0])
        _remember(model, memory, clouds, walk, latents, part, 1 + number * _latents(model))
    both = {n: median(map(sum, zip(drawing[n], encoding[n], strict=True))) for n in clouds}
    return {
        "seconds_per_chunk": {"latent memory": median(reading)} | both,
        "seconds_drawing": {name: median(values) for name, values in drawing.items()},
        "seconds_encoding": {name: median(values) for name, values in encoding.items()},
        "time_ratio": {name: seconds / median(reading) for name, seconds in both.items()},
        **_sizes(memory, clouds),
    }


def _sizes(memory: LatentMemory, clouds: dict[str, RgbMemory]) -> dict[str, dict]:
    """Bytes and things held by each cache, and how many times those of the latent memory."""
    bytes_ = {name: cloud.nbytes for name, cloud in clouds.items()}
    held = {name: cloud.tokens for name, cloud in clouds.items()}
    return {
        "bytes": {"latent memory": memory.nbytes} | bytes_,
        "bare_bytes": {name: points * BARE_POINT_BYTES for name, points in held.items()},
        "held": {"latent memory": memory.tokens} | held,
        "bytes_ratio": {name: size / memory.nbytes for name, size in bytes_.items()},
    }


class Meter:
    """A model that notes how much memory each of its stages took at most.

    Where stages overlap a stage's peak begins anew with the other one; `whole` misses nothing.
    """

    def __init__(self, model: WanModel):
        self.model, self.peaks, self.whole = model, {}, 0
        self._cuda = model.device.type == "cuda"
        _forget_peak(self._cuda)

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def encode(self, *inputs):
        with self._stage("encode"):
            return self.model.encode(*inputs)

    def decode_stream(self, *inputs):
        with self._stage("decode"):
            return self.model.decode_stream(*inputs)

    def generate(self, *inputs):
        with self._stage("generate"):
            return self.model.generate(*inputs)

    def perceive(self, *inputs):
        with self._stage("perceive"):
            return self.model.perceive(*inputs)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.whole = max(self.whole, _peak_bytes(self._cuda))
        _forget_peak(self._cuda)
        yield
        if self._cuda:
            torch.cuda.current_stream().synchronize()
        self.peaks[name] = max(self.peaks.get(name, 0), _peak_bytes(self._cuda))


def _forget_peak(cuda: bool) -> None:
    """Lets the peak of memory begin anew; where that is not permitted it stays the process's."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(cuda: bool) -> int:
    if cuda:
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _latents(model: WanModel) -> int:
    return model.chunk_frames // model.frames_per_latent


def _chunks(model: WanModel, count: int) -> Iterator[slice]:
    for number in range(count):
        start = 1 + number * model.chunk_frames
        yield slice(start, start + model.chunk_frames)


def _from_latents(model: WanModel, memory: LatentMemory, walk: Walk, part: slice) -> torch.Tensor:
    """What the side branch is given, read from latents: one camera per latent."""
    at = part.start + anchor_frames(model.chunk_frames, model.frames_per_latent)
    cells = tuple(side // model.stride for side in model.size)
    readout = memory.read(walk.cameras[at].resized(cells))
    return condition_from_readout(readout).to(model.device, model.dtype)


def _drawn(model: WanModel, cloud: RgbMemory, walk: Walk, part: slice) -> np.ndarray:
    """Pictures of points, at every frame of the chunk and the one before it."""
    cells = tuple(side // model.stride for side in model.size)
    drawing = cloud.draw(walk.cameras[slice(part.start - 1, part.stop)].resized(cells))
    return fill_holes(drawing.rgb, drawing.covered)


def _encoded(model: WanModel, rgb: np.ndarray) -> torch.Tensor:
    """The same conditioning as `_from_latents` makes, from pictures."""
    latents = model.codec.encode(model.video_from_rgb(rgb))[:, :, 1:]
    return latents.to(model.device, model.dtype)


def _remember(model, memory: LatentMemory, clouds, walk: Walk, latents, part: slice, first: int):
    """The chunk's true frames into every cache: anchors as latents, every frame as pixels."""
    frames = np.arange(part.start, part.stop)
    at = frames[anchor_frames(len(frames), model.frames_per_latent)]
    cells = tuple(side // model.stride for side in model.size)
    depth = cell_depth(walk.depth_m[at], model.stride)
    memory.write_new(
        latents[first : first + len(at)], walk.cameras[at].resized(cells), depth,
        np.isfinite(depth), at.astype(np.int64), cell_colours(walk.rgb[at], model.stride),
        np.arange(first, first + len(at)), REWRITE_LOG_SCALE,
    )  # fmt: skip
    for cloud in clouds.values():
        for i in frames:
            one = walk[i : i + 1]
            cloud.cloud.write(
                one.rgb, one.cameras, one.depth_m, np.isfinite(one.depth_m), np.array([i])
            )


def _timed(work: Callable[..., Made], *inputs) -> tuple[float, Made]:
    start = time.perf_counter()
    made = work(*inputs)
    if isinstance(made, torch.Tensor) and made.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, made


def _described(model: WanModel) -> dict:
    count = {
        "transformer": model.network.transformer,
        "branch": model.network.branch,
        "vae": model.codec.vae,
    }
    return {
        "name": model.name,
        "size": list(model.size),
        "chunk_frames": model.chunk_frames,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "parameters": {n: sum(p.numel() for p in net.parameters()) for n, net in count.items()},
    }


def describe(report: dict) -> str:
    """The report for people."""
    model, conditioning = report["model"], report["conditioning"]
    lines = [
        f"{model['name']} at {'x'.join(map(str, model['size']))}, {model['dtype']} on "
        f"{model['device']} ({report['machine']['device']}; {report['machine']['processor']}, "
        f"load {report['machine']['load_average']})",
        "parameters: " + ", ".join(f"{n} {c / 1e9:.3f} B" for n, c in model["parameters"].items()),
        "",
        f"{'conditioning':<16}{'ms a chunk':>12}{'x':>8}{'drawn':>8}{'encoded':>8}"
        f"{'held':>12}{'MiB':>10}{'x':>8}{'bare x':>8}",
    ]
    own = conditioning["bytes"]["latent memory"]
    for name, seconds in conditioning["seconds_per_chunk"].items():
        slower, larger = conditioning["time_ratio"].get(name, 1), conditioning["bytes_ratio"].get(name, 1)
        # Points without the index that finds the voxel to merge with.
        bare = conditioning["bare_bytes"].get(name, own) / own
        drawn, encoded = (1e3 * conditioning[f"seconds_{what}"].get(name, 0) for what in STEPS)
        lines.append(
            f"{name:<16}{1e3 * seconds:>12.1f}{slower:>8.1f}{drawn:>8.0f}{encoded:>8.0f}"
            f"{conditioning['held'][name]:>12}{conditioning['bytes'][name] / MIB:>10.2f}{larger:>8.1f}{bare:>8.1f}"
        )
    for name, cycle in report["cycle"].items():
        stages = ", ".join(f"{n} {1e3 * s:.0f}" for n, s in cycle["seconds_by_stage"].items())
        peaks = ", ".join(f"{n} {b / MIB:.0f}" for n, b in cycle["peak_bytes_by_stage"].items())
        lines += ["", f"{name}: {cycle['frames_per_s']:.2f} frames/s, peak "
                  f"{cycle['peak_bytes'] / MIB:.0f} MiB",
                  f"  ms a chunk:  {stages}", f"  peak MiB:    {peaks}"]  # fmt: skip
    return "\n".join(lines)

"""Rollouts to be judged, kept on disk so that no rollout is made twice.

A rollout's name is a hash of all that it depends on: weights, program, world, variant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float

from mirage_ros.core.camera import Camera
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.grids import latent_size, readout_cells, readout_size
from mirage_ros.core.pictures import cell_share
from mirage_ros.core.types import Readout, WorldModel
from mirage_ros.core.world import STAGES, World
from mirage_ros.evaluation.rgb_cache import RgbMemory
from mirage_ros.evaluation.truth import TrueWorld

PACKAGE = Path(__file__).parent.parent
PROGRAM = ("core/**/*.py", "models/**/*.py", "evaluation/rgb_cache.py", "evaluation/point_cloud.py",
           "evaluation/splatting.py", "evaluation/variants.py", "evaluation/rolling.py",
           "evaluation/truth.py")  # fmt: skip
TRUTH = ("scenes/**/*.py", "evaluation/truth.py")


@dataclass(frozen=True)
class Rolled:
    """f frames of one world as a variant showed them; frame 0 is the seed as the model decodes it.

    Attributes:
        rgb: (f, h, w, 3) uint8.
        depth_m: (f, h, w), perceived.
        observed: (f, h, w) bool, what memory showed before the frame was made.
        bare: (f, h, w, 3) uint8, the readout itself decoded, or of a memory of pixels what it draws;
            f is 0 where it was not made.
        seconds: (chunks, 5) by stage.
        tokens, nbytes: (f,) memory after the frame's chunk.
        remembered: (lh, lw) share of each of the seed's latent cells that memory shows to the
            seed's own camera at once.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    observed: np.ndarray
    bare: np.ndarray
    seconds: np.ndarray
    tokens: np.ndarray
    nbytes: np.ndarray
    remembered: np.ndarray


def roll(
    world: World, truth: TrueWorld, *, seed_depth: bool, bare: bool, tick: Callable[[int], object]
) -> Rolled:
    """Runs the cycle from the seed picture along the whole path.

    Args:
        seed_depth: give the seed's true depth; else perception guesses it and with it the scale.
        bare: decode the readouts as well, or draw them.
        tick: called with the number of frames just made.
    """
    depth = truth.depth_m[0] if seed_depth else None
    chunks, shown = [world.reset(truth.rgb[0], truth.cameras[0], depth)], []
    remembered = seed_remembered(world)
    tick(1)
    stamps, length = truth.stamps_ns, world.model.chunk_frames
    for start in range(1, len(truth), length):
        part = slice(start, start + length)
        if bare:
            shown.append(_decode_readout(world, truth, part))
        chunks.append(world.step(truth.cameras[part], stamps[part]))
        tick(len(chunks[-1].frames))
    frames = [frame for chunk in chunks for frame in chunk.frames]
    counts = [len(chunk.frames) for chunk in chunks]
    rgb = np.stack([frame.rgb for frame in frames])
    return Rolled(
        rgb=rgb,
        depth_m=np.stack([frame.depth_m for frame in frames]).astype(np.float32),
        observed=np.stack([frame.observed for frame in frames]),
        bare=np.concatenate([rgb[:1], *shown]) if bare else rgb[:0],
        seconds=np.array([[chunk.seconds[stage] for stage in STAGES] for chunk in chunks[1:]]),
        tokens=np.repeat([chunk.tokens for chunk in chunks], counts),
        nbytes=np.repeat([chunk.memory_bytes for chunk in chunks], counts),
        remembered=remembered,
    )


def seed_remembered(world: World) -> Float[np.ndarray, "lh lw"]:
    """Of a world that was just reset, the share of each of the seed's latent cells that memory
    shows to the seed's own camera."""
    camera = Camera.stack([world.camera.resized(readout_size(world.model))])
    seen = world.memory.fork().read(camera, np.array([world.stamp_ns], np.int64))
    return cell_share(seen.visible, readout_cells(world.model))[0].astype(np.float32)


def seed_lost(
    remembered: Float[np.ndarray, "lh lw"],
    depth_m: Float[np.ndarray, "h w"],
    moving: Bool[np.ndarray, "h w"] | None = None,
) -> tuple[float, float]:
    """What of a seed was not remembered, as shares of its latent cells, the sky left out.

    Args:
        remembered: see `seed_remembered`.
        depth_m: the seed's, as the world took it.
        moving: bodies that are not to be remembered; cells that show any are left out.

    Returns:
        Of the cells of known depth the share that memory does not show (by half, at least); and of
        all cells the share without depth, which no memory can hold.
    """
    stride = len(depth_m) // len(remembered)
    depth = cell_depth(depth_m[None], stride)[0]
    rest = ~np.isposinf(depth)
    if moving is not None:
        rest &= cell_share(moving[None], stride)[0] == 0
    known = rest & np.isfinite(depth)
    lost = float((remembered[known] < 0.5).mean()) if known.any() else float("nan")
    return lost, float(np.isnan(depth[rest]).mean()) if rest.any() else float("nan")


def cached(path: Path, kind: type, make: Callable[[], object]):
    """A dataclass of arrays from a file, or made and written under a temporary name."""
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return kind(**{field.name: _plain(stored[field.name]) for field in fields(kind)})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            path.unlink()  # of a run that was cut off, or of another release
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        np.savez(file, **{field.name: getattr(made, field.name) for field in fields(kind)})
    partial.replace(path)
    return made


def name_of(*parts: object) -> str:
    """Twenty hex digits that stand for all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def hash_of_sources(patterns: tuple[str, ...]) -> str:
    """Twenty hex digits that stand for the package's files of these patterns."""
    paths = sorted(path for pattern in patterns for path in PACKAGE.glob(pattern))
    total = hashlib.sha256()
    for path in paths:
        total.update(str(path.relative_to(PACKAGE)).encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:20]


def _plain(array: np.ndarray):
    return str(array) if array.ndim == 0 and array.dtype.kind == "U" else array


def _decode_readout(world: World, truth: TrueWorld, part: slice) -> np.ndarray:
    model: WorldModel = world.model
    if isinstance(world.memory, RgbMemory):
        return world.memory.pictures(truth.cameras[part])
    cells = truth.cameras[part].resized(latent_size(model))
    readout: Readout = world.memory.read(cells, truth.stamps_ns[part])
    with torch.inference_mode():
        return model.decode(readout.latents)

"""Real pictures that are observed: what they put into a world's memory, and what they take out of it.

A real picture with depth tells two things: where surfaces are, and that nothing stands before them. So when one is
observed, every token in view that lies at a measured surface or before it goes, real ones of an older picture too, and
the picture's own tokens come in. What lies behind, or where depth is invalid, stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import cell_colours, cell_share, fit_seed
from mirage_ros.memory import LatentMemory
from mirage_ros.memory.rows import FIRST_OBSERVED
from mirage_ros.protocol import WorldModel, readout_cells, readout_side
from mirage_ros.world.state import (
    MAX_DEPTH_M,
    REWRITE_LOG_SCALE,
    WorldConfig,
    WorldState,
    check_latents,
    latent_size,
    moving_in_real,
    perceive_seed,
)

TOLERANCE = 0.05
"""A token this much behind a measured surface, relative to its depth, is taken for the surface."""
KEPT_OBSERVED = 64
"""So many latents of observed pictures are kept, for reference."""


def observed(
    model: WorldModel,
    config: WorldConfig,
    state: WorldState,
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    stamp_ns: int,
    adds: bool = False,
) -> tuple[WorldState, tuple[int, int]]:
    """A state with the picture in its memory, and how many tokens went and came; see World.observe."""
    if depth_m is None:
        raise MirageError("An observation needs depth; send a depth picture with it.")
    if not isinstance(state.memory, LatentMemory):
        raise MirageError("This world's memory cannot be corrected; use the latent memory.")
    rgb, camera, depth_m = fit_seed(rgb, camera, depth_m, model.size)
    depth_m = completed(depth_m)
    latents = check_latents(model.encode(rgb[None]), model, 1)
    number = max((i for i in state.latents if i >= FIRST_OBSERVED), default=FIRST_OBSERVED - 1) + 1
    fork = state.forked()
    counts = _replaced(fork.memory, model, config, latents, rgb, camera, depth_m, stamp_ns, number, adds)
    kept = {
        i: latent for i, latent in state.latents.items() if i < FIRST_OBSERVED or i > number - KEPT_OBSERVED
    }
    kept[number] = latents[0].to("cpu", torch.float16)
    free_space = state.free_space.with_real(camera, depth_m, readout_side(model))
    return replace(fork, latents=kept, free_space=free_space), counts


def _replaced(
    memory: LatentMemory,
    model: WorldModel,
    config: WorldConfig,
    latents: Float[torch.Tensor, "1 c lh lw"],
    rgb: UInt8[np.ndarray, "h w 3"],
    camera: Camera,
    depth_m: Float[np.ndarray, "h w"],
    stamp_ns: int,
    frame_id: int,
    adds: bool,
) -> tuple[int, int]:
    """Writes a picture's tokens in place of those that its depth contradicts; how many went and came."""
    cameras = Camera.stack([camera])
    cells = cameras.resized(latent_size(model))
    fine = np.where(depth_m > MAX_DEPTH_M, np.float32(np.inf), depth_m)[None]
    depth = cell_depth(fine, model.stride)
    moving = moving_in_real(
        model,
        rgb[None],
        config.forget_moving,
        lambda: perceive_seed(model, rgb[None], cameras, depth_m).dynamic,
    )
    known = np.isfinite(depth) & (cell_share(moving, model.stride) <= config.max_dynamic_share)
    erased = memory.forget(contradicted(memory, cells[0], depth[0], adds))
    if adds:
        known &= lacking(memory, cells)
    stored = memory.write_by_surfaces(
        latents,
        cells,
        fine if readout_cells(model) > 1 else depth,
        known,
        np.array([stamp_ns], np.int64),
        cell_colours(rgb[None], model.stride),
        np.array([frame_id]),
        real=True,
    )
    return erased, stored


def lacking(memory: LatentMemory, cells: Camera) -> Bool[np.ndarray, "f h w"]:
    """The cells of cameras at latent size of which no real picture showed as much yet."""
    shown = memory.read(cells)
    return ~(memory.shows_real(shown) & (shown.log_scale <= REWRITE_LOG_SCALE))


def contradicted(
    memory: LatentMemory, camera: Camera, depth_m: Float[np.ndarray, "h w"], clearly: bool = False
) -> Bool[np.ndarray, "n"]:
    """The tokens that lie at or before a depth measured at latent size, in view; or those `clearly` before it, and
    before what was measured in the cells around: poses are a little off, and edges would be nibbled at."""
    if clearly:
        padded = np.pad(np.where(np.isnan(depth_m), -np.inf, depth_m), 1, constant_values=-np.inf)
        depth_m = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).min((-2, -1))
    points = memory.positions_m.astype(np.float64)
    pixels, depth = camera.project(points)
    with np.errstate(invalid="ignore"):
        column, row = np.rint(pixels).T
        inside = (depth > 0) & (row >= 0) & (row < camera.size[0])
        inside &= (column >= 0) & (column < camera.size[1])
    result = np.zeros(len(points), bool)
    index = np.nonzero(inside)[0]
    measured = depth_m[row[index].astype(int), column[index].astype(int)]
    footprint = memory.footprints_m[index]
    with np.errstate(invalid="ignore"):
        sign = -1 if clearly else 1
        result[index] = depth[index] <= measured * (1 + sign * TOLERANCE) + sign * footprint
    return result

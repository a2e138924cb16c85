"""Latent cells that show two surfaces, and the parts that they are split into.

A token has one depth. Where a near thing ends before a far one, half of what its latent codes
lies elsewhere, and a moved camera would see it slide along with the other half. So such a cell is
remembered as several tokens, each a part of the cell with a depth of its own, and all with the
cell's whole latent: a reader that moves latents as blocks takes of each token the part it stands
for (models/alignment.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.pictures import cell_share, upsample
from mirage_ros.core.surfels import COLUMN, ROW, VIEW_SIDE, of_views

PARTS = 4
"""To a side of a latent cell that is split as far as it goes."""

OFF_PLANE = 0.025
"""Share of the nearest part's inverse depth by which parts of one surface may lie off a plane."""

APART = 0.1
"""The same for parts that are too few to tell a plane from a step: how far they may differ."""


def by_surfaces(
    latents: Float[torch.Tensor, "f c h w"],
    cameras: Camera,
    depth_m: Float[np.ndarray, "f hp wp"],
    chosen: Bool[np.ndarray, "f h w"],
    rgb: UInt8[np.ndarray, "f h w 3"],
) -> Iterator[tuple[torch.Tensor, Camera, np.ndarray, np.ndarray, np.ndarray, int]]:
    """The chosen cells of one surface whole, the others by quarters, down to the smallest parts: those
    of two surfaces, and those whose depth is known in some of their parts alone.

    Yields what LatentMemory.write takes, on ever finer grids: latents, cameras, depth, chosen
    cells, colours, and parts to a side of a latent cell. Depth may be as fine as pixels; where it
    is that of the cells, all are whole.
    """
    parts = 1
    while True:
        side = depth_m.shape[1] // cameras.size[0]
        finest = min(PARTS // parts, side)
        split, whole = np.zeros_like(chosen), cell_depth(depth_m, side)
        if finest > 1:
            fine = cell_depth(depth_m, side // finest)
            partly = np.isnan(whole) & (cell_share(np.isfinite(fine), finest) > 0)
            split = chosen & (shows_two_surfaces(fine, finest) | partly)
        yield latents, cameras, whole, chosen & ~split, rgb, parts
        if not split.any():
            return
        latents = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
        chosen, rgb = upsample(split, 2), upsample(rgb, 2)
        cameras, parts = cameras.resized(chosen.shape[1:]), 2 * parts


def shows_two_surfaces(
    depth_m: Float[np.ndarray, "f hp wp"], parts: int
) -> Bool[np.ndarray, "f h w"]:
    """Of each cell, from the depths of its parts; +inf is the sky, NaN is not known.

    Inverse depth is linear on planes, however slanted: so what no plane explains is an edge.
    """
    frames, height, width = depth_m.shape
    cells = depth_m.reshape(frames, height // parts, parts, width // parts, parts)
    inverse = 1 / np.moveaxis(cells, 2, 3).reshape(*cells.shape[:2], width // parts, parts**2)
    known = ~np.isnan(inverse)
    inverse = np.where(known, inverse, 0)
    inverse += ~known * (inverse.sum(-1) / np.maximum(known.sum(-1), 1))[..., None]
    off = np.abs(inverse @ _off_plane(parts)).max(-1) if parts > 2 else np.ptp(inverse, -1)
    return off > (OFF_PLANE if parts > 2 else APART) * inverse.max(-1)


def _off_plane(parts: int) -> Float[np.ndarray, "n n"]:
    """Takes values on a square of parts to what the best plane through them leaves over."""
    rows, columns = np.indices((parts, parts)).reshape(2, -1)
    plane = np.stack([np.ones(parts**2), rows, columns])
    return np.eye(parts**2) - np.linalg.pinv(plane) @ plane


def in_whole_cells(
    places: Int64[np.ndarray, "n"],
    parts: UInt8[np.ndarray, "m"],
    within: Float32[np.ndarray, "n 2"],
    log_scale: Float32[np.ndarray, "n"],
) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, "n"]]:
    """(du, dv) and log scale of whole latent cells, from those of the parts that tokens stand for.

    Args:
        places: of the tokens, as in Surfels.
        parts: to a side of a latent cell, of each view.
        within: (du, dv) from the part's centre, in parts.
    """
    count = of_views(places, parts)
    if (count == 1).all():
        return within, log_scale
    cell = np.stack([(places >> bit) & (VIEW_SIDE - 1) for bit in (COLUMN, ROW)], -1)
    from_centre = cell % count[:, None] - (count[:, None] - 1) / 2
    within = (within + from_centre.astype(np.float32)) / count[:, None]
    return within.astype(np.float32), log_scale + np.log(count.astype(np.float32))

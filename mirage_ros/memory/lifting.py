"""Latent cells that show two surfaces, and the parts that they are split into.

A token has one depth. Where a near thing ends before a far one, half of what its latent codes
lies elsewhere, and a moved camera would see it slide along with the other half. So such a cell is
remembered as several tokens, each a part of the cell with a depth of its own, and all with the
cell's whole latent: a reader that moves latents as blocks takes of each token the part it stands
for (models/mini/codec.py).

From latent cells with depth to surfels: which cell, how deep, and which way it faces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share, upsample
from mirage_ros.memory.rows import tiles_of
from mirage_ros.memory.surfels import COLUMN, ROW, Surfels, VIEW_SIDE, footprints_of, normals_of, octahedral, of_views, packed, positions_of, view_numbers
from mirage_ros.protocol import Patches

EDGE_FOOTPRINTS = 6.0
"""Neighbours farther apart along z than this many footprints lie on different surfaces."""

AGREEING_COSINE = 0.9
"""Normals from the neighbours before and after a cell agree from this cosine on."""

GRAZING_COSINE = 0.2
"""A surface seen under a smaller cosine is too slanted to be sure which way it faces."""


def lift_surfels(
    cameras: Camera, depth_m: Float[np.ndarray, "f h w"], chosen: Bool[np.ndarray, "f h w"]
) -> dict[str, np.ndarray]:
    """Rows (n, ...) of the chosen cells in raster order, frame after frame.

    places (with the views' numbers in `views_of`) and normals are as in Surfels. A token is
    sure which way it faces where the neighbours on all sides agree on its normal.
    """
    depth = np.ascontiguousarray(depth_m, np.float32)
    chosen = np.ascontiguousarray(chosen, np.bool_)
    number = int(np.count_nonzero(chosen))
    rows = {"places": np.empty(number, np.int64), "normals": np.empty((number, 2), np.int8)}
    intrinsics = np.ascontiguousarray(cameras.intrinsics)
    poses = np.ascontiguousarray(cameras.world_from_camera)
    _lift(intrinsics, poses, depth, chosen, tiles_of(cameras.size), tuple(rows.values()))
    return rows


@njit(cache=True, nogil=True)
def _lift(intrinsics, poses, depth, chosen, tiles, out):
    places, normals = out
    frames, height, width = depth.shape
    points, row = np.empty((height, width, 3)), 0
    for f in range(frames):
        k, pose, eye = intrinsics[f], poses[f], poses[f, :3, 3]
        for r in range(height):
            for c in range(width):
                z = float(depth[f, r, c]) if _valid(depth[f, r, c]) else 0.0
                x, y = (c - k[0, 2]) / k[0, 0] * z, (r - k[1, 2]) / k[1, 1] * z
                for i in range(3):
                    points[r, c, i] = pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] * z + eye[i]
        focal = 0.5 * (k[0, 0] + k[1, 1])
        for r in range(height):
            for c in range(width):
                if not chosen[f, r, c]:
                    continue
                direction, sure = _direction(points, depth[f], r, c, eye, focal)
                tile = r // VIEW_SIDE * tiles[1] + c // VIEW_SIDE
                view = f * tiles[0] * tiles[1] + tile
                cell = r % VIEW_SIDE, c % VIEW_SIDE
                places[row] = packed(view, cell[0], cell[1], depth[f, r, c], sure)
                normals[row, 0], normals[row, 1] = octahedral(direction)
                row += 1


@njit(cache=True, nogil=True)
def _direction(points, depth, r, c, eye, focal):
    """Which way a cell faces, and whether that is sure."""
    view = _unit(_minus(eye, points[r, c]))
    direction, sure = _normal(points, depth, r, c, depth[r, c] / focal, view)
    return direction, sure and _dot(direction, view) >= GRAZING_COSINE


@njit(cache=True, nogil=True)
def _normal(points, depth, r, c, footprint, view):
    """The unit normal towards the camera, and whether neighbours on all sides agree on it.

    Of the two steps along each axis the one that is closer in depth counts; where none is on
    the same surface the normal is the direction of view.
    """
    right, right_gap = _step(points, depth, r, c, r, c + 1)
    left, left_gap = _step(points, depth, r, c - 1, r, c)
    down, down_gap = _step(points, depth, r, c, r + 1, c)
    up, up_gap = _step(points, depth, r - 1, c, r, c)
    across = left if left_gap < right_gap else right
    along = up if up_gap < down_gap else down
    normal = _unit(_cross(along, across))
    gap = max(min(left_gap, right_gap), min(up_gap, down_gap))
    if gap > EDGE_FOOTPRINTS * footprint or _dot(normal, normal) < 0.25:
        return view, False
    if _dot(normal, view) < 0:
        normal = (-normal[0], -normal[1], -normal[2])
    # The border of the picture is no edge of the surface: go on as on the other side.
    height, width = depth.shape
    right, left = left if c + 1 == width else right, right if c == 0 else left
    down, up = up if r + 1 == height else down, down if r == 0 else up
    agreement = _dot(_unit(_cross(down, right)), _unit(_cross(up, left)))
    return normal, agreement >= AGREEING_COSINE


@njit(cache=True, nogil=True, inline="always")
def _step(points, depth, r0, c0, r1, c1):
    """From one cell to the next: the step and its gap in depth (zeros and inf: none)."""
    inside = r0 >= 0 and c0 >= 0 and r1 < depth.shape[0] and c1 < depth.shape[1]
    if not inside or not _valid(depth[r0, c0]) or not _valid(depth[r1, c1]):
        return (0.0, 0.0, 0.0), np.inf
    return _minus(points[r1, c1], points[r0, c0]), abs(depth[r1, c1] - depth[r0, c0])


@njit(cache=True, nogil=True, inline="always")
def _valid(depth):
    return np.isfinite(depth) and depth > 0


@njit(cache=True, nogil=True, inline="always")
def _minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@njit(cache=True, nogil=True, inline="always")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True, inline="always")
def _cross(a, b):
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


@njit(cache=True, nogil=True, inline="always")
def _unit(vector):
    length = np.sqrt(_dot(vector, vector))
    scale = 1 / length if length > 0 else 1.0
    return vector[0] * scale, vector[1] * scale, vector[2] * scale


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


def cell_axes_of(surfels: Surfels, least_cosine: float) -> Float32[np.ndarray, "n 2 3"]:
    """How far it is on each token's plane from one column of its view to the next, and from one row to the next, metres;
    as if no token had been seen under a smaller cosine."""
    view, points, normals = view_numbers(surfels.places), positions_of(surfels), normals_of(surfels)
    away = points - surfels.rays[view, 3]
    steps = surfels.rays[view, :2] * (footprints_of(surfels) * surfels.focals[view])[:, None, None]
    facing = np.einsum("ni,ni->n", away, normals)
    least = least_cosine * np.linalg.norm(away, axis=1)
    facing = np.where(facing < 0, -1, 1) * np.maximum(np.abs(facing), np.maximum(least, 1e-12))
    axes = steps - away[:, None] * (np.einsum("nki,ni->nk", steps, normals) / facing[:, None])[..., None]
    return axes - normals[:, None] * np.einsum("nki,ni->nk", axes, normals)[..., None]


def patches_of(surfels: Surfels, low: Float[np.ndarray, "b 3"], high: Float[np.ndarray, "b 3"]) -> Patches:
    """The pieces of surface that the tokens in any of b axis-aligned boxes are."""
    xyz, inside = positions_of(surfels), np.zeros(len(surfels.places), bool)
    for least, most in zip(low, high, strict=True):
        inside |= ((xyz >= least) & (xyz <= most)).all(-1)
    chosen = surfels._replace(places=surfels.places[inside], normals=surfels.normals[inside])
    across, down = np.moveaxis(0.5 * cell_axes_of(chosen, GRAZING_COSINE), 1, 0)
    corners = np.stack([-across - down, across - down, across + down, down - across], 1) + xyz[inside, None]
    return Patches(corners, normals_of(chosen), surfels.real[view_numbers(chosen.places)])

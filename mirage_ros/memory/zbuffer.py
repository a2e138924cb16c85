"""The exact z-buffer: which token does each latent cell of a camera see?

One meaning, whatever the kernel (and whatever the machine, every run, the same bits):

1. A token projects to (u, v, z) in cells and metres, in float64. It is skipped when z is below
   `near_m`, or when it is seen from its back: its normal points away from the camera (cosine
   below -0.03) and it is sure of it, or the direction that it was first seen from points away
   as well (see surfels.py).
2. It covers the cells whose centres lie in the square around (u, v) that is
   `splat * footprint * focal / z` cells wide, and always the cell that (u, v) falls in.
   So zooming in leaves no holes.
3. In each cell the nearest covering token (smallest z, then lowest index) is the surface.
   Candidates are the covering tokens at most `tolerance` away behind it along z, or, for surfaces
   seen at a slant, at most that far from its tangent plane (and within 8 times along z): a slanted
   floor's near rows do not eat the far ones. The tolerance counts in the surface token's
   footprint or the cell's width there, whichever is larger. What lies behind never wins.
4. Among the candidates the winner is the one nearest to the cell's centre: squared distance
   in cells plus `scale_weight * (ratio - 1)^2`, where ratio >= 1 tells by how much footprint and
   cell width differ. Tokens of one scale are thus ranked by distance alone; a token seen from
   afar or from close up yields to one of the right scale. A candidate of a real picture wins over
   all that were imagined. Ties go to the lower index.

Surfels in numpy are read by CPU threads (zbuffer_cpu.py), surfels in torch tensors by torch operations
on their device, below. There a token makes one pair with every cell that it covers; `scatter_reduce` by
the least value over pairs does the rest. Non-negative float64 numbers sort like the int64 numbers of the
same bits, and the least integer does not depend on the order in which a device adds pairs. Every sum and
product stands alone in the order of zbuffer_cpu.py, so that both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.blocks import (
    BACK_COSINE_SQUARED,
    BLOCK_ROWS,
    IMAGINED,
    SLANT_REACH,
    Blocks,
    SplatRule,
    blocks_in_view,
)
from mirage_ros.memory.surfels import (
    COLUMN,
    DEPTH_BITS,
    DROPPED,
    LEAST,
    MOST_VIEWS,
    ROW,
    UNSURE,
    VIEW,
    Surfels,
)
from mirage_ros.memory.zbuffer_cpu import winners_cpu

PAIRS_AT_ONCE = 2**24
"""Bounds the memory that pairs take: about 100 bytes each while they are worked on."""

_NONE = torch.iinfo(torch.int64).max


class Winners(NamedTuple):
    """Per camera and cell: token index (-1 none), z in metres, offset in cells, scale ratio.

    Where there is no winner z, offset and ratio (footprint over cell width) are 0.
    """

    index: np.ndarray
    depth_m: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray


def find_winners(
    surfels: Surfels,
    cameras: Camera,
    rule: SplatRule,
    blocks: Blocks | None = None,
    threads: int | None = None,
) -> Winners:
    """The winners in every cell of a batch of f cameras whose size is the latent grid's.

    Returns arrays index int32 (f, h, w), depth float64 (f, h, w), offset float64 (f, 2, h, w),
    ratio float64 (f, h, w). CPU threads are as many as there are cores, unless given.
    `blocks` bound the surfels' rows; without them they are worked out first.
    """
    on_device = torch.is_tensor(surfels.places)
    if blocks is None:
        blocks = Blocks.of(Surfels(*(x.cpu().numpy() for x in surfels)) if on_device else surfels)
    maps, eyes = cameras.camera_from_world, cameras.position_world
    views = tuple(np.ascontiguousarray(x) for x in (maps, eyes, _pinholes(cameras)))
    if on_device:
        return Winners(*winners_torch(surfels, blocks, views, rule.numbers(), cameras.size))
    found = winners_cpu(tuple(surfels), blocks, views, rule.numbers(), cameras.size, threads)
    return Winners(*found)


def _pinholes(cameras: Camera) -> np.ndarray:
    k = cameras.intrinsics
    return np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)


class _Splats(NamedTuple):
    """Tokens that a camera sees: row number, position, place in the picture, what they cover, how
    ill their scale fits."""

    rows: torch.Tensor
    xyz: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    z: torch.Tensor
    c0: torch.Tensor
    r0: torch.Tensor
    columns: torch.Tensor
    lines: torch.Tensor
    ratio: torch.Tensor
    penalty: torch.Tensor


def winners_torch(surfels, blocks, cameras, rule, size):
    """As winners_cpu, with surfels on any device; returns numpy arrays."""
    found = [
        _one(surfels, blocks, m, eye, pinhole, rule, size)
        for m, eye, pinhole in zip(*cameras, strict=True)
    ]
    return tuple(np.stack(arrays) for arrays in zip(*found, strict=True))


def _one(surfels, blocks, m, eye, pinhole, rule, size):
    device, count = surfels.places.device, len(surfels.places)
    ids = blocks_in_view(blocks.bounds, blocks.groups, count, m, pinhole, rule, size)[0]
    starts = torch.from_numpy(ids.astype(np.int64)).to(device) * BLOCK_ROWS
    rows = (starts[:, None] + torch.arange(BLOCK_ROWS, device=device)).reshape(-1)
    splats = _project(surfels, rows[rows < count], m.tolist(), pinhole.tolist(), rule, size)
    splats = _facing(splats, surfels, eye.tolist())
    first, first_z = _least(splats, size, lambda pair, cell: splats.z[pair])
    focal = 0.5 * (pinhole[0] + pinhole[1])
    surface = _surface(surfels, first, first_z, focal, rule[1]) if count else None

    def badness(pair, cell):
        column, line = cell % size[1], torch.div(cell, size[1], rounding_mode="floor")
        across, along = splats.u[pair] - column, splats.v[pair] - line
        value = across * across + along * along + splats.penalty[pair]
        return torch.where(_on_surface(splats, pair, cell, surface), value, torch.inf)

    index, _ = _least(splats, size, badness)
    return _details(splats, index, size)


def _views(places: torch.Tensor) -> torch.Tensor:
    return (places >> VIEW) & (MOST_VIEWS - 1)


def _positions(surfels: Surfels, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (n, 3) and footprints, as surfels.position and surfels.footprint have them."""
    places = surfels.places[rows]
    views, row, column = _views(places), (places >> ROW) & 255, (places >> COLUMN) & 255
    bits = ((places & DEPTH_BITS) + LEAST) << DROPPED
    depth, row, column = bits.int().view(torch.float32).double(), row.double(), column.double()
    axes = []
    for axis in range(3):
        ray = surfels.rays[:, :, axis][views].double().unbind(-1)
        axes.append(ray[3] + depth * (ray[0] * column + ray[1] * row + ray[2]))
    footprints = (depth / surfels.focals[views].double()).float().double()
    return torch.stack(axes, -1).float().double(), footprints


def _normals(surfels: Surfels, rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As surfels.normal has them."""
    a, b = surfels.normals[rows].double().unbind(-1)
    c = 127 - a.abs() - b.abs()
    fold = (-c).clamp(min=0)
    return torch.where(a >= 0, a - fold, a + fold), torch.where(b >= 0, b - fold, b + fold), c


def _project(surfels, rows, m, pinhole, rule, size) -> _Splats:
    """The tokens of `rows` that cover any cell, whichever way they face."""
    splat, _, weight, near = rule
    xyz, footprints = _positions(surfels, rows)
    x, y, z = xyz.unbind(-1)
    across, along, depth = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in m[:3])
    safe = torch.where(depth >= near, depth, 1.0)
    u = across / safe * pinhole[0] + pinhole[2]
    v = along / safe * pinhole[1] + pinhole[3]
    half = 0.5 * splat * footprints / safe
    c0, c1 = _span(u, half * pinhole[0], size[1])
    r0, r1 = _span(v, half * pinhole[1], size[0])
    ratio = footprints * (0.5 * (pinhole[0] + pinhole[1])) / safe
    misfit = torch.where(ratio >= 1, ratio, 1 / ratio) - 1
    imagined = torch.where(surfels.real[_views(surfels.places[rows])], 0.0, IMAGINED).double()
    penalty = weight * (misfit * misfit) + imagined
    columns, lines = c1 - c0 + 1, r1 - r0 + 1
    seen = (depth >= near) & (columns > 0) & (lines > 0) & ~torch.isnan(u + v + half)
    fields = (rows, xyz, u, v, depth, c0, r0, columns, lines, ratio, penalty)
    return _Splats(*(field[seen] for field in fields))


def _span(centre, half, size):
    """First and last cell along one axis; last < first: none."""
    home = torch.floor(centre + 0.5)
    first = torch.minimum(torch.ceil(centre - half), home).clamp(0, size)
    last = torch.minimum(torch.floor(centre + half).maximum(home), home.new_tensor(size - 1))
    return first.long(), last.clamp(min=-1).long()


def _facing(splats: _Splats, surfels: Surfels, eye) -> _Splats:
    """Without the tokens seen from their back."""
    x, y, z = splats.xyz.unbind(-1)
    to_eye = (eye[0] - x, eye[1] - y, eye[2] - z)
    normal, places = _normals(surfels, splats.rows), surfels.places[splats.rows]
    facing = _dot(normal, to_eye)
    length = _dot(normal, normal) * _dot(to_eye, to_eye)
    seen_from = (surfels.rays[:, 3][_views(places)].double() - splats.xyz).unbind(-1)
    sure = (places & (1 << UNSURE)) == 0
    back = (facing < 0) & (facing * facing > BACK_COSINE_SQUARED * length)
    back &= sure | (_dot(seen_from, to_eye) < 0)
    return _Splats(*(field[~back] for field in splats))


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _pairs(splats: _Splats, width: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Numbers of splats and cells that they cover, in parts of bounded size."""
    ends = torch.cumsum(splats.columns * splats.lines, 0)
    start, total = 0, int(ends[-1]) if len(ends) else 0
    done = 0
    while done < total:
        stop = int(torch.searchsorted(ends, ends.new_tensor(done + PAIRS_AT_ONCE), right=True))
        stop = max(stop, start + 1)
        sizes = (splats.columns * splats.lines)[start:stop]
        pair = torch.repeat_interleave(torch.arange(start, stop, device=ends.device), sizes)
        before = torch.repeat_interleave(ends[start:stop] - sizes, sizes)
        number = torch.arange(done, done + len(pair), device=ends.device) - before
        line = torch.div(number, splats.columns[pair], rounding_mode="floor")
        column = number - line * splats.columns[pair]
        yield pair, (splats.r0[pair] + line) * width + splats.c0[pair] + column
        start, done = stop, int(ends[stop - 1])


def _least(splats: _Splats, size, value_of):
    """Per cell the row of least value, then of lower number (none: int64's largest); the value.

    `value_of(pair, cell)` gives non-negative float64 numbers; infinite ones do not count.
    """
    cells = size[0] * size[1]
    least = torch.full((cells,), _NONE, device=splats.z.device)
    row = torch.full_like(least, _NONE)
    for pair, cell in _pairs(splats, size[1]):
        bits = value_of(pair, cell).view(torch.int64)
        least.scatter_reduce_(0, cell, bits, "amin")
    for pair, cell in _pairs(splats, size[1]):
        value = value_of(pair, cell)
        best = (value.view(torch.int64) == least[cell]) & torch.isfinite(value)
        row.scatter_reduce_(0, cell[best], splats.rows[pair[best]], "amin")
    return row, torch.where(row < _NONE, least, 0).view(torch.float64)


def _surface(surfels: Surfels, first, first_z, focal, tolerance):
    """Of each cell's nearest token: position, normal, z, and how far its surface reaches along z,
    at a slant, and from its plane (squared, times the normal's square)."""
    nearest = first.clamp(max=len(surfels.places) - 1)
    xyz, footprints = _positions(surfels, nearest)
    normal = torch.stack(_normals(surfels, nearest), -1)
    reach = tolerance * torch.maximum(footprints, first_z / focal)
    plane = reach * reach * _dot(normal.unbind(-1), normal.unbind(-1))
    return xyz, normal, first_z, reach, SLANT_REACH * reach, plane


def _on_surface(splats: _Splats, pair, cell, surface):
    """Does each splat lie on the surface of its cell?"""
    xyz, normal, z, reach, slant, plane = (field[cell] for field in surface)
    gap = splats.z[pair] - z
    away = _dot(normal.unbind(-1), (splats.xyz[pair] - xyz).unbind(-1))
    return (gap <= reach) | ((gap <= slant) & (away * away <= plane))


def _details(splats: _Splats, index, size):
    """Index, depth, offset and scale ratio of the winners, as numpy arrays."""
    seen = index < _NONE
    cell = torch.nonzero(seen)[:, 0]
    # Rows came block by block from near to far: look winners up in the sorted list.
    rows, place = torch.sort(splats.rows)
    splat = place[torch.searchsorted(rows, index[cell])]
    out = torch.zeros((5, size[0] * size[1]), dtype=torch.float64, device=index.device)
    out[0] = -1
    out[0, cell] = index[cell].double()
    out[1, cell], out[4, cell] = splats.z[splat], splats.ratio[splat]
    out[2, cell] = splats.u[splat] - cell % size[1]
    out[3, cell] = splats.v[splat] - torch.div(cell, size[1], rounding_mode="floor")
    out = out.cpu().numpy().reshape(5, *size)
    return out[0].astype(np.int32), out[1], out[2:4], out[4]

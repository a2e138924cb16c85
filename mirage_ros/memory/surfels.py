"""Tokens as the z-buffer knows them, in 10 bytes each: the cell that each was lifted from.

Where a token lies, how wide it is and from where it was seen follow, to the last bit, from the
view that it was born in, its cell there, and its depth. Views are few and tokens many, so what
all tokens of a view share is kept once.

A place packs, from the highest bit: view (22 bits), row and column of the cell (8 each), whether
the token is unsure which way it faces (1, see lifting.py), depth along the view's z (25 bits of
floating point: exponent 6, mantissa 19; relative error at most 1e-6).

The functions for one token are compiled into the loops of other modules; zbuffer.py has the same
arithmetic in the same order for torch.

A token is the latent of a small surface, seen from the view that it was born in. The ray of a cell in
which it is seen later meets its plane in a point, and that view saw the point somewhere in the token's
cell or near it. So the map from one picture to the other is that of a plane, exact at every cell's
centre, where an offset and one scale alone would be wrong for all that is seen at a slant.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int8, Int64
from numba import njit

VIEW_SIDE = 256
"""Cells of a view along one side, at most."""

VIEW, ROW, COLUMN, UNSURE = 42, 34, 26, 25
"""At which bit of a place each starts; depth starts at 0."""

MOST_VIEWS = 2 ** (64 - VIEW)

DEPTH_BITS = 2**UNSURE - 1
DROPPED = 4
"""Of float32's 23 bits of mantissa."""

LEAST = 95 << (23 - DROPPED)
"""The least exponent kept, in place: depths lie between 2.4e-10 and 4.2e9 metres."""

_ONE = 127
REACH = 0.5
"""Cells of the token by which plane and projected centre may disagree; beyond, normals lie."""
NEAR_TOKEN = 1.0
"""Cells of the token within which its plane is taken for the surface; farther off its centre's depth is."""


class Surfels(NamedTuple):
    """n tokens, and the m views they were born in. All numpy arrays, or all torch tensors.

    Attributes:
        places: view, cell and depth of each token, as above.
        normals: the direction it faces, octahedral: the vector (a, b, c) with
            |a| + |b| + |c| = 127 as (a, b), the lower half (c < 0) folded outwards.
        rays: a point of a view is rays[3] + depth * (rays[0] * column + rays[1] * row + rays[2]).
        focals: mean focal length in cells; depth over it is a token's footprint.
        real: views of pictures that were given, rather than imagined.
    """

    places: Int64[np.ndarray | torch.Tensor, "n"]
    normals: Int8[np.ndarray | torch.Tensor, "n 2"]
    rays: Float32[np.ndarray | torch.Tensor, "m 4 3"]
    focals: Float32[np.ndarray | torch.Tensor, "m"]
    real: Bool[np.ndarray | torch.Tensor, "m"]

    def to(self, device: str) -> Surfels:
        """Numpy surfels as tensors on a torch device."""
        return Surfels(*(torch.from_numpy(field).to(device) for field in self))


def positions_of(surfels: Surfels) -> Float32[np.ndarray, "n 3"]:
    """Where each token lies in the world, metres."""
    positions = np.empty((len(surfels.places), 3), np.float32)
    _fill_positions(tuple(surfels), positions)
    return positions


def footprints_of(surfels: Surfels) -> Float32[np.ndarray, "n"]:
    """How wide each token's cell is at its depth, metres."""
    footprints = np.empty(len(surfels.places), np.float32)
    _fill_footprints(tuple(surfels), footprints)
    return footprints


def cosines_of(surfels: Surfels) -> Float32[np.ndarray, "n"]:
    """Cosine of the angle under which each token was seen: 1 frontal, towards 0 grazing."""
    cosines = np.empty(len(surfels.places), np.float32)
    _fill_cosines(tuple(surfels), cosines)
    return cosines


def normals_of(surfels: Surfels) -> Float32[np.ndarray, "n 3"]:
    """The direction that each token faces, of length 1."""
    directions = np.empty((len(surfels.normals), 3), np.float32)
    _fill_normals(surfels.normals, directions)
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def of_views(
    places: Int64[np.ndarray, "n"], values: np.ndarray, chosen: Bool[np.ndarray, "n"] | None = None
) -> np.ndarray:
    """What `values` (one for each view) has for the view of each token, or each chosen one."""
    if chosen is None:
        chosen = np.ones(len(places), bool)
    out = np.empty(int(np.count_nonzero(chosen)), values.dtype)
    _fill_of_views(places, values, chosen, out)
    return out


def view_numbers(places: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """The view of each token."""
    return (places >> VIEW) & (MOST_VIEWS - 1)


@njit(cache=True, nogil=True)
def present(places, views):
    """Which of so many views have tokens."""
    found = np.zeros(views, np.bool_)
    for i in range(len(places)):
        found[view_of(places[i])] = True
    return found


@njit(cache=True, nogil=True)
def renumber(places, numbers):
    """Gives every token's view, i, the number numbers[i]."""
    for i in range(len(places)):
        places[i] = moved(places[i], numbers[view_of(places[i])])


@njit(cache=True, nogil=True)
def last_used(used, places, views):
    """The largest number in `used` among the tokens of each of so many views; 0 without tokens."""
    last = np.zeros(views, used.dtype)
    for i in range(len(places)):
        view = view_of(places[i])
        last[view] = max(last[view], used[i])
    return last


@njit(cache=True, nogil=True, inline="always")
def packed(view, row, column, depth, sure):
    bits = np.int64(np.float32(depth).view(np.int32)) + (1 << (DROPPED - 1))
    code = min(max((bits >> DROPPED) - LEAST, 1), DEPTH_BITS)
    if not sure:
        code |= 1 << UNSURE
    cell = (np.int64(row) << ROW) | (np.int64(column) << COLUMN)
    return (np.int64(view) << VIEW) | cell | code


@njit(cache=True, nogil=True, inline="always")
def moved(place, view):
    """The same cell and depth in another view."""
    return (place & ((1 << VIEW) - 1)) | (np.int64(view) << VIEW)


@njit(cache=True, nogil=True, inline="always")
def view_of(place):
    return (place >> VIEW) & (MOST_VIEWS - 1)


@njit(cache=True, nogil=True, inline="always")
def is_sure(place):
    return (place & (1 << UNSURE)) == 0


@njit(cache=True, nogil=True, inline="always")
def is_real(surfels, i):
    return surfels[4][view_of(surfels[0][i])]


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def row_of(place):
    return float(np.int32((place >> ROW) & 255))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def column_of(place):
    return float(np.int32((place >> COLUMN) & 255))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _depth(place):
    bits = ((place & DEPTH_BITS) + LEAST) << DROPPED
    return float(np.int32(bits).view(np.float32))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def position(surfels, i):
    """Where a token lies: float64 numbers that float32 can hold."""
    place, depth = surfels[0][i], _depth(surfels[0][i])
    ray, row, column = surfels[2][view_of(place)], row_of(place), column_of(place)
    x = float(ray[0, 0]) * column + float(ray[1, 0]) * row + float(ray[2, 0])
    y = float(ray[0, 1]) * column + float(ray[1, 1]) * row + float(ray[2, 1])
    z = float(ray[0, 2]) * column + float(ray[1, 2]) * row + float(ray[2, 2])
    x, y, z = ray[3, 0] + depth * x, ray[3, 1] + depth * y, ray[3, 2] + depth * z
    return float(np.float32(x)), float(np.float32(y)), float(np.float32(z))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def footprint(surfels, i):
    """A token's width: a float64 number that float32 can hold."""
    place = surfels[0][i]
    return float(np.float32(_depth(place) / float(surfels[3][view_of(place)])))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def position_block(surfels, start, count, x, y, z, width):
    """Position and footprint of consecutive tokens, run by run of those of one view."""
    places, _, rays, focals, _ = surfels
    j = 0
    while j < count:
        view, stop = view_of(places[start + j]), j + 1
        while stop < count and view_of(places[start + stop]) == view:
            stop += 1
        ray, focal = rays[view], float(focals[view])
        ax, bx, cx, ex = float(ray[0, 0]), float(ray[1, 0]), float(ray[2, 0]), float(ray[3, 0])
        ay, by, cy, ey = float(ray[0, 1]), float(ray[1, 1]), float(ray[2, 1]), float(ray[3, 1])
        az, bz, cz, ez = float(ray[0, 2]), float(ray[1, 2]), float(ray[2, 2]), float(ray[3, 2])
        for k in range(j, stop):
            place = places[start + k]
            row, column, depth = row_of(place), column_of(place), _depth(place)
            x[k] = float(np.float32(ex + depth * (ax * column + bx * row + cx)))
            y[k] = float(np.float32(ey + depth * (ay * column + by * row + cy)))
            z[k] = float(np.float32(ez + depth * (az * column + bz * row + cz)))
            width[k] = float(np.float32(depth / focal))
        j = stop


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def normal(code):
    """The vector that an octahedral code stands for, 127 long by the sum of its parts."""
    a, b = int(code[0]), int(code[1])
    c = _ONE - abs(a) - abs(b)
    fold = max(-c, 0)
    a += -fold if a >= 0 else fold
    b += -fold if b >= 0 else fold
    return float(a), float(b), float(c)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def octahedral(direction):
    """The code (two numbers within +-127) of a vector of any length above 0."""
    a, b, c = direction
    scale = _ONE / (abs(a) + abs(b) + abs(c))
    a, b = a * scale, b * scale
    if c < 0:
        folded = _ONE - abs(b), _ONE - abs(a)
        a, b = folded[0] if a >= 0 else -folded[0], folded[1] if b >= 0 else -folded[1]
    return np.int8(np.rint(a)), np.int8(np.rint(b))


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_positions(surfels, out):
    for i in range(len(out)):
        out[i, 0], out[i, 1], out[i, 2] = position(surfels, i)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_footprints(surfels, out):
    for i in range(len(out)):
        out[i] = footprint(surfels, i)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_cosines(surfels, out):
    places, normals, rays, _, _ = surfels
    for i in range(len(out)):
        x, y, z = position(surfels, i)
        eye, (a, b, c) = rays[view_of(places[i]), 3], normal(normals[i])
        dx, dy, dz = eye[0] - x, eye[1] - y, eye[2] - z
        length = np.sqrt((a * a + b * b + c * c) * (dx * dx + dy * dy + dz * dz))
        out[i] = min(max((a * dx + b * dy + c * dz) / length, 0.0), 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_normals(codes, out):
    for i in range(len(out)):
        out[i, 0], out[i, 1], out[i, 2] = normal(codes[i])


@njit(cache=True, nogil=True)
def _fill_of_views(places, values, chosen, out):
    to = 0
    for i in range(len(places)):
        if chosen[i]:
            out[to] = values[view_of(places[i])]
            to += 1


def met_in_tokens(
    surfels: Surfels, poses: Float[np.ndarray, "f 4 4"], intrinsics: Float[np.ndarray, "f 3 3"], winners: tuple
) -> tuple[Float32[np.ndarray, "f 2 h w"], Float32[np.ndarray, "f h w"]]:
    """Where each cell's ray meets its winning token's plane: place and depth.

    The place is (du, dv) of the cell's centre from the token's centre, in cells of the view that the token comes from;
    zero where nothing won, and where a plane is not to be trusted the projected centre's offset over the scale.
    The depth is along z, NaN where nothing won; where a plane is not to be trusted it is that of the token's centre,
    which the z-buffer gives, the same for all cells that the token covers.

    `poses` are world_from_camera of the cameras whose `winners` the z-buffer found.
    """
    places, depths = np.zeros_like(winners[2]), np.full(winners[0].shape, np.nan, np.float32)
    poses, intrinsics = np.ascontiguousarray(poses), np.ascontiguousarray(intrinsics)
    _fill_met(tuple(surfels), poses, intrinsics, tuple(winners), places, depths)
    return places.astype(np.float32), depths


@njit(cache=True, nogil=True, error_model="numpy")
def _fill_met(surfels, poses, intrinsics, winners, places, depths):
    index, centre_depth, offset, ratio = winners
    frames, height, width = index.shape
    for f in range(frames):
        for r in range(height):
            for c in range(width):
                i = index[f, r, c]
                if i < 0:
                    continue
                du = -offset[f, 0, r, c] / ratio[f, r, c]
                dv = -offset[f, 1, r, c] / ratio[f, r, c]
                far, column, row = _seen_from_source(surfels, i, poses[f], intrinsics[f], r, c)
                if abs(column - du) < REACH and abs(row - dv) < REACH:
                    du, dv = column, row
                places[f, 0, r, c], places[f, 1, r, c] = du, dv
                trusted = abs(column) < NEAR_TOKEN and abs(row) < NEAR_TOKEN
                depths[f, r, c] = far if trusted else centre_depth[f, r, c]


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _seen_from_source(surfels, i, pose, k, r, c):
    """Depth of where cell (r, c) meets token i's plane, and its (du, dv); infinite where it does not."""
    far, ray = _meets_plane(surfels, i, pose, k, r, c)
    if not 0 < far < np.inf:
        return np.inf, np.inf, np.inf
    place = surfels[0][i]
    rays = surfels[2][view_of(place)]
    met = (
        pose[0, 3] + far * ray[0] - rays[3, 0],
        pose[1, 3] + far * ray[1] - rays[3, 1],
        pose[2, 3] + far * ray[2] - rays[3, 2],
    )
    column, row = _triple(met, rays[1], rays[2]), _triple(met, rays[2], rays[0])
    depth = _triple(met, rays[0], rays[1])
    return far, column / depth - column_of(place), row / depth - row_of(place)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _meets_plane(surfels, i, pose, k, r, c):
    """Depth along z at which cell (r, c) meets token i's plane, and the cell's ray in the world, z = 1."""
    x, y = (c - k[0, 2]) / k[0, 0], (r - k[1, 2]) / k[1, 1]
    a, b, n = normal(surfels[1][i])
    px, py, pz = position(surfels, i)
    ray = (
        pose[0, 0] * x + pose[0, 1] * y + pose[0, 2],
        pose[1, 0] * x + pose[1, 1] * y + pose[1, 2],
        pose[2, 0] * x + pose[2, 1] * y + pose[2, 2],
    )
    along = a * ray[0] + b * ray[1] + n * ray[2]
    away = a * (px - pose[0, 3]) + b * (py - pose[1, 3]) + n * (pz - pose[2, 3])
    return away / along, ray


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _triple(a, b, c):
    """a . (b x c); divided by one another they solve three equations (Cramer's rule)."""
    bx, by, bz = float(b[0]), float(b[1]), float(b[2])
    cx, cy, cz = float(c[0]), float(c[1]), float(c[2])
    return a[0] * (by * cz - bz * cy) + a[1] * (bz * cx - bx * cz) + a[2] * (bx * cy - by * cx)

"""The surface that a world remembers, as triangles, and the pictures that it shows, as its texture.

Each token says of the space around it how far before or behind its plane it lies. These distances are averaged on a grid,
fine tokens count most, and the surface is where the average changes sign (an implicit surface of moving least squares, as
Kolluri, Provably good moving least squares, SODA 2005, with discs as wide as tokens; marching cubes by scikit-image). The
grid is gone through in blocks, so that a large world needs no more memory than a small one. The texture is what the
world shows to its own views, each triangle from the view that sees it largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numba import njit

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory

BLOCK = 96
"""Voxels to a side of the blocks that space is gone through in."""
VOXELS_PER_TOKEN, FINEST_M, COARSEST_M = 3.0, 0.005, 1.0
"""Side by side across a token of usual width, at most; and the sides that voxels may have."""
SPARE, LEAST_MADE = 8, 250_000
"""So many times more triangles are made than are wanted in the end, and at least so many, as far as tokens are that fine."""
REACH, INNER = 1.0, 0.25
"""How far a token's word reaches along its plane, in distances to the next token; the surface ends where no token's weight,
1 at its middle, is above INNER."""
MOST_REACH = 24
"""Voxels that it reaches at most: wider tokens leave gaps."""
FRONT, BEHIND = 1.0, 0.5
"""How far it reaches before and behind the plane, in widths of the token, and at least this often in voxels:"""
LEAST_FRONT, LEAST_BEHIND = 3.0, 2.0
LEAST_WEIGHT = 0.2
"""Of a token that was seen at a grazing angle, beside one that was seen frontally."""
SMALLEST = 6.0
"""Pieces of surface are dropped that have no more area than this many squares as wide as their tokens."""
BESIDE = 0.06
"""A view sees what lies no farther behind what it sees there, as a share of depth (and two voxels of a mesh)."""
GAP_PX = 2
"""Texels to a side of each plain colour."""


@dataclass(frozen=True)
class Surface:
    """n vertices and m triangles, which run counter-clockwise seen from where there is free space.

    Attributes:
        vertices_m: in the world.
        rgb: the colour of the tokens at each vertex.
        real: which triangles real pictures showed; the others were imagined.
        voxel_m: as finely as it was made.
    """

    vertices_m: Float32[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    rgb: UInt8[np.ndarray, "n 3"]
    real: Bool[np.ndarray, "m"]
    voxel_m: float

    def of(self, chosen: Bool[np.ndarray, "m"]) -> Surface:
        """Some of the triangles, with no vertices but theirs."""
        used, faces = np.unique(self.faces[chosen], return_inverse=True)
        return replace(self, vertices_m=self.vertices_m[used], rgb=self.rgb[used], faces=faces.reshape(-1, 3),
                       real=self.real[chosen])  # fmt: skip


@dataclass(frozen=True)
class Skin:
    """A texture.

    Attributes:
        uv: of each triangle's corners, from 0 at the left and at the top of the picture to 1.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    uv: Float32[np.ndarray, "m 3 2"]


def surface_of(
    memory: LatentMemory, faces: int, voxel_m: float | None = None, tick: Callable[[float], object] = lambda _: None
) -> Surface:
    """The surface that a memory holds, before it is simplified.

    Args:
        faces: so many triangles are wanted in the end.
        voxel_m: by default as fine as tokens and `faces` are.
        tick: called with the share that is done.

    Raises:
        MirageError: scikit-image or scipy are missing, or there is no surface.
    """
    _need_packages()
    usual = float(np.median(memory.footprints_m)) if memory.tokens else 1.0
    if voxel_m is None:
        across = min(VOXELS_PER_TOKEN, np.sqrt(max(SPARE * faces, LEAST_MADE) / 2 / max(memory.tokens, 1)))
        voxel_m = float(np.clip(usual / across, FINEST_M, COARSEST_M))
    if not FINEST_M <= voxel_m <= COARSEST_M:
        raise MirageError(f"A surface of {voxel_m:g} m a voxel was asked for; give {FINEST_M:g} to {COARSEST_M:g}.")
    discs, parts, count = _discs(memory, voxel_m), [], 0
    for share, corner, rows in _blocks(discs, voxel_m):
        if (part := _of_block(discs, rows, corner, voxel_m)) is not None:
            parts.append((part[0], part[1] + count, part[2]))
            count += len(part[0])
        tick(share)
    if not parts:
        raise MirageError(f"The {memory.tokens} tokens make no surface; give a world that remembers more.")
    vertices, faces, colour = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _cleaned(vertices, faces, colour, voxel_m)


def _need_packages() -> None:
    try:
        import scipy.sparse  # noqa: F401
        import skimage.measure  # noqa: F401
    except ImportError as error:
        raise MirageError(
            f"Meshes need the packages scikit-image and scipy ({error}); pip install 'mirage_ros[mesh]'."
        ) from error


def _discs(memory: LatentMemory, voxel_m: float) -> tuple[np.ndarray, ...]:
    """Of each token its middle, normal, the two half axes of its disc, their dual basis, how far it reaches before and behind
    its plane, weight, and colour, 1 where it is real, and width: as `_fill` takes them."""
    points, normals, width = memory.to_points(), memory.normals.astype(np.float64), memory.footprints_m
    sides = REACH * memory.cell_axes_m.astype(np.float64)
    length = np.linalg.norm(sides, axis=2)
    sides *= (np.clip(length, 1.5 * voxel_m, MOST_REACH * voxel_m) / np.maximum(length, 1e-12))[..., None]
    dual = np.stack([np.cross(sides[:, 1], normals), np.cross(normals, sides[:, 0])], 1)
    dual /= np.einsum("nki,nki->nk", dual, sides)[..., None]
    front = np.clip(FRONT * width, LEAST_FRONT * voxel_m, MOST_REACH * voxel_m)
    behind = np.clip(BEHIND * width, LEAST_BEHIND * voxel_m, MOST_REACH * voxel_m)
    weight = np.maximum(points.confidence, LEAST_WEIGHT) / np.square(width)
    colour = np.concatenate([points.rgb, memory.from_real[:, None], width[:, None]], 1).astype(np.float32)
    return points.xyz.astype(np.float64), normals, sides, dual, np.stack([front, behind], 1), weight, colour


def _blocks(discs: tuple[np.ndarray, ...], voxel_m: float) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Share done, corner in voxels and tokens (in order) of each block that tokens reach into."""
    xyz, normals, sides, _, reaches = discs[:5]
    spread = np.abs(normals) * reaches.max(1, keepdims=True) + np.abs(sides).sum(1)
    low, high = (np.floor((xyz + sign * spread) / (voxel_m * BLOCK)).astype(np.int64) for sign in (-1, 1))
    # The nodes on a border belong to both blocks.
    low -= np.isclose(xyz - spread, low * voxel_m * BLOCK)
    found = []
    for corner in np.ndindex(2, 2, 2):
        block = np.where(corner, high, low)
        new = ~((np.array(corner, bool) & (high == low)).any(1))
        found.append(np.concatenate([block[new], np.nonzero(new)[0][:, None]], 1))
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    starts = np.flatnonzero(np.append(True, (np.diff(pairs[:, :3], axis=0) != 0).any(1)))
    for start, stop in zip(starts, np.append(starts[1:], len(pairs)), strict=True):
        yield stop / len(pairs), pairs[start, :3] * BLOCK, pairs[start:stop, 3]


def _of_block(discs: tuple[np.ndarray, ...], rows: np.ndarray, corner: np.ndarray, voxel_m: float):
    """Vertices, faces, and colour, realness and width at the vertices of the surface in a block; None where there is none."""
    from skimage.measure import marching_cubes

    sides = (BLOCK + 1,) * 3
    near, values = np.zeros(sides, np.float32), np.zeros((*sides, 7), np.float32)
    _fill(near, values, corner, voxel_m, rows, *discs)
    whole = near > INNER
    for axis in range(3):  # scikit-image takes a cube for masked by its last corner: all eight have to be known
        whole = np.moveaxis(whole, axis, 0)
        whole = np.moveaxis(np.append(whole[:1] & False, whole[1:] & whole[:-1], 0), 0, axis)
    distance = values[..., 1] / np.maximum(values[..., 0], 1e-30)
    if not whole.any():
        return None
    try:
        points, faces, _, _ = marching_cubes(distance, 0.0, mask=whole, allow_degenerate=False)
    except (ValueError, RuntimeError):  # the distance is nowhere 0 there
        return None
    colour = values[tuple(np.rint(points).astype(int).T)]
    return (points + corner) * voxel_m, faces, colour[:, 2:] / np.maximum(colour[:, :1], 1e-30)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(near, values, corner, voxel_m, rows, xyz, normals, sides, dual, reaches, weights, colours):
    """Of each node of a block the largest weight, and sums of weights, and of weighted distances, colours, realness and widths."""
    last = near.shape[0] - 1
    low, high = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for i in rows:
        p, n, side, axis = xyz[i], normals[i], sides[i], dual[i]
        front, behind = reaches[i]
        for k in range(3):
            spread = abs(n[k]) * max(front, behind) + abs(side[0, k]) + abs(side[1, k])
            low[k] = max(int(np.ceil((p[k] - spread) / voxel_m)) - corner[k], 0)
            high[k] = min(int(np.floor((p[k] + spread) / voxel_m)) - corner[k], last)
        for x in range(low[0], high[0] + 1):
            dx = (x + corner[0]) * voxel_m - p[0]
            for y in range(low[1], high[1] + 1):
                dy = (y + corner[1]) * voxel_m - p[1]
                for z in range(low[2], high[2] + 1):
                    dz = (z + corner[2]) * voxel_m - p[2]
                    s = n[0] * dx + n[1] * dy + n[2] * dz
                    if s > front or s < -behind:
                        continue
                    u = axis[0, 0] * dx + axis[0, 1] * dy + axis[0, 2] * dz
                    v = axis[1, 0] * dx + axis[1, 1] * dy + axis[1, 2] * dz
                    inner = 1 - u * u - v * v
                    if inner <= 0:
                        continue
                    near[x, y, z] = max(near[x, y, z], inner)
                    w = weights[i] * inner * inner * (1 + s / behind if s < 0 else 1.0)
                    node = values[x, y, z]
                    node[0] += w
                    node[1] += w * s
                    for k in range(5):
                        node[2 + k] += w * colours[i, k]


def _cleaned(vertices, faces, colour, voxel_m: float) -> Surface:
    """Blocks joined at their borders, without small pieces."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = np.rint(vertices / voxel_m * 2048).astype(np.int64)
    _, first, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    vertices, colour, faces = vertices[first], colour[first], number.reshape(-1)[faces]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    ends = faces.reshape(-1), np.roll(faces, 1, 1).reshape(-1)
    links = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(len(vertices),) * 2)
    piece = connected_components(links, directed=False)[1][faces[:, 0]]
    a, b, c = vertices[faces.T]
    tokens = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1) / np.square(colour[faces, 4]).mean(1)
    kept = np.bincount(piece, tokens)[piece] >= SMALLEST
    if not kept.any():
        raise MirageError("What the world remembers makes no piece of surface worth the name; give one that remembers more.")
    rgb = np.clip(np.rint(colour[:, :3]), 0, 255).astype(np.uint8)
    whole = Surface(vertices.astype(np.float32), faces, rgb, colour[faces, 3].mean(1) > 0.5, voxel_m)
    return whole.of(kept)


def simplified(surface: Surface, faces: int) -> Surface:
    """With so many triangles at most, those go first that are needed least (quadric error metrics).

    That leaves the edges of holes as they are; where they alone are too many, vertices near each other become one.
    """
    if len(surface.faces) <= faces:
        return surface
    try:
        from fast_simplification import simplify
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise MirageError(
            f"Simpler meshes need the packages fast-simplification and scipy ({error}); pip install 'mirage_ros[mesh]'."
        ) from error
    points, triangles = simplify(surface.vertices_m, surface.faces.astype(np.int32), target_count=faces)
    side = surface.voxel_m
    while len(triangles) > faces:
        side *= 1.25
        points, triangles = _joined_within(points, triangles, side)
    nearest = cKDTree(surface.vertices_m).query(points)[1]
    share = np.zeros(len(surface.vertices_m))
    np.add.at(share, surface.faces.reshape(-1), np.repeat(surface.real / 3.0, 3))
    share /= np.maximum(np.bincount(surface.faces.reshape(-1), minlength=len(share)) / 3.0, 1e-9)
    real = share[nearest][triangles].mean(1) > 0.5
    return Surface(points.astype(np.float32), triangles.astype(np.int64), surface.rgb[nearest], real, surface.voxel_m)


def _joined_within(points: np.ndarray, triangles: np.ndarray, side_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of each cube of space made one, at their middle, without triangles that this makes a line or double."""
    _, number, count = np.unique(np.floor(points / side_m), axis=0, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    middles = np.stack([np.bincount(number, points[:, axis]) for axis in range(3)], -1) / count[:, None]
    triangles = number[triangles]
    triangles = triangles[(triangles != np.roll(triangles, 1, 1)).all(1)]
    first = np.unique(np.sort(triangles, 1), axis=0, return_index=True)[1]
    used, triangles = np.unique(triangles[np.sort(first)], return_inverse=True)
    return middles[used], triangles.reshape(-1, 3)


def skin_of(
    surface: Surface, memory: LatentMemory, cameras: Camera, pictures: UInt8[np.ndarray, "v h w 3"],
    shown: Bool[np.ndarray, "v h w"],
) -> Skin:  # fmt: skip
    """The texture of a surface from v pictures of its world.

    A triangle is drawn as the picture shows it that sees it largest; one that none sees has the colour of its tokens.

    Args:
        cameras: of the pictures.
        shown: where a picture shows what is remembered.
    """
    depth_m = memory.measure(cameras)[0] if len(cameras) else ()
    best, view, uv = np.zeros(len(surface.faces)), np.full(len(surface.faces), -1), np.zeros((len(surface.faces), 3, 2))
    for i, camera in enumerate(cameras):
        pixels, seen = _seen(surface.vertices_m, camera, np.where(shown[i], depth_m[i], np.nan), 2 * surface.voxel_m)
        corners = pixels[surface.faces]
        (a, b), (c, d) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
        area = np.where(seen[surface.faces].all(1), b * c - a * d, 0)  # above 0 seen from before
        larger = area > best
        best[larger], view[larger], uv[larger] = area[larger], i, corners[larger]
    return _laid_out(surface, pictures, view, uv)


def _seen(points: Float[np.ndarray, "n 3"], camera: Camera, depth_m: Float[np.ndarray, "h w"], slack_m):
    """Pixels of points of a surface, and which of them the camera sees, given how far it sees."""
    pixels, z = camera.project(points.astype(np.float64))
    height, width = camera.size
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (pixels >= 0).all(1) & (pixels[:, 0] <= width - 1) & (pixels[:, 1] <= height - 1)
    column, row = np.rint(np.where(inside[:, None], pixels, 0)).astype(int).T
    with np.errstate(invalid="ignore"):
        return pixels, inside & (z <= depth_m[row, column] * (1 + BESIDE) + slack_m)


def _laid_out(surface: Surface, pictures: np.ndarray, view: np.ndarray, pixels: np.ndarray) -> Skin:
    """The used pictures beside each other, below them plain colours for triangles without one."""
    used, tile = np.unique(view[view >= 0], return_inverse=True)
    height, width = pictures.shape[1:3]
    across = max(1, int(np.ceil(np.sqrt(len(used) * height / width))))
    down = -(-len(used) // across)
    plain = surface.rgb[surface.faces[view < 0]].mean(1).astype(int) & 0xF8 if (view < 0).any() else np.zeros((0, 3), int)
    colours, colour = np.unique(plain, axis=0, return_inverse=True)
    a_row = across * width // GAP_PX
    extra = -(-len(colours) // a_row) * GAP_PX
    picture = np.zeros((max(down * height + extra, GAP_PX), across * width, 3), np.uint8)
    for i, number in enumerate(used):
        row, column = divmod(i, across)
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = pictures[number]
    places = np.stack(divmod(np.arange(len(colours)), a_row)[::-1], -1) * GAP_PX + [0, down * height]
    for (x, y), shade in zip(places, colours, strict=True):
        picture[y : y + GAP_PX, x : x + GAP_PX] = shade + 4
    texels = pixels.copy()
    texels[view >= 0] += (np.stack(divmod(tile, across)[::-1], -1) * [width, height])[:, None]
    texels[view < 0] = (places[colour.reshape(-1)] + (GAP_PX - 1) / 2)[:, None]
    return Skin(picture, ((texels + 0.5) / picture.shape[1::-1]).astype(np.float32))


MOST_SPLATS, FINEST_PARTS = 400_000, 8
"""Tokens are cut into parts, to so many to a side, as long as there are no more of them in all."""


class Splats(NamedTuple):
    """n flat Gaussians: middles, normals, the sides of the cells that they stand for, colours, and the number of the picture
    that these are from, -1 of those that have their token's."""

    xyz: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    sides_m: Float[np.ndarray, "n 2 3"]
    rgb: UInt8[np.ndarray, "n 3"]
    picture: Int[np.ndarray, "n"]


def parts_of_tokens(memory: LatentMemory) -> int:
    """To a side of each token, that Gaussians are made of."""
    side = FINEST_PARTS
    while side > 1 and memory.tokens * side**2 > MOST_SPLATS:
        side //= 2
    return side


def splats_of(
    memory: LatentMemory, cameras: Camera | None = None, pictures: np.ndarray = (), shown: np.ndarray = (), side: int = 1
) -> Splats:
    """A Gaussian for each token, or for each of side x side parts of it, in its colour or that of a picture of its world.

    Args:
        cameras, pictures, shown: as of `skin_of`; the view that is nearest to a part gives its colour.
    """
    points, normals, sides = memory.to_points(), memory.normals, memory.cell_axes_m
    off = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    xyz = points.xyz[:, None, None] + off[:, None] * sides[:, None, None, 0] + off[:, None, None] * sides[:, None, None, 1]
    xyz, each = xyz.reshape(-1, 3), side**2
    rgb, nearest, source = np.repeat(points.rgb, each, 0), np.zeros(len(xyz)), np.full(len(xyz), -1)
    depth_m = memory.measure(cameras)[0] if cameras is not None else ()
    slack_m = np.repeat(memory.footprints_m, each) / side
    for i, (camera, picture, where, depth) in enumerate(zip(cameras or (), pictures, shown, depth_m, strict=True)):
        pixels, seen = _seen(xyz, camera, np.where(where, depth, np.nan), slack_m)
        z = (xyz - camera.position_world) @ camera.world_from_camera[:3, 2]
        near = np.where(seen, camera.intrinsics[0, 0] / np.where(seen, z, 1), 0)
        nearer = near > nearest
        column, row = np.rint(pixels[nearer]).astype(int).T
        rgb[nearer], nearest[nearer], source[nearer] = picture[row, column], near[nearer], i
    return Splats(xyz, np.repeat(normals, each, 0), np.repeat(sides / side, each, 0), rgb, source)

"""The baseline that remembers coloured points, with an exact z-buffer at picture resolution.

The pixel counterpart of the latent memory, with the same care: points merge in voxels (in an
occupied voxel the finer footprint wins, else the newer), splats are as wide as the pixel they came
from, the nearest surface hides what lies behind it, among its points the best centred one wins,
cameras run in threads, and runs of points outside the view are skipped. Merging and drawing are
compiled loops.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numba import njit

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.rows import SURFEL_FIELDS, VIEW_BYTES, tiles_of
from mirage_ros.memory.voxel_index import (
    EMPTY,
    following,
    is_full,
    mixed,
    new_table,
    row_in,
    slot_of,
    tagged,
    unlike,
)

RUN = 4096
"""Points are skipped in runs of so many that share one bounding box."""


@njit(cache=True, nogil=True, inline="always")
def _voxel(point, edge):
    x, y, z = math.floor(point[0] / edge), math.floor(point[1] / edge), math.floor(point[2] / edge)
    return np.int64(x), np.int64(y), np.int64(z)


@njit(cache=True, nogil=True, inline="always")
def _find(table, xyz, point, edge):
    """The hash of a point's voxel, and the slot that holds it or the empty one where it belongs."""
    x, y, z = _voxel(point, edge)
    hashed = mixed((x << 32) ^ (y & 0xFFFFFFFF), z)
    slot = slot_of(hashed, table)
    while table[slot] != EMPTY:
        if not unlike(table[slot], hashed, table):
            a, b, c = _voxel(xyz[row_in(table[slot], table)], edge)
            if a == x and b == y and c == z:
                break
        slot = following(slot, table)
    return hashed, slot


@njit(cache=True, nogil=True)
def fill_table(table, xyz, edge):
    """Enters every point into an empty table."""
    for row in range(len(xyz)):
        hashed, slot = _find(table, xyz, xyz[row], edge)
        table[slot] = tagged(hashed, row, table)


@njit(cache=True, nogil=True)
def add_points(old, count, table, new, start, edge, bounds):
    """Puts new points from `start` on in order into arrays with room for all of them, until the
    table is full; returns the new count and how far it got.

    With an edge above 0 points of one voxel merge: the finer footprint wins, else the newer.
    Footprints come as the bits of float16, which order like the positive numbers they are.
    """
    xyz, rgb, footprints, frames = old
    new_xyz, new_rgb, new_footprints, new_frames = new
    for i in range(start, len(new_frames)):
        row = count
        if edge > 0:
            hashed, slot = _find(table, xyz, new_xyz[i], edge)
            if table[slot] == EMPTY:
                if is_full(table, count):
                    return count, i
                table[slot] = tagged(hashed, row, table)
            else:
                row = row_in(table[slot], table)
                if footprints[row] < new_footprints[i]:
                    continue
        if row == count:
            count += 1
        xyz[row], rgb[row] = new_xyz[i], new_rgb[i]
        footprints[row], frames[row] = new_footprints[i], new_frames[i]
        box = bounds[row // RUN]
        for axis in range(3):
            box[0, axis] = min(box[0, axis], new_xyz[i, axis])
            box[1, axis] = max(box[1, axis], new_xyz[i, axis])
    return count, len(new_frames)


@njit(cache=True, nogil=True)
def _outside(box, m, pinhole, height, width, near):
    """Do all corners of the box lie beyond one side of the view? (Half a metre is kept around,
    because splats are wider than their centres.)"""
    beyond = np.zeros(5, np.int64)
    for corner in range(8):
        x = box[corner & 1, 0] + (0.5 if corner & 1 else -0.5)
        y = box[(corner >> 1) & 1, 1] + (0.5 if corner & 2 else -0.5)
        z = box[(corner >> 2) & 1, 2] + (0.5 if corner & 4 else -0.5)
        depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
        u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) * pinhole[0]
        v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) * pinhole[1]
        beyond[0] += depth < near
        beyond[1] += u < (-0.5 - pinhole[2]) * depth
        beyond[2] += u > (width - 0.5 - pinhole[2]) * depth
        beyond[3] += v < (-0.5 - pinhole[3]) * depth
        beyond[4] += v > (height - 0.5 - pinhole[3]) * depth
    return beyond.max() == 8


@njit(cache=True, nogil=True, inline="always")
def _span(centre, half, size):
    """First and last pixel that a splat covers: those with their centres in it, and its home."""
    if centre + half < -1 or centre - half > size:
        return 0, -1
    home = math.floor(centre + 0.5)
    first = max(min(math.ceil(centre - half), home), 0)
    last = min(max(math.floor(centre + half), home), size - 1)
    return int(first), int(last)


@njit(cache=True, nogil=True, inline="always")
def _project(point, m, pinhole):
    x, y, z = float(point[0]), float(point[1]), float(point[2])
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    if depth <= 0:
        return 0.0, 0.0, depth
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth * pinhole[0] + pinhole[2]
    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth * pinhole[1] + pinhole[3]
    return u, v, depth


@njit(cache=True, nogil=True)
def _nearest(points, m, pinhole, rule, surface_z, surface_footprint):
    """The nearest depth in every pixel, and what can win there: rows and (u, v, z, half)."""
    xyz, footprints, bounds = points
    height, width = surface_z.shape
    splat, _, near = rule
    rows, splats, count = np.empty(len(xyz), np.int32), np.empty((len(xyz), 4), np.float32), 0
    for run in range((len(xyz) + RUN - 1) // RUN):
        if _outside(bounds[run], m, pinhole, height, width, near):
            continue
        for i in range(run * RUN, min((run + 1) * RUN, len(xyz))):
            u, v, z = _project(xyz[i], m, pinhole)
            if z < near:
                continue
            half = 0.5 * splat * footprints[i] / z
            c0, c1 = _span(u, half * pinhole[0], width)
            r0, r1 = _span(v, half * pinhole[1], height)
            if c1 < c0 or r1 < r0:
                continue
            rows[count] = i
            splats[count, 0], splats[count, 1] = u, v
            splats[count, 2], splats[count, 3] = z, half
            count += 1
            for r in range(r0, r1 + 1):
                for c in range(c0, c1 + 1):
                    if z < surface_z[r, c]:
                        surface_z[r, c] = z
                        surface_footprint[r, c] = footprints[i]
    return rows[:count], splats[:count]


@njit(cache=True, nogil=True)
def draw_points(points, m, pinhole, rule, index, depth, log_scale):
    """One camera's winners, written to (h, w) outputs that hold -1, NaN and 0."""
    height, width = index.shape
    surface_z = np.full((height, width), np.inf, np.float32)
    surface_footprint = np.zeros((height, width), np.float32)
    cost = np.full((height, width), np.inf, np.float32)
    rows, splats = _nearest(points, m, pinhole, rule, surface_z, surface_footprint)
    focal = 0.5 * (pinhole[0] + pinhole[1])
    for n in range(len(rows)):
        u, v, z, half = splats[n]
        c0, c1 = _span(u, half * pinhole[0], width)
        r0, r1 = _span(v, half * pinhole[1], height)
        ratio = points[1][rows[n]] * focal / z
        misfit = (ratio if ratio >= 1 else 1 / ratio) - 1
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                reach = rule[1] * max(surface_footprint[r, c], surface_z[r, c] / focal)
                if z - surface_z[r, c] > reach:
                    continue
                badness = (u - c) * (u - c) + (v - r) * (v - r) + 0.25 * misfit * misfit
                if badness < cost[r, c]:
                    cost[r, c] = badness
                    index[r, c], depth[r, c] = rows[n], z
                    log_scale[r, c] = math.log(ratio)


FIELDS = {"xyz": ("float32", 3), "rgb": ("uint8", 3), "footprints": ("float16", 1),
          "frames": ("uint16", 1)}  # fmt: skip
BARE_POINT_BYTES = np.dtype(SURFEL_FIELDS["places"][0]).itemsize + 3
"""A place, stored as a token's (view, pixel and depth in 8 bytes: position, footprint and frame follow
from them), and three bytes of colour. Less no cloud can do with."""

BATCH = 65_536

MOST_FRAMES = 2**16 - 1
"""Points tell their frame by 16 bits."""


@dataclass(frozen=True)
class CloudConfig:
    """Voxel edge in metres, None keeps every point; splat and tolerance as in core's SplatRule.

    The tolerance, in footprints along z, is wider than a cell's: a pixel's neighbours on a
    slanted floor lie several footprints apart.
    """

    voxel_m: float | None = 0.01
    splat: float = 1.25
    tolerance: float = 3.0
    near_m: float = 0.02


@dataclass(frozen=True)
class Drawing:
    """f pictures of a cloud; 0, NaN and -1 where nothing is.

    Attributes:
        log_scale: natural log of the point's footprint over the pixel's width there.
    """

    rgb: UInt8[np.ndarray, "f h w 3"]
    depth_m: Float[np.ndarray, "f h w"]
    index: Int[np.ndarray, "f h w"]
    log_scale: Float[np.ndarray, "f h w"]

    @property
    def covered(self) -> Bool[np.ndarray, "f h w"]:
        return self.index >= 0


class PointCloud:
    """Coloured points of posed RGB-D pictures. Row numbers hold until the next write.

    Attributes:
        views: tiles of pictures that points came from, counted as memory/rows.py counts views.
    """

    def __init__(self, config: CloudConfig = CloudConfig()) -> None:
        if config.voxel_m is not None and not config.voxel_m > 0:
            raise MirageError(f"The voxel is {config.voxel_m} m wide; give more than 0, or None.")
        self.config, self.count, self.views = config, 0, 0
        self._arrays = {name: np.empty(shape(0, n), d) for name, (d, n) in FIELDS.items()}
        self._bounds = np.empty((0, 2, 3), np.float32)
        self._table = new_table(0)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self.count]

    @property
    def nbytes(self) -> int:
        """Bytes of the points as densely as the latent memory stores its tokens, of what the points
        of a view share, and of the voxel index where points merge.

        The arrays that are drawn from hold the same unpacked, 19 bytes a point instead of 11: packing
        them would save memory and cost time, and bytes are what this counts.
        """
        index = 0 if self.config.voxel_m is None else self._table.nbytes
        return self.count * BARE_POINT_BYTES + self.views * VIEW_BYTES + index

    def write(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        depth_m: Float[np.ndarray, "f h w"],
        static: Bool[np.ndarray, "f h w"],
        frame_ids: Int[np.ndarray, "f"],
    ) -> int:
        """Lifts the static pixels of finite positive depth; returns how many points were added."""
        before, ids = self.count, np.asarray(frame_ids)
        self.views += len(cameras) * math.prod(tiles_of(cameras.size))
        if ids.min(initial=0) < 0 or ids.max(initial=0) > MOST_FRAMES:
            raise MirageError(
                f"A cloud of points tells frames 0 to {MOST_FRAMES} apart, not {ids.min()} to "
                f"{ids.max()}; number them anew."
            )
        with np.errstate(invalid="ignore"):
            chosen = static & np.isfinite(depth_m) & (depth_m > 0)
        depth = np.where(chosen, depth_m, 0)
        focal = 0.5 * (cameras.intrinsics[:, 0, 0] + cameras.intrinsics[:, 1, 1])
        new = {
            "xyz": cameras.lift(depth)[chosen],
            "rgb": rgb[chosen],
            "footprints": (depth / focal[:, None, None])[chosen],
            "frames": ids[np.nonzero(chosen)[0]],
        }
        for start in range(0, len(new["frames"]), BATCH):
            self._add({name: column[start : start + BATCH] for name, column in new.items()})
        return self.count - before

    def draw(self, cameras: Camera) -> Drawing:
        """What f cameras of picture size see."""
        frames, (height, width) = len(cameras), cameras.size
        index = np.full((frames, height, width), -1, np.int32)
        depth = np.full(index.shape, np.nan, np.float32)
        scale = np.zeros(index.shape, np.float32)
        maps, k = np.ascontiguousarray(cameras.camera_from_world), cameras.intrinsics
        pinholes = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], -1)
        rule = (self.config.splat, self.config.tolerance, self.config.near_m)
        # A merged point stands for its whole voxel; numba has no float16 to compute with.
        widths = np.maximum(self["footprints"].astype(np.float32), self.config.voxel_m or 0)
        points = (self["xyz"], widths, self._bounds)

        def one(i: int) -> None:
            draw_points(points, maps[i], pinholes[i], rule, index[i], depth[i], scale[i])

        with ThreadPoolExecutor() as pool:
            list(pool.map(one, range(frames)))
        rgb = np.zeros((*index.shape, 3), np.uint8)
        rgb[index >= 0] = self["rgb"][index[index >= 0]]
        return Drawing(rgb, depth, index, scale)

    def copy(self) -> PointCloud:
        """An independent cloud with the same points."""
        twin = PointCloud(self.config)
        twin.count, twin.views = self.count, self.views
        twin._table, twin._bounds = self._table.copy(), self._bounds.copy()
        twin._arrays = {name: self[name].copy() for name in FIELDS}
        return twin

    def _add(self, new: dict[str, np.ndarray]) -> None:
        self._make_room(len(new["frames"]))
        rows = {
            name: np.ascontiguousarray(new[name], self._arrays[name].dtype).reshape(shape(-1, n))
            for name, (_, n) in FIELDS.items()
        }
        old, new_columns = (
            (a["xyz"], a["rgb"], a["footprints"].view(np.uint16), a["frames"])
            for a in (self._arrays, rows)
        )
        voxel, done = 0.0 if self.config.voxel_m is None else self.config.voxel_m, 0
        while True:
            self.count, done = add_points(
                old, self.count, self._table, new_columns, done, voxel, self._bounds
            )
            if done == len(rows["frames"]):
                return
            self._table = new_table(self.count)
            fill_table(self._table, self["xyz"], voxel)

    def _make_room(self, wanted: int) -> None:
        """Room for `wanted` more rows."""
        rows, capacity = self.count + wanted, len(self._arrays["frames"])
        if rows > capacity:
            for name, (dtype, n) in FIELDS.items():
                grown = np.empty(shape(max(rows, capacity * 3 // 2), n), dtype)
                grown[: self.count] = self[name]
                self._arrays[name] = grown
            # A copy has rows for its points alone, and bounds for as many as there was room for.
            runs = max(len(self._arrays["frames"]) // RUN + 1, len(self._bounds))
            bounds = np.empty((runs, 2, 3), np.float32)
            bounds[:, 0], bounds[:, 1] = np.inf, -np.inf
            bounds[: len(self._bounds)] = self._bounds
            self._bounds = bounds


def shape(rows: int, width: int) -> tuple[int, ...]:
    return (rows,) if width == 1 else (rows, width)

"""A cloud of coloured points with an exact z-buffer at picture resolution: what people use.

The pixel counterpart of core's latent memory, with the same care: points merge in voxels (in
an occupied voxel the finer footprint wins, else the newer), splats are as wide as the pixel
they came from, the nearest surface hides what lies behind it, among its points the best centred
one wins, cameras run in threads, and runs of points outside the view are skipped.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.core.births import VIEW_BYTES, tiles_of
from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.store import SURFEL_FIELDS
from mirage_ros.core.table import new_table
from mirage_ros.evaluation.splatting import RUN, add_points, draw_points, fill_table

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
        views: tiles of pictures that points came from, as core/births.py counts views.
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
            runs = len(self._arrays["frames"]) // RUN + 1
            bounds = np.empty((runs, 2, 3), np.float32)
            bounds[:, 0], bounds[:, 1] = np.inf, -np.inf
            bounds[: len(self._bounds)] = self._bounds
            self._bounds = bounds


def shape(rows: int, width: int) -> tuple[int, ...]:
    return (rows,) if width == 1 else (rows, width)

"""Space that was seen to be free stays free: nothing imagined later comes to stand in it.

A picture with depth tells where surfaces are, and that nothing stands before them. Memory shows
this only from where the surfaces were seen. What is imagined beside them, with a depth that is
guessed, would come to hide them from there. So views are kept with how far each of them saw, and
a cell that would stand before what a view showed is not remembered.

Views are kept of real pictures, and of imagined ones where no kept view looked alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float16
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import upsample
from mirage_ros.memory.blocks import SplatRule
from mirage_ros.protocol import Perception

MARGIN = 0.05
"""A cell is before a surface by more than this share of its own depth and of the surface's."""
MOST = 96
"""Views are at most so many: imagined ones make room first, then old real ones."""
STEP, MOST_STEPS = 1.1, 24
"""By how much what hides something is moved at once, and how often at most."""
SKY_M = 64.0
"""What a view of nothing but sky is taken to be away, where views are compared."""
ALIKE_COSINE, ALIKE_SHARE = 0.978, 0.08
"""Views look alike from this cosine between them on (12 degrees), up to this distance between
their cameras over the median depth."""


@dataclass(frozen=True)
class FreeSpaceViews:
    """The v views that are kept, the oldest first.

    Attributes:
        cameras: a batch, of as many pixels as there are cells.
        reach_m: depth along z up to which each cell's view is free; +inf as far as one can see,
            NaN unknown.
        real: which were real pictures.
    """

    cameras: Camera
    reach_m: Float16[np.ndarray, "v h w"]
    real: Bool[np.ndarray, "v"]

    @classmethod
    def none(cls) -> FreeSpaceViews:
        camera = Camera.from_hfov(90.0, (1, 1), np.empty((0, 4, 4)))
        return cls(camera, np.empty((0, 1, 1), np.float16), np.empty(0, bool))

    def hidden_by(
        self, cameras: Camera, depth_m: Float[np.ndarray, "f h w"]
    ) -> Bool[np.ndarray, "f h w"]:
        """Which cells of f cameras, lifted with their depth, would hide what a view showed."""
        points = cameras.lift(depth_m).reshape(-1, 3)
        focal = 0.5 * (cameras.intrinsics[:, 0, 0] + cameras.intrinsics[:, 1, 1])
        width = SplatRule().splat * depth_m / focal[:, None, None]
        seen = depth_m.reshape(-1), width.reshape(-1)
        return _before_views(points, *seen, *self._views(), MARGIN).reshape(depth_m.shape)

    def behind_free(self, cameras: Camera, depth_m: Float[np.ndarray, "f h w"]) -> Float[np.ndarray, "f h w"]:
        """Depth of f cameras' cells, those that would hide what a view showed moved away until they do not; where nothing
        within ten times as far is free of that they stay."""
        moved = np.array(depth_m, np.float32)
        for _ in range(MOST_STEPS):
            hides = self.hidden_by(cameras, moved)
            if not hides.any():
                return moved
            moved[hides] *= STEP
        return np.where(self.hidden_by(cameras, moved), np.float32(depth_m), moved)

    def seen_free(
        self, points: Float[np.ndarray, "n 3"], margin: float, only_real: bool = False, beyond: bool = False
    ) -> Bool[np.ndarray, "n"]:
        """Which points of the world some view saw to be free.

        Args:
            margin: share of its depth by which a point has to lie before the surface behind it.
            only_real: views of imagined pictures do not count.
            beyond: views go on past their borders, as they end there, as far as one may turn before another view is kept.
        """
        kept = self.of(self.real) if only_real else self
        points, turn = np.ascontiguousarray(points, np.float64), np.sqrt(1 - ALIKE_COSINE**2) / ALIKE_COSINE
        border = np.ceil(turn * kept.cameras.intrinsics[:, 0, 0].max(initial=0)) if beyond else 0.0
        return _seen_free(points, *kept._views(), margin, border)

    def with_real(self, camera: Camera, depth_m: Float[np.ndarray, "H W"], side: int) -> FreeSpaceViews:
        """And a real picture, in cells of side x side pixels, in place of views that look alike.
        Where it shows something in the free space of others, their space is free no more."""
        reach = _nearest(depth_m, side)
        others = self.of(~self._alike(camera, depth_m))
        camera = camera.resized(reach.shape)
        return others._corrected(camera, reach)._with(camera, reach, True)

    def with_imagined(self, camera: Camera, depth_m: Float[np.ndarray, "H W"], side: int) -> FreeSpaceViews:
        """And an imagined picture, unless a kept view looks alike."""
        if self._alike(camera, depth_m).any() or not _median(depth_m):
            return self
        reach = _nearest(depth_m, side)
        return self._with(camera.resized(reach.shape), reach, False)

    def _alike(self, camera: Camera, depth_m: np.ndarray) -> Bool[np.ndarray, "v"]:
        poses = self.cameras.world_from_camera
        apart = np.linalg.norm(poses[:, :3, 3] - camera.position_world, axis=-1)
        cosine = poses[:, :3, 2] @ camera.world_from_camera[:3, 2]
        return (cosine > ALIKE_COSINE) & (apart < ALIKE_SHARE * _median(depth_m))

    def of(self, mask: Bool[np.ndarray, "v"]) -> FreeSpaceViews:
        """Some of the views."""
        return FreeSpaceViews(self.cameras[mask], self.reach_m[mask], self.real[mask])

    def _with(self, camera: Camera, reach: np.ndarray, real: bool) -> FreeSpaceViews:
        if not len(self.real):
            return FreeSpaceViews(Camera.stack([camera]), reach[None], np.array([real]))
        intrinsics = np.concatenate([self.cameras.intrinsics, camera.intrinsics[None]])
        poses = np.concatenate([self.cameras.world_from_camera, camera.world_from_camera[None]])
        reaches = np.concatenate([self.reach_m, reach[None]])
        more = FreeSpaceViews(Camera(intrinsics, poses, camera.size), reaches, np.append(self.real, real))
        if len(more.real) <= MOST:
            return more
        # The first imagined one goes, or where all are real the first.
        return more.of(np.arange(len(more.real)) != np.argmin(more.real))

    def _corrected(self, camera: Camera, reach: np.ndarray) -> FreeSpaceViews:
        """Older views whose free space holds a surface of a new one see no farther than it."""
        points = camera.lift(reach)[np.isfinite(reach)]
        reaches = self.reach_m.copy()
        for view, older in enumerate(self.cameras):
            pixels, depth = older.project(points)
            with np.errstate(invalid="ignore"):
                column, row = np.rint(pixels).T
                inside = (depth > 0) & (row >= 0) & (row < older.size[0])
                inside &= (column >= 0) & (column < older.size[1])
            cells = row[inside].astype(int), column[inside].astype(int)
            np.minimum.at(reaches[view], cells, depth[inside].astype(np.float16))
        return replace(self, reach_m=reaches)

    def _views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k = self.cameras.intrinsics
        pinholes = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], -1)
        return self.cameras.camera_from_world, pinholes, self.reach_m.astype(np.float32)


def carved(
    free_space: FreeSpaceViews, cameras: Camera, perception: Perception, stride: int, side: int
) -> tuple[Perception, FreeSpaceViews]:
    """Cells that would hide what a view showed pass for moving, so that they are not remembered.

    Args:
        cameras: of the pictures.
        stride: pixels to a side of a latent cell.
        side: pixels to a side of a view's cell.

    Returns:
        What is perceived then, and the views with the last picture's.
    """
    # One pixel of each of the views' cells tells as much as all, in a fraction of the time.
    some = perception.depth_m[:, side // 2 :: side, side // 2 :: side]
    latent = cameras.resized(tuple(s // stride for s in cameras.size))
    hidden = upsample(free_space.hidden_by(latent, cell_depth(some, stride // side)), stride)
    shown = np.where(hidden[-1], np.float32(np.nan), perception.depth_m[-1])
    sound = replace(perception, dynamic=perception.dynamic | hidden)
    return sound, free_space.with_imagined(cameras[-1], shown, side)


def _median(depth_m: np.ndarray) -> float:
    """Of what is known and finite; of sky alone `SKY_M`; 0 where nothing is known."""
    known = depth_m[np.isfinite(depth_m)]
    return float(np.median(known)) if len(known) else SKY_M * float(np.isposinf(depth_m).any())


def _nearest(depth_m: Float[np.ndarray, "H W"], side: int) -> Float16[np.ndarray, "h w"]:
    """The least depth in each cell of side x side pixels; NaN where most are unknown."""
    height, width = (s // side for s in depth_m.shape)
    cells = depth_m.reshape(height, side, width, side).transpose(0, 2, 1, 3)
    cells = cells.reshape(height, width, side * side)
    unknown = np.isnan(cells)
    least = np.where(unknown, np.inf, cells).min(-1)
    least[2 * unknown.sum(-1) > side * side] = np.nan
    return least.astype(np.float16)


@njit(cache=True, nogil=True, error_model="numpy")
def _before_views(points, depth_m, width_m, poses, pinholes, reach_m, margin):
    """Which points, of given depth and width, stand before what a view showed."""
    found = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        if not np.isfinite(depth_m[i]):
            continue
        for v in range(len(poses)):
            x, y, z = _moved(points[i], poses[v])
            if z <= 0:
                continue
            fx, fy, cx, cy = pinholes[v]
            half = 0.5 * width_m[i] / z
            reach = _reach(reach_m[v], x / z * fx + cx, y / z * fy + cy, half * fx, half * fy)
            if z + margin * depth_m[i] < reach * (1 - margin):
                found[i] = True
                break
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def _seen_free(points, poses, pinholes, reach_m, margin, border):
    """Which points lie in a view's picture, or so many pixels around it, and before what it showed there or at its border."""
    found = np.zeros(len(points), np.bool_)
    height, width = reach_m.shape[1:]
    for i in range(len(points)):
        for v in range(len(poses)):
            x, y, z = _moved(points[i], poses[v])
            if z <= 0:
                continue
            fx, fy, cx, cy = pinholes[v]
            column, row = np.rint(x / z * fx + cx), np.rint(y / z * fy + cy)
            if not (-border <= row < height + border and -border <= column < width + border):
                continue
            row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
            if z < reach_m[v, int(row), int(column)] * (1 - margin):
                found[i] = True
                break
    return found


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _moved(point, m):
    x, y, z = point
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3],
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3],
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3],
    )


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _reach(reach, u, v, across, down):
    """How far a view is free around (u, v), or where a splat that reaches so far to all sides
    enters the picture: the least of four cells. NaN if one is unknown, or none is near."""
    height, width = reach.shape
    column, row = min(max(0.0, u), width - 1.0), min(max(0.0, v), height - 1.0)
    # Asked so that NaN is near nothing, either.
    if not (abs(column - u) <= max(0.5, across) and abs(row - v) <= max(0.5, down)):
        return np.float32(np.nan)
    r, c = int(row), int(column)
    below, right = min(r + 1, height - 1), min(c + 1, width - 1)
    # A sum with NaN is NaN, a minimum may not be.
    total = reach[r, c] + reach[r, right] + reach[below, c] + reach[below, right]
    if np.isnan(total):
        return np.float32(np.nan)
    upper, lower = min(reach[r, c], reach[r, right]), min(reach[below, c], reach[below, right])
    return min(upper, lower)

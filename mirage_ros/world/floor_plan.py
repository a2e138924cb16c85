"""The floor plan of a world: where a robot can stand, by what memory holds and views saw to be free.

Each view that is kept of free space is looked through again, finer than it was kept: memory says how far its
pixels see. A cell of the plan is occupied where such a pixel shows a surface between the floor and the robot's
height, free where all heights of it were seen free, and unknown else.

No torch is imported here: the node's own process knows the plan's config.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from mirage_ros.errors import MirageError
from mirage_ros.files import write_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import FREE, OCCUPIED, UNKNOWN, FloorPlan, FreeSpace, Surfaces

FINER = 4
"""Pixels to a side of each cell of a view."""
MARGIN = 0.02
"""Share of its depth by which a point has to lie before the surface behind it to be seen free."""
BEHIND = 0.01
"""Surfaces are marked so much farther off than they are measured, as a share of depth: a face right at the border
of a cell marks the one that it belongs to, rather than the free one before it."""
LAYER_M = 0.05
MOST_CELLS = 4000
SHADES = {FREE: 254, OCCUPIED: 0, UNKNOWN: 205}


@dataclass(frozen=True)
class MapConfig:
    """How a floor plan is made.

    Attributes:
        resolution_m: side of a cell.
        size_m: sides of the square around the camera beyond which nothing is drawn.
        floor_m: z of the floor.
        floor_margin_m: surfaces up to this above the floor are floor.
        robot_height_m: surfaces above this do not matter.
        imagined: what was imagined counts as known; else only what real pictures showed.
        period_s: least wall time between two plans.
    """

    resolution_m: float = 0.05
    size_m: float = 40.0
    floor_m: float = 0.0
    floor_margin_m: float = 0.1
    robot_height_m: float = 0.5
    imagined: bool = True
    period_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor_margin_m < self.robot_height_m < np.inf:
            raise MirageError(
                f"A map got a floor margin of {self.floor_margin_m:g} m and a robot {self.robot_height_m:g} m high; "
                "give a margin from 0 to below the robot's height."
            )
        if not 0 < self.resolution_m <= self.size_m <= MOST_CELLS * self.resolution_m:
            raise MirageError(
                f"A map got cells of {self.resolution_m:g} m and a size of {self.size_m:g} m; give cells above 0 "
                f"and 1 to {MOST_CELLS} of them to a side."
            )

    @property
    def heights_m(self) -> Float[np.ndarray, "n"]:
        """z of the points of a cell that have to be free."""
        low, high = self.floor_m + self.floor_margin_m, self.floor_m + self.robot_height_m
        return np.linspace(low, high, max(2, int(np.ceil((high - low) / LAYER_M - 1e-9)) + 1))


def floor_plan(
    memory: Surfaces, free_space: FreeSpace, centre: Float[np.ndarray, "3"], config: MapConfig
) -> FloorPlan:
    """The plan of what is known around a point. One cell, unknown, where that is nothing.

    Args:
        memory, free_space: of a WorldState.
    """
    cameras, depth_m = _looked_through(memory, free_space, config)
    endless = np.isinf(depth_m)
    ends = _lifted(cameras, np.where(endless, config.size_m, depth_m * (1 + BEHIND)))
    corners = centre[:2] - config.size_m / 2, centre[:2] + config.size_m / 2
    reached = np.concatenate([ends[np.isfinite(depth_m) | endless], cameras.position_world])[:, :2]
    places = np.floor(np.clip(reached, *corners) / config.resolution_m).astype(int)
    if not len(places):
        return FloorPlan(np.full((1, 1), UNKNOWN, np.int8), np.array(centre[:2], float), config.resolution_m)
    first = places.min(0)
    plan = FloorPlan(
        np.full(tuple(places.max(0) - first + 1)[::-1], UNKNOWN, np.int8),
        first * config.resolution_m,
        config.resolution_m,
    )
    nearest = _nearest_around(depth_m).astype(np.float16)
    seen = replace(free_space, cameras=cameras, reach_m=nearest, real=np.ones(len(nearest), bool))
    _mark_free(plan, seen, config)
    _mark_surfaces(plan, ends[np.isfinite(depth_m)], config)
    return plan


def _looked_through(
    memory: Surfaces, free_space: FreeSpace, config: MapConfig
) -> tuple[Camera, Float32[np.ndarray, "v h w"]]:
    """The kept views with finer pixels, and how far each pixel sees."""
    kept = free_space.real | config.imagined
    reach = free_space.reach_m[kept].astype(np.float32).repeat(FINER, 1).repeat(FINER, 2)
    cameras = free_space.cameras[kept].resized(reach.shape[1:])
    depth, real = memory.measure(cameras)
    if not config.imagined:
        depth[~real] = np.nan
    # What a view kept of a cell is the nearest that it saw there: tokens that reach in front of it are too wide.
    return cameras, np.fmax(depth, reach)


def _lifted(cameras: Camera, depth_m: Float[np.ndarray, "v h w"]) -> Float[np.ndarray, "v h w 3"]:
    """As Camera.lift, in a fifth of the time and not to the same bit."""
    height, width = cameras.size
    points = (cameras.rays() * depth_m[..., None]).reshape(len(depth_m), height * width, 3)
    pose = cameras.world_from_camera
    return (points @ pose[:, :3, :3].swapaxes(1, 2) + pose[:, None, :3, 3]).reshape(*depth_m.shape, 3)


def _nearest_around(depth_m: Float32[np.ndarray, "v h w"]) -> Float32[np.ndarray, "v h w"]:
    """The least of each pixel and its neighbours, of those that are known."""
    wide = np.pad(depth_m, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    rows = np.fmin(np.fmin(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
    return np.fmin(np.fmin(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def _mark_free(plan: FloorPlan, seen: FreeSpace, config: MapConfig) -> None:
    """Marks the cells that are free at all heights."""
    row, column = np.indices(plan.cells.shape).reshape(2, -1)
    for height_m in config.heights_m:
        points = np.stack([column + 0.5, row + 0.5, np.zeros(len(row))], -1) * plan.resolution_m
        points += [*plan.origin_m, height_m]
        free = seen.seen_free(points, MARGIN)
        row, column = row[free], column[free]
    plan.cells[row, column] = FREE


def _mark_surfaces(plan: FloorPlan, points: Float[np.ndarray, "n 3"], config: MapConfig) -> None:
    """Marks the cells that hold points which stop the robot."""
    low, high = config.heights_m[[0, -1]]
    stopping = points[(points[:, 2] >= low) & (points[:, 2] <= high), :2]
    column, row = np.floor((stopping - plan.origin_m) / plan.resolution_m + 1e-9).astype(int).T
    height, width = plan.cells.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    plan.cells[row[inside], column[inside]] = OCCUPIED


def write_plan(path: str | os.PathLike, plan: FloorPlan) -> None:
    """Writes PATH.yaml and beside it PATH.pgm, as map_server reads them."""
    path = Path(path).with_suffix(".yaml")
    picture = path.with_suffix(".pgm")
    shades = np.full(plan.cells.shape, SHADES[UNKNOWN], np.uint8)
    for value in (FREE, OCCUPIED):
        shades[plan.cells == value] = SHADES[value]
    height, width = shades.shape
    # The picture's first row is the one of the largest y.
    write_file(picture, b"P5\n%d %d\n255\n" % (width, height) + shades[::-1].tobytes())
    x, y = (float(value) for value in plan.origin_m)
    # Shade 205 stands for 0.19608 occupied, which is neither free nor occupied by these thresholds.
    text = (
        f"image: {picture.name}\nmode: trinary\nresolution: {plan.resolution_m:.9g}\n"
        f"origin: [{x:.9g}, {y:.9g}, 0.0]\nnegate: 0\noccupied_thresh: 0.65\nfree_thresh: 0.196\n"
    )
    write_file(path, text.encode())

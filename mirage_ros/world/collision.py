"""What is solid in a world: the pieces of surface that memory holds, and entities; what of it a robot touches, and where
entities touch each other.

A token is a piece of a plane: its cell, seen from the view that it was born in. What was imagined is as solid as what was
seen, once it was shown. Pieces that a view saw past are not there: memory keeps some that are too wide.
Those of real pictures give way to views of real pictures alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float, Int

from mirage_ros.protocol import FreeSpace, Patches, SurfacePoints
from mirage_ros.world.entities import Body, Entities, Mesh, RobotBody

FREE_MARGIN = 0.03
"""Share of its depth by which a point lies before what a view showed to be seen free."""
REACH_M = 3.0
"""Obstacles are reported so far around a robot."""
ABOVE_M = 0.05
"""A robot is so much higher than its camera."""
HEADROOM_M = 0.5
SPACING_M = 0.04
FINEST_M = 0.02
MOST_TO_A_SIDE = 9
RISE_M, RIM = 0.1, 0.2
"""Surfaces that rise less stop nobody; and at its rim a piece seen from afar reaches over, at corners, by more than the gaps
that are left without it."""
LEVEL_COSINE, LEVEL_M = 0.7, 0.25
"""What faces up more than this is driven over up to so much above what the robot clears."""
TOUCH_M = 0.02
STUCK_M = 0.04
"""A robot does not go farther into what it pushes."""
APART_M = 0.1
"""Contacts of one pair are reported so far apart."""
PAIRS_AT_ONCE = 1_000_000
"""Points times triangles that are compared in one go: it costs memory."""
THICK_M = 0.04
"""Pieces of surface are boxes so deep."""
LEVEL, LAYER_M, CELL_M, CLOSED_CELLS = 0.95, 0.06, 0.05, 2
"""Pieces that face up so much, with no more between their heights, are one floor, made of such cells; gaps of so many are
closed."""
WITHIN = np.array([[0.5, 0.5], [0.15, 0.15], [0.85, 0.15], [0.15, 0.85], [0.85, 0.85]])
"""Where in a piece free space is looked up."""


@runtime_checkable
class Patchwork(Protocol):
    """A memory that tells where its surfaces are, as LatentMemory."""

    def patches(self, low: Float[np.ndarray, "b 3"], high: Float[np.ndarray, "b 3"]) -> Patches: ...


@runtime_checkable
class Physics(Protocol):
    """What moves entities, such as physics.Mujoco."""

    def stepped(
        self,
        entities: Entities,
        memory: object,
        free_space: FreeSpace,
        stamps_ns: Int[np.ndarray, "n"],
        cameras_m: Float[np.ndarray, "n 3"],
    ) -> Entities:
        """The entities at the last of the stamps. The first one is the world's last frame's; cameras_m is where the
        robot's camera is then."""
        ...


def solid(
    memory: object, free_space: FreeSpace, low: Float[np.ndarray, "b 3"], high: Float[np.ndarray, "b 3"]
) -> Patches:
    """The pieces of surface in any of b axis-aligned boxes that no view saw past.

    Args:
        memory, free_space: of a WorldState. A memory that has no surfaces has none that are solid.
    """
    if not isinstance(memory, Patchwork):
        return Patches(np.zeros((0, 4, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, bool))
    found = memory.patches(low, high)
    points = _within(found.corners_m, WITHIN).reshape(-1, 3)
    by_real = free_space.seen_free(points, FREE_MARGIN, only_real=True).reshape(-1, len(WITHIN))
    by_any = free_space.seen_free(points, FREE_MARGIN).reshape(-1, len(WITHIN))
    free = np.where(found.real[:, None], by_real, by_any)
    kept = 2 * free.sum(1) < len(WITHIN)
    return found.of(kept)


def _within(corners_m: Float[np.ndarray, "n 4 3"], places: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "n k 3"]:
    """Points of each piece; (0, 0) is its first corner, (1, 1) its third."""
    u, v = places.T
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v])
    return np.einsum("nci,ck->nki", corners_m.astype(np.float64), weights)


def spread(
    patches: Patches, spacing_m: float = SPACING_M, rim: float = 0.0
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, "m 3"]]:
    """Points all over pieces of surface but for their rim, a share of their sides, and the normals there."""
    corners = patches.corners_m
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(1, initial=0)
    sides = np.clip(np.ceil(longest / spacing_m).astype(int) + 1, 2, MOST_TO_A_SIDE)
    points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for side in np.unique(sides):
        chosen = sides == side
        places = np.stack(np.meshgrid(*[np.linspace(rim, 1 - rim, side)] * 2), -1).reshape(-1, 2)
        points.append(_within(corners[chosen], places).reshape(-1, 3))
        normals.append(patches.normals[chosen].repeat(len(places), 0))
    return np.concatenate(points), np.concatenate(normals)


_of_meshes: WeakKeyDictionary[Mesh, np.ndarray] = WeakKeyDictionary()


def mesh_points(mesh: Mesh) -> Float[np.ndarray, "m 3"]:
    """Points all over a body, in its own axes."""
    if mesh not in _of_meshes:
        corners = mesh.vertices_m[mesh.faces].astype(np.float64)
        longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(1)
        parts = np.clip(np.ceil(longest / SPACING_M).astype(int), 1, 64)
        points = [mesh.vertices_m.astype(np.float64)]
        for count in np.unique(parts[parts > 1]):
            i, j = np.indices((count + 1, count + 1)).reshape(2, -1)[:, np.indices((count + 1, count + 1)).sum(0).reshape(-1) <= count]
            weights = np.stack([i, j, count - i - j]) / count
            points.append(np.einsum("fci,ck->fki", corners[parts == count], weights).reshape(-1, 3))
        _of_meshes[mesh] = _thinned(np.concatenate(points))[0]
    return _of_meshes[mesh]


def _thinned(points: np.ndarray, *more: np.ndarray) -> tuple[np.ndarray, ...]:
    """One point in each cube of FINEST_M, and what belongs to it."""
    cells = np.floor(points / FINEST_M).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return tuple(values[np.sort(first)] for values in (points, *more))


def boxes_of(patches: Patches) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Centres, half sizes and rotations of the boxes that stand for pieces of surface."""
    level = patches.normals[:, 2] > LEVEL
    found, under = [], np.zeros(len(level), bool)
    heights = patches.corners_m[:, :, 2].mean(1)
    for low_m, high_m in _layers(heights[level]):
        layer = level & (heights >= low_m) & (heights <= high_m)
        top_m, (origin, cells) = float(np.median(heights[layer])), _cells(patches.of(layer))
        found += _slabs(origin, cells, top_m)
        spots = np.floor((patches.corners_m[:, :, :2].mean(1) - origin) / CELL_M).astype(int)
        there = ((spots >= 0) & (spots < cells.shape)).all(1)
        there[there] = cells[tuple(spots[there].T)]
        under |= there & (np.abs(heights - top_m) < LAYER_M)
    return found + [_box(*one) for one in zip(*patches.of(~level & ~under)[:2], strict=True)]


def _layers(heights: np.ndarray) -> list[tuple[float, float]]:
    """Ranges of heights, from below, none of them larger than LAYER_M."""
    found, heights = [], np.sort(heights)
    while len(heights):
        end = np.searchsorted(heights, heights[0] + LAYER_M, "right")
        found.append((float(heights[0]), float(heights[end - 1])))
        heights = heights[end:]
    return found


def _cells(patches: Patches) -> tuple[np.ndarray, np.ndarray]:
    """Which cells of the ground pieces cover, and where the first of them begins."""
    spots = np.floor(spread(patches, CELL_M / 2)[0][:, :2] / CELL_M).astype(int)
    first = spots.min(0) - CLOSED_CELLS
    cells = np.zeros(spots.max(0) - first + 1 + CLOSED_CELLS, bool)
    cells[tuple((spots - first).T)] = True
    for grows in (True, False):
        for axis in (0, 1):
            steps = [np.roll(cells, step, axis) for step in range(-CLOSED_CELLS, CLOSED_CELLS + 1)]
            cells = np.any(steps, axis=0) if grows else np.all(steps, axis=0)
    return first * CELL_M, cells


def _slabs(origin: np.ndarray, cells: np.ndarray, top_m: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes that cover the cells: each as long as goes from its first cell, then as wide."""
    found, left = [], cells.copy()
    for i, j in np.argwhere(cells):
        if not left[i, j]:
            continue
        rows, columns = 1, int(np.argmin(np.append(left[i, j:], False)))
        while i + rows < len(left) and left[i + rows, j : j + columns].all():
            rows += 1
        left[i : i + rows, j : j + columns] = False
        size = np.array([rows, columns]) * CELL_M
        centre = np.append(origin + np.array([i, j]) * CELL_M + size / 2, top_m - THICK_M)
        found.append((centre, np.append(size / 2, THICK_M), np.eye(3)))
    return found


def _box(corners: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A box whose upper face is a piece of surface."""
    corners, normal = corners.astype(np.float64), normal.astype(np.float64)
    along = corners[1] + corners[2] - corners[0] - corners[3]
    along -= normal * (along @ normal)
    along /= max(np.linalg.norm(along), 1e-9)
    rotation = np.stack([along, np.cross(normal, along), normal], 1)
    if not np.isclose(np.linalg.det(rotation), 1, atol=1e-3):
        rotation = np.eye(3)
    inside = (corners - corners.mean(0)) @ rotation
    half = np.maximum(np.append(np.abs(inside[:, :2]).max(0), THICK_M / 2), 1e-3)
    return corners.mean(0) - normal * THICK_M / 2, half, rotation


def obstacles(
    memory: object,
    free_space: FreeSpace,
    entities: Entities,
    stamp_ns: int,
    camera_m: Float[np.ndarray, "3"],
    body: RobotBody,
) -> SurfacePoints:
    """What may stop a robot whose camera is at a place."""
    x, y, z = camera_m
    low = np.array([x - REACH_M, y - REACH_M, body.low_m])
    high = np.array([x + REACH_M, y + REACH_M, max(z, body.low_m) + HEADROOM_M])
    wide = np.array([SPACING_M * MOST_TO_A_SIDE] * 3)
    points, normals = spread(solid(memory, free_space, (low - wide)[None], (high + wide)[None]), rim=RIM)
    stops = (points[:, 2] > body.low_m + LEVEL_M) | (normals[:, 2] < LEVEL_COSINE)
    stops &= ((points >= low) & (points <= high)).all(1)
    points, normals = points[stops], normals[stops]
    risen = _risen(points[:, :2] - low[:2], points[:, 2])
    points, normals = points[risen], normals[risen]
    labels = np.zeros(len(points), np.int32)
    for one in entities:
        box = one.state.box_at(stamp_ns)
        if (box[0] > high).any() or (box[1] < low).any():
            continue
        pose = one.state.pose_at(stamp_ns)
        its = mesh_points(one.mesh) @ pose[:3, :3].T + pose[:3, 3]
        its = its[((its >= low) & (its <= high)).all(1)]
        points, normals = np.concatenate([points, its]), np.concatenate([normals, np.zeros_like(its)])
        labels = np.append(labels, np.full(len(its), one.state.number, np.int32))
    points, normals, labels = _thinned(points, normals, labels)
    return SurfacePoints(points.astype(np.float32), normals.astype(np.float32), np.zeros_like(labels), labels)


def _risen(spots: Float[np.ndarray, "n 2"], heights: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Points in whose cell of the ground surfaces rise: single low ones are noise, where a wall meets the floor."""
    cells = tuple(np.floor(spots / SPACING_M).astype(int).T)
    top, bottom = (np.full((int(2 * REACH_M / SPACING_M) + 2,) * 2, side) for side in (-np.inf, np.inf))
    np.maximum.at(top, cells, heights)
    np.minimum.at(bottom, cells, heights)
    return (top - bottom)[cells] >= RISE_M


def unyielding(found: SurfacePoints, entities: Entities, camera_m: Float[np.ndarray, "3"], body: RobotBody) -> SurfacePoints:
    """What is left of obstacles where physics let the robot push entities: static ones, and those that are stuck,
    so that it stands in them."""
    far = np.linalg.norm(found.points_m[:, :2] - camera_m[:2], axis=1)
    stuck = set(np.unique(found.labels[far < body.radius_m - STUCK_M]).tolist())
    stays = [one.state.number for one in entities if one.state.stays or one.state.number in stuck]
    return found.of(np.isin(found.labels, [0, *stays]))


def touched(found: SurfacePoints, camera_m: Float[np.ndarray, "3"], body: RobotBody) -> SurfacePoints:
    """Where a robot touches what may stop it; each contact is the nearest point of its surroundings."""
    points = found.points_m.astype(np.float64)
    away = camera_m[:2] - points[:, :2]
    far = np.linalg.norm(away, axis=1)
    near = np.flatnonzero((far < body.radius_m + TOUCH_M) & (points[:, 2] < camera_m[2] + ABOVE_M))
    near = near[_apart(points[near], far[near], found.labels[near])]
    normals = np.column_stack([away[near] / np.maximum(far[near], 1e-9)[:, None], np.zeros(len(near))])
    return replace(found.of(near), normals=normals.astype(np.float32))


def _apart(points: Float[np.ndarray, "n 3"], far_m: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Which of the points are the nearest of their label in a cell of APART_M."""
    order = np.argsort(far_m, kind="stable")
    cells = np.floor(points[order] / APART_M).astype(np.int64)
    _, first = np.unique(np.column_stack([cells, labels[order]]), axis=0, return_index=True)
    return order[np.sort(first)]


def joined(*parts: SurfacePoints) -> SurfacePoints:
    """The points of all of them."""
    return SurfacePoints(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def touching(entities: Entities, stamp_ns: int) -> list[SurfacePoints]:
    """Where entities touch each other, for each two that are close. `bodies` has the larger number of each two and `labels` the other one, the normal
    leads from this to that. A body that is all inside another one touches it nowhere."""
    found, there = [], [*entities]
    if len(there) < 2:
        return found
    boxes = np.stack([one.state.box_at(stamp_ns) for one in there])
    near = ((boxes[:, None, 0] < boxes[None, :, 1] + TOUCH_M) & (boxes[None, :, 0] < boxes[:, None, 1] + TOUCH_M)).all(-1)
    for one, other in np.argwhere(np.triu(near, 1)):
        low = np.maximum(boxes[one, 0], boxes[other, 0]) - TOUCH_M
        zone = np.stack([low, np.minimum(boxes[one, 1], boxes[other, 1]) + TOUCH_M])
        first, second = sorted((there[one], there[other]), key=lambda body: body.state.number)
        points, normals, far_m = (
            np.concatenate(both)
            for both in zip(_met(second, first, zone, stamp_ns), _met(first, second, zone, stamp_ns, -1), strict=True)
        )
        kept = _apart(points, far_m, np.zeros(len(points), np.int32))
        numbers = (np.full(len(kept), body.state.number, np.int32) for body in (second, first))
        found.append(SurfacePoints(points[kept].astype(np.float32), normals[kept].astype(np.float32), *numbers))
    return found


def _met(
    body: Body, other: Body, zone: Float[np.ndarray, "2 3"], stamp_ns: int, side: int = 1
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Points of a body close to another one's surface, in a box; that one's normals there times `side`, and how far it is."""
    pose, its = (one.state.pose_at(stamp_ns) for one in (body, other))
    points = mesh_points(body.mesh) @ pose[:3, :3].T + pose[:3, 3]
    points = points[((points >= zone[0]) & (points <= zone[1])).all(1)]
    corners = (other.mesh.vertices_m.astype(np.float64) @ its[:3, :3].T + its[:3, 3])[other.mesh.faces]
    low, high = corners.min(1) - TOUCH_M, corners.max(1) + TOUCH_M
    inside = ((low <= zone[1]) & (high >= zone[0])).all(1)
    corners, low, high = corners[inside], low[inside], high[inside]
    step = max(1, PAIRS_AT_ONCE // max(1, len(corners)))
    pairs = [np.argwhere(((low <= part) & (part <= high)).all(2)) + (first, 0)
             for first in range(0, len(points), step) for part in [points[first : first + step, None]]]  # fmt: skip
    point, face = np.concatenate([np.empty((0, 2), np.int64), *pairs]).T
    far = np.linalg.norm(_nearest(points[point], corners[face]) - points[point], axis=1)
    order = np.lexsort((far, point))
    nearest = order[np.unique(point[order], return_index=True)[1]]  # a pair of each point
    points, corners, best = points[point[nearest]], corners[face[nearest]], far[nearest]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    if not other.mesh.closed:  # its faces look anywhere
        normals *= np.where(((body.state.box_at(stamp_ns).mean(0) - points) * normals).sum(1) < 0, -1, 1)[:, None]
    touch = best < TOUCH_M
    return points[touch], side * normals[touch], best[touch]


def _nearest(points: Float[np.ndarray, "n 3"], corners: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3"]:
    """The point of each triangle that is nearest to a point."""
    sides, away = np.roll(corners, -1, axis=1) - corners, points[:, None] - corners
    shares = (away * sides).sum(-1) / np.maximum((sides**2).sum(-1), 1e-30)
    on_edges = corners + shares.clip(0, 1)[..., None] * sides
    edge = np.linalg.norm(on_edges - points[:, None], axis=-1).argmin(1)
    normals = np.cross(sides[:, 0], sides[:, 1])
    # Right of no edge it lies before the face.
    over = ((np.cross(sides, away) * normals[:, None]).sum(-1) >= 0).all(1)
    height = (away[:, 0] * normals).sum(1) / np.maximum((normals**2).sum(1), 1e-30)
    return np.where(over[:, None], points - height[:, None] * normals, on_edges[np.arange(len(corners)), edge])

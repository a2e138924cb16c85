"""Sensors against truth: what they measure in worlds that begin in MuJoCo rooms, from the seed's place.

A beam is *shown* where the seed's picture shows the surface that it truly meets. All others go where nobody saw
anything, and should say so. A cell of the map is shown where that picture, drawn finer, shows a surface that stops
the robot in it, or sees past all heights of it; rays cast through it say whether it is truly occupied.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.protocol import FREE, OCCUPIED, UNKNOWN, FloorPlan, Scan, WorldModel
from mirage_ros.scenes import Renderer, Scene, make_scene
from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.paths import best_view
from mirage_ros.world.sensors import PLAN_MARGIN, LidarConfig, MapConfig, ScanConfig, floor_plan, lidar, scan
from mirage_ros.world.state import WorldState
from mirage_ros.world.world import World

HFOV_DEG = 75.0
SAME_SURFACE_SHARE = 0.03
HEIGHTS_M = (0.0, 0.3)
"""Of the scanner; 0 is the camera's own height."""
REPEATS = 5
SIXTEEN = LidarConfig(tuple(np.arange(-15.0, 16.0, 2.0).tolist()))
"""As config/lidars/sixteen.yaml."""
TRUTH_PX = (512, 640)
"""Of the picture that tells which cells of the map the seed shows."""


@dataclass(frozen=True)
class Place:
    """A scene, a camera in it, what that truly sees, and a world that began there."""

    scene: Scene
    camera: Camera
    depth_m: Float[np.ndarray, "h w"]
    state: WorldState

    def shows(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
        """Which points of true surfaces the seed's picture shows."""
        pixels, depth = self.camera.project(points)
        with np.errstate(invalid="ignore"):
            column, row = np.rint(pixels).T
            inside = (depth > 0) & (row >= 0) & (row < self.camera.size[0])
            inside &= (column >= 0) & (column < self.camera.size[1])
        shown = np.zeros(len(points), bool)
        seen = self.depth_m[row[inside].astype(int), column[inside].astype(int)]
        shown[inside] = np.abs(seen - depth[inside]) < SAME_SURFACE_SHARE * depth[inside]
        return shown


@dataclass(frozen=True)
class ScanFigures:
    """One scan against truth.

    Attributes:
        shown: beams whose surface the seed shows, within range.
        median_error, p90_error: relative, of their ranges.
        lost: share of them without a range.
        unknown: share of all others that are NaN.
        milliseconds: that a scan takes.
    """

    seed: int
    height_m: float
    shown: int
    median_error: float
    p90_error: float
    lost: float
    unknown: float
    milliseconds: float


@dataclass(frozen=True)
class LidarFigures:
    """One lidar's turn against truth.

    Attributes:
        shown: beams whose surface the seed shows, within range.
        median_error, p90_error: relative, of their ranges.
        lost: share of them without a point.
        unknown: share of all others without one.
        milliseconds: that a turn takes.
    """

    seed: int
    shown: int
    median_error: float
    p90_error: float
    lost: float
    unknown: float
    milliseconds: float


@dataclass(frozen=True)
class MapFigures:
    """One map against the true floor plan.

    Attributes:
        shown: cells that the seed shows.
        known: of them, those that the map calls free or occupied.
        free_wrong, occupied_wrong: of these, cells called so that are not.
        wrong: share of both among the known.
        milliseconds: that a map takes.
    """

    seed: int
    shown: int
    known: int
    free_wrong: int
    occupied_wrong: int
    wrong: float
    milliseconds: float


class Truth:
    """Rays cast in a scene."""

    def __init__(self, scene: Scene) -> None:
        self._model, self._data, self._geom = scene.model, mujoco.MjData(scene.model), np.zeros(1, np.int32)
        mujoco.mj_forward(scene.model, self._data)

    def cast(self, origin: Float[np.ndarray, "3"], direction: Float[np.ndarray, "3"]) -> float:
        """Metres to the first surface; inf if there is none."""
        found = mujoco.mj_ray(self._model, self._data, origin, direction, None, 1, -1, self._geom)
        return found if found >= 0 else np.inf

    def stops(self, x: float, y: float, config: MapConfig) -> bool:
        """Whether a surface stops the robot in the cell around (x, y)."""
        low, high = config.heights_m[[0, -1]]
        half = config.resolution_m / 2
        if self.cast(np.array([x, y, high]), np.array([0.0, 0, -1])) < high - low:
            return True
        for z in config.heights_m:
            across = self.cast(np.array([x - half, y, z]), np.array([1.0, 0, 0]))
            along = self.cast(np.array([x, y - half, z]), np.array([0, 1.0, 0]))
            if min(across, along) <= config.resolution_m:
                return True
        return False


def begin(model: WorldModel, seed: int, kind: str) -> Place:
    """A world around one picture of a still scene, with its true depth."""
    scene = make_scene(seed, kind, moving=False)
    cameras = best_view(scene, seed, hfov_deg=HFOV_DEG, size=model.size)
    with Renderer(scene, model.size) as renderer:
        clip = renderer.render(cameras)
    world = World(model)
    world.reset(clip.rgb[0], cameras[0], clip.depth_m[0])
    return Place(scene, cameras[0], clip.depth_m[0], world.snapshot())


def true_ranges(scene: Scene, found: Scan) -> Float[np.ndarray, "n"]:
    """Of the scan's beams, by ray casting; inf where nothing is met."""
    truth, origin = Truth(scene), found.world_from_scan[:3, 3]
    return np.array([truth.cast(origin, beam) for beam in beams(found)])


def beams(found: Scan) -> Float[np.ndarray, "n 3"]:
    """Unit directions in the world."""
    angles = found.angle_min_rad + found.angle_step_rad * np.arange(len(found.ranges_m))
    return np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], -1) @ found.world_from_scan[:3, :3].T


def judge_scan(place: Place, seed: int, config: ScanConfig) -> tuple[ScanFigures, Scan]:
    """A scan from the seed's place, and how right it is."""
    state, pose = place.state, place.camera.world_from_camera
    seconds = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        found = scan(state.memory, state.free_space, pose, config)
        seconds.append(time.perf_counter() - start_s)
    truth = true_ranges(place.scene, found)
    within = np.isfinite(truth) & (truth <= config.range_max_m) & (truth >= config.range_min_m)
    ends = found.world_from_scan[:3, 3] + np.where(within, truth, 0)[:, None] * beams(found)
    shown = within & place.shows(ends)
    measured = shown & np.isfinite(found.ranges_m)
    errors = np.abs(found.ranges_m[measured] / truth[measured] - 1)
    figures = ScanFigures(
        seed,
        config.height_m,
        int(shown.sum()),
        float(np.median(errors)),
        float(np.percentile(errors, 90)),
        float(1 - measured.sum() / max(shown.sum(), 1)),
        float(np.isnan(found.ranges_m[~shown]).mean()),
        1e3 * float(np.median(seconds)),
    )
    return figures, found


def judge_lidar(place: Place, seed: int, config: LidarConfig) -> LidarFigures:
    """A turn at the seed's place, and how right it is."""
    memory, pose, seconds = place.state.memory, place.camera.world_from_camera, []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        found = lidar(memory, pose, config)
        seconds.append(time.perf_counter() - start_s)
    ranges = np.linalg.norm(found.points_m, axis=-1).reshape(-1)
    origin, away = found.world_from_lidar[:3, 3], config.beams.reshape(-1, 3) @ found.world_from_lidar[:3, :3].T
    truth = Truth(place.scene)
    true = np.array([truth.cast(origin, beam) for beam in away])
    within = (true >= config.range_min_m) & (true <= config.range_max_m)
    shown = within & place.shows(origin + np.where(within, true, 0)[:, None] * away)
    measured = shown & np.isfinite(ranges)
    errors = np.abs(ranges[measured] / true[measured] - 1)
    median, p90 = (float(np.percentile(errors, share)) for share in (50, 90))
    lost, unknown = float(1 - measured.sum() / max(shown.sum(), 1)), float(np.isnan(ranges[~shown]).mean())
    return LidarFigures(seed, int(shown.sum()), median, p90, lost, unknown, 1e3 * float(np.median(seconds)))


def judge_map(place: Place, seed: int, config: MapConfig) -> tuple[MapFigures, FloorPlan]:
    """The map of a world that has just begun, and how right it is."""
    state, seconds = place.state, []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        plan = floor_plan(state.memory, state.free_space, state.camera.position_world, config)
        seconds.append(time.perf_counter() - start_s)
    shown, known = shown_cells(place, plan, config), plan.cells != UNKNOWN
    truth, free_wrong, occupied_wrong = Truth(place.scene), 0, 0
    for row, column in np.argwhere(shown & known):
        x, y = plan.origin_m + plan.resolution_m * (np.array([column, row]) + 0.5)
        stops = truth.stops(x, y, config)
        free_wrong += stops and plan.cells[row, column] == FREE
        occupied_wrong += not stops and plan.cells[row, column] == OCCUPIED
    count = int((shown & known).sum())
    wrong = float((free_wrong + occupied_wrong) / max(count, 1))
    milliseconds = 1e3 * float(np.median(seconds))
    figures = MapFigures(seed, int(shown.sum()), count, int(free_wrong), int(occupied_wrong), wrong, milliseconds)
    return figures, plan


def shown_cells(place: Place, plan: FloorPlan, config: MapConfig) -> Bool[np.ndarray, "h w"]:
    """The cells that the seed's picture shows, by its true depth drawn finer."""
    cameras = Camera.stack([place.camera.resized(TRUTH_PX)])
    with Renderer(place.scene, TRUTH_PX) as renderer:
        depth_m = renderer.render(cameras).depth_m
    row, column = np.indices(plan.cells.shape).reshape(2, -1)
    seen = FreeSpaceViews(cameras, depth_m.astype(np.float16), np.ones(1, bool))
    past = np.ones(len(row), bool)
    for height_m in config.heights_m:
        points = np.stack([column + 0.5, row + 0.5, np.zeros(len(row))], -1) * plan.resolution_m
        past &= seen.seen_free(points + [*plan.origin_m, height_m], PLAN_MARGIN)
    shown, (low, high) = past.reshape(plan.cells.shape), config.heights_m[[0, -1]]
    points = cameras.lift(depth_m)[np.isfinite(depth_m)]
    points = points[(points[:, 2] >= low) & (points[:, 2] <= high)]
    column, row = np.floor((points[:, :2] - plan.origin_m) / plan.resolution_m).astype(int).T
    inside = (row >= 0) & (row < len(shown)) & (column >= 0) & (column < shown.shape[1])
    shown[row[inside], column[inside]] = True
    return shown


def run_bench(model: WorldModel, seeds: Sequence[int], kind: str, picture: Path | None) -> dict:
    """Judges the sensors in each room; draws what they measured where a picture is wanted."""
    scans, lidars, maps, drawn = [], [], [], []
    for seed in seeds:
        place = begin(model, seed, kind)
        for height_m in HEIGHTS_M:
            figures, found = judge_scan(place, seed, ScanConfig(height_m=height_m))
            scans.append(figures)
        lidars.append(judge_lidar(place, seed, SIXTEEN))
        figures, plan = judge_map(place, seed, MapConfig())
        maps.append(figures)
        drawn.append((place, found, plan))
    if picture is not None:
        draw(drawn, picture)
    rows = {"scans": scans, "lidars": lidars, "maps": maps}
    return {"kind": kind} | {name: [asdict(row) for row in found] for name, found in rows.items()}


def describe(report: dict) -> str:
    """The report as tables."""
    lines = ["scan: beams whose surface the seed shows, and the others",
             f"{'room':>8} {'height':>7} {'shown':>6} {'median':>7} {'p90':>6} {'lost':>6} {'others NaN':>11} "
             f"{'ms':>5}"]
    for row in report["scans"]:
        height = f"{row['height_m']:g} m" if row["height_m"] else "camera"
        lines.append(f"{row['seed']:>8} {height:>7} {_beam_columns(row)}")
    lines += ["", "lidar: beams of 16 rings whose surface the seed shows, and the others",
              f"{'room':>8} {'shown':>6} {'median':>7} {'p90':>6} {'lost':>6} {'others NaN':>11} {'ms':>5}"]
    for row in report["lidars"]:
        lines.append(f"{row['seed']:>8} {_beam_columns(row)}")
    lines += ["", "map: cells that the seed shows, against the true floor plan",
              f"{'room':>8} {'shown':>6} {'known':>6} {'not free':>9} {'not occupied':>13} {'wrong':>6} {'ms':>5}"]
    for row in report["maps"]:
        lines.append(
            f"{row['seed']:>8} {row['shown']:>6} {row['known']:>6} {row['free_wrong']:>9} {row['occupied_wrong']:>13} "
            f"{row['wrong']:>6.2%} {row['milliseconds']:>5.0f}"
        )
    return "\n".join(lines)


def _beam_columns(row: dict) -> str:
    return (
        f"{row['shown']:>6} {row['median_error']:>7.2%} {row['p90_error']:>6.1%} "
        f"{row['lost']:>6.1%} {row['unknown']:>11.1%} {row['milliseconds']:>5.1f}"
    )


def draw(drawn: Sequence[tuple[Place, Scan, FloorPlan]], path: Path) -> None:
    """Each room from above: what truly stops the beams and what the scan measured, on the map."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(drawn), figsize=(3.4 * len(drawn), 3.6), squeeze=False)
    for axis, (place, found, plan) in zip(axes[0], drawn, strict=True):
        (left, bottom), (height, width) = plan.origin_m, np.array(plan.cells.shape) * plan.resolution_m
        extent = (left, left + width, bottom, bottom + height)
        shades = np.select([plan.cells == FREE, plan.cells == OCCUPIED], [1.0, 0.0], 0.8)
        axis.imshow(shades, cmap="gray", vmin=0, vmax=1, origin="lower", extent=extent)
        axis.set_facecolor("0.8")
        origin, ahead = found.world_from_scan[:2, 3], beams(found)[:, :2]
        truth = true_ranges(place.scene, found)
        axis.scatter(*(origin + truth[:, None] * ahead).T, s=5, color="C2", label="true surface")
        known = np.isfinite(found.ranges_m)
        axis.scatter(*(origin + found.ranges_m[known, None] * ahead[known]).T, s=4, color="C3", label="scan")
        axis.plot(*origin, "o", color="C0", label="scanner")
        axis.arrow(*origin, *(0.5 * found.world_from_scan[:2, 0]), head_width=0.15, color="C0")
        axis.set_title(f"{place.scene.kind} {place.scene.seed}, {len(found.ranges_m)} beams", fontsize=9)
        axis.set_aspect("equal")
        axis.autoscale()
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)

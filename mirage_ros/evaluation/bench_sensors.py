"""Sensors against truth: what they measure in worlds that begin in MuJoCo rooms, from the seed's place.

A beam is *shown* where the seed's picture shows the surface that it truly meets. All others go where nobody saw
anything, and should say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Scan, WorldModel
from mirage_ros.scenes import Renderer, Scene, make_scene
from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.paths import best_view
from mirage_ros.world.sensors import ScanConfig, scan
from mirage_ros.world.state import WorldState
from mirage_ros.world.world import World

HFOV_DEG = 75.0
SAME_SURFACE_SHARE = 0.03
HEIGHTS_M = (0.0, 0.3)
"""Of the scanner; 0 is the camera's own height."""
REPEATS = 5


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
    data, geom = mujoco.MjData(scene.model), np.zeros(1, np.int32)
    mujoco.mj_forward(scene.model, data)
    origin = found.world_from_scan[:3, 3]
    ranges = [mujoco.mj_ray(scene.model, data, origin, beam, None, 1, -1, geom) for beam in beams(found)]
    return np.array([range_m if range_m >= 0 else np.inf for range_m in ranges])


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


def run_bench(model: WorldModel, seeds: Sequence[int], kind: str, picture: Path | None) -> dict:
    """Judges the sensors in each room; draws what they measured where a picture is wanted."""
    scans, drawn = [], []
    for seed in seeds:
        place = begin(model, seed, kind)
        for height_m in HEIGHTS_M:
            figures, found = judge_scan(place, seed, ScanConfig(height_m=height_m))
            scans.append(figures)
            drawn.append((place, found)) if height_m == HEIGHTS_M[-1] else None
    if picture is not None:
        draw(drawn, picture)
    return {"kind": kind, "scans": [asdict(figures) for figures in scans]}


def describe(report: dict) -> str:
    """The report as tables."""
    lines = ["scan: beams whose surface the seed shows, and the others",
             f"{'room':>8} {'height':>7} {'shown':>6} {'median':>7} {'p90':>6} {'lost':>6} {'others NaN':>11} {'ms':>5}"]  # fmt: skip
    for row in report["scans"]:
        height = f"{row['height_m']:g} m" if row["height_m"] else "camera"
        lines.append(
            f"{row['seed']:>8} {height:>7} {row['shown']:>6} {row['median_error']:>7.2%} {row['p90_error']:>6.1%} "
            f"{row['lost']:>6.1%} {row['unknown']:>11.1%} {row['milliseconds']:>5.1f}"
        )
    return "\n".join(lines)


def draw(drawn: Sequence[tuple[Place, Scan]], path: Path) -> None:
    """Each room from above: what truly stops the beams (grey), and what the scan measured (dots)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(drawn), figsize=(3.4 * len(drawn), 3.6), squeeze=False)
    for axis, (place, found) in zip(axes[0], drawn, strict=True):
        origin, ahead = found.world_from_scan[:2, 3], beams(found)[:, :2]
        truth = true_ranges(place.scene, found)
        axis.scatter(*(origin + truth[:, None] * ahead).T, s=5, color="0.75", label="true surface")
        known = np.isfinite(found.ranges_m)
        axis.scatter(*(origin + found.ranges_m[known, None] * ahead[known]).T, s=4, color="C3", label="scan")
        axis.plot(*origin, "o", color="C0", label="scanner")
        axis.arrow(*origin, *(0.5 * found.world_from_scan[:2, 0]), head_width=0.15, color="C0")
        axis.set_title(f"{place.scene.kind} {place.scene.seed}, {len(found.ranges_m)} beams", fontsize=9)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)

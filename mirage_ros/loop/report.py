"""A drive for people to look at: the way from above and the video, beside the ground truth's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.loop.footprint import Footprint
from mirage_ros.loop.trace import Trace, compare, trace_figures
from mirage_ros.recording.panels import (
    colour_depth,
    colour_observed,
    compose_row,
    depth_range_m,
)
from mirage_ros.recording.sheet import save_picture
from mirage_ros.recording.topdown import draw_cloud_from_above
from mirage_ros.recording.video import VideoWriter

ABOVE_PX = (640, 640)
CELL_PX = 8
TRUTH_CELLS = 96
DIMMED = 0.45
VIDEO_FACTOR = 2.0


def run_figures(trace: Trace, truth: Trace | None, footprint: Footprint) -> dict:
    """One run's part of the report."""
    figures = {"generated": trace_figures(trace, footprint)}
    if truth is not None:
        figures["truth"] = trace_figures(truth, footprint)
        figures["comparison"] = compare(trace, truth)
    return figures


def summary(runs: dict[str, dict], length_m: float) -> dict:
    """Over all runs: whether each was long enough and never inside a surface that was held."""
    generated = [run["generated"] for run in runs.values()]
    long_enough = [run["length_m"] >= length_m for run in generated]
    clean = [run["frames_inside_a_held_surface"] == 0 for run in generated]
    return {
        "runs": len(runs),
        "runs_long_enough": sum(long_enough),
        "runs_without_contact": sum(clean),
        "passed": all(long_enough) and all(clean) and bool(runs),
        "length_m": [round(run["length_m"], 2) for run in generated],
        "least_clearance_m": [run["least_clearance_m"] for run in generated],
    }


def describe(report: dict) -> str:
    """The report in a few lines."""
    lines = []
    for name, run in report["runs"].items():
        own = run["generated"]
        clear = own["least_clearance_m"]
        line = (
            f"{name}: {own['length_m']:.1f} m in {own['decisions']} decisions, nearest "
            f"{'nothing' if clear is None else f'{clear:.2f} m'}, "
            f"{own['frames_inside_a_held_surface']} frames inside what memory held"
        )
        if "comparison" in run:
            line += (
                f"; ground truth {run['truth']['length_m']:.1f} m, on average "
                f"{run['comparison']['mean_distance_m']:.1f} m apart"
            )
        lines.append(line)
    verdict = "passed" if report["summary"]["passed"] else "NOT passed"
    return "\n".join([*lines, f"{verdict}; pictures and videos in {report['out']}"])


def write_above(path: Path, trace: Trace, truth: Trace | None, footprint: Footprint) -> None:
    """Memory from above with the ground that the body covered in it and, thinner, the way in the
    ground truth; beside it the ground truth with the same two.

    What the body cannot touch, floor above all, is dimmed.
    """
    other = None if truth is None else truth.cameras()
    cells = trace.snaps[0].rgb.shape[1] // CELL_PX
    pictures = [_from_above(trace, other, footprint, cells)]
    captions = ["generated: what memory holds, the way (amber); red: body inside"]
    if truth is not None:
        pictures.append(_from_above(truth, trace.cameras(), footprint, TRUTH_CELLS))
        captions.append("MuJoCo scene, its own way (amber), the generated one (teal)")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, compose_row(pictures, captions))


def _from_above(
    trace: Trace, beside: Camera | None, footprint: Footprint, cells: int
) -> UInt8[np.ndarray, "h w 3"]:
    solid = footprint.at_its_height(trace.points)[:, None]
    colours = np.where(solid, trace.colours, (trace.colours * DIMMED).astype(np.uint8))
    return draw_cloud_from_above(
        trace.points,
        colours,
        trace.cameras(),
        ABOVE_PX,
        cells,
        beside=beside,
        body_m=2 * footprint.radius_m,
        touching=np.array(trace.clear_m) < 0,
    )


def write_video(path: Path, trace: Trace, truth: Trace | None, rate_hz: float) -> None:
    """Picture, depth and what came from memory; beside them the ground truth's own drive."""
    range_m = depth_range_m([snap.depth_m for snap in trace.snaps])
    with VideoWriter(path, rate_hz) as video:
        for index, snap in enumerate(trace.snaps):
            tiles = [
                snap.rgb,
                colour_depth(snap.depth_m, range_m),
                colour_observed(snap.rgb, snap.observed),
            ]
            captions = [
                f"generated   {snap.stamp_ns / 1e9:.1f} s",
                f"its depth, {range_m[0]:.1f} to {range_m[1]:.1f} m",
                f"from memory {100 * snap.observed.mean():.0f} % (teal)",
            ]
            if truth is not None:
                tiles.append(_truth_picture(truth, index, snap.rgb))
                captions.append("MuJoCo, its own drive")
            video.add(compose_row(tiles, captions, VIDEO_FACTOR))


def _truth_picture(truth: Trace, index: int, like: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """The ground truth's frame of that number; black once it has ended."""
    return truth.snaps[index].rgb if index < len(truth.snaps) else np.zeros_like(like)


def write_path(path: Path, trace: Trace) -> None:
    """The drive as JSON: stamps, hashes of picture and depth, poses, commands."""
    values = {
        "stamps_ns": [snap.stamp_ns for snap in trace.snaps],
        "frames_sha256": [snap.sha256 for snap in trace.snaps],
        "poses_x_y_yaw": [
            [pose.x_m, pose.y_m, pose.yaw_rad]
            for pose in [trace.start, *(snap.pose for snap in trace.snaps)]
        ],
        "commands_speed_turn": [[item.speed_mps, item.turn_rps] for item in trace.commands],
        "clearances_m": [value if np.isfinite(value) else None for value in trace.clear_m],
    }
    write_json(path, values)


def write_json(path: Path, values: dict) -> None:
    """Under a temporary name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)

"""The figures and pictures of a recorded rollout."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

import mirage_ros
from mirage_ros.evaluation.metrics import psnr_db, ssim
from mirage_ros.geometry.camera import Camera
from mirage_ros.recording.drawing import (
    Picture,
    cloud_size,
    colour_depth,
    compose_frame,
    compose_sheet,
    depth_range_m,
    draw_cloud_from_above,
    pick_moments,
    save_picture,
)
from mirage_ros.recording.topics import COLOR
from mirage_ros.recording.video import VideoWriter
from mirage_ros.ros.playback import STAGES_S, RecordedFrame, Recording

VIDEO_WIDTH_PX = 1200
CELL_PX = 8
PACKAGES = ("torch", "diffusers", "numpy", "rclpy", "mcap")
Frames = Sequence[RecordedFrame]


def rollout_figures(recording: Recording, planned_ns: list[int], started_ns: int) -> dict:
    """What arrived, how fast, and whether its stamps are the plan's.

    Args:
        planned_ns: stamps of the plan.
        started_ns: wall time when the plan's first pose was published.
    """
    frames = recording.frames
    stamps = [frame.stamp_ns for frame in frames]
    arrived = sorted(recording.stamps_ns[COLOR])
    alike = all(sorted(found) == arrived for found in recording.stamps_ns.values())
    offsets = [abs(a - b) for a, b in zip(arrived, planned_ns, strict=False)]
    wall_s = (max(frame.arrival_ns for frame in frames) - started_ns) / 1e9 if frames else None
    return {
        "frames": len(frames),
        "frames_planned": len(planned_ns),
        "frames_dropped": len(set(planned_ns) - set(stamps)),
        "stamps_equal_plan": arrived == sorted(planned_ns),
        "stamps_max_difference_ns": max(offsets, default=None),
        "rgb_info_depth_tf_stamps_equal": alike,
        "seconds": wall_s,
        "frames_per_s": len(frames) / wall_s if wall_s else None,
        "picture_size": list(frames[0].rgb.shape[:2]) if frames else None,
        **_status_figures(recording.statuses),
    }


def return_figures(frames: Frames) -> dict:
    """How alike the first and the last picture are, which were taken from one pose."""
    first, last = frames[0].rgb, frames[-1].rgb
    return {"psnr_return_db": _finite(psnr_db(first, last)), "ssim_return": ssim(first, last)}


def baseline_figures(pictures: list[UInt8[np.ndarray, "h w 3"]], frames: Frames) -> dict:
    """The same for the rollout without memory, whose first picture is `pictures[0]`.

    It is also compared with the first picture of the remembering rollout, because a world
    that fades to a uniform grey resembles itself.
    """
    own, true = psnr_db(pictures[0], pictures[-1]), psnr_db(frames[0].rgb, pictures[-1])
    return {
        "psnr_return_no_memory_db": _finite(true),
        "psnr_return_no_memory_to_own_first_db": _finite(own),
        "ssim_return_no_memory": ssim(frames[0].rgb, pictures[-1]),
    }


def machine_figures(node_peak_bytes: int | None) -> dict:
    """Where the figures were taken and with what."""
    return {
        "node_peak_memory_bytes": node_peak_bytes,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "cpu": _cpu_name(),
            "system": platform.platform(),
        },
        "versions": {
            "mirage_ros": mirage_ros.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
    }


def write_video(path: Path, frames: Frames, rate_hz: float) -> None:
    """RGB, depth and observed side by side, at the plan's own rate."""
    range_m = depth_range_m([frame.depth_m for frame in frames])
    factor = max(1.0, VIDEO_WIDTH_PX / (3 * frames[0].rgb.shape[1]))
    with VideoWriter(path, rate_hz) as video:
        for frame in frames:
            time_s = (frame.stamp_ns - frames[0].stamp_ns) / 1e9
            pictures = (frame.rgb, frame.depth_m, frame.observed)
            video.add(compose_frame(*pictures, range_m, time_s, factor))


def write_sheet(
    path: Path,
    title: str,
    recording: Recording,
    cameras: Camera,
    report: dict,
    baseline_last: UInt8[np.ndarray, "h w 3"] | None,
) -> None:
    """Moments, the cloud from above, and the return beside the first view."""
    frames = recording.frames
    start_ns = frames[0].stamp_ns
    moments = [
        Picture(frames[index].rgb, f"{(frames[index].stamp_ns - start_ns) / 1e9:.1f} s")
        for index in pick_moments(len(frames))
    ]
    aspect = frames[0].rgb.shape[0] / frames[0].rgb.shape[1]
    cloud = recording.cloud or {"xyz": np.zeros((0, 3)), "rgb": np.zeros((0, 3), np.uint8)}
    cells = max(frames[0].rgb.shape[1] // CELL_PX, 1)
    drawn = draw_cloud_from_above(cloud["xyz"], cloud["rgb"], cameras, cloud_size(aspect), cells)
    subtitle = (
        f"{report['frames']} frames of {frames[0].rgb.shape[1]}x{frames[0].rgb.shape[0]} at "
        f"{report['frames_per_s']:.1f} frames/s on {report['machine']['cores']} cores, "
        f"{report.get('cache_tokens', 0):,} tokens remembered"
    )
    comparison = _comparison(frames, report, baseline_last)
    above = Picture(drawn, "what it remembers, from above, and the camera's path")
    save_picture(path, compose_sheet(title, subtitle, moments, above, comparison))


def _comparison(frames: Frames, report: dict, baseline_last) -> list[Picture]:
    range_m = depth_range_m([frame.depth_m for frame in frames])
    pictures = [
        Picture(frames[0].rgb, "first view"),
        Picture(frames[-1].rgb, f"back again: {_decibels(report['psnr_return_db'])}"),
    ]
    if baseline_last is not None:
        decibels = _decibels(report["psnr_return_no_memory_db"])
        pictures.append(Picture(baseline_last, f"back again without memory: {decibels}"))
    depth = colour_depth(frames[-1].depth_m, range_m)
    return [*pictures, Picture(depth, f"depth, {range_m[0]:.1f} to {range_m[1]:.1f} m")]


def _status_figures(statuses: list[dict]) -> dict:
    if not statuses:
        return {}
    last = statuses[-1]
    return {
        "chunks": len(statuses),
        "chunk_latency_median_s": {
            stage.removesuffix("_s"): round(float(np.median([s[stage] for s in statuses])), 4)
            for stage in STAGES_S
        },
        "chunk_frames_per_s_median": float(np.median([s["frames_per_s"] for s in statuses])),
        "cache_tokens": int(last["cache_tokens"]),
        "cache_bytes": int(last["cache_bytes"]),
        "observed_fraction_last": float(last["observed_fraction"]),
        "observed_fraction_least": float(min(s["observed_fraction"] for s in statuses)),
    }


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _finite(value: float) -> float | None:
    """JSON has no infinity; equal pictures give null."""
    return round(value, 3) if np.isfinite(value) else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""`mirage demo`: runs planner, node and recorder as three processes, judges what was recorded, and draws and says so."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

import mirage_ros
from mirage_ros.data.seeds import Seed, central_depth_m, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import psnr_db, ssim
from mirage_ros.files import write_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.machine import Children, mirage_command, private_environment, processor_name
from mirage_ros.models import load_model
from mirage_ros.protocol import WorldModel
from mirage_ros.recording import drawing
from mirage_ros.recording.mcap import clear
from mirage_ros.recording.topics import COLOR
from mirage_ros.recording.video import VideoWriter
from mirage_ros.ros.playback import STAGES_S, RecordedFrame, Recording, read_recording
from mirage_ros.world.world import World, WorldConfig

VIDEO_WIDTH_PX = 1200
CELL_PX = 8
PACKAGES = ("torch", "diffusers", "numpy", "rclpy", "mcap")
Frames = Sequence[RecordedFrame]


READY_S = 180.0
IDLE_S = 90.0
ENDING_S = 20.0


@dataclass(frozen=True)
class DemoConfig:
    """One demo.

    Attributes:
        seed, hfov_deg: where the world starts, see `load_seed`.
        out: folder for the video, the sheet, the recording and the report.
        frames, rate_hz: length and rate of the planned path.
        model: checkpoint of the node and of the comparison.
        use_memory: False runs the node itself without its memory.
        compare: also run the same rollout without memory.
        world_seed: of the noise.
        node_command: starts the node instead of `mirage node`; gets the same arguments.
    """

    seed: str = "room"
    hfov_deg: float | None = None
    out: Path = Path("out")
    frames: int = 72
    rate_hz: float = 10.0
    model: str = "mini"
    use_memory: bool = True
    compare: bool = True
    world_seed: int = 0
    node_command: tuple[str, ...] | None = None


def run_demo(config: DemoConfig, load: Callable[[str], WorldModel] = load_model) -> dict:
    """Run it and write demo.mp4, demo.png, demo.mcap and report.json into `config.out`.

    Returns:
        The report. `complete` tells whether every planned frame arrived with its stamp.

    Raises:
        MirageError: a bad seed, or a process that failed; nothing stays running.
    """
    seed = load_seed(config.seed, config.hfov_deg)
    config.out.mkdir(parents=True, exist_ok=True)
    model = load(config.model) if config.compare or seed.depth_m is None else None
    scene_depth_m = None if seed.depth_m is not None else _estimate_depth_m(seed, model)
    clear(config.out / "demo.mcap")
    log, peak_bytes = _run_processes(config, scene_depth_m)
    recording = read_recording(config.out / "demo.mcap")
    if not recording.frames:
        raise MirageError(f"The recording {config.out}/demo.mcap holds no whole frame.")
    poses = np.array(log["world_from_camera"])
    cameras = Camera(np.array(log["intrinsics"]), poses, tuple(log["size"]))
    report = {"seed": seed.name, "model": config.model, "memory": config.use_memory}
    report |= rollout_figures(recording, log["stamps_ns"], log["started_ns"])
    report |= return_figures(recording.frames)
    baseline = None
    if config.compare and config.use_memory:
        baseline = _roll_out_without_memory(model, seed, cameras, log["stamps_ns"], config)
        report |= baseline_figures(baseline, recording.frames)
    report |= machine_figures(peak_bytes)
    report["complete"] = report["stamps_equal_plan"] and report["rgb_info_depth_tf_stamps_equal"]
    write_json(config.out / "report.json", report)
    write_video(config.out / "demo.mp4", recording.frames, config.rate_hz)
    last = baseline[-1] if baseline else None
    title = f"mirage  ·  {seed.name}"
    write_sheet(config.out / "demo.png", title, recording, cameras, report, last)
    return report


def describe(report: dict, out: Path) -> str:
    """A short table of a demo's report."""
    rows = [
        ("video", str(out / "demo.mp4")),
        ("contact sheet", str(out / "demo.png")),
        ("recording", f"{out / 'demo.mcap'}  (Foxglove, ros2 bag)"),
        ("report", str(out / "report.json")),
        ("", ""),
        (
            "frames",
            f"{report['frames']} of {report['frames_planned']}, "
            f"{report['frames_dropped']} dropped, {report['frames_per_s']:.1f} frames/s",
        ),
        ("stamps equal the plan's", _yes(report["stamps_equal_plan"])),
        ("RGB = info = depth = TF", _yes(report["rgb_info_depth_tf_stamps_equal"])),
        ("first against returned view", _decibels_in_words(report["psnr_return_db"])),
    ]
    if "psnr_return_no_memory_db" in report:
        rows.append(("  the same without memory", _decibels_in_words(report["psnr_return_no_memory_db"])))
    if "cache_tokens" in report:
        size = report["cache_bytes"] / 2**20
        rows.append(("memory", f"{report['cache_tokens']:,} tokens, {size:.1f} MiB"))
    if report.get("node_peak_memory_bytes"):
        rows.append(("node's peak memory", f"{report['node_peak_memory_bytes'] / 2**30:.2f} GiB"))
    return "\n".join(f"{name:<28}{value}".rstrip() for name, value in rows)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _decibels_in_words(value: float | None) -> str:
    return "equal pictures" if value is None else f"PSNR {value:.1f} dB"


def _estimate_depth_m(seed: Seed, model: WorldModel) -> float:
    """How far the scene of a photograph is, as the model sees it."""
    frame = World(model).reset(seed.rgb, seed.camera).frames[0]
    return central_depth_m(frame.depth_m)


def _run_processes(config: DemoConfig, scene_depth_m: float | None) -> tuple[dict, int | None]:
    """The three processes until all is recorded; returns the plan's log and the node's peak."""
    logs = config.out / "logs"
    plan_log = logs / "plan.json"
    plan_log.unlink(missing_ok=True)
    with Children(logs, private_environment()) as children:
        node = [*(config.node_command or mirage_command("node")), *_node_arguments(config)]
        children.start("node", node)
        children.start("recorder", _recorder_command(config), read_stdout=True)
        with tqdm(total=config.frames, unit="frame", desc="starting the node") as bar:
            _follow(
                children,
                bar,
                lambda: children.start(
                    "planner", _planner_command(config, plan_log, scene_depth_m)
                ),
            )
        peak_bytes = children.peak_memory_bytes("node")
        deadline = time.monotonic() + ENDING_S
        while children.running("planner") and time.monotonic() < deadline:
            time.sleep(0.05)
        children.check()
        if not children.running("node"):
            raise children.failure("node")
    return json.loads(plan_log.read_text()), peak_bytes


def _follow(children: Children, bar: tqdm, on_ready: Callable[[], object]) -> None:
    """Follow the recorder's events until it ends well; a failing process raises."""
    events = children.events("recorder")
    deadline = time.monotonic() + READY_S
    while True:
        event = events.next(0.2)
        children.check()
        if event is None:
            if not children.running("node"):
                raise children.failure("node")
            if bar.n == 0 and time.monotonic() > deadline:
                raise MirageError(
                    f"The node published nothing within {READY_S:.0f} s; see its log in "
                    f"{children.log_folder}."
                )
            if not children.running("recorder") and events.ended:
                return
        elif event["event"] == "ready":
            bar.set_description("waiting for the plan")
            on_ready()
        elif event["event"] == "frames":
            bar.set_description("generating")
            bar.update(event["count"] - bar.n)


def _node_arguments(config: DemoConfig) -> list[str]:
    arguments = ["--seed", config.seed, "--model", config.model]
    arguments += ["--world-seed", str(config.world_seed)]
    if config.hfov_deg is not None:
        arguments += ["--hfov", str(config.hfov_deg)]
    arguments += [] if config.use_memory else ["--no-memory"]
    return [*arguments, "--ros-args", "-p", f"frame_rate_hz:={float(config.rate_hz)}"]


def _recorder_command(config: DemoConfig) -> list[str]:
    path = str(config.out / "demo.mcap")
    limits = ["--frames", str(config.frames), "--idle", str(IDLE_S)]
    return mirage_command("record", path, *limits, "--json")


def _planner_command(config: DemoConfig, log: Path, scene_depth_m: float | None) -> list[str]:
    # Both the node and the recorder listen to /tf.
    arguments = ["--seed", config.seed, "--frames", str(config.frames), "--listeners", "2"]
    arguments += ["--rate", str(config.rate_hz), "--log", str(log)]
    if config.hfov_deg is not None:
        arguments += ["--hfov", str(config.hfov_deg)]
    if scene_depth_m is not None:
        arguments += ["--scene-depth", str(scene_depth_m)]
    return mirage_command("plan", *arguments)


def _roll_out_without_memory(
    model: WorldModel, seed: Seed, cameras: Camera, stamps_ns: list[int], config: DemoConfig
) -> list[np.ndarray]:
    """The pictures of the same plan, noise and model in a world that forgets."""
    world = World(model, WorldConfig(seed=config.world_seed, use_memory=False))
    period_ns = round(1e9 / config.rate_hz)
    world.reset(seed.rgb, seed.camera, seed.depth_m, stamps_ns[0] - period_ns)
    chunks = world.rollout(cameras, np.array(stamps_ns))
    total = -(-len(stamps_ns) // model.chunk_frames)
    bar = tqdm(chunks, total=total, unit="chunk", desc="comparing without memory")
    return [frame.rgb for chunk in bar for frame in chunk.frames]


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
            "cpu": processor_name(),
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
    range_m = drawing.depth_range_m([frame.depth_m for frame in frames])
    factor = max(1.0, VIDEO_WIDTH_PX / (3 * frames[0].rgb.shape[1]))
    with VideoWriter(path, rate_hz) as video:
        for frame in frames:
            time_s = (frame.stamp_ns - frames[0].stamp_ns) / 1e9
            pictures = (frame.rgb, frame.depth_m, frame.observed)
            video.add(drawing.compose_frame(*pictures, range_m, time_s, factor))


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
        drawing.Picture(frames[index].rgb, f"{(frames[index].stamp_ns - start_ns) / 1e9:.1f} s")
        for index in drawing.pick_moments(len(frames))
    ]
    aspect = frames[0].rgb.shape[0] / frames[0].rgb.shape[1]
    cloud = recording.cloud or {"xyz": np.zeros((0, 3)), "rgb": np.zeros((0, 3), np.uint8)}
    cells = max(frames[0].rgb.shape[1] // CELL_PX, 1)
    drawn = drawing.draw_cloud_from_above(cloud["xyz"], cloud["rgb"], cameras, drawing.cloud_size(aspect), cells)
    subtitle = (
        f"{report['frames']} frames of {frames[0].rgb.shape[1]}x{frames[0].rgb.shape[0]} at "
        f"{report['frames_per_s']:.1f} frames/s on {report['machine']['cores']} cores, "
        f"{report.get('cache_tokens', 0):,} tokens remembered"
    )
    comparison = _comparison(frames, report, baseline_last)
    above = drawing.Picture(drawn, "what it remembers, from above, and the camera's path")
    drawing.save_picture(path, drawing.compose_sheet(title, subtitle, moments, above, comparison))


def _comparison(frames: Frames, report: dict, baseline_last) -> list[drawing.Picture]:
    range_m = drawing.depth_range_m([frame.depth_m for frame in frames])
    pictures = [
        drawing.Picture(frames[0].rgb, "first view"),
        drawing.Picture(frames[-1].rgb, f"back again: {_decibels(report['psnr_return_db'])}"),
    ]
    if baseline_last is not None:
        decibels = _decibels(report["psnr_return_no_memory_db"])
        pictures.append(drawing.Picture(baseline_last, f"back again without memory: {decibels}"))
    depth = drawing.colour_depth(frames[-1].depth_m, range_m)
    return [*pictures, drawing.Picture(depth, f"depth, {range_m[0]:.1f} to {range_m[1]:.1f} m")]


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

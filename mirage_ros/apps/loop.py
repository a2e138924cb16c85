"""`mirage loop`: node, base and policy as processes, and the ground truth beside them.

For people it draws the way from above and a video, beside the ground truth's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.files import share_path, write_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.loop import Footprint
from mirage_ros.loop.drive import DriveConfig, Trace, compare, drive, trace_figures
from mirage_ros.machine import Children, mirage_command, private_environment
from mirage_ros.recording.drawing import (
    colour_depth,
    colour_observed,
    compose_row,
    depth_range_m,
    draw_cloud_from_above,
    save_picture,
)
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


READY_S = 180.0
SILENCE_S = 120.0
BAR = "{desc}: {percentage:3.0f}% |{bar}| {n:.1f} of {total:.1f} m, {elapsed} so far"


@dataclass(frozen=True)
class LoopConfig:
    """Several drives.

    Attributes:
        worlds: each a seed (see `load_seed`), or `kind:number` for a MuJoCo scene, which is then
            driven through as ground truth as well: `room:2000007`.
        out: folder for everything.
        drive: how far and how fast.
        model: the node's checkpoint.
        world_seed: of the noise.
        step_frames: frames of the model's chunk; each is one decision.
        truth: drive through the MuJoCo scene, too.
        video: write a video of each drive.
        node_command: starts the node instead of `mirage node`; gets the same arguments.
    """

    worlds: Sequence[str] = ("room:2000007",)
    out: Path = Path("out/loop")
    drive: DriveConfig = DriveConfig()
    model: str = "mini"
    world_seed: int = 0
    step_frames: int = 4
    truth: bool = True
    video: bool = True
    node_command: Sequence[str] | None = None


def run_loop(config: LoopConfig) -> dict:
    """Drives through every world; writes report.json and, for each world, its path, picture and
    video.

    Raises:
        MirageError: a bad seed, or a process that failed; nothing stays running.
    """
    runs: dict[str, dict] = {}
    for name in config.worlds:
        folder = config.out / name.replace(":", "_").replace("/", "_")
        scene, seed = _world(name, folder)
        trace = _drive_over_ros(config, seed, folder)
        truth = _drive_truth(config, scene, seed, trace) if scene and config.truth else None
        footprint = config.drive.wander.footprint
        runs[name] = run_figures(trace, truth, footprint)
        write_path(folder / "path.json", trace)
        write_above(folder / "above.png", trace, truth, footprint)
        if config.video:
            write_video(folder / "drive.mp4", trace, truth, 1 / config.drive.period_s)
        write_json(config.out / "report.json", _report(config, runs))
    return _report(config, runs)


def _report(config: LoopConfig, runs: dict[str, dict]) -> dict:
    drive, wander = config.drive, config.drive.wander
    return {
        "out": str(config.out),
        "model": config.model,
        "world_seed": config.world_seed,
        "period_s": drive.period_s,
        "footprint": {
            "radius_m": wander.footprint.radius_m,
            "low_m": wander.footprint.low_m,
            "high_m": wander.footprint.high_m,
        },
        "runs": runs,
        "summary": summary(runs, drive.length_m),
    }


def _world(name: str, folder: Path):
    """The MuJoCo scene of a world, None for a plain seed, and the seed's name."""
    kind, _, number = name.partition(":")
    from mirage_ros.loop.drive import KINDS, render_seed

    if kind not in KINDS or not number.isdigit():
        return None, name
    return render_seed(folder / "seed", int(number), kind), str(folder / "seed")


def _drive_over_ros(config: LoopConfig, seed: str, folder: Path) -> Trace:
    from mirage_ros.ros.loop_nodes import LoopWatch

    environment, footprint = private_environment(), config.drive.wander.footprint
    with (
        LoopWatch(environment, footprint, config.step_frames) as watch,
        Children(folder / "logs", environment) as children,
    ):
        children.start("node", node_arguments(config, seed))
        children.start("base", base_arguments(config, seed))
        children.start("wander", policy_arguments())
        _follow(config, children, watch)
        return watch.trace()


def _follow(config: LoopConfig, children: Children, watch) -> None:
    """Until the way is long enough or the decisions are spent; a failing process raises."""
    limit = (config.drive.decisions + 1) * config.step_frames
    newest, since_s, patience_s = 0, time.monotonic(), READY_S
    with tqdm(total=config.drive.length_m, desc="starting", bar_format=BAR) as bar:
        while watch.way_m() < config.drive.length_m and watch.frames() < limit:
            watch.spin(0.2)
            children.check()
            if not all(children.running(name) for name in ("node", "base", "wander")):
                raise MirageError(f"A process of the loop ended; see {children.log_folder}.")
            if watch.frames() > newest:
                newest, since_s, patience_s = watch.frames(), time.monotonic(), SILENCE_S
                bar.set_description("driving")
                bar.update(watch.way_m() - bar.n)
            elif time.monotonic() - since_s > patience_s:
                raise children.silence(f"No new frame came for {patience_s:.0f} s.")
    watch.settle()


def node_arguments(config: LoopConfig, seed: str) -> list[str]:
    """The node in lockstep by its own YAML, with what the loop settles on top."""
    node = [*(config.node_command or mirage_command("node"))]
    node += ["--params", str(share_path("config", "lockstep.yaml")), "--seed", seed]
    node += ["--model", config.model, "--world-seed", str(config.world_seed), "--ros-args"]
    rate_hz = 1 / config.drive.period_s
    for setting in (f"frame_rate_hz:={rate_hz}", f"step_frames:={config.step_frames}"):
        node += ["-p", setting]
    return node


def base_arguments(config: LoopConfig, seed: str) -> list[str]:
    rate = ["--rate", str(1 / config.drive.period_s), "--step-frames", str(config.step_frames)]
    return mirage_command("base", "--seed", seed, *rate)


def policy_arguments() -> list[str]:
    """The policy, whose commands the watch passes on to the base."""
    from mirage_ros.ros.loop_nodes import DECIDED

    return mirage_command("wander", "--ros-args", "-r", f"cmd_vel:={DECIDED}")


def _drive_truth(config: LoopConfig, scene, seed: str, trace: Trace) -> Trace:
    """The same policy from the same place in the scene itself, through the same lens."""
    from mirage_ros.loop.drive import MujocoWorld

    start = load_seed(seed).camera.world_from_camera
    lens = trace.snaps[0].camera
    camera = Camera(lens.intrinsics, start, lens.size)
    world = MujocoWorld(scene, camera, config.step_frames)
    try:
        # Over ROS the base stands still for a step, because the policy has seen nothing yet.
        return drive(world, replace(config.drive, still_steps=1))
    finally:
        world.close()

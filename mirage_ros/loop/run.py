"""What `mirage loop` runs: node, base and policy as processes, and the ground truth beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.demo.processes import Children, mirage_command, private_environment
from mirage_ros.loop import report as figures
from mirage_ros.loop.drive import DriveConfig, drive
from mirage_ros.loop.trace import Trace
from mirage_ros.resources import share_path
from mirage_ros.seeds import load_seed

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
        runs[name] = figures.run_figures(trace, truth, footprint)
        figures.write_path(folder / "path.json", trace)
        figures.write_above(folder / "above.png", trace, truth, footprint)
        if config.video:
            figures.write_video(folder / "drive.mp4", trace, truth, 1 / config.drive.period_s)
        figures.write_json(config.out / "report.json", _report(config, runs))
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
        "summary": figures.summary(runs, drive.length_m),
    }


def _world(name: str, folder: Path):
    """The MuJoCo scene of a world, None for a plain seed, and the seed's name."""
    kind, _, number = name.partition(":")
    from mirage_ros.loop.scenes import KINDS, render_seed

    if kind not in KINDS or not number.isdigit():
        return None, name
    return render_seed(folder / "seed", int(number), kind), str(folder / "seed")


def _drive_over_ros(config: LoopConfig, seed: str, folder: Path) -> Trace:
    from mirage_ros.ros.loop_watch import LoopWatch

    environment = private_environment()
    with Children(folder / "logs", environment) as children:
        children.start("node", node_arguments(config, seed))
        children.start("base", base_arguments(config, seed))
        children.start("wander", mirage_command("wander"))
        footprint = config.drive.wander.footprint
        with LoopWatch(environment, footprint, config.step_frames) as watch:
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
                raise MirageError(
                    f"No new frame came for {patience_s:.0f} s; see the logs in "
                    f"{children.log_folder}."
                )
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


def _drive_truth(config: LoopConfig, scene, seed: str, trace: Trace) -> Trace:
    """The same policy from the same place in the scene itself, through the same lens."""
    from mirage_ros.loop.simulators import MujocoWorld

    start = load_seed(seed).camera.world_from_camera
    lens = trace.snaps[0].camera
    camera = Camera(lens.intrinsics, start, lens.size)
    world = MujocoWorld(scene, camera, config.step_frames)
    try:
        # Over ROS the base stands still for a step, because the policy has seen nothing yet.
        return drive(world, replace(config.drive, still_steps=1))
    finally:
        world.close()

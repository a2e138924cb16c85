"""`mirage demo`: runs planner, node and recorder as three processes, judges what arrived, and says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_ros.apps import demo_report as figures
from mirage_ros.data.seeds import Seed, central_depth_m, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.files import write_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.machine import Children, mirage_command, private_environment
from mirage_ros.models.pretrained import load_model
from mirage_ros.protocol import WorldModel
from mirage_ros.recording.mcap import clear
from mirage_ros.world.world import World, WorldConfig


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
        ("first against returned view", _decibels(report["psnr_return_db"])),
    ]
    if "psnr_return_no_memory_db" in report:
        rows.append(("  the same without memory", _decibels(report["psnr_return_no_memory_db"])))
    if "cache_tokens" in report:
        size = report["cache_bytes"] / 2**20
        rows.append(("memory", f"{report['cache_tokens']:,} tokens, {size:.1f} MiB"))
    if report.get("node_peak_memory_bytes"):
        rows.append(("node's peak memory", f"{report['node_peak_memory_bytes'] / 2**30:.2f} GiB"))
    return "\n".join(f"{name:<28}{value}".rstrip() for name, value in rows)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _decibels(value: float | None) -> str:
    return "equal pictures" if value is None else f"PSNR {value:.1f} dB"


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
    # rclpy is needed here only to decode the recording; plain `--help` must not load it.
    from mirage_ros.ros.playback import read_recording

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
    report |= figures.rollout_figures(recording, log["stamps_ns"], log["started_ns"])
    report |= figures.return_figures(recording.frames)
    baseline = None
    if config.compare and config.use_memory:
        baseline = _roll_out_without_memory(model, seed, cameras, log["stamps_ns"], config)
        report |= figures.baseline_figures(baseline, recording.frames)
    report |= figures.machine_figures(peak_bytes)
    report["complete"] = report["stamps_equal_plan"] and report["rgb_info_depth_tf_stamps_equal"]
    write_json(config.out / "report.json", report)
    figures.write_video(config.out / "demo.mp4", recording.frames, config.rate_hz)
    last = baseline[-1] if baseline else None
    title = f"mirage  ·  {seed.name}"
    figures.write_sheet(config.out / "demo.png", title, recording, cameras, report, last)
    return report


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

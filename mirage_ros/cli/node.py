"""The node (`mirage node`), a planner and a recorder for it (`mirage plan`, `record`, `recover`), all three over DDS
(`mirage demo`), and what is wrong with the machine and its ROS graph, or installed (`mirage doctor`, `info`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mirage_ros
from mirage_ros.cli.arguments import (
    add_command,
    add_model,
    add_namespace,
    add_ros_arguments,
    add_seed,
    add_world_seed,
)
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.recording import FORMATS

PACKAGES = ("torch", "diffusers", "peft", "numba", "rclpy", "mcap", "mujoco")


def add_doctor(parsers) -> None:
    parser = add_command(
        parsers,
        "doctor",
        doctor,
        "look for what is wrong with this machine and its ROS graph, and say what to do",
        "examples:\n  mirage doctor\n  mirage doctor --frames base_link --listen 10\n\n"
        "checks node names, QoS of every connection, clocks, transforms, reported errors, DDS's\n"
        "shared memory and the GPU's; exit code 1 with a fault.",
    )
    parser.add_argument(
        "--listen", type=float, default=5.0, metavar="S",
        help="seconds to listen once another node is seen (default: 5)",
    )  # fmt: skip
    parser.add_argument("--world-frame", default="world", help="(default: world)")
    parser.add_argument(
        "--frames", nargs="+", default=[], metavar="FRAME", help="frames that must be on TF"
    )
    parser.add_argument(
        "--need-shm", type=float, default=64.0, metavar="MIB",
        help="least free shared memory (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--need-gpu", type=float, default=1024.0, metavar="MIB",
        help="least free memory of a GPU, where there is one (default: 1024)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_info(parsers) -> None:
    parser = add_command(
        parsers, "info", info, "tell versions, devices, shipped seeds and the model's card"
    )
    add_model(parser)


def doctor(arguments: argparse.Namespace) -> int:
    from mirage_ros.machine import describe, exit_code
    from mirage_ros.ros.doctor import DoctorConfig, examine

    findings = examine(
        DoctorConfig(
            arguments.listen,
            arguments.world_frame,
            arguments.frames,
            arguments.need_shm,
            arguments.need_gpu,
        )
    )
    if arguments.json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        print(describe(findings))
    return exit_code(findings)


def info(arguments: argparse.Namespace) -> int:
    print(installed(arguments.model))
    return 0


def installed(model_name: str = "mini") -> str:
    """A table of versions, devices, shipped seeds and the model; a model that cannot be loaded is a line of it."""
    from mirage_ros.data.seeds import shipped_seeds

    rows = [
        ("mirage_ros", f"{mirage_ros.__version__}  ({Path(mirage_ros.__file__).parent})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, _version(name)) for name in PACKAGES),
        ("devices", _devices()),
        ("shipped seeds", ", ".join(shipped_seeds()) or "none"),
        ("model", _model(model_name)),
    ]
    return "\n".join(f"{name:<15}{value}" for name, value in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch

    names = [f"cpu, {len(os.sched_getaffinity(0))} cores"]
    for index in range(torch.cuda.device_count()):
        names.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    return "; ".join(names)


def _model(name: str) -> str:
    from mirage_ros.models import load_model

    try:
        model = load_model(name)
    except MirageError as error:
        return f"{name}: {error}"
    height, width = model.size
    return (
        f"{model.name}: {width}x{height} pictures, {model.channels} channels at stride "
        f"{model.stride}, {model.chunk_frames} frames a chunk"
    )


def add_node(parsers) -> None:
    parser = add_command(
        parsers,
        "node",
        node,
        "run the node: camera poses from TF in; pictures, depth and cloud out",
        "examples:\n  mirage node --seed room\n  mirage node --params config/mirage.yaml\n"
        "  mirage node --seed room --robots three\n"
        "  mirage node --seed room --ros-args -p frame_rate_hz:=5.0 -r __ns:=/robot",
    )
    add_seed(parser, default=None)
    parser.add_argument("--params", type=user_path, metavar="YAML", help="ROS parameter file")
    parser.add_argument("--model", help="checkpoint: mini, a folder or a hub id")
    parser.add_argument("--namespace", default="", help="ROS namespace of the node's topics")
    parser.add_argument("--robots", metavar="YAML", help="several robots in place of one camera: a file or a shipped name (three)")
    parser.add_argument("--world-seed", type=int, help="seed of the noise")
    parser.add_argument("--no-memory", action="store_true", help="switch the memory off")
    add_ros_arguments(parser)


def add_plan(parsers) -> None:
    parser = add_command(
        parsers,
        "plan",
        plan,
        "publish a camera path on TF that leaves the seed's view and returns to it",
        "example, beside a running `mirage node --seed room`:\n"
        "  mirage plan --seed room --frames 72 --rate 10",
    )
    add_seed(parser)
    parser.add_argument("--frames", type=int, default=72, help="poses (default: 72)")
    parser.add_argument("--rate", type=float, default=10.0, help="poses/s (default: 10)")
    parser.add_argument(
        "--ahead",
        type=float,
        default=3.0,
        metavar="S",
        help="seconds of plan published ahead of what is rendered (default: 3)",
    )
    parser.add_argument("--scene-depth", type=float, metavar="M",
                        help="distance of the scene in metres (default: measured, or 3)")  # fmt: skip
    parser.add_argument("--world-frame", default="world", help="(default: world)")
    parser.add_argument(
        "--camera-frame", default="camera_color_optical_frame", help="(default: %(default)s)"
    )
    add_namespace(parser)
    parser.add_argument(
        "--listeners", type=int, default=1, help="subscriptions to /tf to wait for (default: 1)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=120.0,
        metavar="S",
        help="give up after so long without listener or picture (default: 120)",
    )
    parser.add_argument("--log", type=user_path, metavar="JSON", help="write the plan to a file")


def node(arguments: argparse.Namespace) -> int:
    from mirage_ros.ros.node import main

    return main(node_ros_arguments(arguments)) or 0


def node_ros_arguments(arguments: argparse.Namespace) -> list[str]:
    """The node's command line in ROS's own words; the file first, so that options override it."""
    words = ["--ros-args"]
    if arguments.params is not None:
        if not arguments.params.is_file():
            raise MirageError(
                f"There is no parameter file {arguments.params}; give one such as mirage.yaml."
            )
        words += ["--params-file", str(arguments.params)]
    if arguments.namespace:
        words += ["-r", f"__ns:=/{arguments.namespace.strip('/')}"]
    given = {
        "seed": arguments.seed and json.dumps(arguments.seed, ensure_ascii=False),
        "model": arguments.model and json.dumps(arguments.model, ensure_ascii=False),
        "robots": arguments.robots and json.dumps(arguments.robots, ensure_ascii=False),
        "seed_hfov_deg": None if arguments.hfov is None else float(arguments.hfov),
        "world_seed": arguments.world_seed,
        "use_memory": "false" if arguments.no_memory else None,
    }
    for name, value in given.items():
        if value is not None:
            words += ["-p", f"{name}:={value}"]
    return [*words, *arguments.ros_args]


def plan(arguments: argparse.Namespace) -> int:
    from mirage_ros.ros.driving import PlannerConfig, run_planner

    run_planner(
        PlannerConfig(
            seed=arguments.seed,
            hfov_deg=arguments.hfov,
            frames=arguments.frames,
            rate_hz=arguments.rate,
            scene_depth_m=arguments.scene_depth,
            world_frame=arguments.world_frame,
            camera_frame=arguments.camera_frame,
            namespace=arguments.namespace,
            ahead_s=arguments.ahead,
            listeners=arguments.listeners,
            wait_s=arguments.wait,
            log=arguments.log,
        )
    )
    print(f"The whole plan of {arguments.frames} poses was rendered.")
    return 0


def add_record(parsers) -> None:
    parser = add_command(
        parsers,
        "record",
        record,
        "record a running node's topics: MCAP, LeRobot, video or pictures",
        "examples:\n  mirage record out/walk.mcap                 until Ctrl-C; one file\n"
        "  mirage record out/walk                      a rosbag2 folder with metadata.yaml\n"
        "  mirage record out/walk.mcap --frames 72     until 72 whole frames came\n"
        "  mirage record out/walk.mp4                  a video to look at\n"
        "  mirage record out/walk --format lerobot     a LeRobot dataset v3.0\n"
        "  mirage record out/walk --format png         a posed RGB-D folder (exr: exact depth)\n"
        "  mirage record out/three.mcap --robots three  all robots of a node; of one: --namespace NAME\n"
        "  mirage record out/walk.mp4 --ros-args -r /tf:=/bot/tf    of a node with the same remap\n\n"
        "a recording that was cut off is mended by `mirage recover PATH`.",
    )
    parser.add_argument("path", type=user_path, help="the file or folder to write")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="(default: by the ending of the path: .mcap, .mp4, .lerobot, .png, .exr, else mcap)",
    )
    parser.add_argument("--frames", type=int, help="end after so many frames")
    parser.add_argument("--idle", type=float, metavar="S", help="end after so long without frames")
    parser.add_argument("--rate", type=float, metavar="HZ", help="frames/s of the plan (default: by its stamps)")
    parser.add_argument("--codec", choices=("h264", "av1"), default="h264", help="of LeRobot's colour video")
    parser.add_argument("--robots", metavar="YAML", help="all robots of the node's --robots, in one MCAP")
    add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="tell progress as lines of JSON")
    add_ros_arguments(parser, ": give the node's remaps")


def add_recover(parsers) -> None:
    parser = add_command(
        parsers,
        "recover",
        recover,
        "mend a recording whose writer was killed or whose disk was full",
        "examples:\n  mirage recover out/walk.mcap    writes the index that is missing\n"
        "  mirage recover out/dataset      drops half episodes, finishes a LeRobot dataset\n\n"
        "give the path that was recorded to; everything that had reached the disk is kept.",
    )
    parser.add_argument("path", type=user_path, help="the file or folder that was recorded to")


def record(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.formats import guess_format
    from mirage_ros.ros.recorder import RecorderConfig, run_recorder
    from mirage_ros.ros.robots import read_robots

    robots = read_robots(arguments.robots) if arguments.robots else ()
    config = RecorderConfig(
        path=arguments.path,
        namespace=arguments.namespace,
        ros_arguments=tuple(arguments.ros_args),
        frames=arguments.frames,
        idle_s=arguments.idle,
        format=arguments.format or guess_format(arguments.path),
        rate_hz=arguments.rate,
        video_codec=arguments.codec,
        cameras=tuple(camera.named.prefix for robot in robots for camera in robot.cameras) or ("",),
    )
    with closing(_Progress(arguments.frames, arguments.json)) as progress:
        summary = run_recorder(config, progress.show)
    if not arguments.json:
        print(summary)
    return 0


RECORDING = {
    "listening": "Waiting for the node's topics; Ctrl-C ends the recording.",
    "ready": "Connected to the node; recording.",
}


class _Progress:
    """What `mirage record` shows while it runs: a bar for people, lines of JSON for programs."""

    def __init__(self, frames: int | None, as_json: bool) -> None:
        self.frames, self.as_json, self.bar = frames, as_json, None

    def show(self, event: str, count: int) -> None:
        if self.as_json:
            print(json.dumps({"event": event, "count": count}), flush=True)
        elif event == "frames":
            self.bar.update(count - self.bar.n)
        elif self.bar is None:
            print(RECORDING[event], flush=True)
            from tqdm import tqdm

            # Only now: before it listens, a recording ends with one line where it cannot begin.
            self.bar = tqdm(total=self.frames, unit="frame", desc="record")
        else:
            with self.bar.external_write_mode():
                print(RECORDING[event], flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def recover(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.formats import recover

    for sentence in recover(arguments.path):
        print(sentence)
    return 0


def add_demo(parsers) -> None:
    parser = add_command(
        parsers,
        "demo",
        demo,
        "run planner, node and recorder over DDS and show what came out",
        "examples:\n  mirage demo\n  mirage demo --seed street.jpg --hfov 65 --out out/street\n\n"
        "writes demo.mp4, demo.png, demo.mcap and report.json into --out; exit code 0 only when\n"
        "every planned frame arrived with its planned stamp.",
    )
    add_seed(parser)
    parser.add_argument("--out", type=user_path, default=Path("out"), help="folder (default: out)")
    parser.add_argument("--frames", type=int, default=72, help="frames to plan (default: 72)")
    parser.add_argument("--rate", type=float, default=10.0, help="frames/s planned (default: 10)")
    add_model(parser)
    add_world_seed(parser)
    parser.add_argument("--no-memory", action="store_true", help="switch the node's memory off")
    parser.add_argument("--no-compare", action="store_true", help="skip the run without memory")


def demo(arguments: argparse.Namespace) -> int:
    from mirage_ros.apps.demo import DemoConfig, describe, run_demo

    config = DemoConfig(
        seed=arguments.seed,
        hfov_deg=arguments.hfov,
        out=arguments.out,
        frames=arguments.frames,
        rate_hz=arguments.rate,
        model=arguments.model,
        use_memory=not arguments.no_memory,
        compare=not arguments.no_compare,
        world_seed=arguments.world_seed,
    )
    for request in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, signal.default_int_handler)
    report = run_demo(config)
    print(describe(report, config.out))
    return 0 if report["complete"] else 1

"""The `mirage` command. Each subcommand imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mirage_ros
from mirage_ros import commands
from mirage_ros.errors import MirageError
from mirage_ros.evaluation.commands import add_bench_memory, add_evaluate
from mirage_ros.evaluation.generate_command import add_bench_generate, add_convert
from mirage_ros.evaluation.record_command import add_bench_record
from mirage_ros.generate.command import add_generate
from mirage_ros.loop.commands import add_loop_commands
from mirage_ros.recording.export_command import add_export
from mirage_ros.resources import user_path

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EPILOG = """examples:
  mirage demo                                   planner, node and recorder; look at out/demo.mp4
  mirage demo --seed street.jpg --hfov 65       the same from any photograph
  mirage node --params config/mirage.yaml       the node alone, for your own planner on TF
  mirage plan --seed room --frames 72           a planner for a running node
  mirage record out/walk.mcap --idle 10         record a running node for Foxglove and rosbag2
  mirage loop                                   a policy that drives by generated pictures alone
  mirage doctor                                 what is wrong with this machine and its ROS graph

`mirage COMMAND --help` tells more about each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after a clear error, 130 after Ctrl-C."""
    try:
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments) or 0
    except MirageError as error:
        print(f"mirage: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="mirage",
        description="A robot simulator whose world is generated: one picture and a TF plan in; "
        "RGB, depth and a cloud out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mirage {mirage_ros.__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_node, _add_plan, _add_record, _add_recover, _add_readback,
                _add_train, _add_data, _add_bench, _add_evaluate, _add_doctor,
                _add_info):  # fmt: skip
        add(parsers)
    add_export(parsers, _command)
    add_generate(parsers, _command)
    add_convert(parsers, _command)
    add_loop_commands(parsers, _command)
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as all other errors; argparse would print the usage first."""

    def error(self, message: str) -> None:
        self.exit(EXIT_ERROR, f"mirage: {message}; `{self.prog} --help` tells what it takes.\n")


def _command(parsers, name: str, run, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = parsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_seed(parser: argparse.ArgumentParser, default: str | None = "room") -> None:
    parser.add_argument(
        "--seed",
        default=default,
        metavar="SEED",
        help="a shipped seed's name, a seed folder, a posed RGB-D folder with a frame "
        "(walk:8) or any picture (default: %(default)s)",
    )
    parser.add_argument(
        "--hfov",
        type=float,
        metavar="DEG",
        help="horizontal field of view of a picture without intrinsics, degrees (default: 60)",
    )


def _add_demo(parsers) -> None:
    parser = _command(
        parsers,
        "demo",
        commands.demo,
        "run planner, node and recorder over DDS and show what came out",
        "examples:\n  mirage demo\n  mirage demo --seed street.jpg --hfov 65 --out out/street\n\n"
        "writes demo.mp4, demo.png, demo.mcap and report.json into --out; exit code 0 only when\n"
        "every planned frame arrived with its planned stamp.",
    )
    _add_seed(parser)
    parser.add_argument("--out", type=user_path, default=Path("out"), help="folder (default: out)")
    parser.add_argument("--frames", type=int, default=72, help="frames to plan (default: 72)")
    parser.add_argument("--rate", type=float, default=10.0, help="frames/s planned (default: 10)")
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--no-memory", action="store_true", help="switch the node's memory off")
    parser.add_argument("--no-compare", action="store_true", help="skip the run without memory")


def _add_node(parsers) -> None:
    parser = _command(
        parsers,
        "node",
        commands.node,
        "run the node: camera poses from TF in; pictures, depth and cloud out",
        "examples:\n  mirage node --seed room\n  mirage node --params config/mirage.yaml\n"
        "  mirage node --seed room --ros-args -p frame_rate_hz:=5.0 -r __ns:=/robot",
    )
    _add_seed(parser, default=None)
    parser.add_argument("--params", type=user_path, metavar="YAML", help="ROS parameter file")
    parser.add_argument("--model", help="checkpoint: mini, a folder or a hub id")
    parser.add_argument("--namespace", default="", help="ROS namespace of the node's topics")
    parser.add_argument("--world-seed", type=int, help="seed of the noise")
    parser.add_argument("--no-memory", action="store_true", help="switch the memory off")
    parser.add_argument(
        "--ros-args", nargs=argparse.REMAINDER, default=[], help="anything after it goes to rcl"
    )


def _add_plan(parsers) -> None:
    parser = _command(
        parsers,
        "plan",
        commands.plan,
        "publish a camera path on TF that leaves the seed's view and returns to it",
        "example, beside a running `mirage node --seed room`:\n"
        "  mirage plan --seed room --frames 72 --rate 10",
    )
    _add_seed(parser)
    parser.add_argument("--frames", type=int, default=72, help="poses (default: 72)")
    parser.add_argument("--rate", type=float, default=10.0, help="poses/s (default: 10)")
    parser.add_argument(
        "--ahead",
        type=float,
        default=3.0,
        metavar="S",
        help="seconds of plan published ahead of what is rendered (default: 3)",
    )
    parser.add_argument(
        "--scene-depth",
        type=float,
        metavar="M",
        help="distance of the scene in metres (default: measured, or 3)",
    )
    parser.add_argument("--world-frame", default="world", help="(default: world)")
    parser.add_argument(
        "--camera-frame", default="camera_color_optical_frame", help="(default: %(default)s)"
    )
    parser.add_argument("--namespace", default="", help="ROS namespace of the node")
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


def _add_record(parsers) -> None:
    parser = _command(
        parsers,
        "record",
        commands.record,
        "record a running node's topics: MCAP, LeRobot, video or pictures",
        "examples:\n  mirage record out/walk.mcap                 until Ctrl-C; one file\n"
        "  mirage record out/walk                      a rosbag2 folder with metadata.yaml\n"
        "  mirage record out/walk.mcap --frames 72     until 72 whole frames came\n"
        "  mirage record out/walk.mp4                  a video to look at\n"
        "  mirage record out/walk --format lerobot     a LeRobot dataset v3.0\n"
        "  mirage record out/walk --format png         a posed RGB-D folder (exr: exact depth)\n"
        "  mirage record out/walk.mp4 --ros-args -r /tf:=/bot/tf    of a node with the same remap\n\n"
        "a recording that was cut off is mended by `mirage recover PATH`.",
    )
    parser.add_argument("path", type=user_path, help="the file or folder to write")
    parser.add_argument(
        "--format",
        choices=("mcap", "lerobot", "video", "png", "exr"),
        help="(default: by the ending of the path: .mcap, .mp4, .lerobot, .png, .exr, else mcap)",
    )
    parser.add_argument("--frames", type=int, help="end after so many frames")
    parser.add_argument("--idle", type=float, metavar="S", help="end after so long without frames")
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="frames/s of the plan (default: by its stamps)"
    )
    parser.add_argument(
        "--codec", choices=("h264", "av1"), default="h264", help="of LeRobot's colour video"
    )
    parser.add_argument("--namespace", default="", help="ROS namespace of the node")
    parser.add_argument("--json", action="store_true", help="tell progress as lines of JSON")
    parser.add_argument("--ros-args", nargs=argparse.REMAINDER, default=[],
                        help="anything after it goes to rcl: give the node's remaps")  # fmt: skip


def _add_recover(parsers) -> None:
    parser = _command(
        parsers,
        "recover",
        commands.recover,
        "mend a recording whose writer was killed or whose disk was full",
        "examples:\n  mirage recover out/walk.mcap    writes the index that is missing\n"
        "  mirage recover out/dataset      drops half episodes, finishes a LeRobot dataset\n\n"
        "give the path that was recorded to; everything that had reached the disk is kept.",
    )
    parser.add_argument("path", type=user_path, help="the file or folder that was recorded to")


def _add_readback(parsers) -> None:
    parser = _command(
        parsers,
        "readback",
        commands.readback,
        "measure how well memory shows one real frame again from other real cameras",
        "example:\n  mirage readback walk/ --seed-frame 8\n\nthe folder holds color/, depth/, K.txt"
        " and world_from_camera.txt",
    )
    parser.add_argument("folder", type=user_path, help="posed RGB-D folder")
    parser.add_argument("--seed-frame", type=int, default=0, help="frame to remember (default: 0)")
    parser.add_argument("--frames", type=int, nargs="+", help="frames to look from (default: all)")
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")
    parser.add_argument("--out", type=user_path, metavar="PNG", help="write the pictures as well")


def _add_train(parsers) -> None:
    parser = _command(
        parsers,
        "train",
        commands.train,
        "train a model's parts",
        "example:\n  mirage train --config config/train/mini.yaml",
    )
    parser.add_argument("--config", type=user_path, required=True, metavar="YAML")


def _add_data(parsers) -> None:
    parser = parsers.add_parser("data", help="look at the procedural training scenes")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    preview = _command(
        actions,
        "preview",
        commands.preview,
        "render procedural scenes onto one sheet (needs MuJoCo)",
        "example:\n  mirage data preview --seeds 0-5 --out out/scenes.png",
    )
    preview.add_argument("--seeds", default="0-5", metavar="A-B", help="(default: 0-5)")
    preview.add_argument("--out", type=user_path, default=Path("out/scenes.png"), metavar="PNG")
    preview.add_argument("--furniture", type=user_path, metavar="NPZ", help="draw homes too, from this cache")
    furniture = _command(
        actions,
        "furniture",
        commands.furniture,
        "make a cache of real furniture for training worlds",
        "example, after `apt install sweethome3d-furniture` and `pip install trimesh fast-simplification`:\n"
        "  mirage data furniture /usr/share/sweethome3d/furniture --out data/furniture.npz\n\n"
        "also writes who made what, which the card of a model that was trained on it has to say.",
    )
    furniture.add_argument("folder", type=user_path, help="with Sweet Home 3D's .sh3f files")
    furniture.add_argument("--out", type=user_path, default=Path("data/furniture.npz"), metavar="NPZ")
    furniture.add_argument("--coverings", type=user_path, metavar="WHL",
                           help="miniworld's wheel: floors, walls, portraits")  # fmt: skip


def _add_bench(parsers) -> None:
    parser = parsers.add_parser("bench", help="measure speed and memory on this machine")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_bench_memory(actions, _command)
    add_bench_generate(actions, _command)
    add_bench_record(actions, _command)


def _add_evaluate(parsers) -> None:
    add_evaluate(parsers, _command)


def _add_doctor(parsers) -> None:
    parser = _command(
        parsers,
        "doctor",
        commands.doctor,
        "look for what is wrong with this machine and its ROS graph, and say what to do",
        "examples:\n  mirage doctor\n  mirage doctor --frames base_link --listen 10\n\n"
        "checks node names, QoS of every connection, clocks, transforms, reported errors, DDS's\n"
        "shared memory and the GPU's; exit code 1 with a fault.",
    )
    parser.add_argument(
        "--listen", type=float, default=5.0, metavar="S", help="seconds to listen (default: 5)"
    )
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


def _add_info(parsers) -> None:
    parser = _command(
        parsers, "info", commands.info, "tell versions, devices, shipped seeds and the model's card"
    )
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")


if __name__ == "__main__":
    sys.exit(main())

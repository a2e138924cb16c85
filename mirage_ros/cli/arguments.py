"""What several commands take and write: their parsers, shared options, ranges and sizes, reports as JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path

from mirage_ros.errors import MirageError
from mirage_ros.files import user_path


def add_command(parsers, name: str, run, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of one command; `run` gets its arguments and returns the exit code."""
    parser = parsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_seed(parser: argparse.ArgumentParser, default: str | None = "room") -> None:
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


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")


def add_walk(parser: argparse.ArgumentParser) -> None:
    """What a recording does not say itself, or is to be asked for."""
    add = parser.add_argument
    # fmt: off
    add("--every", type=int, default=1, metavar="N", help="take each N-th frame of a recording (default: all)")
    add("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="of colour, where a recording has none")
    add("--depth-units", type=float, metavar="N", help="of integer depth in a metre (default: the layout's, mostly 1000)")
    add("--depth-model", default="", metavar="KIND[:SOURCE]",
        help="ask this model for depth where the recording has none, such as depth-anything:FOLDER (default: none)")
    for name, what in (("color", "of colour"), ("depth", "of depth"), ("color-info", "with colour's CameraInfo"),
                       ("depth-info", "with depth's CameraInfo"), ("poses", "of odometry or poses, instead of TF")):
        add(f"--{name}", default="", metavar="TOPIC", help=f"topic {what} of a bag (default: found by type)")
    add("--world-frame", default="", metavar="FRAME", help="of a bag's TF (default: the root)")
    # fmt: on


def walk_config(arguments: argparse.Namespace):
    from mirage_ros.data import WalkConfig

    names = ("every", "color", "depth", "color_info", "depth_info", "poses", "world_frame")
    given, depth_of = {name: getattr(arguments, name) for name in names}, None
    intrinsics = None if arguments.intrinsics is None else tuple(arguments.intrinsics)
    if arguments.depth_model:
        from mirage_ros.models.depth_estimators import load_depth_estimator
        from mirage_ros.models.parts import pick_device

        depth_of = load_depth_estimator(arguments.depth_model, pick_device("auto")).aligned
    return WalkConfig(intrinsics=intrinsics, depth_units_per_m=arguments.depth_units, depth_of=depth_of, **given)


def add_world_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the noise (default: 0)")


def add_namespace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", default="", help="ROS namespace of the node")


def add_ros_arguments(parser: argparse.ArgumentParser, advice: str = "") -> None:
    parser.add_argument("--ros-args", nargs=argparse.REMAINDER, default=[],
                        help=f"anything after it goes to rcl{advice}")  # fmt: skip


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=user_path, metavar="PATH", help="write the figures as well")


def seed_range(text: str) -> range:
    """`3-5` as range(3, 6), `3` as range(3, 4); MirageError for anything else."""
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise MirageError(f"The seeds are {text!r}; give a range such as 2000100-2000103.")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise MirageError(f"The seeds {text} are an empty range; give the smaller number first.")
    return seeds


def parse_size(text: str) -> tuple[int, int]:
    """`704x1280` as (height, width); MirageError for anything else."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise MirageError(f"The size is {text!r}; give HEIGHTxWIDTH such as 704x1280.")
    return int(sides[0]), int(sides[1])


def write_json(report: dict, path: Path | None) -> None:
    """Writes figures whole or not at all; nothing without a path."""
    if path is not None:
        from mirage_ros.files import write_file

        write_file(path, json.dumps(_finite(report), indent=1, allow_nan=False), "\n")


def _finite(value):
    """JSON knows neither NaN nor infinity: null, then."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", default="diff", choices=("diff", "omni", "free"),
                        help="of base: diff-drive, omnidirectional, free-flying camera (default: diff)")  # fmt: skip


def add_speeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--speed", type=float, default=0.5, metavar="MPS", help="(default: 0.5)")
    parser.add_argument("--turn", type=float, default=0.8, metavar="RPS", help="(default: 0.8)")


def add_numbers(parser: argparse.ArgumentParser, rows: Iterable[tuple[str, str, float, str]]) -> None:
    for name, metavar, default, about in rows:
        parser.add_argument(f"--{name}", type=float, default=default, metavar=metavar,
                            help=f"{about} (default: {default})")  # fmt: skip

"""The `mirage` command. A module holds the options of a command or a few, and what they run.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mirage_ros
from mirage_ros.cli.bench import add_bench
from mirage_ros.cli.demo import add_demo
from mirage_ros.cli.doctor import add_doctor, add_info
from mirage_ros.cli.evaluate import add_evaluate, add_readback
from mirage_ros.cli.generate import add_generate
from mirage_ros.cli.loop import add_base, add_loop, add_wander
from mirage_ros.cli.node import add_node, add_plan
from mirage_ros.cli.record import add_export, add_record, add_recover
from mirage_ros.cli.train import add_convert, add_data, add_train
from mirage_ros.errors import MirageError

COMMANDS = (
    add_demo, add_node, add_plan, add_record, add_recover, add_readback, add_train, add_data, add_bench,
    add_evaluate, add_doctor, add_info, add_export, add_generate, add_convert, add_loop, add_base,
    add_wander,
)  # fmt: skip
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
    for add in COMMANDS:
        add(parsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as all other errors; argparse would print the usage first."""

    def error(self, message: str) -> None:
        self.exit(EXIT_ERROR, f"mirage: {message}; `{self.prog} --help` tells what it takes.\n")

"""The `mirage` command. A module holds the options of a command or a few, and what they run.

Only the module of the command that is asked for is imported, all of them for `mirage --help`. Heavy
imports wait until a command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

import mirage_ros
from mirage_ros.errors import MirageError
from mirage_ros.machine import repair_soon, spin_briefly

# Command -> its module here, whose function `add_COMMAND` adds the command's parser.
COMMANDS = {
    "demo": "node", "node": "node", "plan": "node", "record": "node", "recover": "node", "readback": "worlds",
    "train": "train", "data": "train", "bench": "evaluate", "evaluate": "evaluate", "doctor": "node", "info": "node",
    "build": "worlds", "export": "worlds", "generate": "train", "convert": "train", "loop": "loop", "base": "loop",
    "wander": "loop", "drive": "loop", "teleop": "loop", "studio": "loop",
}  # fmt: skip
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EPILOG = """examples:
  mirage demo                                   planner, node and recorder; look at out/demo.mp4
  mirage demo --seed street.jpg --hfov 65       the same from any photograph
  mirage node --params config/mirage.yaml       the node alone, for your own planner on TF
  mirage plan --seed room --frames 72           a planner for a running node
  mirage record out/walk.mcap --idle 10         record a running node for Foxglove and rosbag2
  mirage drive room                             drive in a generated world from this terminal
  mirage studio                                 walk in a generated world in a browser
  mirage build walk/ --out out/office           a world from a recording of your own room
  mirage loop                                   a policy that drives by generated pictures alone
  mirage doctor                                 what is wrong with this machine and its ROS graph

`mirage COMMAND --help` tells more about each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after a clear error, 130 after Ctrl-C."""
    try:
        if argv is None:  # a process of its own, where neither middleware nor torch has started
            repair_soon()
            spin_briefly()
        words = sys.argv[1:] if argv is None else argv
        commands = [words[0]] if words and words[0] in COMMANDS else COMMANDS
        arguments = build_parser(commands).parse_args(words)
        return arguments.run(arguments) or 0
    except MirageError as error:
        print(f"mirage: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of some of COMMANDS."""
    parser = _Parser(
        prog="mirage",
        description="A robot simulator whose world is generated: one picture and a TF plan in; "
        "RGB, depth and a cloud out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mirage {mirage_ros.__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in commands:
        module = import_module(f"{__name__}.{COMMANDS[name]}")
        getattr(module, f"add_{name}")(parsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as all other errors; argparse would print the usage first."""

    def error(self, message: str) -> None:
        self.exit(EXIT_ERROR, f"mirage: {message}; `{self.prog} --help` tells what it takes.\n")

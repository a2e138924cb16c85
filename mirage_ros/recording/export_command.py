"""What `mirage export` does. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse

from mirage_ros.errors import MirageError
from mirage_ros.resources import user_path


def add_export(parsers, command) -> None:
    """Registers the command; `command` makes its parser (see cli.py)."""
    parser = command(
        parsers,
        "export",
        export,
        "write what a saved world remembers as a cloud of coloured points",
        "examples:\n  mirage export out/world                    writes out/world.ply\n"
        "  mirage export out/world/memory.safetensors --out cloud.ply\n\n"
        "the points are in the world's frame, metres, z up; each has a colour and a confidence\n"
        "(1 seen frontally, towards 0 grazing).",
    )
    parser.add_argument("path", type=user_path, help="the folder of a saved world, or a saved memory")
    parser.add_argument(
        "--out", type=user_path, metavar="PLY", help="the file to write (default: next to it)"
    )


def export(arguments: argparse.Namespace) -> int:
    from mirage_ros.memory.files import MEMORY, world_file
    from mirage_ros.memory.memory import LatentMemory
    from mirage_ros.recording.topdown import write_ply

    path, out = arguments.path, arguments.out or arguments.path.with_suffix(".ply")
    if out.suffix != ".ply":
        raise MirageError(f"{out} does not end in .ply, the only kind that is written; rename it.")
    memory = LatentMemory.load(world_file(path, MEMORY) if path.is_dir() else path)
    write_ply(out, memory.to_points())
    print(f"{out}: {memory.tokens:,} points")
    return 0

"""What `mirage bench record` does. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json

from mirage_ros.errors import MirageError
from mirage_ros.resources import user_path


def add_bench_record(actions, command) -> None:
    """Registers `mirage bench record`; `command` makes its parser (see cli.py)."""
    parser = command(
        actions,
        "record",
        bench_record,
        "time the cycle with and without recording, format by format",
        "examples:\n  mirage bench record\n  mirage bench record --formats lerobot --rounds 8\n\n"
        "plain and recorded rollouts of one walk take turns; recording runs in a thread beside\n"
        "the next chunk. What a format needs after the last chunk is its episode's end. The CPU\n"
        "columns are the time of recording all by itself, ffmpeg included, over the cycle's,\n"
        "without and with the episode's end: where cores are scarce, the cycle gets that much\n"
        "slower. At most 10 % without the end is what a format is meant to keep to.",
    )
    parser.add_argument("--formats", nargs="+", metavar="FORMAT",
                        help="mcap, lerobot, video, png, exr (default: all)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=4, help="(default: 4)")
    parser.add_argument("--frames", type=int, default=48, help="of a rollout (default: 48)")
    parser.add_argument("--seed", default="room", help="(default: room)")
    parser.add_argument("--model", default="mini", help="checkpoint (default: mini)")
    parser.add_argument("--json", type=user_path, metavar="PATH", help="write the figures as well")


def bench_record(arguments: argparse.Namespace) -> int:
    from mirage_ros.data.seeds import load_seed
    from mirage_ros.evaluation.bench_record import RecordBenchConfig, describe, run_bench
    from mirage_ros.memory.files import write_file
    from mirage_ros.models.pretrained import load_model
    from mirage_ros.recording.formats import FORMATS, check_format

    formats = arguments.formats or FORMATS
    for format in formats:
        check_format(format)
    if min(arguments.rounds, arguments.frames) < 1:
        raise MirageError("A bench needs at least 1 round and 1 frame; give more.")
    config = RecordBenchConfig(formats, arguments.rounds, arguments.frames)
    report = run_bench(load_model(arguments.model), load_seed(arguments.seed), config)
    print(describe(report))
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(report, indent=2).encode())
    return 0

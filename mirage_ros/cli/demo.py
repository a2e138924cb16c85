"""`mirage demo`: planner, node and recorder over DDS, and what came out."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from mirage_ros.cli.arguments import add_command, add_model, add_seed, add_world_seed
from mirage_ros.resources import user_path


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

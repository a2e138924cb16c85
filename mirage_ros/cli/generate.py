"""`mirage generate`: many rollouts into one dataset."""

from __future__ import annotations

import argparse

from mirage_ros.cli.arguments import add_command, add_json, add_model, write_json
from mirage_ros.recording import FORMATS
from mirage_ros.resources import user_path

POLICIES = ("wander", "orbit", "tour", "expert")
SOURCES = ("shipped", "scenes", "boxes")
EPILOG = """examples:
  mirage generate --episodes 20 --out out/data
  mirage generate --episodes 200 --policy wander orbit --starts scenes --workers 4 --out out/data
  mirage generate --episodes 100 --policy expert --starts boxes --rate 2 --out out/drive
  mirage generate --episodes 5000 --ray auto --format mcap --out /nfs/walks --json out/report.json

An episode follows from the options and its index alone: the number of workers changes no byte.
Run the same command again to go on with a dataset that was cut off, or with a larger
--episodes to add to it. A worker that dies is replaced and its episode is generated again.
"""


def add_generate(parsers) -> None:
    parser = add_command(
        parsers,
        "generate",
        generate,
        "generate many rollouts into one dataset for training policies",
        EPILOG,
    )
    add = parser.add_argument
    # fmt: off
    add("--episodes", type=int, required=True, metavar="N", help="in the dataset at the end")
    add("--out", type=user_path, required=True, metavar="DIR", help="the dataset's folder")
    add("--format", default="lerobot", metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: lerobot)")
    add_json(parser)
    add("--policy", nargs="+", default=["wander"], metavar="NAME",
        help=f"each episode draws one of {', '.join(POLICIES)} (default: wander)")
    add("--starts", nargs="+", default=["shipped"], metavar="SEED",
        help="shipped (default), scenes or boxes (procedural, need MuJoCo), or seeds' names and "
        "paths; the expert needs boxes")
    add("--frames", type=int, default=48, help="of an episode, at most (default: 48)")
    add("--rate", type=float, default=5.0, metavar="HZ", help="frames per second (default: 5)")
    add("--seed", type=int, default=0, help="of all episodes (default: 0)")
    add_model(parser)
    add("--workers", type=int, metavar="K",
        help="processes, or actors with --ray (default: 1; with --ray all GPUs or cores)")
    add("--threads", type=int, default=1,
        help="of each worker; part of the dataset, because sums depend on it (default: 1)")
    add("--batch", type=int, default=1, metavar="B",
        help="episodes that a worker draws together, for GPUs; part of the dataset as well "
        "(default: 1)")
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="run on a Ray cluster: its address, auto, or nothing to start one here")
    add("--codec", default="h264", choices=("h264", "av1"), help="of videos (default: h264)")
    add("--no-memory", action="store_true", help="switch the latent memory off")


def generate(arguments: argparse.Namespace) -> int:
    from mirage_ros.generate.episode import Job
    from mirage_ros.generate.run import generate as run_job

    # A path that cannot be written is reported before hours of work, not after.
    write_json({"complete": False}, arguments.json)
    starts = arguments.starts
    job = Job(
        seed=arguments.seed,
        frames=arguments.frames,
        rate_hz=arguments.rate,
        policies=tuple(arguments.policy),
        starts=starts[0] if len(starts) == 1 and starts[0] in SOURCES else tuple(starts),
        model=arguments.model,
        format=arguments.format,
        video_codec=arguments.codec,
        threads=arguments.threads,
        batch=arguments.batch,
        use_memory=not arguments.no_memory,
    )
    report = run_job(job, arguments.episodes, arguments.out, arguments.workers, arguments.ray)
    write_json({"complete": True} | report.as_dict(), arguments.json)
    if not report.generated:
        print(f"All {report.episodes} episodes were in {report.out} already.")
        return 0
    print(
        f"{report.episodes} episodes in {report.out}; {report.generated} of them and "
        f"{report.frames} frames in this run, {report.frames_per_s:.2f} frames/s "
        f"({report.steady_frames_per_s:.2f} after the first {report.startup_s:.0f} s), "
        f"{report.retries} retries"
    )
    return 0

"""`mirage record` and `mirage recover`: files of a running node; `mirage generate`: many rollouts into one dataset."""

from __future__ import annotations

import argparse
import json
from contextlib import closing

from mirage_ros.cli.arguments import add_command, add_json, add_model, add_namespace, add_ros_arguments, write_json
from mirage_ros.files import user_path
from mirage_ros.recording import FORMATS


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
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="frames/s of the plan (default: by its stamps)"
    )
    parser.add_argument(
        "--codec", choices=("h264", "av1"), default="h264", help="of LeRobot's colour video"
    )
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

    config = RecorderConfig(
        path=arguments.path,
        namespace=arguments.namespace,
        ros_arguments=tuple(arguments.ros_args),
        frames=arguments.frames,
        idle_s=arguments.idle,
        format=arguments.format or guess_format(arguments.path),
        rate_hz=arguments.rate,
        video_codec=arguments.codec,
    )
    with closing(_Progress(arguments.frames, arguments.json)) as progress:
        summary = run_recorder(config, progress.show)
    if not arguments.json:
        print(summary)
    return 0


SENTENCES = {
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
            print(SENTENCES[event], flush=True)
            from tqdm import tqdm

            # Only now: before it listens, a recording ends with one line where it cannot begin.
            self.bar = tqdm(total=self.frames, unit="frame", desc="record")
        else:
            with self.bar.external_write_mode():
                print(SENTENCES[event], flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def recover(arguments: argparse.Namespace) -> int:
    from mirage_ros.recording.formats import recover

    for sentence in recover(arguments.path):
        print(sentence)
    return 0


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
    from mirage_ros.apps.generate import generate as run_job
    from mirage_ros.apps.generate_episode import Job

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

"""What recording costs: the same rollouts with and without it, taking turns."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mirage_ros.data.seeds import Seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame, WorldModel
from mirage_ros.recording import FORMATS, Recorder, RecordingConfig
from mirage_ros.recording.formats import open_recorder
from mirage_ros.world.world import World

STEP_M = 0.01


@dataclass(frozen=True)
class RecordBenchConfig:
    """What to time.

    Attributes:
        formats: of FORMATS; LeRobot is timed with both of its codecs.
        rounds: how often plain and recorded rollouts take turns.
        frames: of a rollout.
        rate_hz: of the plan.
    """

    formats: Sequence[str] = FORMATS
    rounds: int = 4
    frames: int = 48
    rate_hz: float = 10.0


def run_bench(model: WorldModel, seed: Seed, config: RecordBenchConfig) -> dict:
    """Seconds per chunk of each way, and the episode's end, which comes after the last chunk.

    Returns:
        `plain` and `recorded` hold all rounds' mean seconds per chunk, `ratio` the median over
        the rounds of recorded to plain, `end_s` the median wait for the episode's end. `cpu_plain`
        holds CPU seconds of the plain rollouts, `cpu_adding` those of recording their frames by
        itself, `cpu_ending` those of the episode's end, ffmpeg's in both. `cpu_share` is the
        median of adding over the cycle, `cpu_share_with_end` that of adding and ending: what
        recording takes from a machine that has nothing to spare.
    """
    world = World(model)
    cameras = _walk(world, seed, config)
    _roll(world, seed, cameras, config, lambda frame: None)
    variants = [
        (format, codec)
        for format in config.formats
        for codec in (("h264", "av1") if format == "lerobot" else ("h264",))
    ]
    results = {}
    for format, codec in tqdm(variants, unit="format", desc="recording"):
        name = f"{format} {codec}" if format == "lerobot" else format
        results[name] = _compare(world, seed, cameras, config, format, codec)
    return {"model": model.name, "size": list(model.size), "frames": config.frames,
            "rounds": config.rounds, "formats": results}  # fmt: skip


def describe(report: dict) -> str:
    """A table of one line a format."""
    lines = [
        f"{report['model']}, {report['size'][0]}x{report['size'][1]}, {report['frames']} frames, "
        f"{report['rounds']} rounds",
        "format          plain ms/chunk  recorded ms/chunk  cost    episode's end ms  "
        "CPU of the cycle's, with the end",
    ]
    for name, entry in report["formats"].items():
        plain, recorded = (1e3 * float(np.median(entry[key])) for key in ("plain", "recorded"))
        lines.append(
            f"{name:14s} {plain:14.1f} {recorded:18.1f}  {100 * (entry['ratio'] - 1):+5.1f} % "
            f"{1e3 * entry['end_s']:15.0f} {100 * entry['cpu_share']:17.1f} % "
            f"{100 * entry['cpu_share_with_end']:10.1f} %"
        )
    return "\n".join(lines)


def _walk(world: World, seed: Seed, config: RecordBenchConfig) -> Camera:
    """Sideways from the seed's view."""
    first = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0].camera
    poses = np.repeat(first.world_from_camera[None], config.frames, 0)
    poses[:, :3, 3] += STEP_M * np.arange(config.frames)[:, None] * first.world_from_camera[:3, 0]
    return Camera(first.intrinsics, poses, first.size)


def _compare(world, seed, cameras, config: RecordBenchConfig, format: str, codec: str) -> dict:
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = RecordingConfig(config.rate_hz, video_codec=codec)
        with open_recorder(Path(folder) / "data", format, settings) as recorder:
            for _ in range(config.rounds):
                for name, seconds in _round(world, seed, cameras, config, recorder).items():
                    times.setdefault(name, []).append(seconds)
    return {
        "end_s": float(np.median(times.pop("end"))),
        **times,
        "ratio": _ratio(times["recorded"], times["plain"]),
        "cpu_share": _ratio(times["cpu_adding"], times["cpu_plain"]),
        "cpu_share_with_end": _ratio(
            np.add(times["cpu_adding"], times["cpu_ending"]), times["cpu_plain"]
        ),
    }


def _round(world, seed, cameras, config: RecordBenchConfig, recorder: Recorder) -> dict:
    """One rollout of each kind; the plain one's frames are then recorded once more by themselves,
    because the difference of two rollouts drowns in what else the machine does."""
    frames: list[Frame] = []
    cpu_s = [_cpu_s()]
    plain = _roll(world, seed, cameras, config, frames.append)
    cpu_s.append(_cpu_s())
    recorder.start_episode("bench")
    recorded = _roll(world, seed, cameras, config, recorder.add)
    start_s = time.perf_counter()
    recorder.end_episode()
    end = time.perf_counter() - start_s
    cpu_s.append(_cpu_s())
    recorder.start_episode("bench")
    for frame in frames:
        recorder.add(frame)
    recorder.wait()
    cpu_s.append(_cpu_s())
    recorder.end_episode()
    cpu_plain, _, adding, ending = np.diff([*cpu_s, _cpu_s()]).tolist()
    return {"plain": plain, "recorded": recorded, "end": end,
            "cpu_plain": cpu_plain, "cpu_adding": adding, "cpu_ending": ending}  # fmt: skip


def _cpu_s() -> float:
    """CPU seconds so far of all threads and of processes that were started, ended or not."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own = sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)
    # The system counts ffmpeg as ours only once it has ended.
    ticks = sum(_ticks(stat) for stat in Path("/proc").glob("[0-9]*/stat"))
    return own + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(stat: Path) -> int:
    """Clock ticks of a process, 0 if it is no running child of this one."""
    try:
        # What stands in brackets is the program's name, which may hold spaces.
        words = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, words[11:13])) if int(words[1]) == os.getpid() else 0


def _ratio(recorded: Sequence[float], plain: Sequence[float]) -> float:
    return float(np.median(np.array(recorded) / np.array(plain)))


def _roll(world, seed, cameras, config: RecordBenchConfig, take: Callable[[Frame], None]) -> float:
    """Mean seconds per chunk, from one chunk's beginning to the next one's."""
    world.reset(seed.rgb, seed.camera, seed.depth_m)
    stamps_ns = np.arange(1, config.frames + 1) * round(1e9 / config.rate_hz)
    chunks = 0
    start_s = time.perf_counter()
    for chunk in world.rollout(cameras, stamps_ns):
        chunks += 1
        for frame in chunk.frames:
            take(frame)
    return (time.perf_counter() - start_s) / chunks

"""One episode: start, plan, draw, write. The same bytes wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import numpy as np
from transforms3d.quaternions import mat2quat

from mirage_ros.core.types import Frame, WorldModel
from mirage_ros.core.world import World, WorldConfig
from mirage_ros.env.starts import draw_start
from mirage_ros.generate.job import Job
from mirage_ros.generate.policies import POLICIES, Path
from mirage_ros.generate.pool import Event
from mirage_ros.recording.formats import begin_episode

SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class EpisodeReport:
    """What came of an episode.

    Attributes:
        observed_fraction: mean share of the pictures that came from memory.
        success: of the expert.
    """

    index: int
    frames: int
    policy: str
    start: str
    observed_fraction: float
    success: bool

    def as_dict(self) -> dict:
        return asdict(self)


def run_episode(
    model: WorldModel, job: Job, index: int, out: FilePath, write: bool = True
) -> Iterator[Event]:
    """Generates episode `index` of a job and writes it beside the others, all or nothing.

    Args:
        write: False draws the episode and forgets it.

    Yields:
        ("frames", n) as they are drawn, ("episode", EpisodeReport) when all is on the disk.
    """
    rng = np.random.default_rng([job.seed, index])
    policy = str(rng.choice(list(job.policies)))
    start = draw_start(job.starts, int(rng.integers(2**31)), model.size)
    noise = int(rng.integers(2**31))
    world = World(model, WorldConfig(seed=noise, use_memory=job.use_memory))
    first = world.reset(start.seed.rgb, start.seed.camera, start.seed.depth_m).frames[0]
    path = POLICIES[policy](rng, start, first, job.frames, job.period_s)
    info = {"seed": job.seed, "index": index, "policy": policy, "start": start.seed.name}
    seen = []
    begun = nullcontext(None)
    if write:
        begun = begin_episode(out, job.format, job.recording, index, path.task, info)
    with begun as episode:
        for frames in _chunks(world, first, path, job.rate_hz):
            for frame in frames:
                if episode is not None:
                    episode.add(frame, _values(path, len(seen)))
                seen.append(float(frame.observed.mean()))
            yield "frames", len(frames)
    done, remembered = bool(path.success.any()), float(np.mean(seen))
    yield (
        "episode",
        EpisodeReport(index, len(seen), policy, start.seed.name, remembered, done),
    )


def _chunks(
    world: World, first: Frame, path: Path, rate_hz: float
) -> Iterator[Sequence[Frame]]:
    yield [first]
    count = len(path.cameras)
    if count < 2:
        return
    stamps = np.rint(np.arange(1, count) * SECOND_NS / rate_hz).astype(np.int64)
    for chunk in world.rollout(path.cameras[1:], stamps):
        yield chunk.frames


def _values(path: Path, k: int) -> dict[str, np.ndarray]:
    poses = path.cameras.world_from_camera
    here = np.linalg.inv(poses[0]) @ poses[k]
    state = np.concatenate([here[:3, 3], mat2quat(here[:3, :3])])
    return {
        "action": path.actions[k].astype(np.float32),
        "observation.state": state.astype(np.float32),
        "next.reward": np.array([path.rewards[k]], np.float32),
        "next.done": np.array([k == len(poses) - 1]),
        "next.success": np.array([path.success[k]]),
    }

"""From a job to a dataset: what is missing is generated, in order or not, and adopted in order."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import write_file
from mirage_ros.generate.episode import EpisodeReport
from mirage_ros.generate.job import Job
from mirage_ros.generate.policies import check_policies
from mirage_ros.generate.pool import Event, ProcessPool, Unit, run_here
from mirage_ros.recording.formats import open_dataset

MANIFEST = "generate.json"


@dataclass
class Report:
    """What a run did.

    Attributes:
        out: the dataset's folder.
        episodes: in the dataset now; `generated` of them in this run, the rest found finished.
        frames, seconds: of this run, from the first worker's start to the last episode adopted.
        retries: units that were run again because their worker was lost.
        details: of the episodes of this run, by index.
    """

    out: str
    episodes: int
    generated: int = 0
    frames: int = 0
    seconds: float = 0.0
    workers: str = "1"
    retries: int = 0
    details: list[dict] = field(default_factory=list)

    def as_dict(self) -> dict:
        rate = self.frames / self.seconds if self.seconds else 0.0
        return vars(self) | {"frames_per_s": round(rate, 3), "seconds": round(self.seconds, 3)}


def generate(
    job: Job, episodes: int, out: str | Path, workers: int | None = 1, ray: str | None = None
) -> Report:
    """Makes a dataset of `episodes` episodes, going on with what is there.

    Args:
        workers: 1 runs in this process, more in so many; None is one, or all that a cluster has.
        ray: a Ray cluster's address, or "local"; None uses none.
    Raises:
        MirageError: the folder holds another job's dataset, a policy or start is unknown, an
            episode failed again and again. What is finished is kept.
    """
    out = Path(out)
    if episodes < 1 or (workers is not None and workers < 1):
        raise MirageError(
            f"{episodes} episodes and {workers} workers were asked for; give at least 1 of each."
        )
    check_policies(job.policies)
    dataset = open_dataset(out, job.format, job.recording)
    try:
        check_manifest(job, out, begun=bool(dataset.finished()))
        units = _units(job, episodes, dataset.finished())
        who = f"ray {ray}" if ray else str(workers or 1)
        report = Report(str(out), dataset.episodes, workers=who)
        start_s = time.monotonic()
        _adopt(dataset, episodes, dataset.finished())
        if units:
            for kind, what in _events(job, out, dataset.finished, units, workers, ray):
                _note(report, kind, what, dataset, episodes)
        report.seconds, report.episodes = time.monotonic() - start_s, dataset.episodes
    finally:
        dataset.close()
    report.details.sort(key=lambda detail: detail["index"])
    return report


def check_manifest(job: Job, out: Path, begun: bool) -> None:
    """Writes what the dataset is made from, or raises MirageError where it is another.

    Args:
        begun: episodes are there already.
    """
    path, wanted = out / MANIFEST, job.manifest()
    if not begun or not path.exists():
        write_file(path, (json.dumps(wanted, indent=2) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text())
        different = [name for name in wanted if found[name] != wanted[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise MirageError(f"{path} is damaged ({error!r}); choose another folder.") from error
    if different:
        told = ", ".join(f"{name} {found[name]!r}, not {wanted[name]!r}" for name in different)
        raise MirageError(
            f"{out} was begun with {told}; give the same options or another folder."
        )


def _units(job: Job, episodes: int, finished: set[int]) -> list[Unit]:
    """Indices that are drawn together; a unit with anything missing is drawn whole again."""
    starts = range(0, episodes, job.batch)
    units = [tuple(range(start, start + job.batch)) for start in starts]
    return [unit for unit in units if any(i not in finished for i in unit if i < episodes)]


def _events(job: Job, out: Path, finished, units, workers, ray) -> Iterator[Event]:
    if ray is not None:
        from mirage_ros.generate.ray_pool import RayPool

        events = RayPool(job, out, finished, workers, ray).run(units)
    elif workers in (None, 1):
        events = run_here(job, out, finished, units)
    else:
        events = ProcessPool(job, out, finished, min(workers, len(units))).run(units)
    count = sum(len(unit) for unit in units)
    with tqdm(total=count, unit="episode", desc="generate", smoothing=0.1) as bar:
        tally = Counter()
        for kind, what in events:
            tally[kind] += what if kind == "frames" else 1
            bar.update(kind == "episode")
            bar.set_postfix_str(f"{tally['frames']} frames, {tally['retry']} retries", False)
            yield kind, what


def _note(report: Report, kind: str, what, dataset, episodes: int) -> None:
    if kind == "frames":
        report.frames += what
    elif kind == "retry":
        report.retries += 1
    elif isinstance(what, EpisodeReport):
        report.generated += 1
        report.details.append(what.as_dict())
        _adopt(dataset, episodes, dataset.finished())


def _adopt(dataset, episodes: int, finished: set[int]) -> None:
    """Takes in what is next in order, as far as it is there."""
    while dataset.episodes < episodes and dataset.episodes in finished:
        dataset.adopt(dataset.episodes)

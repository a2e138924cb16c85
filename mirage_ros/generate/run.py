"""From a job to a dataset: what is missing is generated, in order or not, and adopted in order."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mirage_ros.env.stepping import check_starts
from mirage_ros.errors import MirageError
from mirage_ros.files import write_json
from mirage_ros.generate.episode import Job, check_policies, run_episode
from mirage_ros.generate.pool import Event, MakeRunner, ProcessPool, RayPool, Unit, run_here
from mirage_ros.generate.worker import UnitRunner
from mirage_ros.models.pretrained import load_model
from mirage_ros.recording.formats import open_dataset

MANIFEST = "generate.json"


@dataclass
class Report:
    """What a run did.

    Attributes:
        out: the dataset's folder.
        episodes: in the dataset now; `generated` of them in this run, the rest found finished.
        frames, seconds: of this run, from the first worker's start to the last episode adopted.
        started: workers, those that replaced lost ones included.
        startup_s: of the seconds, until every worker had its model.
        steady_frames: drawn after that.
        retries: units that were run again because their worker was lost.
        details: of the episodes of this run, by index. One whose worker died right after it is
            in the dataset and in `generated`, but neither here nor in `frames`.
    """

    out: str
    episodes: int
    generated: int = 0
    frames: int = 0
    seconds: float = 0.0
    started: int = 0
    startup_s: float = 0.0
    steady_frames: int = 0
    workers: str = "1"
    retries: int = 0
    details: list[dict] = field(default_factory=list)

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def steady_frames_per_s(self) -> float:
        """Without the start, which short runs consist of."""
        steady_s = self.seconds - self.startup_s
        return self.steady_frames / steady_s if self.steady_frames and steady_s > 0 else 0.0

    def as_dict(self) -> dict:
        rounded = ("seconds", "startup_s", "frames_per_s", "steady_frames_per_s")
        return vars(self) | {name: round(getattr(self, name), 3) for name in rounded}


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
    _check_options(job, episodes, workers)
    manifest = job.manifest()
    dataset = open_dataset(out, job.format, job.recording)
    try:
        check_manifest(manifest, out, begun=bool(dataset.finished()))
        report = _fill(dataset, job, episodes, out, workers, ray)
    finally:
        dataset.close()
    report.details.sort(key=lambda detail: detail["index"])
    return report


def _check_options(job: Job, episodes: int, workers: int | None) -> None:
    """What a worker would find out, before anything is written."""
    for count, what in ((episodes, "episodes"), (workers, "workers")):
        if count is not None and count < 1:
            raise MirageError(f"{count} {what} were asked for; give at least 1.")
    check_policies(job.policies, job.starts)
    check_starts(job.starts)


def _fill(dataset, job: Job, episodes: int, out: Path, workers: int | None, ray) -> Report:
    """Generates what is missing and adopts it in order."""
    units = _units(job, episodes, dataset.finished())
    processes = _processes(units, workers, ray)
    who = f"ray {ray}" if ray else str(processes)
    report, start_s = Report(str(out), dataset.episodes, workers=who), time.monotonic()
    missing = len(set(range(episodes)) - dataset.finished())
    _adopt(dataset, episodes)
    if units:
        beyond = {index for unit in units for index in unit if index >= episodes}
        events = _events(job, out, lambda: dataset.finished() | beyond, units, processes, ray)
        for kind, what in _with_bar(events, sum(len(unit) for unit in units) - len(beyond)):
            _note(report, kind, what, processes, time.monotonic() - start_s)
            if kind == "episode":
                _adopt(dataset, episodes)
        # A worker that dies after its episode is on the disk reports nothing.
        _adopt(dataset, episodes)
        _check_filled(dataset, episodes)
        report.generated = missing
    report.seconds, report.episodes = time.monotonic() - start_s, dataset.episodes
    return report


def check_manifest(wanted: dict, out: Path, begun: bool) -> None:
    """Writes what the dataset is made from, or raises MirageError where it is another.

    Args:
        wanted: `Job.manifest()`.
        begun: episodes are there already.
    """
    path = out / MANIFEST
    if not begun or not path.exists():
        write_json(path, wanted)
        return
    try:
        found = json.loads(path.read_text())
        different = [name for name in wanted if found[name] != wanted[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise MirageError(f"{path} is damaged ({error!r}); choose another folder.") from error
    if different:
        differences = {name: f"{name} {found[name]!r}, not {wanted[name]!r}" for name in different}
        if "weights" in differences:
            differences["weights"] = "other weights"
        raise MirageError(
            f"{out} was begun with {', '.join(differences.values())}; give the same options or another "
            "folder."
        )


def _units(job: Job, episodes: int, finished: set[int]) -> list[Unit]:
    """Indices that are drawn together; a unit with anything missing is drawn whole again.

    The last one may reach beyond the episodes: its bytes follow from the whole unit, of which
    only what was asked for is written.
    """
    starts = range(0, episodes, job.batch)
    units = [tuple(range(start, start + job.batch)) for start in starts]
    return [unit for unit in units if any(i not in finished for i in unit if i < episodes)]


def _processes(units: list[Unit], workers: int | None, ray: str | None) -> int | None:
    """How many work at once; None is as many as the cluster has room for."""
    if ray is None:
        return max(1, min(workers or 1, len(units)))
    return workers


def _events(job: Job, out: Path, finished, units, processes, ray) -> Iterator[Event]:
    runner = runner_of(job, out)
    if ray is not None:
        return RayPool(runner, finished, processes, job.threads, ray).run(units)
    if processes == 1:
        return run_here(runner, finished, units)
    return ProcessPool(runner, finished, processes).run(units)


def runner_of(job: Job, out: Path) -> MakeRunner:
    """What a worker runs a job's units with, wherever it works."""
    draw = partial(run_episode, job=job, out=out.absolute())
    return partial(UnitRunner, partial(load_model, job.model), draw, job.threads)


def _with_bar(events: Iterator[Event], count: int) -> Iterator[Event]:
    """The same events, with a progress bar of so many episodes."""
    tally = Counter()
    with tqdm(total=count, unit="episode", desc="generate", smoothing=0.1) as bar:
        bar.set_postfix_str("loading the model")
        for kind, what in events:
            tally[kind] += what if kind == "frames" else 1
            bar.update(kind == "episode")
            counts = f"{tally['frames']} frames, {tally['retry']} retries"
            bar.set_postfix_str("no actor has started yet" if kind == "waiting" else counts)
            yield kind, what


def _note(report: Report, kind: str, what, processes: int | None, now_s: float) -> None:
    """Args:
    now_s: since the start.
    """
    if kind == "ready":
        report.started += 1
        if processes is None or report.started <= processes:
            report.startup_s, report.steady_frames = now_s, 0
    elif kind == "frames":
        report.steady_frames += what
    elif kind == "retry":
        report.retries += 1
    elif kind == "episode":
        report.frames += what.frames
        report.details.append(what.as_dict())


def _check_filled(dataset, episodes: int) -> None:
    if dataset.episodes < episodes:
        raise MirageError(
            f"The dataset holds {dataset.episodes} episodes in a row and {episodes} were asked "
            "for; run the same command again."
        )


def _adopt(dataset, episodes: int) -> None:
    """Takes in what is next in order, as far as it is there."""
    finished = dataset.finished()
    while dataset.episodes < episodes and dataset.episodes in finished:
        dataset.adopt(dataset.episodes)

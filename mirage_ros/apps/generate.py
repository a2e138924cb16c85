"""`mirage generate`, many rollouts into one dataset: what is missing is drawn by workers, in order or not, and adopted
in order.

    from mirage_ros.apps.generate import Job, generate
    report = generate(Job(policies=("wander",)), 8, "out/data", workers=2)

A worker, in whichever process, loads the model once and runs units. A unit of several episodes joins their calls of
the network into one: each episode runs in a thread of its own with what looks like a model of its own, and a call
waits at a barrier until all episodes that are still running have called too; then those of equal shapes are stacked
and run at once. So which calls are joined follows from the episodes and not from timing, and the same unit gives the
same bits on every run.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numba
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_ros.apps.generate_episode import Job, check_manifest, check_policies, run_episode
from mirage_ros.apps.generate_pool import Event, MakeRunner, ProcessPool, RayPool, Unit, run_here
from mirage_ros.env import check_starts
from mirage_ros.errors import MirageError
from mirage_ros.models import load_model
from mirage_ros.protocol import WorldModel
from mirage_ros.recording.formats import open_dataset


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


@dataclass
class _Call:
    """One waiting call: which tensors and settings, and what came back."""

    tensors: tuple[Tensor, ...]
    settings: dict[str, object]
    world: int
    result: Tensor | None = None
    error: BaseException | None = None
    done: bool = False


@dataclass
class BatchBarrier:
    """Holds back calls of so many worlds and runs them as a batch; `network` takes tensors with the batch
    in front."""

    network: Callable[..., Tensor]
    worlds: int
    calls: list[_Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def call(self, tensors: tuple[Tensor, ...], world: int, **settings) -> Tensor:
        """The network's answer to one world's tensors, once the others have called as well; those of other shapes
        or settings are answered apart."""
        call = _Call(tensors, settings, world)
        with self.changed:
            self.calls.append(call)
            self._run_if_complete()
            self.changed.wait_for(lambda: call.done)
        if call.error is not None:
            raise call.error
        return call.result

    def leave(self) -> None:
        """A world has ended; the others no longer wait for it."""
        with self.changed:
            self.worlds -= 1
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if not self.calls or len(self.calls) < self.worlds:
            return
        calls, self.calls = sorted(self.calls, key=lambda call: call.world), []
        groups: dict[tuple, list[_Call]] = {}
        for call in calls:
            kind = *(tensor.shape[1:] for tensor in call.tensors), *sorted(call.settings.items())
            groups.setdefault(kind, []).append(call)
        for group in groups.values():
            _run_batch(self.network, group)
        self.changed.notify_all()


def _run_batch(network: Callable[..., Tensor], group: list[_Call]) -> None:
    counts = [len(call.tensors[0]) for call in group]
    try:
        stacked = [torch.cat(parts) for parts in zip(*(c.tensors for c in group), strict=True)]
        with torch.inference_mode():
            parts = network(*stacked, **group[0].settings).split(counts)
        for call, part in zip(group, parts, strict=True):
            call.result = part
    except BaseException as error:
        for call in group:
            call.error = error
    for call in group:
        call.done = True


class _BatchedNetwork:
    """Stands in for a network; its calls go to a barrier, all else to the network."""

    def __init__(self, barrier: BatchBarrier, world: int) -> None:
        self._barrier, self._world = barrier, world

    def __call__(self, *tensors: Tensor, **settings) -> Tensor:
        return self._barrier.call(tensors, self._world, **settings)

    def __getattr__(self, name: str):
        return getattr(self._barrier.network, name)


def batched(model: WorldModel, worlds: int) -> tuple[BatchBarrier, list[WorldModel]]:
    """A barrier and a model for each world that share the given one's weights.

    Raises:
        MirageError: the model has no `network` to join.
    """
    if not hasattr(model, "network"):
        raise MirageError(f"The model {model.name} cannot draw episodes together; use --batch 1.")
    barrier, models = BatchBarrier(model.network, worlds), []
    for world in range(worlds):
        own = copy.copy(model)
        own.network = _BatchedNetwork(barrier, world)
        models.append(own)
    return barrier, models


class UnitRunner:
    """Runs units of episodes with one model.

    Args:
        load: gives the model, in the process that draws with it.
        draw: a model, the episode's index and whether to write it -> events; see episode.run_episode.
        threads: of the numerics of each episode.
    """

    def __init__(
        self,
        load: Callable[[], WorldModel],
        draw: Callable[..., Iterator[Event]],
        threads: int,
    ) -> None:
        self.model, self.draw, self.threads = load(), draw, threads

    def run(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """Events of one unit, whose indices in `skip` are not written; see `generate.pool`."""
        fix_threads(self.threads)
        if len(unit) > 1:
            yield from self._run_together(unit, skip)
        elif unit[0] not in skip:
            yield from self.draw(self.model, index=unit[0], write=True)

    def _run_together(self, unit: Unit, skip: set[int]) -> Iterator[Event]:
        """One thread an episode; their networks' calls are joined at a barrier."""
        events: queue.Queue[Event] = queue.Queue()
        barrier, models = batched(self.model, len(unit))
        for model, index in zip(models, unit, strict=True):
            arguments = (barrier, model, index, index not in skip, events)
            threading.Thread(target=self._thread, args=arguments, daemon=True).start()
        left, fault = len(unit), None
        while left:
            kind, what = events.get()
            left -= kind != "frames"
            if kind == "fault":
                fault = fault or what
            elif kind == "frames" or what.index not in skip:
                yield kind, what
        if fault is not None:
            raise fault

    def _thread(self, barrier: BatchBarrier, model, index: int, write: bool, events) -> None:
        fix_threads(self.threads)  # a new thread starts with the default
        try:
            for event in self.draw(model, index=index, write=write):
                if event[0] == "frames":
                    events.put(event)
            ended: Event = event
        except BaseException as error:
            ended = ("fault", error)
        barrier.leave()
        events.put(ended)


def fix_threads(count: int) -> None:
    """Fixes the threads of this thread's numerics, on which the last bits of sums depend.

    Numba goes first: starting its threads sets OpenMP's number, which is torch's as well.
    """
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)

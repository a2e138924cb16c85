"""The same units on a Ray cluster: one actor per GPU, or per `threads` cores without GPUs.

Every machine of the cluster has to see the dataset's folder under the same path. Actors that
are lost, with their machine or without, are replaced and their unit is run again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from mirage_ros.core.errors import MirageError
from mirage_ros.generate.job import Job
from mirage_ros.generate.pool import Event, Finished, Unit, retried

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
except ImportError as error:
    raise MirageError(
        f"Generating on a cluster needs Ray ({error}); pip install 'mirage_ros[ray]'."
    ) from error

LOCAL = "local"


class _Actor:
    """Lives in a process of its own somewhere in the cluster."""

    def __init__(self, job: Job, out: Path) -> None:
        from mirage_ros.generate.worker import UnitRunner

        self._runner = UnitRunner(job, out)

    def run(self, unit: Unit, skip: set[int]) -> list[Event]:
        return list(self._runner.run(unit, skip))


class RayPool:
    """Actors on the cluster at `address` ("local" starts one on this machine)."""

    def __init__(
        self,
        job: Job,
        out: Path,
        finished: Finished,
        workers: int | None,
        address: str = LOCAL,
    ) -> None:
        self._job, self._out, self._finished = job, out.absolute(), finished
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(address)
        self._gpus = ray.cluster_resources().get("GPU", 0)
        if workers is None:
            cores = ray.cluster_resources().get("CPU", 1)
            workers = int(self._gpus or max(1, cores // job.threads))
        self._started = 0
        self._idle = [self._start() for _ in range(workers)]

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Events of all units, each unit's when it is finished."""
        waiting, tries, running = deque(units), dict.fromkeys(units, 0), {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    actor, unit = self._idle.pop(), waiting.popleft()
                    tries[unit] += 1
                    running[actor.run.remote(unit, self._finished() & set(unit))] = (actor, unit)
                (reference, *_), _ = ray.wait(list(running), num_returns=1)
                actor, unit = running.pop(reference)
                yield from self._hear(reference, actor, unit, waiting, tries)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        if self._ours and ray.is_initialized():
            ray.shutdown()

    def _hear(self, reference, actor, unit: Unit, waiting, tries) -> Iterator[Event]:
        try:
            events = ray.get(reference)
            self._idle.append(actor)
            yield from events
        except RayActorError:
            self._idle.append(self._start())
            yield from retried(unit, waiting, tries, "the actor was lost")
        except RayTaskError as error:
            if isinstance(error.cause, MirageError):
                raise error.cause from error
            self._idle.append(actor)
            yield from retried(unit, waiting, tries, str(error.cause))

    def _start(self):
        needs = {"num_cpus": self._job.threads, "num_gpus": 1 if self._gpus else 0}
        name = f"mirage_generate_{self._started}"
        self._started += 1
        return ray.remote(_Actor).options(name=name, **needs).remote(self._job, self._out)


def _connect(address: str) -> None:
    try:
        if address == LOCAL:
            # Ray makes its workers nice (15): on a busy machine they would hardly ever run.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MirageError(
            f"No Ray cluster was found at {address} ({reason}); give its address or 'local'."
        ) from error

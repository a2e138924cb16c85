"""Batches drawn ahead by worker processes, the same ones that would be drawn without them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, ...]

#: Keeps what a batch is drawn with apart from the noise that is drawn with the same step's seed.
BATCH_SEED = 2**41


class Ahead:
    """Batches by the seed of a step's generator, which says all about them.

    With workers the batches of the next steps are being made while one is trained on. A jump to
    another seed than the next starts the workers anew.

    Args:
        draw: makes a batch of a generator.
        workers: processes; with 0 batches are drawn when they are asked for.
        stride: between the seeds of successive steps: the number of processes that train.
    """

    def __init__(self, draw: Callable[[torch.Generator], Batch], workers: int = 0, stride: int = 1):
        self.draws, self.workers, self.stride = _BySeed(draw), workers, stride
        self._batches: Iterator[Batch] = iter(())
        self._expected: int | None = None

    def __call__(self, seed: int) -> Batch:
        if not self.workers:
            return self.draws[seed]
        if seed != self._expected:
            self._batches = self._started(seed)
        self._expected = seed + self.stride
        return next(self._batches)

    def _started(self, seed: int) -> Iterator[Batch]:
        # Forked, for the clips in memory are many gigabytes that workers only read.
        loader = DataLoader(
            self.draws,
            batch_size=None,
            sampler=itertools.count(seed, self.stride),
            num_workers=self.workers,
            multiprocessing_context="fork",
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class _BySeed(Dataset):
    def __init__(self, draw: Callable[[torch.Generator], Batch]):
        self.draw = draw

    def __getitem__(self, seed: int) -> Batch:
        return self.draw(torch.Generator().manual_seed(BATCH_SEED + seed))

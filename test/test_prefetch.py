"""Batches prefetched by processes are those that would be drawn without them."""

import os

import pytest
import torch

from mirage_ros.training.chunks import Prefetcher


def _draw(generator):
    return torch.randn(3, generator=generator), torch.tensor(os.getpid())


@pytest.mark.parametrize("stride", [1, 2])
def test_workers_draw_what_is_drawn_without_them(stride):
    alone, prefetched = Prefetcher(_draw), Prefetcher(_draw, workers=2, stride=stride)
    seeds = [5 + stride * i for i in range(6)]
    for seed in seeds:
        values, process = prefetched(seed)
        assert torch.equal(values, alone(seed)[0])
        assert int(process) != os.getpid()


def test_a_jump_to_another_seed_starts_anew():
    alone, prefetched = Prefetcher(_draw), Prefetcher(_draw, workers=1)
    for seed in (7, 8, 3, 4, 100):
        assert torch.equal(prefetched(seed)[0], alone(seed)[0])


def test_an_error_of_a_worker_is_raised():
    def broken(generator):
        raise ValueError("no clips here")

    with pytest.raises(ValueError, match="no clips here"):
        Prefetcher(broken, workers=1)(0)

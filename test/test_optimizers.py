"""Muon beside AdamW: what its steps are, shared by processes, resumed."""

from __future__ import annotations

import pytest
import torch
from small_dreamers import loss_of, small_network, store  # noqa: F401, a fixture too

from mirage_ros.errors import MirageError
from mirage_ros.training import Loop, LoopConfig
from mirage_ros.training.optimizers import Muon, orthogonal


def test_muon_turns_a_kernel_by_as_much_in_every_direction(store, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 90), (90, 24)):
        matrix = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[1])
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.4 and values.max() < 1.4, "the iteration brings them near 1, as published"
    network = small_network(store)
    kernels = {id(kernel) for kernel in network.kernels()}
    named = {name: id(parameter) in kernels for name, parameter in network.named_parameters()}
    assert named["down_1.0.conv_1.weight"] and named["look_0.qkv.weight"] and named["features.2.weight"]
    assert not any(named[name] for name in ("into.weight", "out.2.weight", "task.weight", "says.0.rows.weight", "down_1.0.task.weight"))
    config = LoopConfig(steps=6, warmup_steps=2, learning_rate=2e-3, checkpoint_s=0.0, optimizer="muon")
    whole = Loop(network, tmp_path / "whole", config)
    whole.run(loss_of(store))
    with pytest.raises(KeyboardInterrupt):
        cut = Loop(small_network(store), tmp_path / "cut", config)
        cut.run(lambda *given: loss_of(store)(*given) if cut.step < 4 else (_ for _ in ()).throw(KeyboardInterrupt))
    resumed = Loop(small_network(store), tmp_path / "cut", config)
    assert resumed.step == 4
    resumed.run(loss_of(store))
    for ours, theirs in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for bad in (LoopConfig(optimizer="sgd"), LoopConfig(optimizer="muon")):
        with pytest.raises(MirageError, match="optimizer of Linear"):
            Loop(torch.nn.Linear(2, 2), tmp_path / "none", bad)


def test_two_processes_share_the_work_of_muon(store):
    """Each makes a part of the steps' directions; their sum is what one process would make."""
    def stepped(together, total):
        network, generator = small_network(store), torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        Muon(list(network.parameters()), network.kernels(), 1e-2, together, total).step()
        return [parameter.detach() for parameter in network.parameters()]

    parts = []
    for own in (0, 1):
        stepped((2, own), lambda flat: parts.append(flat.clone()) or flat)
    assert all(part.any() for part in parts) and not (parts[0] * parts[1]).any()
    together, alone = stepped((2, 0), lambda flat: parts[0] + parts[1]), stepped((1, 0), lambda flat: flat)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def test_a_run_does_not_go_on_with_another_optimizer(store, tmp_path):
    for first, other in (("muon", "adamw"), ("adamw", "muon")):
        Loop(small_network(store), tmp_path / first, LoopConfig(steps=1, optimizer=first)).run(loss_of(store))
        with pytest.raises(MirageError, match="another optimizer"):
            Loop(small_network(store), tmp_path / first, LoopConfig(steps=2, optimizer=other))

"""Trains from a YAML in a process of its own: one of several, or one that is killed.

usage: wan_trainee.py RECIPE KILLED_AT, the latter a count of losses; 0 is never.

With ACCELERATE_USE_FSDP the network is sharded, as accelerate does it between GPUs.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from mirage_ros import training as loop
from mirage_ros.training import wan_recipe, wan_trainer
from mirage_ros.training.clips import LazyVideo

torch.set_num_threads(1)
rank, read, shares, losses = int(os.environ.get("RANK", 0)), [], [], itertools.count(1)
killed_at = int(sys.argv[2])
videos, loss = wan_recipe.videos, wan_recipe.FlowLoss.__call__
make_accelerator = wan_trainer.make_accelerator


def sharded(*arguments, **options):
    """accelerate shards between GPUs only, though torch does between any processes."""
    accelerator = make_accelerator(*arguments, **options)
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def noted(recipe):
    for video in videos(recipe):
        yield LazyVideo(video.name, lambda video=video: (read.append(video.name), video.read())[1])


def lethal(self, network, generator):
    shards = sum(isinstance(value, DTensor) for value in network.parameters())
    shares.append(shards / len(list(network.parameters())))
    if next(losses) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, network, generator)


wan_recipe.videos, wan_recipe.FlowLoss.__call__ = noted, lethal
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    wan_recipe.make_accelerator = wan_trainer.make_accelerator = sharded
if "RANK" in os.environ:
    # Clocks that differ as far as they can: the first process's races, the others' stand still.
    clock = itertools.count(0, 1000 if rank == 0 else 0)
    loop.time = SimpleNamespace(monotonic=lambda: float(next(clock)))
wan_recipe.train_wan(wan_recipe.read_wan_recipe(Path(sys.argv[1])))
print(json.dumps({"rank": rank, "read": read, "sharded": shares}))

"""Trains from a YAML in a process of its own: one of several, or one that is killed.

usage: wan_trainee.py RECIPE KILLED_AT, the latter a count of losses; 0 is never.
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

from mirage_ros.training import wan_recipe, wan_trainer
from mirage_ros.training.posed_video import LazyVideo

torch.set_num_threads(1)
rank, read, losses = int(os.environ.get("RANK", 0)), [], itertools.count(1)
killed_at = int(sys.argv[2])
videos, loss = wan_recipe.videos, wan_recipe.FlowLoss.__call__


def noted(recipe):
    for video in videos(recipe):
        yield LazyVideo(video.name, lambda video=video: (read.append(video.name), video.read())[1])


def lethal(self, network, generator):
    if next(losses) == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, network, generator)


wan_recipe.videos, wan_recipe.FlowLoss.__call__ = noted, lethal
if "RANK" in os.environ:
    # Clocks that differ as far as they can: the first process's races, the others' stand still.
    clock = itertools.count(0, 1000 if rank == 0 else 0)
    wan_trainer.time = SimpleNamespace(monotonic=lambda: float(next(clock)))
wan_recipe.train_wan(wan_recipe.read_wan_recipe(Path(sys.argv[1])))
print(json.dumps({"rank": rank, "read": read}))

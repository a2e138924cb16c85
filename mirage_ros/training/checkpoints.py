"""A training checkpoint: weights, averages and optimiser moments in one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mirage_ros.core.errors import MirageError


def checkpoint_path(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Writes to a temporary name and renames, so that a kill leaves the old file or the new."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    tensors["step"] = torch.tensor(step)
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder)
    save_file(tensors, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Takes over a folder's checkpoint and returns its step; 0 where there is none.

    Raises:
        MirageError: a damaged file, or one of another network.
    """
    path = checkpoint_path(folder)
    if not path.exists():
        return 0
    try:
        tensors = load_file(path)
        _take(tensors, network, average)
        step = int(tensors["step"])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise MirageError(
            f"{path} is damaged or of another network ({error}); delete it to start the stage anew."
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return step


@torch.no_grad()
def _take(tensors: dict[str, Tensor], network: nn.Module, average: dict[str, Tensor]) -> None:
    network.load_state_dict({key: tensors[f"network.{key}"] for key in network.state_dict()})
    for key, value in average.items():
        value.copy_(tensors[f"average.{key}"])

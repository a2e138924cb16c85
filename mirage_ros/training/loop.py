"""One training loop for every stage: AdamW, EMA, safetensors checkpoints, resume by itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class LoopConfig:
    """Attributes:
    steps: in all.
    learning_rate: after the warm-up, until the final decay.
    warmup_steps: linear from zero.
    decay_fraction: the last share of the steps decays linearly to zero.
    ema: decay of the averaged weights, which are the ones that ship.
    checkpoint_s: seconds between checkpoints.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.998
    checkpoint_s: float = 120.0
    seed: int = 0


class Loop:
    """Runs `loss(network, generator)` until `steps`, from the last checkpoint in `folder`."""

    def __init__(self, network: nn.Module, folder: Path, config: LoopConfig):
        self.network, self.folder, self.config = network, folder, config
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
        )
        self.average = {k: v.detach().clone() for k, v in network.named_parameters()}
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def run(self, loss: Callable[[nn.Module, torch.Generator], dict[str, Tensor]]) -> None:
        """`loss` returns named scalars; "loss" is minimised, the rest is logged.

        The generator is seeded by the step, so that a resumed run draws what it would have drawn.
        """
        saved_s = time.monotonic()
        smooth: dict[str, float] = {}
        bar = tqdm(
            total=self.config.steps, initial=self.step, desc=self.folder.name, mininterval=5
        )
        while self.step < self.config.steps:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
            for key, value in self._update(loss, generator).items():
                smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
            bar.set_postfix({k: f"{v:.4g}" for k, v in smooth.items()}, refresh=False)
            bar.update()
            if self.step % 50 == 0:
                self._log(smooth)
            if time.monotonic() - saved_s > self.config.checkpoint_s:
                self.save()
                saved_s = time.monotonic()
        self.save()
        bar.close()

    def averaged(self) -> nn.Module:
        """The network with its averaged weights."""
        with torch.no_grad():
            for key, value in self.network.named_parameters():
                value.copy_(self.average[key])
        return self.network

    def _update(self, loss, generator) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        values = loss(self.network, generator)
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(self.config.ema, self.step / (self.step + 20))
        with torch.no_grad():
            for key, value in self.network.named_parameters():
                self.average[key].lerp_(value, 1 - decay)
        return {key: float(value.detach()) for key, value in values.items()}

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        left = (config.steps - self.step) / max(1, config.steps * config.decay_fraction)
        return config.learning_rate * warm * min(1.0, left)

    def save(self) -> None:
        """Weights, averages and optimiser moments in one file that is renamed into place."""
        tensors = {f"network.{k}": v for k, v in self.network.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        temporary = self._checkpoint.with_suffix(".tmp")
        tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
        save_file(tensors, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, self._checkpoint)

    def _load(self) -> None:
        tensors = load_file(self._checkpoint)
        with torch.no_grad():
            for key, value in self.network.named_parameters():
                value.copy_(tensors[f"network.{key}"])
                self.average[key].copy_(tensors[f"average.{key}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
                self.step = max(self.step, int(value)) if name == "step" else self.step
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _log(self, values: dict[str, float]) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")

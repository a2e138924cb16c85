"""One training loop for every stage: AdamW, EMA, validation, checkpoints, resume by itself.

Several processes (`accelerate launch`) draw different samples and share their gradients; the
first one writes. Gradients are averaged by hand rather than by a wrapper around the network,
so that a loss may call any part of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm

from mirage_ros.training.checkpoints import load_checkpoint, save_checkpoint

#: Keeps validation draws apart from training draws.
VALIDATION_SEED = 2**40
#: Of AdamW's moments.
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class LoopConfig:
    """Attributes:
    steps: in all.
    learning_rate: after the warm-up, until the final decay.
    warmup_steps: linear from zero.
    decay_fraction: the last share of the steps decays linearly to zero.
    ema: decay of the averaged weights, which are the ones that ship.
    checkpoint_s: seconds between checkpoints.
    validate_steps: steps between validations; their pictures and scores go to TensorBoard.
    validate_batches: batches scored in one validation, the same ones each time.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.998
    checkpoint_s: float = 120.0
    validate_steps: int = 250
    validate_batches: int = 4
    seed: int = 0


class Loss(Protocol):
    """Draws a batch and scores a network on it: named scalars, of which "loss" is minimised.

    `picture` (h, w, 3) uint8 is for people: what the network makes of one draw, and the truth.
    """

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]: ...

    def picture(self, network: nn.Module, generator: torch.Generator) -> np.ndarray: ...


class Loop:
    """Runs a loss until `steps`, from the last checkpoint in `folder`."""

    def __init__(self, network: nn.Module, folder: Path, config: LoopConfig):
        self.folder, self.config = folder, config
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.network = network.to(self.accelerator.device)
        self.optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=BETAS,
        )
        self.start_averages()
        self.step = load_checkpoint(folder, network, self.average, self.optimizer)

    def start_averages(self) -> None:
        """The averages begin with the weights as they are now."""
        self.average = {k: v.detach().clone() for k, v in self.network.named_parameters()}

    @property
    def is_finished(self) -> bool:
        """Whether a run would do nothing, so that no data need be made for it."""
        return self.step >= self.config.steps

    def run(self, loss: Loss, validation: Loss | None = None) -> None:
        """Trains; `validation` is the same loss on held-out data.

        The generator is seeded by the step, so that a resumed run draws what it would have drawn.
        """
        if self.is_finished:
            return
        saved_s, smooth, writes = time.monotonic(), {}, self.accelerator.is_main_process
        bar = tqdm(
            total=self.config.steps, initial=self.step, desc=self.folder.name, mininterval=5,
            disable=not writes,
        )  # fmt: skip
        with self._log() as log:
            while self.step < self.config.steps:
                for key, value in self._update(loss).items():
                    smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
                    log.add_scalar(f"train/{key}", value, self.step)
                bar.set_postfix({k: f"{v:.4g}" for k, v in smooth.items()}, refresh=False)
                bar.update()
                if validation is not None and writes and self._is_validation_due():
                    self._validate(validation, log)
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

    def save(self) -> None:
        """Weights, averages and optimiser moments, in one file that is renamed into place."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.network, self.average, self.optimizer, self.step)

    def _update(self, loss: Loss) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        values = loss(self.network, self._generator())
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        self._share_gradients()
        # Of what is trained: frozen parts may hold gradients of an earlier stage.
        trained = self.optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        decay = min(self.config.ema, self.step / (self.step + 20))
        with torch.no_grad():
            values_now = [value for _, value in self.network.named_parameters()]
            torch._foreach_lerp_(list(self.average.values()), values_now, 1 - decay)
        return {key: float(value.detach()) for key, value in values.items()}

    def _generator(self) -> torch.Generator:
        """Of this step and process."""
        draw = self.config.seed * 1_000_003 + self.step
        processes = self.accelerator.num_processes
        return torch.Generator().manual_seed(draw * processes + self.accelerator.process_index)

    def _share_gradients(self) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        left = (config.steps - self.step) / max(1, config.steps * config.decay_fraction)
        return config.learning_rate * warm * min(1.0, left)

    def _is_validation_due(self) -> bool:
        return self.step % self.config.validate_steps == 0 or self.step == self.config.steps

    @torch.no_grad()
    def _validate(self, loss: Loss, log: SummaryWriter) -> None:
        """Scores and draws with the averaged weights, on the same draws each time."""
        generators = [
            torch.Generator().manual_seed(VALIDATION_SEED + i)
            for i in range(self.config.validate_batches)
        ]
        with self._with_averages():
            rows = [loss(self.network, generator) for generator in generators]
            picture = loss.picture(self.network, generators[0].manual_seed(VALIDATION_SEED))
        for key in rows[0]:
            values = [float(row[key]) for row in rows if key in row]
            log.add_scalar(f"validation/{key}", sum(values) / len(values), self.step)
        log.add_image("validation/picture", picture, self.step, dataformats="HWC")

    @contextmanager
    def _with_averages(self) -> Iterator[None]:
        kept = {k: v.detach().clone() for k, v in self.network.named_parameters()}
        self.averaged()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in self.network.named_parameters():
                    value.copy_(kept[key])

    def _log(self) -> SummaryWriter:
        """TensorBoard events beside the checkpoint; other processes than the first write none."""
        return SummaryWriter(
            str(self.folder), purge_step=self.step, write_to_disk=self.accelerator.is_main_process
        )

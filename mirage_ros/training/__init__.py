"""How models are trained: the one loop of every stage, its checkpoints, and the pictures of its validations.

Several processes (`accelerate launch`) draw different samples and share their gradients; the
first one writes. `Steps` is what all stages share; `Loop` trains a network that fits into one
process, with averaged weights; wan_trainer.py shards a large one.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.models.parts import picture_from_rgb, rgb_from_picture
from mirage_ros.training.optimizers import make_optimizer

#: Depths shown, metres: nearer is red, farther is blue.
NEAR_M, FAR_M = 0.5, 12.0


def sheet(columns: Sequence[Float[Tensor, "b 3 h w"]]) -> UInt8[np.ndarray, "rows wide 3"]:
    """Batches in [-1, 1] side by side, one row per item."""
    wide = torch.cat([column.detach().float().cpu() for column in columns], 3)
    return rgb_from_picture(torch.cat(list(wide), 1))


def coloured_depth(log_depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Log metres as colours in [-1, 1]."""
    near, far = np.log(NEAR_M), np.log(FAR_M)
    grey = ((far - log_depth.detach().float().cpu().numpy()) / (far - near)).clip(0, 1) * 255
    rows = [cv2.applyColorMap(row.astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1] for row in grey]
    return picture_from_rgb(torch.from_numpy(np.stack(rows)))


def checkpoint_path(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def write_checkpoint(path: Path, parts: dict[str, dict[str, Tensor]], metadata: dict[str, str] | None = None) -> None:
    """Writes the tensors of all parts, named `part.name`, into one file, atomically."""
    tensors = {
        f"{part}.{name}".lstrip("."): tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    with atomic_path(path) as new:
        save_file(tensors, new, metadata=metadata)


def tensors_of(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint, by their names in it."""
    return {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}.")
    }


def flat_moments(state: dict) -> dict[str, Tensor]:
    """An optimiser's state as tensors named `parameter.moment`."""
    return {
        f"{parameter}.{moment}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, moments in state.items()
        for moment, value in moments.items()
    }


def nested_moments(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undoes `flat_moments`."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, moment = name.rpartition(".")
        state.setdefault(parameter, {})[moment] = value
    return state


#: Keeps validation draws apart from training draws.
VALIDATION_SEED = 2**40


@dataclass(frozen=True)
class LoopConfig:
    """Attributes:
    steps: in all.
    learning_rate: after the warm-up, until the final decay.
    warmup_steps: linear from zero.
    optimizer: "adamw", or "muon" for the kernels of a network that says which they are (optimizers.py).
    weight_decay: of AdamW alone.
    decay_fraction: the last share of the steps decays linearly to zero.
    ema: decay of the averaged weights, which are the ones that ship.
    checkpoint_s: seconds between checkpoints.
    validate_steps: steps between validations; their pictures and scores go to TensorBoard.
    validate_batches: batches scored in one validation, the same ones each time.
    precision: of the network's products: "float32", "bfloat16" or "auto", which measures what is
        faster here. Weights, averages and moments are float32 all the same.
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
    precision: str = "float32"
    optimizer: str = "adamw"


@runtime_checkable
class Loss(Protocol):
    """Draws a batch and scores a network on it: named scalars, of which "loss" is minimised.

    `picture` (h, w, 3) uint8 is for people: what the network makes of one draw, and the truth.
    """

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]: ...

    def picture(self, network: nn.Module, generator: torch.Generator) -> np.ndarray: ...


class Steps(ABC):
    """Takes steps until `config.steps`, and saves in between and at the end.

    Attributes:
        step: how many are done.
    """

    def __init__(self, folder: Path, config, accelerator: Accelerator) -> None:
        """Args: config: with steps, learning_rate, warmup_steps, weight_decay and checkpoint_s."""
        self.folder, self.config, self.accelerator, self.step = folder, config, accelerator, 0

    @property
    def is_finished(self) -> bool:
        """Whether a run would do nothing, so that no data need be made for it."""
        return self.step >= self.config.steps

    @abstractmethod
    def save(self) -> None:
        """Writes the checkpoint: what trains, the optimiser's moments and the step."""

    @abstractmethod
    def _update(self, loss) -> dict[str, float]:
        """Takes one step and counts it; returns the figures of its samples."""

    def _is_save_due(self, since_s: float) -> bool:
        return since_s > self.config.checkpoint_s

    def _run_steps(self, loss) -> Iterator[dict[str, float]]:
        """The figures of each step that was still to do, which the bar shows smoothed."""
        saved_s, smooth = time.monotonic(), {}
        bar = tqdm(
            total=self.config.steps, initial=self.step, desc=self.folder.name, mininterval=5,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        while not self.is_finished:
            figures = self._update(loss)
            for key, value in figures.items():
                smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
            bar.set_postfix({k: f"{v:.4g}" for k, v in smooth.items()}, refresh=False)
            bar.update()
            yield figures
            if self._is_save_due(time.monotonic() - saved_s):
                self.save()
                saved_s = time.monotonic()
        self.save()
        bar.close()

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer, share: float = 1.0) -> None:
        """Of the coming step: a share of the config's, rising from zero over the warm-up."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warm * share


class Loop(Steps):
    """Runs a loss until `steps`, from the last checkpoint in `folder`.

    Gradients are averaged over processes by hand rather than by a wrapper around the network, so
    that a loss may call any part of it.
    """

    def __init__(self, network: nn.Module, folder: Path, config: LoopConfig):
        super().__init__(folder, config, Accelerator(cpu=not torch.cuda.is_available()))
        self.network = network.to(self.accelerator.device)
        self.optimizer = make_optimizer(network, config, self.accelerator)
        self.start_averages()
        self._load()
        dtype = pick_dtype(config.precision, self.accelerator.device)
        self.worker = network if dtype == torch.float32 else copy.deepcopy(network).to(dtype)

    def start_averages(self) -> None:
        """The averages begin with the weights as they are now."""
        self.average = {k: v.detach().clone() for k, v in self.network.named_parameters()}

    def run(self, loss: Callable, validation: Loss | None = None) -> None:
        """Trains; `validation` is the same loss on held-out data, and draws pictures as well.

        The generator is seeded by the step, so that a resumed run draws what it would have drawn.
        """
        if self.is_finished:
            return
        self._hand_out_weights()  # the caller may have set some since they were loaded
        writes = self.accelerator.is_main_process
        with self._log() as log:
            for figures in self._run_steps(loss):
                for key, value in figures.items():
                    log.add_scalar(f"train/{key}", value, self.step)
                if validation is not None and writes and self._is_validation_due():
                    self._validate(validation, log)

    def averaged(self) -> nn.Module:
        """The network with its averaged weights."""
        with torch.no_grad():
            for key, value in self.network.named_parameters():
                value.copy_(self.average[key])
        return self.network

    def save(self) -> None:
        """Weights, averages and optimiser moments, in one file that replaces the last one."""
        if self.accelerator.is_main_process:
            parts = {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizer": flat_moments(self.optimizer.state_dict()["state"]),
                "": {"step": torch.tensor(self.step)},
            }
            write_checkpoint(checkpoint_path(self.folder), parts)

    def _load(self) -> None:
        """Takes over the folder's checkpoint; MirageError for a damaged file or one of another network."""
        path = checkpoint_path(self.folder)
        if not path.exists():
            return
        try:
            tensors = load_file(path)
            self._take(tensors)
            self.step = int(tensors["step"])
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise MirageError(
                f"{path} is damaged or of another network ({error}); delete it to start the stage anew."
            ) from error
        moments = nested_moments(tensors_of("optimizer", tensors))
        state = {int(index): values for index, values in moments.items()}
        if any(("exp_avg" in values) != (self.config.optimizer == "adamw") for values in state.values()):
            raise MirageError(f"{path} is of another optimizer than {self.config.optimizer}; give that one, or delete it.")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    @torch.no_grad()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        keys = self.network.state_dict()
        self.network.load_state_dict({key: tensors[f"network.{key}"] for key in keys})
        for key, value in self.average.items():
            value.copy_(tensors[f"average.{key}"])

    def _update(self, loss: Callable) -> dict[str, float]:
        self._set_learning_rate(self.optimizer, self._decay())
        values = loss(self.worker, self._generator())
        self.optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        self._collect_gradients()
        self._share_gradients()
        # Of what is trained: frozen parts may hold gradients of an earlier stage.
        trained = self.optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
        self.optimizer.step()
        self._hand_out_weights()
        self.step += 1
        self._average_weights()
        return {key: float(value.detach()) for key, value in values.items()}

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.ema, self.step / (self.step + 20))
        torch._foreach_lerp_(list(self.average.values()), list(self.network.parameters()), 1 - decay)

    def _collect_gradients(self) -> None:
        """From the working copy in another precision, if there is one."""
        if self.worker is not self.network:
            pairs = zip(self.network.parameters(), self.worker.parameters(), strict=True)
            for whole, working in pairs:
                whole.grad = None if working.grad is None else working.grad.float()
                working.grad = None

    @torch.no_grad()
    def _hand_out_weights(self) -> None:
        if self.worker is not self.network:
            whole, working = self.network.parameters(), self.worker.parameters()
            torch._foreach_copy_(list(working), list(whole))

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

    def _decay(self) -> float:
        """Of the learning rate, over the last share of the steps."""
        left = self.config.steps - self.step
        return min(1.0, left / max(1, self.config.steps * self.config.decay_fraction))

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


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of a network's products; "auto" times a convolution in both and says which won.

    Processors with AMX are ten times faster in bfloat16, those with AVX-512 BF16 a little, others slower.
    """
    if precision in ("float32", "bfloat16"):
        return getattr(torch, precision)
    if precision != "auto":
        raise MirageError(
            f"The precision is {precision!r}; give float32, bfloat16 or auto (measured)."
        )
    seconds = {dtype: _seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    best = min(seconds, key=seconds.get)
    ratio = max(seconds.values()) / min(seconds.values())
    print(f"Training in {str(best).removeprefix('torch.')}: {ratio:.1f} times faster here.")
    return best


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Of a convolution and its gradient, the best of five."""
    layer = nn.Conv2d(128, 128, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    batch = torch.randn(16, 128, 16, 20, device=device).to(dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        layer(batch).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best

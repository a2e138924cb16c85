"""The large model's two stages, branch and adapters: what trains, the flow-matching loss, and the trainer.

Sharding, mixed precision and the number of processes come from `accelerate` (see
config/train/fsdp.yaml). Samples are drawn by seed and step, so a resumed run sees what it would
have seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from mirage_ros.errors import MirageError
from mirage_ros.models.wan.denoiser import TIMESTEPS, MemoryDenoiser, shifted
from mirage_ros.models.parts import add_lora
from mirage_ros.training import (
    Steps,
    checkpoint_path,
    flat_moments,
    nested_moments,
    tensors_of,
    write_checkpoint,
)
from mirage_ros.training.chunks import Chunks
from mirage_ros.training.optimizers import adamw

STAGES = ("branch", "lora")


@dataclass(frozen=True)
class FlowConfig:
    """Attributes:
    batch: chunks per step and process.
    shift: of the noise levels drawn (models/wan/denoiser.py).
    text_dropout: share of samples that get the empty prompt.
    """

    batch: int = 1
    shift: float = 5.0
    text_dropout: float = 0.1


def prepare_stage(network: MemoryDenoiser, stage: str, rank: int) -> MemoryDenoiser:
    """Stage "branch" trains the side branch; "lora" adapters on self-attention as well.

    Everything else is frozen. Gradients are checkpointed block by block.
    """
    network.requires_grad_(False)
    if stage == "lora":
        adapted = add_lora(network.transformer, rank)
        network = MemoryDenoiser(adapted.base_model.model, network.branch)
    network.branch.requires_grad_(True)
    for part in (network.transformer, network.branch):
        part.enable_gradient_checkpointing()
    return network.train()


def split_trained(trained: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained tensors as the branch's own names and as peft's."""
    branch = {
        name.removeprefix("branch."): value
        for name, value in trained.items()
        if name.startswith("branch.")
    }
    adapters = {
        "base_model.model." + name.removeprefix("transformer.").replace(".default.", "."): value
        for name, value in trained.items()
        if ".lora_" in name
    }
    return branch, adapters


class FlowLoss:
    """Velocity matching on the target latents; context is clean at timestep 0.

    Args:
        text: (2, n, d): the data set's prompt, and the empty one.
    """

    def __init__(self, chunks: Chunks, text: Tensor, config: FlowConfig):
        self.chunks, self.text, self.config = chunks, text, config

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean squared error of the velocity, over noise levels drawn with the shift."""
        config, device = self.config, self.text.device
        clean, context, condition = self.chunks.draw_batch(config.batch, generator)
        sigma = shifted(torch.rand(config.batch, 1, generator=generator), config.shift)
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * clean + level * noise
        frames = context.shape[2]
        # Whole numbers, as diffusers' schedulers have them: what is sharded casts all others to
        # bfloat16 on their way in, which knows 888 and 892 but nothing between.
        target = (TIMESTEPS * sigma).long().expand(-1, clean.shape[2])
        timestep = torch.cat([target.new_zeros(len(clean), frames), target], 1)
        dropped = torch.rand(config.batch, generator=generator) < config.text_dropout
        inputs = torch.cat([context, noisy], 2).to(device)
        velocity = network(
            inputs, timestep.to(device), condition.to(device), self.text[dropped.long()]
        )
        return (velocity[:, :, frames:] - (noise - clean).to(device)).float().square().mean()


#: Steps of different seeds and processes never draw the same samples.
SEED_STRIDE, PROCESS_STRIDE = 1_000_003, 2**40
#: Processes wait for each other while clips are encoded, of which some have more than others.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class TrainerConfig:
    """Attributes:
    steps: in all.
    checkpoint_s: seconds between checkpoints.
    accumulate: batches per step.
    """

    steps: int = 2000
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    checkpoint_s: float = 900.0
    accumulate: int = 1
    seed: int = 0


def make_accelerator() -> Accelerator:
    """This process among those that train together; the first one made binds it to its device."""
    group = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[group])


class Trainer(Steps):
    """Runs `loss(network, generator)` until `steps`, from the folder's last checkpoint."""

    def __init__(self, network: nn.Module, folder: Path, config: TrainerConfig):
        super().__init__(folder, config, make_accelerator())
        optimizer = adamw(network, config)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._load()

    def run(self, loss: Callable[[nn.Module, torch.Generator], Tensor]) -> list[float]:
        """The loss of every step that was still to do."""
        losses = []
        for figures in self._run_steps(loss):
            losses.append(figures["loss"])
            if self.accelerator.is_main_process:
                self._log(losses[-1])
        return losses

    def trained(self) -> dict[str, Tensor]:
        """Whole tensors of what trains, on the CPU of the first process."""
        return self._state()[0]

    def save(self) -> None:
        """One file that replaces the last one; the first process writes."""
        weights, state = self._state()
        if self.accelerator.is_main_process:
            parts = {"network": weights, "optimizer": flat_moments(state["state"])}
            write_checkpoint(self._path, parts, {"step": str(self.step)})
        self.accelerator.wait_for_everyone()

    @property
    def _path(self) -> Path:
        return checkpoint_path(self.folder)

    def _is_save_due(self, since_s: float) -> bool:
        """What the first process says: saving needs all of them, and clocks differ."""
        due = torch.tensor(int(super()._is_save_due(since_s)), device=self.accelerator.device)
        return bool(broadcast(due, from_process=0))

    def _update(self, loss: Callable) -> dict[str, float]:
        config, total = self.config, 0.0
        self._set_learning_rate(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(config.accumulate):
            value = loss(self.network, self._generator(index)) / config.accumulate
            self.accelerator.backward(value)
            total += float(self.accelerator.gather(value.detach()).mean())
        self.accelerator.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimizer.step()
        self.step += 1
        return {"loss": total}

    def _generator(self, index: int) -> torch.Generator:
        config = self.config
        drawn = self.step * config.accumulate + index
        seed = config.seed * SEED_STRIDE + drawn + PROCESS_STRIDE * self.accelerator.process_index
        return torch.Generator().manual_seed(seed)

    def _state(self) -> tuple[dict[str, Tensor], dict]:
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return get_state_dict(self.network, self._bare_optimizer, options=options)

    @property
    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load(self) -> None:
        try:
            tensors = load_file(self._path)
            weights = tensors_of("network", tensors)
            self._check_names(weights)
            self.step = _step(self._path)
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_state_dict(
                self.network, self._bare_optimizer, model_state_dict=weights,
                optim_state_dict=self._moments(tensors, weights), options=options,
            )  # fmt: skip
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise MirageError(
                f"{self._path} is no checkpoint of this stage ({reason}); remove it to start anew."
            ) from error

    def _check_names(self, weights: dict[str, Tensor]) -> None:
        """The file's tensors are those that train here (wrappers put words before names)."""
        trained = [n for n, p in self.network.named_parameters() if p.requires_grad]
        if len(trained) != len(weights) or not all(
            any(name == n or name.endswith(f".{n}") for n in weights) for name in trained
        ):
            raise KeyError(f"{len(weights)} tensors are stored, {len(trained)} others train")

    def _moments(self, tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> dict:
        """The optimiser's state by the parameters' names, as `set_state_dict` takes it."""
        group = dict(self._bare_optimizer.param_groups[0]) | {"params": list(weights)}
        return {"state": nested_moments(tensors_of("optimizer", tensors)), "param_groups": [group]}

    def _log(self, loss: float) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step, "loss": loss}) + "\n")


def _step(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])

"""The paper's two stages on the large backbone: what trains, and the flow-matching loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirage_ros.models.denoiser import MemoryDenoiser
from mirage_ros.models.lora import add_lora
from mirage_ros.models.sampler import TIMESTEPS, shifted
from mirage_ros.training.chunks import Chunks

STAGES = ("branch", "lora")


@dataclass(frozen=True)
class FlowConfig:
    """Attributes:
    batch: chunks per step and process.
    shift: of the noise levels drawn (sampler.py).
    text_dropout: share of samples that are told the empty prompt.
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
        # Whole numbers, as diffusers' schedulers tell them: what is sharded casts all others to
        # bfloat16 on their way in, which knows 888 and 892 but nothing between.
        target = (TIMESTEPS * sigma).long().expand(-1, clean.shape[2])
        timestep = torch.cat([target.new_zeros(len(clean), frames), target], 1)
        dropped = torch.rand(config.batch, generator=generator) < config.text_dropout
        inputs = torch.cat([context, noisy], 2).to(device)
        velocity = network(
            inputs, timestep.to(device), condition.to(device), self.text[dropped.long()]
        )
        return (velocity[:, :, frames:] - (noise - clean).to(device)).float().square().mean()

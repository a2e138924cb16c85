"""The memory-conditioned video transformer: diffusers' Wan backbone, a side branch starting at zero, and the sampler.

Tokens are ordered [reference frames | preceding frames | target frames]; context frames carry
timestep 0 (paper, section 3). The side branch is in the manner of ControlNet and VACE: copies
of every second backbone block read the memory's readout, and zero-initialised projections add
their output to the backbone's residual stream. At the start the backbone is left as it was.

With `shortcut` the network's output is a correction of the readout, which `Aligner` has aligned. So
the untrained network already shows what memory shows. The correction is added only where memory
sees less than half of a cell, because a small network adds noise to what is known. `Finisher`
corrects the imagined latents once more at latent resolution: a transformer token stands for 2 x 2
latents, and without it their grid shows.

Flow matching: noisy = (1 - sigma) * clean + sigma * noise, from sigma 1 to 0. Schedules and the Euler
rule follow the rectified-flow formulation that Wan and diffusers' FlowMatchEulerDiscreteScheduler
use; the timestep given to the network is 1000 * sigma.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Num
from torch import Tensor, nn

from mirage_ros.errors import report
from mirage_ros.models.mini.codec import (
    GEOMETRY_CHANNELS,
    Aligner,
    condition_per_latent,
    residual_stage,
)
from mirage_ros.protocol import MOSTLY

TIMESTEPS = 1000.0


@dataclass(frozen=True)
class SamplerConfig:
    """Attributes:
    steps: network calls per chunk.
    shift: > 1 spends more steps at high noise.
    prediction: what the network returns, the clean sample or the velocity (noise - clean).
    noise: standard deviation of the noise at the start; below 1 samples are nearer to each other.
    """

    steps: int = 4
    shift: float = 3.0
    prediction: Literal["sample", "velocity"] = "sample"
    noise: float = 1.0


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """The timestep shift of rectified-flow models (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(config: SamplerConfig) -> Float[Tensor, "levels"]:
    """Noise levels from 1 to 0."""
    return shifted(torch.linspace(1, 0, config.steps + 1), config.shift)


def sample(
    network: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    config: SamplerConfig,
    until: int | None = None,
) -> Tensor:
    """Integrates from noise to a clean sample.

    Args:
        network: (noisy, sigma scalar) -> prediction of the kind that the config names.
        noise: standard normal, any shape.
        until: steps to take; all of them where it is None.
    """
    levels = sigmas(config)[: None if until is None else until + 1]
    x = noise
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        report()
        predicted = network(x, now)
        clean = predicted if config.prediction == "sample" else x - now * predicted
        x = clean + (x - clean) * (after / now)
    return x


class Finisher(nn.Module):
    """Starts as nothing: its last layer is zero."""

    def __init__(self, latent_channels: int, blocks: int, width: int = 96):
        super().__init__()
        self.first = nn.Conv2d(2 * latent_channels + GEOMETRY_CHANNELS, width, 3, padding=1)
        self.stage = residual_stage(width, blocks)
        self.last = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        imagined: Float[Tensor, "b c f h w"],
        aligned: Float[Tensor, "b c f h w"],
        condition: Float[Tensor, "b k f h w"],
    ) -> Float[Tensor, "b c f h w"]:
        """The imagined correction of the aligned readout, corrected, frame by frame."""
        frames = torch.cat([imagined, aligned, condition[:, -GEOMETRY_CHANNELS:]], 1)
        frames = frames.transpose(1, 2)
        x = self.stage(self.first(frames.flatten(0, 1)))
        added = self.last(nn.functional.silu(x)).unflatten(0, frames.shape[:2])
        return imagined + added.transpose(1, 2)


class SideBranch(ModelMixin, ConfigMixin):
    """Copies of every `every`-th backbone block, fed with the readout, closed by zero layers.

    `shortcut`: the readout's latents, aligned by convolutions that start at zero as well, are
    added to the network's output. Only for networks that predict the clean sample. Such a branch
    may be given a readout of `aligner_cells` cells to a side of each latent cell (codec.py), and
    correct the network's output by `finisher_blocks` blocks of convolutions (`Finisher`).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanTransformerBlock"]
    _keep_in_fp32_modules = ["scale_shift_table", "norm1", "norm2", "norm3"]

    @register_to_config
    def __init__(
        self,
        transformer_config: dict,
        every: int = 2,
        shortcut: bool = False,
        aligner_blocks: int = 4,
        aligner_cells: int = 4,
        finisher_blocks: int = 2,
    ):
        super().__init__()
        self.every, self.gradient_checkpointing = every, False
        copies = -(-transformer_config["num_layers"] // every)
        short = {**transformer_config, "num_layers": copies}
        self.blocks = WanTransformer3DModel.from_config(short).blocks
        self._build_ends()

    @classmethod
    def from_transformer(
        cls, transformer: WanTransformer3DModel, every: int = 2, **settings
    ) -> SideBranch:
        """A fresh branch whose blocks are copies of the backbone's own.

        Args:
            settings: what follows `every` in the class.
        """
        config = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
        with torch.device("meta"):
            branch = cls(transformer_config=config, every=every, **settings)
        branch.blocks = nn.ModuleList(copy.deepcopy(block) for block in transformer.blocks[::every])
        branch._build_ends()
        like = transformer.patch_embedding.weight
        for name, part in branch.named_children():
            if name != "blocks":
                part.to(like.device, like.dtype)
        return branch

    def _build_ends(self) -> None:
        """The layers that are the branch's own: its way in, and the zeros it is closed by."""
        backbone = inspect.signature(WanTransformer3DModel.__init__).bind_partial(
            None, **self.config.transformer_config
        )
        backbone.apply_defaults()
        latents = backbone.arguments["in_channels"]
        dim = self.blocks[0].norm1.normalized_shape[0]
        patch = tuple(backbone.arguments["patch_size"])
        channels = latents + GEOMETRY_CHANNELS
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)
        self.zero = nn.ModuleList(nn.Linear(dim, dim) for _ in self.blocks)
        for layer in self.zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.config.shortcut:
            depth, cells = self.config.aligner_blocks, self.config.aligner_cells
            self.align = Aligner(latents, blocks=depth, cells=cells)
            self.finish = Finisher(latents, self.config.finisher_blocks)

    @property
    def cells(self) -> int:
        """Of the readout to a side of each latent cell."""
        return self.config.aligner_cells if self.config.shortcut else 1

    def aligned(
        self, condition: Float[Tensor, "b k f hc wc"], align: Aligner | None = None
    ) -> Float[Tensor, "b c f h w"]:
        """The readout's latents as they would be if every token sat in its cell's centre; by another aligner if given."""
        frames = condition.transpose(1, 2)
        aligned = (align or self.align)(frames.flatten(0, 1))
        return aligned.unflatten(0, frames.shape[:2]).transpose(1, 2)

    def forward(
        self, hidden: Tensor, condition: Tensor, text: Tensor, temb: Tensor, rotary: tuple
    ) -> list[Tensor]:
        """One residual per copied block, in the backbone's order."""
        stream = hidden + self.patch_embedding(condition).flatten(2).transpose(1, 2)
        residuals = []
        for block, zero in zip(self.blocks, self.zero, strict=True):
            stream = _run(self, block, stream, text, temb, rotary)
            residuals.append(zero(stream))
        return residuals


class MemoryDenoiser(nn.Module):
    """Backbone and branch as one network that predicts what the sampler asks for.

    Args:
        transformer: a WanTransformer3DModel of any size.
        branch: a SideBranch built for it.
    """

    def __init__(self, transformer: WanTransformer3DModel, branch: SideBranch):
        super().__init__()
        self.transformer = transformer
        self.branch = branch

    def forward(
        self,
        latents: Float[Tensor, "b c f h w"],
        timestep: Num[Tensor, "b f"],
        condition: Float[Tensor, "b k f hc wc"],
        text: Float[Tensor, "b n d"],
        shortcut: Float[Tensor, "b c f h w"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """The network's output for every frame, context frames included.

        Args:
            latents: context frames clean, target frames noisy.
            timestep: 0 ... 1000 per frame, 0 for context.
            condition: readout latents and geometry of every frame, `branch.cells` cells to a side
                of each latent cell.
            text: prompt embedding; one zero token when the model knows no text.
            shortcut: `branch.aligned(condition)`, where the caller has it from another step.
        """
        net = self.transformer
        rotary = net.rope(latents)
        hidden = net.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        temb, temb_blocks, text = self._embed(timestep, text, hidden.shape[1])

        per_latent = condition_per_latent(condition, self.branch.cells)
        residuals = self.branch(hidden, per_latent, text, temb_blocks, rotary)
        for index, block in enumerate(net.blocks):
            hidden = _run(net, block, hidden, text, temb_blocks, rotary)
            if index % self.branch.every == 0:
                hidden = hidden + residuals[index // self.branch.every]

        table = net.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)
        shift, scale = table.unbind(2)
        hidden = (net.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        output = self._unpatchify(net.proj_out(hidden), latents.shape)
        if self.branch.config.shortcut:
            shortcut = self.branch.aligned(condition) if shortcut is None else shortcut
            unseen = per_latent[:, -GEOMETRY_CHANNELS:][:, :1] < MOSTLY
            output = shortcut + unseen * self.branch.finish(output, shortcut, per_latent)
        return output

    def _embed(self, timestep: Tensor, text: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Time embeddings per token, computed once per frame since a frame's tokens share one."""
        frames = timestep.shape[1]
        temb, blocks, text, _ = self.transformer.condition_embedder(
            timestep.flatten(), text, None, timestep_seq_len=frames
        )
        repeat = tokens // frames
        blocks = blocks.unflatten(2, (6, -1))
        return temb.repeat_interleave(repeat, 1), blocks.repeat_interleave(repeat, 1), text

    def _unpatchify(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        batch, _, frames, height, width = shape
        p_t, p_h, p_w = self.transformer.config.patch_size
        grid = tokens.view(batch, frames // p_t, height // p_h, width // p_w, p_t, p_h, p_w, -1)
        return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames, height, width)


def _run(owner: ModelMixin, block: nn.Module, *inputs: Tensor | tuple) -> Tensor:
    """The block's output, recomputed in the backward pass where its owner checkpoints gradients."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return owner._gradient_checkpointing_func(block, *inputs)
    return block(*inputs)

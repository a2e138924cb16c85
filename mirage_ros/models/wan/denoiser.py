"""The memory-conditioned video transformer: diffusers' Wan backbone and a side branch that starts at zero.

Tokens are ordered [reference frames | preceding frames | target frames]; context frames carry
timestep 0 (paper, section 3). The side branch is in the manner of ControlNet and VACE: copies
of every second backbone block read the memory's readout, and zero-initialised projections add
their output to the backbone's residual stream. At the start the backbone is left as it was.

Flow matching: noisy = (1 - sigma) * clean + sigma * noise, from sigma 1 to 0; the timestep given to the network is
1000 * sigma.
"""

from __future__ import annotations

import copy
import inspect

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Num
from torch import Tensor, nn

from mirage_ros.models.mini.codec import GEOMETRY_CHANNELS

TIMESTEPS = 1000.0


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """The timestep shift of rectified-flow models (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class SideBranch(ModelMixin, ConfigMixin):
    """Copies of every `every`-th backbone block, fed with the readout, closed by zero layers."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanTransformerBlock"]
    _keep_in_fp32_modules = ["scale_shift_table", "norm1", "norm2", "norm3"]

    @register_to_config
    def __init__(self, transformer_config: dict, every: int = 2):
        super().__init__()
        self.every, self.gradient_checkpointing = every, False
        copies = -(-transformer_config["num_layers"] // every)
        short = {**transformer_config, "num_layers": copies}
        self.blocks = WanTransformer3DModel.from_config(short).blocks
        self._build_ends()

    @classmethod
    def from_transformer(cls, transformer: WanTransformer3DModel, every: int = 2) -> SideBranch:
        """A fresh branch whose blocks are copies of the backbone's own."""
        config = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
        with torch.device("meta"):
            branch = cls(transformer_config=config, every=every)
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
        condition: Float[Tensor, "b k f h w"],
        text: Float[Tensor, "b n d"],
    ) -> Float[Tensor, "b c f h w"]:
        """The network's output for every frame, context frames included.

        Args:
            latents: context frames clean, target frames noisy.
            timestep: 0 ... 1000 per frame, 0 for context.
            condition: readout latents and geometry of every frame.
            text: prompt embedding.
        """
        net = self.transformer
        rotary = net.rope(latents)
        hidden = net.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        temb, temb_blocks, text = self._embed(timestep, text, hidden.shape[1])

        residuals = self.branch(hidden, condition, text, temb_blocks, rotary)
        for index, block in enumerate(net.blocks):
            hidden = _run(net, block, hidden, text, temb_blocks, rotary)
            if index % self.branch.every == 0:
                hidden = hidden + residuals[index // self.branch.every]

        table = net.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)
        shift, scale = table.unbind(2)
        hidden = (net.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        return self._unpatchify(net.proj_out(hidden), latents.shape)

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

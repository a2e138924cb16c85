"""How the denoiser is trained: all at once, or in the paper's stages.

The paper (arXiv 2606.09828) adapts a backbone that already makes video: stage one trains the
side branch alone, stage two the branch and LoRA adapters on the backbone's self-attention. The
small model has no such backbone, so a stage zero makes one: the transformer trained without memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mirage_ros.models.alignment import Aligner
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.lora import add_lora
from mirage_ros.training.checkpoints import checkpoint_path
from mirage_ros.training.chunks import Chunks, encode_clips, pixel_weights
from mirage_ros.training.codec import block_pictures
from mirage_ros.training.denoiser import AlignerLoss, DenoiserLoss
from mirage_ros.training.loop import Loop, LoopConfig


class _Data:
    """Encoded clips and held-out clips, and the losses on them."""

    def __init__(self, recipe, codec: MiniCodec, align: Aligner, clips, held_out):
        self.recipe, self.codec = recipe, codec.requires_grad_(False)
        pictures = block_pictures([clip.rgb for clip in clips]).to(codec.device)
        align.fit(codec.encode(pictures), pictures)
        self.encoded = [encode_clips(codec, part) for part in (clips, held_out)]
        self.weights = pixel_weights(codec, self.encoded[0])

    def aligner(self) -> list[AlignerLoss]:
        return self._losses(AlignerLoss, self.recipe.aligner_loss)

    def denoiser(self) -> list[DenoiserLoss]:
        return self._losses(DenoiserLoss, self.recipe.denoiser_loss)

    def _losses(self, kind: type, config) -> list:
        """Of the training chunks, which workers draw ahead, and of the held-out ones."""
        ahead = {"workers": self.recipe.chunk_workers, "stride": Accelerator().num_processes}
        return [
            kind(chunks, self.codec, self.weights, config, **more)
            for chunks, more in zip(self._chunks(), (ahead, {}), strict=True)
        ]

    def _chunks(self) -> list[Chunks]:
        config = replace(self.recipe.chunks, cells=self.recipe.branch.aligner_cells)
        return [Chunks(part, config) for part in self.encoded]


def train_single(recipe, codec, network: MemoryDenoiser, clips, held_out) -> MemoryDenoiser:
    """The aligner alone on real readouts, then backbone and branch together.

    The aligner stays as it is then: it was judged by pictures, they are judged by latents.
    """
    run, data = Path(recipe.run), _Data(recipe, codec, network.branch.align, clips, held_out)
    if not checkpoint_path(run / "denoiser").exists():
        _stage(network.branch.align, run / "aligner", recipe.aligner, data.aligner())
    network.branch.align.requires_grad_(False)
    return _stage(network, run / "denoiser", recipe.denoiser, data.denoiser())


def train_paper(recipe, codec, network: MemoryDenoiser, clips, held_out) -> MemoryDenoiser:
    """Backbone without memory; aligner; branch; branch and LoRA, merged at the end."""
    run, data = Path(recipe.run), _Data(recipe, codec, network.branch.align, clips, held_out)
    _train_only(network, network.transformer)
    _stage(WithoutMemory(network), run / "base", recipe.base, data.denoiser())
    align = network.branch.align.state_dict()
    settings = asdict(recipe.branch)
    branch = SideBranch.from_transformer(network.transformer, shortcut=True, **settings)
    branch.align.load_state_dict(align)
    network = MemoryDenoiser(network.transformer, branch)
    _train_only(network, branch.align)
    _stage(branch.align, run / "aligner", recipe.aligner, data.aligner())
    _train_only(network, branch)
    _stage(network, run / "denoiser", recipe.denoiser, data.denoiser())
    adapted = add_lora(network.transformer, recipe.lora_rank)
    _stage(network, run / "lora", recipe.lora, data.denoiser())
    return MemoryDenoiser(adapted.merge_and_unload(safe_merge=True), branch).eval()


class WithoutMemory(nn.Module):
    """The denoiser that is shown an empty memory, context frames aside."""

    def __init__(self, network: MemoryDenoiser):
        super().__init__()
        self.network = network

    @property
    def transformer(self) -> nn.Module:
        return self.network.transformer

    @property
    def branch(self) -> SideBranch:
        return self.network.branch

    def forward(self, latents, timestep, condition, text):
        blank = condition * (timestep == 0).to(condition).view(len(timestep), 1, -1, 1, 1)
        return self.network(latents, timestep, blank, text)


def _train_only(network: nn.Module, part: nn.Module) -> None:
    network.requires_grad_(False)
    part.requires_grad_(True)


def _stage(network: nn.Module, folder: Path, config: LoopConfig, losses) -> nn.Module:
    """Trains to the stage's end and leaves the network with its averaged weights."""
    loop = Loop(network, folder, config)
    loop.run(*losses)
    return loop.averaged().eval()


#: name: (recipe, codec, denoiser, clips, held-out clips) -> trained denoiser
REGIMES: dict[str, Callable] = {"single": train_single, "paper": train_paper}

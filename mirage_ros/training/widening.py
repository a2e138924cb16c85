"""Weights of a model with few latent channels, or a shallow aligner, as the start of a larger one.

The old channels keep their meaning: what is new reads nothing and adds nothing at first, except
in the encoder, whose new channels start as random filters.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from mirage_ros.core.errors import MirageError
from mirage_ros.models.alignment import GEOMETRY_CHANNELS
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch

def widened(
    codec: MiniCodec, denoiser: MemoryDenoiser, channels: int, aligner_blocks: int
) -> tuple[MiniCodec, MemoryDenoiser]:
    """Both with `channels` latent channels and so deep an aligner; the same objects if they are.

    Raises:
        MirageError: they have more than that.
    """
    old, old_blocks = codec.config.latent_channels, denoiser.branch.config.aligner_blocks
    if (old, old_blocks) == (channels, aligner_blocks):
        return codec, denoiser
    if old > channels or old_blocks > aligner_blocks:
        raise MirageError(
            f"The weights to start from have {old} latent channels and an aligner of {old_blocks} "
            f"blocks, the recipe asks for {channels} and {aligner_blocks}; ask for no fewer."
        )
    codec_config = {k: v for k, v in codec.config.items() if not k.startswith("_")}
    wide_codec = MiniCodec(**codec_config | {"latent_channels": channels})
    _take(wide_codec, codec, {"decoder.0.weight": 0}, fresh={"encoder.7.weight"})
    config = {k: v for k, v in denoiser.transformer.config.items() if not k.startswith("_")}
    config |= {"in_channels": channels, "out_channels": channels}
    transformer = WanTransformer3DModel(**config)
    _take(transformer, denoiser.transformer, {"patch_embedding.weight": 0}, last=old)
    settings = {"shortcut": True, "aligner_blocks": aligner_blocks}
    branch = SideBranch.from_transformer(transformer, denoiser.branch.every, **settings)
    inputs = ("patch_embedding.weight", "align.first.weight")
    _take(branch, denoiser.branch, dict.fromkeys(inputs, GEOMETRY_CHANNELS))
    layout = torch.channels_last
    return wide_codec.to(memory_format=layout), MemoryDenoiser(transformer, branch)


@torch.no_grad()
def _take(
    wide: nn.Module, narrow: nn.Module, told: dict[str, int], fresh=frozenset(), last: int = 0
) -> None:
    """Copies what both have; the rest is zero, or as it was made where it is `fresh`.

    Args:
        told: names whose inputs are latent channels first; how many others stand behind them.
        last: latent channels that a row of `proj_out` ends with.
    """
    weights = dict(narrow.named_parameters())
    for name, target in wide.named_parameters():
        source = weights.get(name)
        if source is None:  # a further block of the aligner: its residual starts at zero
            if ".second." in name:
                target.zero_()
            continue
        if target.shape == source.shape:
            target.copy_(source)
            continue
        if name not in fresh:
            target.zero_()
        if name.startswith("proj_out"):
            # A row of it holds all channels of one place of a patch.
            places = source.shape[0] // last
            target.unflatten(0, (places, -1))[:, :last] = source.unflatten(0, (places, last))
        elif name in told:
            kept = source.shape[1] - told[name]
            target[:, :kept] = source[:, :kept]
            target[:, target.shape[1] - told[name] :] = source[:, kept:]
        else:
            target[tuple(slice(n) for n in source.shape)] = source

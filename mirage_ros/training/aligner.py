"""Stage three of the recipe: the aligner on real readouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor, nn

from mirage_ros.models.mini.codec import Aligner, MiniCodec, condition_per_latent
from mirage_ros.training import Loop, sheet
from mirage_ros.training.chunks import Chunks, Prefetcher, encode_clips, pixel_weights
from mirage_ros.training.codec import block_pictures


@dataclass(frozen=True)
class AlignerLossConfig:
    """Attributes:
    batch: chunks per step.
    pixel_weight: of the squared error of one frame per chunk once decoded (pixels -1 ... 1).
    """

    batch: int = 6
    pixel_weight: float = 20.0


#: Cells that memory does not see count this much of a seen one.
UNSEEN_WEIGHT = 0.2


class AlignerLoss:
    """Scores what the aligner makes of the readouts of chunks, as latents and as pictures.

    Args:
        weights: of latent channels, by how much they move the picture.
        workers, stride: of the batches drawn ahead (`Prefetcher`).
    """

    def __init__(self, chunks: Chunks, codec: nn.Module, weights: Tensor, config: AlignerLossConfig, **prefetch):
        self.chunks, self.codec, self.config = chunks, codec, config
        self.weights = weights.view(-1, 1, 1, 1)
        self._batches = Prefetcher(self._batch, **prefetch)

    def _draw(self, network, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean targets, context and condition of a batch, on the network's device."""
        device = next(network.parameters()).device
        parts = self._batches(generator.initial_seed())
        return tuple(part.to(device, non_blocking=True).float() for part in parts)

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """In half precision, as latents are stored: batches are large."""
        rows = [self.chunks.draw(generator) for _ in range(self.config.batch)]
        return tuple(torch.stack(part).half() for part in zip(*rows, strict=True))

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        clean, condition, aligned = self._aligned(network, generator)
        weights = self.weights.to(clean.device)
        error = weights * (aligned - clean).square()
        bare = weights * (condition[: len(clean)] - clean).square()
        seen = condition[len(clean)] > 0.5
        report = {
            "seen": error[:, seen].mean(),
            "seen_bare": bare[:, seen].mean(),
            "unseen": error[:, ~seen].mean(),
        }
        value = (error * torch.where(seen, 1.0, UNSEEN_WEIGHT)).mean()
        pixels = self._pixel_error(clean, aligned, seen, generator)
        report["pixels"] = pixels
        loss = value + self.config.pixel_weight * pixels
        return {"loss": loss} | {k: v.detach() for k, v in report.items() if v.isfinite()}

    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: true latents decoded, the bare readout decoded, the aligned one."""
        clean, condition, aligned = self._aligned(network, generator)
        columns = (clean, condition[: len(clean)], aligned)
        return sheet([self.codec.decode(column.transpose(0, 1)[:6]) for column in columns])

    def _pixel_error(self, clean, aligned, seen, generator: torch.Generator) -> Tensor:
        """Of one frame per chunk, against what the codec makes of the true latents."""
        length = clean.shape[1] // self.config.batch
        one = torch.randint(length, (self.config.batch,), generator=generator)
        chosen = torch.arange(self.config.batch) * length + one
        with torch.no_grad():
            true = self.codec.decode(clean[:, chosen].transpose(0, 1))
        made = self.codec.decode(aligned[:, chosen].transpose(0, 1))
        weight = torch.where(seen[chosen], 1.0, UNSEEN_WEIGHT)[:, None]
        return ((made - true).square() * nn.functional.interpolate(weight, true.shape[-2:])).mean()

    def _aligned(self, network, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, the condition of each cell and aligned latents, (channels, frames, h, w)."""
        clean, context, condition = self._draw(network, generator)
        condition = condition[:, :, context.shape[2] :]
        per_latent = condition_per_latent(condition, network.cells)
        aligned = network(condition.transpose(1, 2).flatten(0, 1)).transpose(0, 1)
        return *(part.transpose(0, 1).flatten(1, 2) for part in (clean, per_latent)), aligned


def train_aligner(recipe, codec: MiniCodec, aligner: Aligner, clips, held_out) -> None:
    """Fits its matrices to the codec, then trains it; leaves it with its averaged weights."""
    loop = Loop(aligner, Path(recipe.run) / "aligner", recipe.aligner)
    if not loop.is_finished:
        codec = codec.requires_grad_(False)
        if loop.step == 0:
            pictures = block_pictures([clip.rgb for clip in clips]).to(codec.device)
            aligner.fit(codec.encode(pictures), pictures)
            loop.start_averages()
        encoded = [encode_clips(codec, part) for part in (clips, held_out)]
        weights, config = pixel_weights(codec, encoded[0]), replace(recipe.chunks, cells=aligner.cells)
        ahead = {"workers": recipe.chunk_workers, "stride": Accelerator().num_processes}
        loop.run(*(
            AlignerLoss(Chunks(part, config), codec, weights, recipe.aligner_loss, **prefetch)
            for part, prefetch in zip(encoded, (ahead, {}), strict=True)
        ))
    loop.averaged().eval()

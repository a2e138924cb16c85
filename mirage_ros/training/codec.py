"""Stage one of the recipe: the mini codec, on frames and on procedural textures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.training.shards import StoredClip


@dataclass(frozen=True)
class CodecLossConfig:
    """Attributes:
    crop: side of the square crops in pixels.
    batch: crops per step.
    texture_share: crops from textures rather than frames.
    latent_noise: standard deviation added to latents before decoding, relative to theirs:
        memory stores them in half precision and the denoiser returns them inexactly.
    gradient_weight: of the difference of image gradients.
    """

    crop: int = 64
    batch: int = 24
    texture_share: float = 0.4
    latent_noise: float = 0.05
    gradient_weight: float = 0.5


class CodecLoss:
    """Draws crops and scores their reconstruction."""

    def __init__(self, clips: list[StoredClip], textures: np.ndarray, config: CodecLossConfig):
        self.frames = [torch.from_numpy(clip.rgb) for clip in clips]
        self.textures = torch.from_numpy(textures)
        self.config = config

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        picture = self._crops(generator).contiguous(memory_format=torch.channels_last)
        latents = network.encode(picture)
        spread = latents.detach().std((0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=generator) * spread * config.latent_noise
        again = network.decode(latents + noise)
        pixel = F.smooth_l1_loss(again, picture, beta=0.05)
        gradient = sum(F.l1_loss(again.diff(dim=d), picture.diff(dim=d)) for d in (-1, -2))
        # A weak pull keeps latents near unit scale, so that no channel grows without bound.
        size = latents.square().mean()
        loss = pixel + config.gradient_weight * gradient + 1e-4 * size
        psnr = 10 * torch.log10(4 / (again - picture).square().mean())
        return {"loss": loss, "psnr_db": psnr.detach(), "latent_rms": size.detach().sqrt()}

    def _crops(self, generator: torch.Generator) -> Tensor:
        crops = []
        for _ in range(self.config.batch):
            textured = torch.rand((), generator=generator) < self.config.texture_share
            source = self.textures if textured else self._draw(self.frames, generator)
            crops.append(self._crop(self._draw(source, generator), generator))
        return torch.stack(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _crop(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        side = self.config.crop
        top = int(torch.randint(picture.shape[0] - side + 1, (), generator=generator))
        left = int(torch.randint(picture.shape[1] - side + 1, (), generator=generator))
        crop = picture[top : top + side, left : left + side]
        for dim in (0, 1):
            if torch.rand((), generator=generator) < 0.5:
                crop = crop.flip(dim)
        return crop.transpose(0, 1) if torch.rand((), generator=generator) < 0.5 else crop

    @staticmethod
    def _draw(items, generator: torch.Generator):
        return items[int(torch.randint(len(items), (), generator=generator))]


@torch.no_grad()
def measure_statistics(network, clips: list[StoredClip], frames: int = 400) -> None:
    """Sets the latents' mean and standard deviation from evenly drawn frames."""
    pictures = np.concatenate([clip.rgb for clip in clips])
    chosen = pictures[:: max(1, len(pictures) // frames)]
    picture = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([network.encode(part) for part in picture.split(32)])
    latents = latents * network.std + network.mean
    network.set_statistics(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))

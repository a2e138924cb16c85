"""Pictures as networks take them: at a size they accept, in [-1, 1] with channels first, and back.

Nothing is cropped or padded: the picture is stretched to the nearest size that the network
takes. The outer edges of the first and last pixels stay on each other both ways, so what is at
a pixel comes back at that pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def picture_from_rgb(rgb: UInt8[Tensor, "*frames h w 3"]) -> Float[Tensor, "*frames 3 h w"]:
    """On the device of `rgb`."""
    return rgb.movedim(-1, -3).float() / 127.5 - 1


def rgb_from_picture(picture: Float[Tensor, "*frames 3 h w"]) -> UInt8[np.ndarray, "*frames h w 3"]:
    """Rounded and clamped."""
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous().cpu().numpy()


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputRule:
    """What pictures a network takes.

    Attributes:
        side: of the short side in pixels, or of both where `square`.
        multiple: both sides are multiples of this.
        longest: `side` is the long side's instead.
        square: the aspect is given up.
        mean, std: of the channels in [0, 1].
    """

    side: int = 518
    multiple: int = 14
    longest: bool = False
    square: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the network sees of a picture of that size."""
        if self.square:
            return self.side, self.side
        scale = self.side / (max(height, width) if self.longest else min(height, width))
        steps = [max(1, round(side * scale / self.multiple)) for side in (height, width)]
        return steps[0] * self.multiple, steps[1] * self.multiple


def network_input(
    rgb: UInt8[np.ndarray, "f h w 3"], rule: InputRule, device: torch.device | str = "cpu"
) -> Float[Tensor, "f 3 ih iw"]:
    """Normalised pictures of the size that the rule gives."""
    pictures = torch.from_numpy(np.ascontiguousarray(rgb)).to(device).permute(0, 3, 1, 2).float()
    size = rule.size(*rgb.shape[1:3])
    pictures = F.interpolate(
        pictures / 255, size, mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (rule.mean, rule.std))
    return (pictures - mean) / std


def picture_sized(
    answer: Float[Tensor, "f oh ow"], size: tuple[int, int]
) -> Float[Tensor, "f h w"]:
    """A network's dense answer at the size of its pictures."""
    return F.interpolate(answer[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def block_means(rgb: UInt8[np.ndarray, "f h w 3"], times: int) -> UInt8[np.ndarray, "f sh sw 3"]:
    """Pictures `times` smaller: the mean of each block of pixels, whose edges stay in place."""
    if times == 1:
        return rgb
    frames, height, width, _ = rgb.shape
    means = np.empty((frames, height // times, width // times, 3), np.uint8)
    for picture, mean in zip(rgb, means, strict=True):
        total = np.full(mean.shape, times**2 // 2, np.uint16)
        for row, column in np.ndindex(times, times):
            total += picture[row::times, column::times]
        mean[:] = total // times**2
    return means

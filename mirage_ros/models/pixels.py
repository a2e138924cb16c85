"""Pictures as networks see them, [-1, 1] with channels first, and as everyone else does."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def picture_from_rgb(rgb: UInt8[Tensor, "*frames h w 3"]) -> Float[Tensor, "*frames 3 h w"]:
    """On the device of `rgb`."""
    return rgb.movedim(-1, -3).float() / 127.5 - 1


def rgb_from_picture(picture: Float[Tensor, "*frames 3 h w"]) -> UInt8[np.ndarray, "*frames h w 3"]:
    """Rounded and clamped."""
    pixels = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous().cpu().numpy()

"""Readouts of flat pictures: what memory would tell of one view about another, without a memory.

Two crops of one picture, the second an affine view of the first. Each latent cell of the second
takes the token of the first whose centre falls nearest, with its exact offset and scale, as a
readout of a plane does. So codec and aligner can be trained together on any picture: the codec
towards latents that can be moved, the aligner towards moving them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mirage_ros.models.conditioning import GEOMETRY_CHANNELS


@dataclass(frozen=True)
class WarpConfig:
    """How far the second view may be from the first.

    Attributes:
        log_scale: largest natural log of the change in size, and half of it more along one axis.
        turn_deg: largest turn about the optical axis.
        shift_cells: largest shift.
    """

    log_scale: float = 0.3
    turn_deg: float = 6.0
    shift_cells: float = 2.0


def random_warp(rng: np.random.Generator, side: int, stride: int, config: WarpConfig) -> np.ndarray:
    """(2, 3) map of pixels, first_from_second, about the crops' common centre."""
    size = math.exp(rng.uniform(-1, 1) * config.log_scale)
    aspect = math.exp(rng.uniform(-0.5, 0.5) * config.log_scale)
    turn = math.radians(rng.uniform(-1, 1) * config.turn_deg)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ np.diag([size * aspect, size / aspect])
    centre = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-1, 1, 2) * config.shift_cells * stride
    return np.concatenate([linear, (centre + shift - linear @ centre)[:, None]], 1)


def second_view(picture: np.ndarray, corner: tuple[int, int], first_from_second, side: int):
    """The second crop, (side, side, 3) uint8; `corner` is the first crop's (top, left)."""
    to_picture = first_from_second.copy()
    to_picture[:, 2] += corner[::-1]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, to_picture, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )


def planar_readout(
    latents: Float[Tensor, "c h w"],
    first_from_second: np.ndarray,
    stride: int,
    inverse_depth: float,
    cells: int = 1,
) -> Float[Tensor, "told hc wc"]:
    """The second view's condition from the first view's latents, in conditioning.py's channels.

    Args:
        cells: of the readout to a side of each latent cell.
    """
    _, height, width = latents.shape
    linear, shift = first_from_second[:, :2], first_from_second[:, 2]
    grid = np.stack(np.meshgrid(np.arange(width * cells), np.arange(height * cells)), -1)
    centres = (grid + 0.5) * stride / cells - 0.5
    middles = (grid // cells + 0.5) * stride - 0.5
    nearest = np.rint((centres @ linear.T + shift + 0.5) / stride - 0.5).astype(int)
    seen = ((nearest >= 0) & (nearest < (width, height))).all(-1)
    tokens = (nearest + 0.5) * stride - 0.5
    offset = ((tokens - shift) @ np.linalg.inv(linear).T - middles) / stride
    log_scale = -0.5 * math.log(abs(np.linalg.det(linear)))
    geometry = np.zeros((GEOMETRY_CHANNELS, *seen.shape), np.float32)
    geometry[0], geometry[1] = 1, inverse_depth
    geometry[2], geometry[3], geometry[4] = offset[..., 0], offset[..., 1], log_scale
    column, row = (nearest[..., i].clip(0, n - 1) for i, n in enumerate((width, height)))
    told = torch.cat([latents[:, row, column], torch.from_numpy(geometry).to(latents.device)])
    return told * torch.from_numpy(seen).to(latents.device)

"""The exact z-buffer: which token does each latent cell of a camera see?

One meaning, whatever the kernel (and whatever the machine, every run, the same bits):

1. A token projects to (u, v, z) in cells and metres, in float64. It is skipped when z is below
   `near_m`, or when it is seen from its back: its normal points away from the camera (cosine
   below -0.03) and it is sure of it, or the direction that it was first seen from points away
   as well (see surfels.py).
2. It covers the cells whose centres lie in the square around (u, v) that is
   `splat * footprint * focal / z` cells wide, and always the cell that (u, v) falls in.
   So zooming in leaves no holes.
3. In each cell the nearest covering token (smallest z, then lowest index) is the surface.
   Candidates are the covering tokens at most `tolerance` away behind it along z, or, for surfaces
   seen at a slant, at most that far from its tangent plane (and within 8 times along z): a slanted
   floor's near rows do not eat the far ones. The tolerance counts in the surface token's
   footprint or the cell's width there, whichever is larger. What lies behind never wins.
4. Among the candidates the winner is the one nearest to the cell's centre: squared distance
   in cells plus `scale_weight * (ratio - 1)^2`, where ratio >= 1 tells by how much footprint and
   cell width differ. Tokens of one scale are thus ranked by distance alone; a token seen from
   afar or from close up yields to one of the right scale. A candidate of a real picture wins over
   all that were imagined. Ties go to the lower index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mirage_ros.core.blocks import Blocks
from mirage_ros.core.camera import Camera
from mirage_ros.core.surfels import Surfels
from mirage_ros.core.zbuffer_cpu import winners_cpu
from mirage_ros.core.zbuffer_torch import winners_torch


@dataclass(frozen=True)
class SplatRule:
    """The numbers in the rule of this module's docstring (dimensionless but for `near_m`).

    A splat of 1.25 halves the holes that rolled and slanted views have at 1.1, and widens
    silhouettes by less than a percent of the picture.
    """

    splat: float = 1.25
    tolerance: float = 1.0
    scale_weight: float = 0.25
    near_m: float = 0.02

    def numbers(self) -> tuple[float, float, float, float]:
        return (self.splat, self.tolerance, self.scale_weight, self.near_m)


class Winners(NamedTuple):
    """Per camera and cell: token index (-1 none), z in metres, offset in cells, scale ratio.

    Where there is no winner z, offset and ratio (footprint over cell width) are 0.
    """

    index: np.ndarray
    depth_m: np.ndarray
    offset: np.ndarray
    ratio: np.ndarray


def zbuffer(
    surfels: Surfels,
    cameras: Camera,
    rule: SplatRule,
    blocks: Blocks | None = None,
    threads: int | None = None,
) -> Winners:
    """The winners in every cell of a batch of f cameras whose size is the latent grid's.

    Returns arrays index int32 (f, h, w), depth float64 (f, h, w), offset float64 (f, 2, h, w),
    ratio float64 (f, h, w). Surfels in numpy are read by CPU threads (as many as there are
    cores, unless told), surfels in torch tensors by torch on their device: the same bits either
    way. `blocks` bound the surfels' rows; without them they are worked out first.
    """
    on_device = torch.is_tensor(surfels.places)
    if blocks is None:
        blocks = Blocks.of(Surfels(*(x.cpu().numpy() for x in surfels)) if on_device else surfels)
    maps, eyes = cameras.camera_from_world, cameras.position_world
    views = tuple(np.ascontiguousarray(x) for x in (maps, eyes, _pinholes(cameras)))
    if on_device:
        return Winners(*winners_torch(surfels, blocks, views, rule.numbers(), cameras.size))
    found = winners_cpu(tuple(surfels), blocks, views, rule.numbers(), cameras.size, threads)
    return Winners(*found)


def _pinholes(cameras: Camera) -> np.ndarray:
    k = cameras.intrinsics
    return np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)

"""Pictures of a validation, for people."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mirage_ros.models.pixels import picture_from_rgb, rgb_from_picture

#: Depths shown, metres: nearer is red, farther is blue.
NEAR_M, FAR_M = 0.5, 12.0


def sheet(columns: Sequence[Float[Tensor, "b 3 h w"]]) -> UInt8[np.ndarray, "rows wide 3"]:
    """Batches in [-1, 1] side by side, one row per item."""
    wide = torch.cat([column.detach().float().cpu() for column in columns], 3)
    return rgb_from_picture(torch.cat(list(wide), 1))


def coloured_depth(log_depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Log metres as colours in [-1, 1]."""
    near, far = np.log(NEAR_M), np.log(FAR_M)
    grey = ((far - log_depth.detach().float().cpu().numpy()) / (far - near)).clip(0, 1) * 255
    rows = [cv2.applyColorMap(row.astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1] for row in grey]
    return picture_from_rgb(torch.from_numpy(np.stack(rows)))

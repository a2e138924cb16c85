"""Where the pixels of one view lie in another, depth guessed where memory shows none."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Float32

from mirage_ros.core.camera import Camera

#: Inverse depth (1/m) of what is as good as infinitely far.
_FAR = 1e-3
#: Beyond any picture, in pixels.
_NOWHERE = -1e4


def spread_inverse_depth(depth_m: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """1/m everywhere: what is known as it is, gaps from ever larger areas around them.

    Inverse depth, because it is linear on planes. 0 where nothing is known at all.
    """
    known = np.isfinite(depth_m) & (depth_m > 0)
    inverse = np.where(known, 1 / np.where(known, depth_m, 1), 0).astype(np.float32)
    return _spread(inverse, known.astype(np.float32))


def places_in(
    there: Camera, here: Camera, inverse_depth: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> Float32[np.ndarray, "H W 2"]:
    """(u, v) in the view `there` of each pixel of the view `here`, both `size` pixels large.

    Far outside where a point lies behind `there`.

    Args:
        inverse_depth: 1/m, in `here`, on a grid that may be coarser than `size`.
    """
    grid = inverse_depth.shape
    points = here.resized(grid).lift(1 / np.maximum(inverse_depth, _FAR))
    pixels, depth = there.resized(grid).project(points.reshape(-1, 3))
    ahead = (depth > 0) & (np.abs(pixels) < -_NOWHERE).all(-1)
    scale = np.array([size[1] / grid[1], size[0] / grid[0]])
    places = np.where(ahead[:, None], scale * (pixels + 0.5) - 0.5, _NOWHERE)
    places = places.reshape(*grid, 2).astype(np.float32)
    return cv2.resize(places, size[::-1], interpolation=cv2.INTER_LINEAR)


def _spread(value: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills what is not known from a grid half as fine, itself filled in the same way."""
    if known.all() or max(known.shape) == 1:
        return value
    half = tuple((side + 1) // 2 for side in known.shape[::-1])
    share, total = (cv2.resize(a, half, interpolation=cv2.INTER_AREA) for a in (known, value))
    mean = np.where(share > 0, total / np.maximum(share, 1e-6), 0).astype(np.float32)
    coarse = _spread(mean.reshape(share.shape), (share > 0).astype(np.float32))
    coarse = cv2.resize(coarse, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return value + (1 - known) * coarse.reshape(known.shape)

"""Pictures and depth brought to the model's size, the camera going with them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError


def fit_seed(
    rgb: np.ndarray,
    camera: Camera,
    depth_m: np.ndarray | None,
    size: tuple[int, int],
) -> tuple[np.ndarray, Camera, np.ndarray | None]:
    """Crops the middle to the aspect of `size`, then resizes: colours by area, depth by nearest.

    Takes uint8 (H, W, 3), its camera and depth (H, W) in metres; depth
    that is not above 0 becomes NaN. Refuses with a MirageError pictures that are not
    uint8 (H, W, 3) of the camera's size, and depth of another size or without a valid pixel.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise MirageError(
            f"The seed picture is {rgb.dtype} of shape {rgb.shape}; give uint8 (height, width, 3) "
            "of at least one pixel."
        )
    if camera.batch_shape or camera.size != rgb.shape[:2]:
        raise MirageError(
            f"The seed picture is {rgb.shape[:2]} but its camera has the size {camera.size} and "
            f"batch shape {camera.batch_shape}; give one camera of the picture's size."
        )
    depth = None if depth_m is None else _checked_depth(depth_m, rgb.shape[:2])
    top, left, crop = _centre_window(rgb.shape[:2], size)
    window = (slice(top, top + crop[0]), slice(left, left + crop[1]))
    camera = camera.cropped(top, left, crop).resized(size)
    return resize_rgb(rgb[window], size), camera, _nearest(depth, window, size)


def resize_rgb(
    rgb: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Each side shrinks by exact pixel area and grows bilinearly; outer edges stay in place."""
    if rgb.shape[:2] == tuple(size):
        return np.ascontiguousarray(rgb)
    picture = torch.from_numpy(rgb.astype(np.float32))
    picture = torch.einsum("yY,YXc->yXc", _weights(rgb.shape[0], size[0]), picture)
    picture = torch.einsum("xX,yXc->yxc", _weights(rgb.shape[1], size[1]), picture)
    return picture.round().clamp(0, 255).to(torch.uint8).numpy()


def cell_colours(rgb: UInt8[np.ndarray, "f H W 3"], stride: int) -> UInt8[np.ndarray, "f h w 3"]:
    """The mean colour of each stride x stride cell."""
    return np.rint(_cells(rgb, stride).mean((2, 4))).astype(np.uint8)


def cell_share(mask: Bool[np.ndarray, "f H W"], stride: int) -> Float[np.ndarray, "f h w"]:
    """The share of True pixels in each stride x stride cell."""
    return _cells(mask, stride).mean((2, 4))


def upsample(cells: np.ndarray, stride: int) -> np.ndarray:
    """(f, h, w) cells as (f, h * stride, w * stride) pixels, each pixel its cell's value."""
    return cells.repeat(stride, 1).repeat(stride, 2)


def _cells(pixels: np.ndarray, stride: int) -> np.ndarray:
    frames, height, width = pixels.shape[:3]
    split = (frames, height // stride, stride, width // stride, stride, *pixels.shape[3:])
    return pixels.reshape(split)


def _checked_depth(depth_m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    depth = np.asarray(depth_m, np.float32)
    if depth.shape != size:
        raise MirageError(
            f"The seed's depth has the shape {depth.shape} but its picture is {size}; give depth "
            "registered to the picture, of the same size."
        )
    depth = np.where(depth > 0, depth, np.nan)
    if not np.isfinite(depth).any():
        raise MirageError(
            "The seed's depth has no valid pixel; give metres above 0 somewhere, or no depth."
        )
    return depth


def _centre_window(size: tuple[int, int], wanted: tuple[int, int]):
    """(top, left, (height, width)) of the largest centred window of the wanted aspect."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    crop = tuple(max(1, min(s, round(w * scale))) for s, w in zip(size, wanted, strict=True))
    return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2, crop


def _nearest(depth, window, size):
    if depth is None:
        return None
    depth = depth[window]
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, depth.shape, strict=True)
    )
    return depth[np.ix_(rows, columns)]


def _weights(old: int, new: int) -> torch.Tensor:
    """(new, old) rows that sum to 1: overlap of pixels when shrinking, else linear."""
    if new > old:
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))
    else:
        edges = np.arange(new + 1) * old / new
        low, high = np.arange(old), np.arange(1, old + 1)
        weights = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        weights = np.maximum(weights, 0)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))

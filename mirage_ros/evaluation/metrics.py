"""How alike two pictures are: torchmetrics' PSNR, SSIM and LPIPS, and windowed ZNCC.

Pictures are uint8 (height, width, 3) RGB or (height, width) grey.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError

try:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )
except ImportError as error:
    raise MirageError(
        f"Pictures are compared with torchmetrics, which is missing ({error}); pip install torchmetrics."
    ) from error

SSIM_BORDER_PX = 5
"""Half of SSIM's window, less its middle."""
SMALLEST_SHARE = 0.02
"""Masks below this share of the picture are not judged."""
LPIPS_BACKBONE = "squeezenet1_1-*.pth"


def psnr_db(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Peak signal-to-noise ratio over all pixels and channels; inf for equal pictures."""
    _check_alike(first, second)
    a, b = (torch.from_numpy(picture.astype(np.float64)) for picture in (first, second))
    return float(peak_signal_noise_ratio(a, b, data_range=255.0))


def ssim(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Structural similarity of the grey pictures, in [-1, 1] (Wang et al. 2004, 11 px Gauss).

    Only windows that lie within the picture count, where there are any.
    """
    _check_alike(first, second)
    a, b = (torch.from_numpy(grey(picture))[None, None] for picture in (first, second))
    _, similarity = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    inner = similarity[..., SSIM_BORDER_PX:-SSIM_BORDER_PX, SSIM_BORDER_PX:-SSIM_BORDER_PX]
    return float((inner if inner.numel() else similarity).mean())


def psnr_where(first, second, where: Bool[np.ndarray, "h w"]) -> float:
    """PSNR in dB over the masked pixels, at most 60; NaN where the mask is too small."""
    if where.mean() < SMALLEST_SHARE:
        return float("nan")
    a, b = (torch.from_numpy(picture[where].astype(np.float32)) for picture in (first, second))
    return min(float(peak_signal_noise_ratio(a, b, data_range=255.0)), 60.0)


def ssim_where(first, second, where: Bool[np.ndarray, "h w"]) -> float:
    """Mean structural similarity over the masked pixels; NaN where the mask is too small."""
    if where.mean() < SMALLEST_SHARE:
        return float("nan")
    a, b = (
        torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
        for picture in (first, second)
    )
    _, image = structural_similarity_index_measure(
        a, b, data_range=255.0, return_full_image=True
    )
    return float(image[0].mean(0)[torch.from_numpy(where)].mean())


@lru_cache(maxsize=1)
def lpips():
    """torchmetrics' LPIPS, or None where torchvision or the backbone's weights are not at hand:
    evaluating never downloads."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torchvision") is None or not any(folder.glob(LPIPS_BACKBONE)):
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze", normalize=False).eval()


def lpips_of(first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"]) -> float:
    """Learned perceptual distance of whole pictures; NaN where it cannot be had."""
    network = lpips()
    if network is None:
        return float("nan")
    a, b = (
        torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        for picture in (first, second)
    )
    with torch.inference_mode():
        return float(network(a, b))


def zncc(
    first: UInt8[np.ndarray, ...],
    second: UInt8[np.ndarray, ...],
    valid: Bool[np.ndarray, "h w"] | None = None,
    window_px: int = 15,
    min_share: float = 0.5,
    min_deviation: float = 4.0,
) -> float:
    """Median zero-mean normalised cross-correlation over sliding windows, in [-1, 1].

    Unmoved by brightness and contrast, so it tells whether structure lands where it
    should. Only valid pixels count. A window takes part when at least `min_share` of it
    is valid and the second picture (the truth) deviates there by `min_deviation` grey
    levels; flat walls say nothing about position.

    Returns:
        The median, NaN when no window takes part.
    """
    _check_alike(first, second)
    mask = np.ones(first.shape[:2]) if valid is None else valid.astype(np.float64)
    a, b = grey(first), grey(second)
    share = _box(mask, window_px)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_a, mean_b = _box(a * mask, window_px) / share, _box(b * mask, window_px) / share
        var_a = np.maximum(_box(a * a * mask, window_px) / share - mean_a**2, 0)
        var_b = np.maximum(_box(b * b * mask, window_px) / share - mean_b**2, 0)
        covariance = _box(a * b * mask, window_px) / share - mean_a * mean_b
        scores = covariance / np.sqrt(var_a * var_b + 1e-6)
    chosen = (share >= min_share) & (var_b >= min_deviation**2) & (mask > 0)
    return float(np.median(scores[chosen])) if chosen.any() else float("nan")


def grey(picture: UInt8[np.ndarray, ...]) -> Float[np.ndarray, "h w"]:
    """Luma in [0, 255] as float64."""
    if picture.ndim == 2:
        return picture.astype(np.float64)
    return picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _box(values: np.ndarray, window_px: int) -> np.ndarray:
    return cv2.blur(values, (window_px, window_px), borderType=cv2.BORDER_CONSTANT)


def _check_alike(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise MirageError(
            f"Pictures of {first.shape} and {second.shape} cannot be compared; resize one first."
        )

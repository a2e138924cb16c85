"""How alike two pictures are: PSNR, SSIM and windowed ZNCC.

Pictures are uint8 (height, width, 3) RGB or (height, width) grey.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError

SSIM_SIGMA_PX = 1.5
SSIM_WINDOW_PX = 11


def psnr_db(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Peak signal-to-noise ratio over all pixels and channels; inf for equal pictures."""
    _check_alike(first, second)
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Structural similarity of the grey pictures, in [-1, 1] (Wang et al. 2004, 11 px Gauss)."""
    _check_alike(first, second)
    a, b = grey(first), grey(second)
    mean_a, mean_b = _gauss(a), _gauss(b)
    var_a, var_b = _gauss(a * a) - mean_a**2, _gauss(b * b) - mean_b**2
    covariance = _gauss(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    border = SSIM_WINDOW_PX // 2
    inner = similarity[border:-border, border:-border]
    return float((inner if inner.size else similarity).mean())


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
    levels; flat walls say nothing about place.

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


def _gauss(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (SSIM_WINDOW_PX, SSIM_WINDOW_PX), SSIM_SIGMA_PX)


def _box(values: np.ndarray, window_px: int) -> np.ndarray:
    return cv2.blur(values, (window_px, window_px), borderType=cv2.BORDER_CONSTANT)


def _check_alike(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise MirageError(
            f"Pictures of {first.shape} and {second.shape} cannot be compared; resize one first."
        )

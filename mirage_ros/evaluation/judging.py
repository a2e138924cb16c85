"""Scores of pictures against truth, where a mask says to look.

PSNR, SSIM and LPIPS are torchmetrics'. Pictures are uint8 (h, w, 3) RGB.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from mirage_ros.evaluation.metrics import grey

SMALLEST_SHARE = 0.02
"""Masks below this share of the picture are not judged."""
LPIPS_BACKBONE = "squeezenet1_1-*.pth"
PATCH_CELLS = 2


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


def gradient_energy(
    picture: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"]
) -> tuple[float, int]:
    """Sum of squared grey differences to the right and down inside the mask, and their number."""
    values = grey(picture)
    total, count = 0.0, 0
    for axis in (0, 1):
        pairs = np.take(where, range(1, where.shape[axis]), axis) & np.take(
            where, range(where.shape[axis] - 1), axis
        )
        total += float((np.diff(values, axis=axis)[pairs] ** 2).sum())
        count += int(pairs.sum())
    return total, count


def latent_patches(
    latents: Float[torch.Tensor, "f c h w"], cells: Bool[np.ndarray, "f h w"], most: int, seed: int
) -> Float[np.ndarray, "n d"]:
    """Blocks of 2 x 2 cells that the mask holds as a whole, as vectors; at most so many a frame."""
    rng, kept = np.random.default_rng(seed), []
    height, width = (s - s % PATCH_CELLS for s in cells.shape[1:])
    for latent, mask in zip(latents.numpy(), cells, strict=True):
        blocks = latent[:, :height, :width].reshape(
            len(latent), height // PATCH_CELLS, PATCH_CELLS, width // PATCH_CELLS, PATCH_CELLS
        )
        whole = mask[:height, :width].reshape(
            height // PATCH_CELLS, PATCH_CELLS, width // PATCH_CELLS, PATCH_CELLS
        )
        vectors = blocks.transpose(1, 3, 0, 2, 4)[whole.all((1, 3))]
        vectors = vectors.reshape(len(vectors), len(latent) * PATCH_CELLS**2)
        chosen = rng.permutation(len(vectors))[:most]
        kept.append(vectors[np.sort(chosen)])
    return np.concatenate(kept).astype(np.float64)


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Between the Gaussians fitted to two sets of vectors; NaN for sets of fewer than 2 d."""
    if min(len(first), len(second)) < 2 * first.shape[1]:
        return float("nan")
    gap = first.mean(0) - second.mean(0)
    a, b = np.cov(first.T), np.cov(second.T)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * crossed)


def shrunk(mask: Bool[np.ndarray, "f h w"], pixels: int) -> Bool[np.ndarray, "f h w"]:
    """Masks without their outermost pixels; the picture's own edge does not count as one."""
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.erode(m.astype(np.uint8), kernel, borderValue=1) > 0 for m in mask])

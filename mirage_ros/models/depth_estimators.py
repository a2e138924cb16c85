"""Depth models by name (`depth-anything:<folder or hub id>`, `da3:...`, ...) and their metric alignment.

Each model states distance in its own way. Models of transformers need nothing else installed; Depth
Anything 3 and MapAnything bring own packages.

Alignment finds scale and shift from what memory shows. One picture leaves a scale undetermined, and many
networks a shift. Memory has metric depth for part of the picture, with errors and with things in front
that moved; so the fit is robust (iterated weights after Beaton and Tukey 1974, from a start by medians)
and scores relative errors, because what is near matters as much as what is far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from mirage_ros.errors import MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.parts import InputRule, network_input, picture_sized

#: A frame with fewer anchored cells than this takes the fit of its whole chunk.
MIN_ANCHORS = 32
#: Below this relative spread of depths a shift cannot be distinguished from a scale.
MIN_SPREAD = 0.05
ROUNDS = 20
TUKEY = 4.685
#: Cells whose depth differs from memory's by more than this share show something else.
MAX_DISAGREEMENT = 0.25


def fit_line(
    x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], with_shift: bool = True
) -> tuple[float, float]:
    """(a, b) of y = a x + b, by relative error in y > 0; outliers up to about a third count little.

    a is above 0: where the points say otherwise the shift is given up.
    """
    a, b = _start(x, y, with_shift)
    for _ in range(ROUNDS):
        error = (a * x + b) / y - 1
        spread = 1.4826 * np.median(np.abs(error)) + 1e-6
        weight = np.clip(1 - (error / (TUKEY * spread)) ** 2, 0, None) ** 2 / y**2
        a, b = _weighted_line(x, y, weight, with_shift)
    if with_shift and not a > 0:
        return fit_line(x, y, with_shift=False)
    return float(a), float(b)


def align_depth(
    raw: Float[np.ndarray, "f h w"],
    anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    stride: int,
    inverse: bool = False,
    metric: bool = True,
) -> Float[np.ndarray, "f h w"]:
    """Metric depth of a depth model's answer.

    Args:
        raw: what the model says, larger is farther, or nearer where `inverse`.
        anchor_depth_m: the readout's depth per cell, NaN unseen; None before there is a memory.
        metric: without anchors the answer is taken as metres.

    Raises:
        MirageError: the model has no scale of its own and there is nothing to take one from.
    """
    lines = _lines(raw, anchor_depth_m, stride, inverse)
    if lines is None:
        if not metric:
            raise MirageError(
                "The depth model has no metric scale and the world's first picture no depth; give "
                "the seed's depth, or a metric depth model."
            )
        lines = np.tile([1.0, 0.0], (len(raw), 1))
    fitted = lines[:, 0, None, None] * raw + lines[:, 1, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = 1 / fitted if inverse else fitted
    return np.where(fitted > 0, depth, np.inf if inverse else np.nan).astype(np.float32)


def disagreeing(
    depth_m: Float[np.ndarray, "f h w"],
    anchor_depth_m: Float[np.ndarray, "f lh lw"],
    stride: int,
) -> Bool[np.ndarray, "f h w"]:
    """Cells, as pixels, where aligned depth and memory see surfaces at different depths."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(np.log(cell_depth(depth_m, stride) / anchor_depth_m))
    differs = np.isfinite(anchor_depth_m) & (gap > np.log1p(MAX_DISAGREEMENT))
    return differs.repeat(stride, 1).repeat(stride, 2)


def _lines(raw, anchor, stride, inverse) -> np.ndarray | None:
    """(f, 2) scales and shifts; None without anchors."""
    if anchor is None:
        return None
    cells = cell_depth(raw, stride).astype(np.float64)
    known = np.isfinite(anchor) & (anchor > 0) & np.isfinite(cells)
    if not known.any():
        return None
    target = 1 / anchor.astype(np.float64) if inverse else anchor.astype(np.float64)
    whole = _fit(cells[known], target[known])
    return np.array(
        [
            _fit(cells[i][row], target[i][row]) if row.sum() >= MIN_ANCHORS else whole
            for i, row in enumerate(known)
        ]
    )


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    middle = np.median(y)
    spread = np.percentile(y, 90) - np.percentile(y, 10)
    return fit_line(x, y, bool(len(x) >= MIN_ANCHORS and spread > MIN_SPREAD * middle))


def _start(x: np.ndarray, y: np.ndarray, with_shift: bool) -> tuple[float, float]:
    """Medians: of ratios, or of slopes between far pairs and what they leave (Theil and Sen)."""
    ratio = float(np.median(y / np.where(x > 0, x, np.nan))) if (x > 0).all() else 1.0
    if not with_shift:
        return ratio, 0.0
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    low, high = order[:half], order[-half:]
    gap = x[high] - x[low]
    slopes = (y[high] - y[low])[gap > 0] / gap[gap > 0]
    if not len(slopes):
        return ratio, 0.0
    slope = float(np.median(slopes))
    return slope, float(np.median(y - slope * x))


def _weighted_line(x, y, weight, with_shift: bool) -> tuple[float, float]:
    if not with_shift:
        return float((weight * x * y).sum() / max((weight * x * x).sum(), 1e-12)), 0.0
    total = max(weight.sum(), 1e-12)
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    spread = (weight * (x - mean_x) ** 2).sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / max(spread, 1e-12)
    return float(slope), float(mean_y - slope * mean_x)


@dataclass(frozen=True)
class DepthEstimator:
    """A depth model and how it is spoken to.

    Attributes:
        network: normalised pictures (f, 3, ih, iw) to an answer (f, oh, ow).
        rule: the pictures that the network takes.
        inverse: larger answers are nearer.
        metric: the answer has a scale of its own, in metres or 1/metres.
        scale: from pixels of the picture's focal length to the factor of the answer.
        batch: pictures at a time.
    """

    network: Callable[[Float[Tensor, "f 3 ih iw"]], Float[Tensor, "f oh ow"]]
    rule: InputRule = InputRule()
    inverse: bool = False
    metric: bool = True
    scale: Callable[[Camera], np.ndarray] | None = None
    batch: int = 8
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(
        self, rgb: UInt8[np.ndarray, "f h w 3"], cameras: Camera
    ) -> Float[np.ndarray, "f h w"]:
        """The model's answer at picture size, before alignment."""
        parts = []
        for start in range(0, len(rgb), self.batch):
            report()
            pictures = network_input(rgb[start : start + self.batch], self.rule, self.device)
            parts.append(picture_sized(self.network(pictures).float(), rgb.shape[1:3]).cpu())
        answer = torch.cat(parts).numpy()
        if self.scale is not None:
            answer = answer * self.scale(cameras)[:, None, None]
        return answer.astype(np.float32)

    def aligned(
        self, rgb: UInt8[np.ndarray, "h w 3"], camera: Camera, known_m: Float[np.ndarray, "h w"]
    ) -> Float[np.ndarray, "h w"]:
        """Metric depth of one picture, brought to what is known of it (NaN where nothing is)."""
        raw = self(rgb[None], Camera.stack([camera]))
        anchors = np.where(np.isfinite(known_m), known_m, np.nan)[None]
        return align_depth(raw, anchors if np.isfinite(anchors).any() else None, 1, self.inverse, self.metric)[0]


def _transformers_depth(source: str, device: str) -> DepthEstimator:
    """The families of transformers whose answers are known: Depth Anything and Depth Pro."""
    from transformers import AutoConfig, AutoModelForDepthEstimation

    kind = _read(AutoConfig, source).model_type
    if kind not in KNOWN_TYPES:
        # Others (DPT, ZoeDepth, GLPN) mean other things, and their configs do not say which.
        raise MirageError(
            f"The depth model {source} is of the type {kind}, and what its answers mean is not "
            f"known; give one of the types {' and '.join(KNOWN_TYPES)}."
        )
    network = _load(AutoModelForDepthEstimation, source, device)
    if kind == "depth_pro":
        return _depth_pro(network, device)
    relative = getattr(network.config, "depth_estimation_type", "metric") == "relative"
    patch = getattr(getattr(network.config, "backbone_config", None), "patch_size", 32) or 32
    side = getattr(getattr(network.config, "backbone_config", None), "image_size", 518) or 518

    def answer(pictures: Tensor) -> Tensor:
        return network(pixel_values=pictures.to(network.dtype)).predicted_depth

    # Relative checkpoints of this family answer with inverse depth of unknown scale and shift.
    rule = InputRule(_side(side, patch), patch)
    return DepthEstimator(answer, rule, relative, not relative, device=device)


def _depth_pro(network, device: str) -> DepthEstimator:
    """Canonical inverse depth; the focal length is ours, so its guess of it is not asked for."""
    config = network.config
    # The largest view is cut into patches that overlap by half of the image model's picture.
    side = round(config.patch_size / min(config.scaled_images_ratios))
    rule = InputRule(side, 1, square=True, mean=(0.5,) * 3, std=(0.5,) * 3)

    def answer(pictures: Tensor) -> Tensor:
        return network(pixel_values=pictures.to(network.dtype)).predicted_depth

    def scale(cameras: Camera) -> np.ndarray:
        return cameras.size[1] / cameras.intrinsics[..., 0, 0]

    return DepthEstimator(answer, rule, inverse=True, scale=scale, batch=1, device=device)


def _depth_anything_3(source: str, device: str) -> DepthEstimator:
    """The package depth-anything-3.

    METRIC checkpoints answer in units of focal / 300, NESTED ones in metres, others in depth of
    unknown scale.
    """
    try:
        from depth_anything_3.api import DepthAnything3
    except ImportError as error:
        raise MirageError(
            f"Depth Anything 3 is not installed ({error}); pip install depth-anything-3 or name "
            "another depth model."
        ) from error
    network = DepthAnything3.from_pretrained(source).to(device).eval()
    # Longest side 504, sides multiples of 14: of such pictures the package crops nothing.
    rule = InputRule(504, 14, longest=True, mean=(0.0,) * 3, std=(1.0,) * 3)

    def answer(pictures: Tensor) -> Tensor:
        images = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        depth = [network.inference([image], process_res=504).depth[0] for image in images]
        return torch.from_numpy(np.stack(depth))

    def scale(cameras: Camera) -> np.ndarray:
        height, width = rule.size(*cameras.size)
        return cameras.resized((height, width)).intrinsics[..., 0, 0] / 300

    kind = (getattr(network, "model_name", "") or Path(source).name).lower()
    focal = scale if "metric" in kind else None
    metric = "metric" in kind or "nested" in kind
    return DepthEstimator(answer, rule, metric=metric, scale=focal, device=device)


def _map_anything(source: str, device: str) -> DepthEstimator:
    """The package mapanything (metric z depth of single views)."""
    try:
        from mapanything.models import MapAnything
    except ImportError as error:
        raise MirageError(
            f"MapAnything is not installed ({error}); install it from its repository or name "
            "another depth model."
        ) from error
    network = MapAnything.from_pretrained(source).to(device).eval()
    rule = InputRule(518, 14, longest=True)

    def answer(pictures: Tensor) -> Tensor:
        views = [{"img": picture[None], "data_norm_type": ["dinov2"]} for picture in pictures]
        answers = [network.infer([view], apply_mask=False, mask_edges=False)[0] for view in views]
        return torch.cat([view["depth_z"][..., 0] for view in answers])

    return DepthEstimator(answer, rule, device=device)


ESTIMATORS: dict[str, Callable[[str, str], DepthEstimator]] = {
    "depth-anything": _transformers_depth,
    "depth-pro": _transformers_depth,
    "transformers": _transformers_depth,
    "da3": _depth_anything_3,
    "map-anything": _map_anything,
}
KNOWN_TYPES = ("depth_anything", "depth_pro")
#: What a name alone stands for.
SOURCES = {
    "depth-anything": "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
    "depth-pro": "apple/DepthPro-hf",
    "da3": "depth-anything/DA3METRIC-LARGE",
    "map-anything": "facebook/map-anything",
}


def load_depth_estimator(name: str, device: str = "cpu") -> DepthEstimator:
    """A depth model by "kind" or "kind:folder or hub id"; MirageError when there is none such."""
    kind, _, source = name.partition(":")
    source = source or SOURCES.get(kind, "")
    if kind not in ESTIMATORS or not source:
        raise MirageError(
            f"The depth model is '{name}'; give mini or KIND:SOURCE, the kind one of "
            f"{', '.join(ESTIMATORS)} and the source a folder or hub id."
        )
    return ESTIMATORS[kind](source, device)


def _load(kind: type, source: str, device: str):
    return _read(kind, source).eval().requires_grad_(False).to(device)


def _read(kind: type, source: str):
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"The depth model {source} cannot be loaded ({reason}); give a folder or hub id of "
            "one in transformers' format."
        ) from error


def _side(side: int, patch: int) -> int:
    return max(patch, side // patch * patch)

"""Perception for the large model: a depth model, segmenters by text prompt, and agreement with memory.

`mini` is the shipped perceiver: depth, moving things and sky from one small net. Any other depth
model is made metric by what memory shows. Moving things and sky come from a text-prompted segmenter:
`sam3:<folder or hub id>`, `clipseg:...`. Where aligned depth and memory disagree something has come
or gone; either way it is not to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from mirage_ros.errors import MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import upsample
from mirage_ros.models import depth_estimators
from mirage_ros.models.depth_estimators import (
    DepthEstimator,
    align_depth,
    disagreeing,
    load_depth_estimator,
)
from mirage_ros.models.parts import (
    InputRule,
    block_means,
    network_input,
    picture_sized,
    stored_bytes,
)
from mirage_ros.protocol import Perception, WorldModel

SKY_PROMPT = "sky"
#: Instances that the segmenter is less sure of are not counted.
MIN_SCORE = 0.5


@dataclass(frozen=True)
class Segmenter:
    """A text-prompted segmenter and how it is spoken to.

    Attributes:
        network: pictures and one prompt to probabilities (f, oh, ow).
        prompts: what may move.
    """

    network: Callable[[Float[Tensor, "f 3 ih iw"], str], Float[Tensor, "f oh ow"]]
    rule: InputRule
    prompts: Sequence[str]
    batch: int = 4
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(
        self, rgb: UInt8[np.ndarray, "f h w 3"]
    ) -> tuple[Bool[np.ndarray, "f h w"], Bool[np.ndarray, "f h w"]]:
        """Where things that may move are, and the sky, at picture size."""
        dynamic = np.zeros(rgb.shape[:3], bool)
        sky = np.zeros(rgb.shape[:3], bool)
        for start in range(0, len(rgb), self.batch):
            part = slice(start, start + self.batch)
            pictures = network_input(rgb[part], self.rule, self.device)
            for prompt in self.prompts:
                dynamic[part] |= self._found(pictures, prompt, rgb.shape[1:3])
            sky[part] = self._found(pictures, SKY_PROMPT, rgb.shape[1:3])
        return dynamic & ~sky, sky

    def _found(self, pictures: Tensor, prompt: str, size: tuple[int, int]) -> np.ndarray:
        report()
        share = picture_sized(self.network(pictures, prompt).float(), size)
        return (share > 0.5).cpu().numpy()


def _sam3(source: str, prompts: Sequence[str], device: str) -> Segmenter:
    """SAM 3 (concept segmentation): the union of the instances that it is sure of."""
    # Not from the top of transformers: there it asks for torchvision, which only boxes need.
    from transformers.models.sam3.modeling_sam3 import Sam3Model

    network, tokenizer = _load(Sam3Model, source, device)
    side = network.config.vision_config.image_size
    seen: dict[int, tuple[Tensor, object]] = {}

    def answer(pictures: Tensor, prompt: str) -> Tensor:
        if id(pictures) not in seen:  # pictures are looked at once for all prompts
            seen.clear()
            seen[id(pictures)] = pictures, network.get_vision_features(pictures.to(network.dtype))
        length = network.config.text_config.max_position_embeddings
        words = tokenizer([prompt] * len(pictures), padding="max_length", max_length=length,
                          truncation=True, return_tensors="pt").to(device)  # fmt: skip
        output = network(
            vision_embeds=seen[id(pictures)][1],
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
        )
        score = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
        masks = output.pred_masks.sigmoid() * (score > MIN_SCORE)[..., None, None]
        return masks.amax(1)

    rule = InputRule(side, 1, square=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Segmenter(answer, rule, prompts, device=device)


def _clipseg(source: str, prompts: Sequence[str], device: str) -> Segmenter:
    """CLIPSeg: small and coarse, runs on a CPU."""
    from transformers import CLIPSegForImageSegmentation

    network, tokenizer = _load(CLIPSegForImageSegmentation, source, device)
    side = network.config.vision_config.image_size

    def answer(pictures: Tensor, prompt: str) -> Tensor:
        words = tokenizer([prompt] * len(pictures), padding=True, return_tensors="pt").to(device)
        output = network(
            pixel_values=pictures.to(network.dtype),
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
        )
        return output.logits.sigmoid().view(len(pictures), *output.logits.shape[-2:])

    return Segmenter(answer, InputRule(side, 1, square=True), prompts, device=device)


SEGMENTERS: dict[str, Callable[[str, Sequence[str], str], Segmenter]] = {
    "sam3": _sam3,
    "clipseg": _clipseg,
}
#: What a name alone stands for.
SOURCES = {"sam3": "facebook/sam3", "clipseg": "CIDAS/clipseg-rd64-refined"}


def load_segmenter(name: str, prompts: Sequence[str], device: str = "cpu") -> Segmenter:
    """A segmenter by "kind" or "kind:folder or hub id"; MirageError when there is none such."""
    kind, _, source = name.partition(":")
    if kind not in SEGMENTERS:
        raise MirageError(
            f"The segmenter is '{name}'; give KIND or KIND:SOURCE, the kind one of "
            f"{', '.join(SEGMENTERS)} and the source a folder or hub id."
        )
    return SEGMENTERS[kind](source or SOURCES[kind], tuple(prompts), device)


def _load(kind: type, source: str, device: str):
    from transformers import AutoTokenizer

    try:
        network = kind.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MirageError(
            f"The segmenter {source} cannot be loaded ({reason}); give a folder or hub id of one "
            "in transformers' format."
        ) from error
    return network.eval().requires_grad_(False).to(device), tokenizer


class MiniPerceiver:
    """The shipped perceiver behind a codec of a coarser stride.

    It is shown pictures shrunk so far that its cells are the codec's: nearer to the size that
    it was trained at, and for a stride of 16 a quarter of the work.
    """

    def __init__(self, mini: WorldModel, stride: int):
        self.mini, self.times = mini, stride // mini.stride

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        small = block_means(rgb, self.times)
        found = self.mini.perceive(small, cameras.resized(small.shape[1:3]), anchor_depth_m)
        parts = (found.depth_m, found.dynamic, found.sky)
        return Perception(*(upsample(part, self.times) for part in parts))


class AdaptedPerceiver:
    """A depth model and, where there is one, a segmenter.

    Args:
        stride: pixels per cell of the readout.
    """

    def __init__(self, depth: DepthEstimator, masks: Segmenter | None, stride: int):
        self.depth, self.masks, self.stride = depth, masks, stride

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        raw, model = self.depth(rgb, cameras), self.depth
        depth = align_depth(raw, anchor_depth_m, self.stride, model.inverse, model.metric)
        dynamic = sky = np.zeros(depth.shape, bool)
        if self.masks is not None:
            dynamic, sky = self.masks(rgb)
        if anchor_depth_m is not None:
            dynamic = dynamic | disagreeing(depth, anchor_depth_m, self.stride)
        sky = sky | np.isposinf(depth)
        return Perception(np.where(sky, np.float32(np.inf), depth), dynamic & ~sky, sky)


class MaskedPerceiver:
    """Another perceiver's depth, a segmenter's masks."""

    def __init__(self, perceiver: Callable[..., Perception], masks: Segmenter):
        self.perceiver, self.masks = perceiver, masks

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        found = self.perceiver(rgb, cameras, anchor_depth_m)
        dynamic, sky = self.masks(rgb)
        sky = sky | found.sky
        depth = np.where(sky, np.float32(np.inf), found.depth_m)
        return Perception(depth, (dynamic | found.dynamic) & ~sky, sky)


def load_perceiver(
    depth: str,
    masks: str,
    prompts: Sequence[str],
    load_mini: Callable[[str], WorldModel],
    stride: int,
    device: str,
) -> MiniPerceiver | AdaptedPerceiver | MaskedPerceiver:
    """The perceiver of a config: names of depth model and segmenter, what may move.

    Args:
        load_mini: loads the shipped model to a device; called for depth "mini" only.
    """
    segmenter = load_segmenter(masks, prompts, device) if masks else None
    if depth != "mini":
        return AdaptedPerceiver(load_depth_estimator(depth, device), segmenter, stride)
    perceiver = MiniPerceiver(load_mini(device), stride)
    return perceiver if segmenter is None else MaskedPerceiver(perceiver, segmenter)


def perceiver_bytes(depth: str, masks: str) -> int:
    """What a config's depth model and segmenter take, as far as they are on this machine."""
    return sum(stored_bytes(source) for source in sources_of(depth, masks) if source != "mini")


def sources_of(depth: str, masks: str) -> list[str]:
    """Folders or hub ids of a config's depth model and segmenter; "mini" is the shipped model."""
    found = []
    for name, known in ((depth, depth_estimators.SOURCES), (masks, SOURCES)):
        kind, _, source = name.partition(":")
        if name == "mini" or source or kind in known:
            found.append(source or known.get(kind, name))
    return found

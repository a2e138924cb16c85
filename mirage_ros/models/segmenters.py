"""What moves and where the sky is, by text prompts: `sam3:<folder or hub id>`, `clipseg:...`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from mirage_ros.core.errors import MirageError
from mirage_ros.core.progress import report
from mirage_ros.models.resizing import InputRule, network_input, picture_sized

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
        told = network(
            vision_embeds=seen[id(pictures)][1],
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
        )
        score = told.pred_logits.sigmoid() * told.presence_logits.sigmoid()
        masks = told.pred_masks.sigmoid() * (score > MIN_SCORE)[..., None, None]
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
        told = network(
            pixel_values=pictures.to(network.dtype),
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
        )
        return told.logits.sigmoid().view(len(pictures), *told.logits.shape[-2:])

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

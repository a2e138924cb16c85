"""What is compared: memories, and models with one thing switched off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.types import Readout, WorldModel
from mirage_ros.core.world import World, WorldConfig
from mirage_ros.evaluation.rgb_cache import KeyframeWorld, RgbWorld

MEMORIES = ("latent", "rgb", "keyframesN", "none")
"""The latent memory; a cloud of coloured points; N pictures as JPEG and PNG; none."""
KEYFRAMES = re.compile(r"keyframes([1-9]\d*)")
ABLATIONS = {
    "sub_cell": "offsets and scales of the tokens are not told",
    "visibility": "the network is not told where memory sees anything",
    "dynamic_filter": "moving things are remembered like all else",
    "references": "no reference frames",
}


@dataclass(frozen=True)
class Variant:
    """One thing to evaluate.

    Attributes:
        memory: one of `MEMORIES`, with a number for N.
        ablation: one of `ABLATIONS`, or "".
        model: another checkpoint than the evaluated one, or "".
    """

    name: str
    memory: str = "latent"
    ablation: str = ""
    model: str = ""


def parse_variants(
    memories: Sequence[str], ablations: Sequence[str], checkpoints: Sequence[str]
) -> list[Variant]:
    """Memories first, then ablations of the latent one, then checkpoints given as NAME=PATH."""
    unknown = [m for m in memories if m not in MEMORIES and not KEYFRAMES.fullmatch(m)]
    unknown += [m for m in memories if m == "keyframesN"] + [
        a for a in ablations if a not in ABLATIONS
    ]
    if unknown or not memories:
        raise MirageError(
            f"There is no variant {', '.join(unknown) or 'at all'}; memories are "
            f"{', '.join(MEMORIES)}, ablations {', '.join(ABLATIONS)}."
        )
    variants = [Variant(memory, memory) for memory in memories]
    variants += [Variant(f"no {name}", ablation=name) for name in ablations]
    for text in checkpoints:
        name, _, path = text.partition("=")
        if not name or not path:
            raise MirageError(f"A checkpoint to compare is {text!r}; give NAME=FOLDER.")
        variants.append(Variant(name, model=path))
    if len({variant.name for variant in variants}) < len(variants):
        raise MirageError("Two variants have one name; name each once.")
    return variants


def make_world(
    variant: Variant, model: WorldModel, noise_seed: int, forget_moving: str = "imagined"
) -> World:
    """The cycle of a variant; `model` is its own checkpoint, `forget_moving` as in WorldConfig."""
    use_memory = variant.memory != "none"
    config = WorldConfig(seed=noise_seed, use_memory=use_memory, forget_moving=forget_moving)
    if variant.ablation == "dynamic_filter":
        config = replace(config, forget_moving="none")
    elif variant.ablation:
        model = AblatedModel(model, variant.ablation)
    if keyframes := KEYFRAMES.fullmatch(variant.memory):
        return KeyframeWorld(model, config, int(keyframes[1]))
    return (RgbWorld if variant.memory == "rgb" else World)(model, config)


class AblatedModel:
    """A model whose `generate` is not told one thing; all else is the model's own."""

    def __init__(self, model: WorldModel, ablation: str) -> None:
        self._model, self._ablation = model, ablation

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def generate(
        self,
        readout: Readout,
        cameras: Camera,
        preceding: torch.Tensor,
        references: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        if self._ablation == "references":
            references = references[:0]
        return self._model.generate(
            blinded(readout, self._ablation), cameras, preceding, references, seed
        )


def blinded(readout: Readout, ablation: str) -> Readout:
    """A readout that keeps one thing for itself."""
    if ablation == "sub_cell":
        return replace(
            readout,
            offset=np.zeros_like(readout.offset),
            place=np.zeros_like(readout.place),
            log_scale=np.zeros_like(readout.log_scale),
        )
    if ablation == "visibility":
        # All cells claim to be seen; those that are not hold zero latents, infinitely far.
        depth = np.where(readout.visible, readout.depth_m, np.inf).astype(np.float32)
        return replace(readout, visible=np.ones_like(readout.visible), depth_m=depth)
    return readout

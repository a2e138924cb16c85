"""What a Wan2.2 checkpoint will take of a device, stage by stage, before anything is loaded.

Weights are counted on torch's meta device, the decoder's cache is measured there; activations
are estimates that lean to the large side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from mirage_ros.core.errors import MirageError
from mirage_ros.models.denoiser import SideBranch
from mirage_ros.models.wan_codec import WanCodec
from mirage_ros.models.wan_config import WanConfig

GIB = 2**30
#: Smaller pictures and chunks that a refusal tries, in this order.
SMALLER_SIZES = ((704, 1280), (480, 832), (352, 640), (256, 448), (128, 224))
SMALLER_CHUNKS = (8, 4, 2, 1)
#: Room for the CUDA context and what the allocator cannot use.
OVERHEAD = 1 * GIB
#: Bytes per pixel of a chunk while it is perceived.
PERCEIVING = 70


@dataclass(frozen=True)
class Parts:
    """Configs of the networks, as in their folders' config.json.

    Attributes:
        text_parameters: of the text encoder.
        every: the branch copies every so many blocks.
        perceiver: bytes of the depth model and the segmenter.
    """

    transformer: dict
    vae: dict
    text_parameters: int = 0
    every: int = 2
    perceiver: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by network, by stage (all that is there at the time), and of the decoder's cache."""

    weights: dict[str, int]
    stages: dict[str, int]
    config: WanConfig
    decoder_cache: int = 0

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    def describe(self) -> str:
        """A few lines to read before loading."""
        size = "x".join(map(str, self.config.size))
        frames = 4 * self.config.chunk_latents
        lines = [f"Memory plan at {size}, {frames} frames a chunk:"]
        lines += [f"  weights  {name:<12} {size / GIB:7.2f} GiB" for name, size in
                  self.weights.items()]  # fmt: skip
        lines += [f"  stage    {name:<12} {size / GIB:7.2f} GiB" for name, size in
                  self.stages.items()]  # fmt: skip
        return "\n".join([*lines, f"  peak                  {self.peak / GIB:7.2f} GiB"])


def count_parameters(parts: Parts) -> dict[str, int]:
    """Parameters of each network, counted without making them."""
    with torch.device("meta"):
        networks = {
            "transformer": WanTransformer3DModel.from_config(parts.transformer),
            "branch": SideBranch(transformer_config=_clean(parts.transformer), every=parts.every),
            "vae": AutoencoderKLWan.from_config(parts.vae),
        }
    counts = {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()
    }
    return counts | {"text_encoder": parts.text_parameters}


@dataclass(frozen=True)
class Measured:
    """What of a checkpoint does not depend on its settings: parameters, and the decoder's cache
    and activations in numbers per pixel."""

    counts: dict[str, int]
    cache: float
    decoding: float


def measure(parts: Parts) -> Measured:
    """Counts parameters and runs the decoder on the meta device, where neither takes memory."""
    return Measured(count_parameters(parts), *_decoder_numbers(parts.vae))


def plan_memory(
    parts: Parts, config: WanConfig, dtype: torch.dtype, measured: Measured | None = None
) -> MemoryPlan:
    """The plan of a checkpoint at some settings."""
    width, measured = dtype.itemsize, measured or measure(parts)
    weights = {name: count * width for name, count in measured.counts.items()}
    text = weights.pop("text_encoder")
    weights["perceiver"] = parts.perceiver
    resident = sum(weights.values()) + OVERHEAD
    pixels = config.size[0] * config.size[1]
    cache, decoding = (round(n * pixels * width) for n in (measured.cache, measured.decoding))
    stages = {
        "prompt": text + OVERHEAD,
        "generate": resident + cache + _denoising(parts.transformer, config, width),
        "decode": resident + 2 * cache + decoding,
        "perceive": resident + 2 * cache + 4 * config.chunk_latents * pixels * PERCEIVING,
    }
    return MemoryPlan({"text_encoder": text, **weights}, stages, config, cache)


def available_bytes(device: str) -> int:
    """Free memory of the GPU; all memory of the machine for the CPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(plan: MemoryPlan, parts: Parts, dtype: torch.dtype, available: int) -> None:
    """Raises MirageError when the plan's peak is too much, with settings that would fit."""
    if plan.peak <= available:
        return
    stage = max(plan.stages, key=plan.stages.get)
    told = (
        f"The model needs {plan.peak / GIB:.1f} GiB in its stage '{stage}' and the device has "
        f"{available / GIB:.1f} GiB"
    )
    fitting = _fitting(parts, plan.config, dtype, available)
    if fitting is None:
        raise MirageError(
            f"{told}; no size fits, the weights alone take "
            f"{sum(plan.weights.values()) / GIB:.1f} GiB: use a larger device or the model mini."
        )
    size = list(fitting.size)
    raise MirageError(
        f"{told}; it would fit with size {size} and chunk_latents {fitting.chunk_latents}: set "
        "them in mirage.json or as settings."
    )


def _fitting(parts: Parts, config: WanConfig, dtype, available: int) -> WanConfig | None:
    """The largest pictures that fit, with as long chunks as fit then."""
    measured = measure(parts)
    sizes = [size for size in SMALLER_SIZES if size[0] * size[1] < config.size[0] * config.size[1]]
    for size in [config.size, *sizes]:
        for latents in (n for n in SMALLER_CHUNKS if n <= config.chunk_latents):
            smaller = replace(config, size=size, chunk_latents=latents)
            if plan_memory(parts, smaller, dtype, measured).peak <= available:
                return smaller
    return None


def _denoising(transformer: dict, config: WanConfig, width: int) -> int:
    """Activations of one block: modulation in float32 for every token, attention, feed-forward."""
    dim = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    frames = config.chunk_latents + config.preceding_frames + config.reference_frames
    height, across = (side // 32 for side in config.size)
    tokens = frames * height * across
    per_token = dim * (12 * 4 + 8 * 4 + 8 * width) + 3 * transformer["ffn_dim"] * width
    residuals = -(-transformer["num_layers"] // 2) * dim * width
    return tokens * (per_token + residuals)


def _decoder_numbers(vae_config: dict) -> tuple[float, float]:
    """Numbers per pixel in the decoder's cache, and in the largest activations beside it."""
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan.from_config(vae_config))
        latents = torch.zeros(1, codec.channels, 3, 4, 4)
        largest: list[int] = [0]

        def note(module, inputs, output) -> None:
            tensors = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
            largest[0] = max(largest[0], _numbers(tensors))

        for part in codec.vae.decoder.modules():
            part.register_forward_hook(note)
        _, state = codec.decode_stream(latents)
    pixels = (4 * codec.stride) ** 2
    # A residual block holds its input, a normed copy and a padded one besides.
    return _numbers(list(state.values())) / pixels, 4 * largest[0] / pixels


def _numbers(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _clean(config: dict) -> dict:
    return {name: value for name, value in config.items() if not name.startswith("_")}

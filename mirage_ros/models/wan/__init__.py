"""The large model, Wan2.2-TI2V-5B with memory, as a world model; and whether it fits a device.

Time: the seed is the first frame of a video stream and has a latent of its own; every later
latent stands for 4 frames. A chunk is 8 new latents (32 frames) that follow on the stream's last
one, so the network sees 9 latents (33 frames) as in its training, beside the reference latents.

A plan estimates the memory of each stage before anything is loaded. Weights are counted on torch's
meta device, the decoder's cache is measured there; activations are estimates on the large side.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mirage_ros.errors import LONG_S, MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.models.mini.codec import condition_from_context, condition_from_readout
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.parts import picture_from_rgb, rgb_from_picture
from mirage_ros.models.wan.config import WanCodec, WanConfig
from mirage_ros.protocol import DecoderState, Perception, Readout

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
    needed = (
        f"The model needs {plan.peak / GIB:.1f} GiB in its stage '{stage}' and the device has "
        f"{available / GIB:.1f} GiB"
    )
    fitting = _fitting(parts, plan.config, dtype, available)
    if fitting is None:
        raise MirageError(
            f"{needed}; no size fits, the weights alone take "
            f"{sum(plan.weights.values()) / GIB:.1f} GiB: use a larger device or the model mini."
        )
    size = list(fitting.size)
    raise MirageError(
        f"{needed}; it would fit with size {size} and chunk_latents {fitting.chunk_latents}: set "
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


ReadPrompts = Callable[[list[str]], Tensor]


@runtime_checkable
class Perceiver(Protocol):
    """Depth and masks of pictures, see perceivers.py."""

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception: ...


class WanModel:
    """A WorldModel and StreamDecoder. Holds weights and the prompt, no state of any world.

    Args:
        scheduler: diffusers' UniPC (or any of its flow-matching schedulers).
        read_prompts: texts to embeddings (n, tokens, d); called when the prompt changes.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        transformer: WanTransformer3DModel,
        branch: SideBranch,
        scheduler: SchedulerMixin,
        perceiver: Perceiver,
        read_prompts: ReadPrompts,
        config: WanConfig,
        *,
        name: str,
    ):
        self.name, self.config = name, config
        self.codec, self.perceiver, self.scheduler = WanCodec(vae), perceiver, scheduler
        self.network = MemoryDenoiser(transformer, branch).eval().requires_grad_(False)
        self.device, self.dtype = vae.device, transformer.patch_embedding.weight.dtype
        self.stride, self.channels = self.codec.stride, self.codec.channels
        self.frames_per_latent, self.size = self.codec.frames_per_latent, config.size
        self.chunk_frames = config.chunk_latents * self.frames_per_latent
        self.preceding_frames = config.preceding_frames
        self.reference_frames = config.reference_frames
        self.read_prompts, self._sampled = read_prompts, False
        self.set_prompt(config.prompt)

    def set_prompt(self, prompt: str) -> None:
        """What the following chunks are to show; reads the text encoder once."""
        guided = self.config.guidance > 1
        texts = [prompt, self.config.negative_prompt] if guided else [prompt]
        self._text = self.read_prompts(texts).to(self.device, self.dtype)

    @torch.inference_mode()
    def encode(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "f c lh lw"]:
        """Latents of single pictures: each begins a stream of its own."""
        return self.codec.encode(self.video_from_rgb(rgb).transpose(0, 2))[:, :, 0].cpu()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "f c lh lw"]) -> UInt8[np.ndarray, "f h w 3"]:
        """Pictures of latents that each begin a stream."""
        pictures, _ = self.codec.decode_stream(latents[:, :, None])
        return _rgb(pictures.transpose(0, 2))

    @torch.inference_mode()
    def decode_stream(
        self, latents: Float[Tensor, "n c lh lw"], state: DecoderState | None
    ) -> tuple[UInt8[np.ndarray, "f h w 3"], DecoderState]:
        """Pictures that follow on those after which `state` was returned (world/state.py)."""
        pictures, state = self.codec.decode_stream(latents.transpose(0, 1)[None], state)
        return _rgb(pictures), state

    @torch.inference_mode()
    def generate(
        self,
        readout: Readout,
        cameras: Camera,
        preceding: Float[Tensor, "p c lh lw"],
        references: Float[Tensor, "r c lh lw"],
        seed: int,
    ) -> Float[Tensor, "f c lh lw"]:
        """Latents that follow on `preceding`, of which there is one at least."""
        context = torch.cat([references, preceding]).float().transpose(0, 1)
        parts = [condition_from_context(context), condition_from_readout(readout)]
        condition = torch.cat(parts, 1)[None].to(self.device, self.dtype)
        context = context[None].to(self.device)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, len(readout.visible), *context.shape[-2:])
        # Drawn on the CPU, so that a seed means the same noise on every device.
        noise = torch.randn(shape, generator=generator).to(self.device)
        return self.sample(noise, context, condition)[0].transpose(0, 1).cpu()

    def sample(
        self,
        noise: Float[Tensor, "1 c n lh lw"],
        context: Float[Tensor, "1 c p lh lw"],
        condition: Float[Tensor, "1 k pn lh lw"],
    ) -> Float[Tensor, "1 c n lh lw"]:
        """Denoises targets beside their clean context, in float32 between the network's calls."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.config.steps, device=self.device)
        latents, frames = noise, context.shape[2]
        for step in scheduler.timesteps:
            # The first chunk may compile.
            report(0.0 if self._sampled else LONG_S)
            timestep = torch.zeros(1, frames + latents.shape[2], device=self.device)
            timestep[:, frames:] = step
            both = torch.cat([context, latents], 2).to(self.dtype)
            velocity = self._velocity(both, timestep, condition)[:, :, frames:]
            latents = scheduler.step(velocity, step, latents, return_dict=False)[0]
        self._sampled = True
        return latents

    def perceive(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        """Metric depth, moving things and sky, by the adapters that the config names."""
        return self.perceiver(rgb, cameras, anchor_depth_m)

    def segmented(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"] | None:
        """What the segmenter that the config asks for takes for moving; None without one."""
        masks = getattr(self.perceiver, "masks", None)
        return None if masks is None else masks(rgb)[0]

    def _velocity(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        prompted = self.network(latents, timestep, condition, self._text[:1]).float()
        if self.config.guidance <= 1:
            return prompted
        unprompted = self.network(latents, timestep, condition, self._text[1:]).float()
        return unprompted + self.config.guidance * (prompted - unprompted)

    def video_from_rgb(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "1 3 f h w"]:
        """Pictures as the codec takes them."""
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device)
        return picture_from_rgb(picture).transpose(0, 1)[None]


def _rgb(video: Float[Tensor, "1 3 f h w"]) -> UInt8[np.ndarray, "f h w 3"]:
    return rgb_from_picture(video[0].float().transpose(0, 1))

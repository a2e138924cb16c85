"""The large model behind the cycle's face: Wan2.2-TI2V-5B with memory.

Time: the seed is the first frame of a video stream and has a latent of its own; every later
latent stands for 4 frames. A chunk is 8 new latents (32 frames) that follow on the stream's last
one, so the network sees 9 latents (33 frames) as in its training, beside the reference latents.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mirage_ros.core.camera import Camera
from mirage_ros.core.progress import LONG_S, report
from mirage_ros.core.types import Perception, Readout
from mirage_ros.core.video import DecoderState
from mirage_ros.models.conditioning import condition_from_context, condition_from_readout
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.pixels import picture_from_rgb, rgb_from_picture
from mirage_ros.models.wan_codec import WanCodec
from mirage_ros.models.wan_config import WanConfig

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
        self.denoiser = MemoryDenoiser(transformer, branch).eval().requires_grad_(False)
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
        """Pictures that follow on those after which `state` was returned (core/video.py)."""
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
        told = [condition_from_context(context), condition_from_readout(readout)]
        condition = torch.cat(told, 1)[None].to(self.device, self.dtype)
        context = context[None].to(self.device)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, len(readout.visible), *context.shape[-2:])
        # Drawn on the CPU, so that a seed means the same noise on every device.
        noise = torch.randn(shape, generator=generator).to(self.device)
        return self.sample(noise, context, condition)[0].transpose(0, 1).cpu()

    def from_memory(self, readout: Readout) -> Bool[np.ndarray, "f lh lw"]:
        """The network makes every pixel itself; these cells it is told the remembered latents of."""
        return readout.visible

    def sample(
        self,
        noise: Float[Tensor, "1 c n lh lw"],
        context: Float[Tensor, "1 c p lh lw"],
        condition: Float[Tensor, "1 told pn lh lw"],
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

    def segmented(
        self, rgb: UInt8[np.ndarray, "f h w 3"]
    ) -> Bool[np.ndarray, "f h w"] | None:
        """What the segmenter that the config asks for takes for moving; None without one."""
        masks = getattr(self.perceiver, "masks", None)
        return None if masks is None else masks(rgb)[0]

    def _velocity(self, latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        told = self.denoiser(latents, timestep, condition, self._text[:1]).float()
        if self.config.guidance <= 1:
            return told
        untold = self.denoiser(latents, timestep, condition, self._text[1:]).float()
        return untold + self.config.guidance * (told - untold)

    def video_from_rgb(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "1 3 f h w"]:
        """Pictures as the codec takes them."""
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device)
        return picture_from_rgb(picture).transpose(0, 1)[None]


def _rgb(video: Float[Tensor, "1 3 f h w"]) -> UInt8[np.ndarray, "f h w 3"]:
    return rgb_from_picture(video[0].float().transpose(0, 1))

"""The shipped model: mini codec, mini denoiser and mini perceiver behind the cycle's face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mirage_ros.core.camera import Camera
from mirage_ros.core.depth import cell_depth
from mirage_ros.core.grids import MOSTLY, readout_side
from mirage_ros.core.pictures import cell_share
from mirage_ros.core.types import Perception, Readout
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.conditioning import condition_from_context, condition_from_readout
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.exemplars import borrow_detail
from mirage_ros.models.perception import CUT, MiniPerception
from mirage_ros.models.pixels import picture_from_rgb, rgb_from_picture
from mirage_ros.models.sampler import TIMESTEPS, SamplerConfig, sample

#: Logit from which a pixel counts as moving. A ghost stays in the world for good, a still cell that
#: is taken for moving is seen again: so below the even odds of 0 (docs/log.md has the trade).
MOVING_LOGIT = -0.5
#: Fewer anchored cells than this say too little about a frame's scale.
MIN_ANCHORS = 8


@dataclass(frozen=True)
class MiniConfig:
    """What `model_index.json` holds beside the networks.

    Attributes:
        size: (height, width) of the pictures the model was trained on.
        chunk_frames: target frames per network call.
    """

    size: tuple[int, int] = (128, 160)
    chunk_frames: int = 4
    sampler: SamplerConfig = SamplerConfig()


class MiniModel:
    """A WorldModel that runs on two CPU cores. Holds weights, no state of any world."""

    preceding_frames = 1
    # Nothing that the network needs (docs/log.md): what is imagined borrows its detail from it.
    reference_frames = 1

    def __init__(
        self,
        codec: MiniCodec,
        transformer: WanTransformer3DModel,
        branch: SideBranch,
        perception: MiniPerception,
        config: MiniConfig,
        *,
        name: str = "mini",
        device: str = "cpu",
    ):
        self.name, self.config, self.device = name, config, torch.device(device)
        # Channels-last lets oneDNN run the convolutions without reordering (1.4 times faster here).
        layout = torch.channels_last
        self.codec = codec.eval().to(self.device, memory_format=layout)
        self.perception = perception.eval().to(self.device, memory_format=layout)
        self.denoiser = MemoryDenoiser(transformer, branch).eval().to(self.device)
        self.size, self.chunk_frames = config.size, config.chunk_frames
        self.stride, self.channels = codec.stride, codec.config.latent_channels
        self.readout_cells = branch.cells

    @torch.inference_mode()
    def encode(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "f c lh lw"]:
        """Latents of pictures whose sides are multiples of the stride."""
        return self.codec.encode(self._picture(rgb)).cpu()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "f c lh lw"]) -> UInt8[np.ndarray, "f h w 3"]:
        """Pictures of latents."""
        layout = {"memory_format": torch.channels_last}
        picture = self.codec.decode(latents.float().to(self.device).contiguous(**layout))
        return rgb_from_picture(picture)

    @torch.inference_mode()
    def generate(
        self,
        readout: Readout,
        cameras: Camera,
        preceding: Float[Tensor, "p c lh lw"],
        references: Float[Tensor, "r c lh lw"],
        seed: int,
    ) -> Float[Tensor, "f c lh lw"]:
        """Latents of up to `chunk_frames` frames; needs one preceding frame at least.

        A shorter chunk is filled up with its last view, because the network knows one length.
        What memory does not show takes its detail from what it shows and from the reference.
        """
        count = len(readout.visible)
        frames = np.minimum(np.arange(self.chunk_frames), count - 1)
        told = condition_from_readout(readout, self.readout_cells)[:, frames]
        context = preceding[-1:].float().transpose(0, 1)
        before = condition_from_context(context, self.readout_cells)
        condition = torch.cat([before, told], 1)[None].to(self.device)
        context = context[None].to(self.device)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, self.chunk_frames, *context.shape[-2:])
        noise = torch.randn(shape, generator=generator).to(self.device) * self.config.sampler.noise
        shortcut = self.denoiser.branch.aligned(condition)

        def network(noisy: Tensor, sigma: Tensor) -> Tensor:
            timestep = torch.zeros(1, context.shape[2] + self.chunk_frames, device=self.device)
            timestep[:, context.shape[2] :] = sigma * TIMESTEPS
            frames = torch.cat([context, noisy], 2)
            output = self.denoiser(frames, timestep, condition, self._text, shortcut)
            return output[:, :, context.shape[2] :]

        latents = sample(network, noise, self.config.sampler)[0, :, :count].transpose(0, 1).cpu()
        unseen = ~self.from_memory(readout)
        exemplar = references[0] if len(references) else preceding[-1]
        align = self.denoiser.branch.align
        return borrow_detail(align, latents, unseen, exemplar, cameras, readout.depth_m)

    def from_memory(self, readout: Readout) -> Bool[np.ndarray, "f lh lw"]:
        """The latents that memory shows mostly: nothing imagined is added to those."""
        return cell_share(readout.visible, self.readout_cells) >= MOSTLY

    @torch.inference_mode()
    def perceive(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f ah aw"] | None,
    ) -> Perception:
        """Metric depth, moving things and sky; depth takes its scale from the anchor."""
        rays = torch.from_numpy(cameras.rays()[..., :2]).float().permute(0, 3, 1, 2)
        side = readout_side(self)
        cells = (len(rgb), rgb.shape[1] // side, rgb.shape[2] // side)
        anchor = np.full(cells, np.nan, np.float32) if anchor_depth_m is None else anchor_depth_m
        finer = anchor.shape[1] * CUT // rgb.shape[1]
        anchor = cell_depth(anchor, finer) if finer > 1 else anchor
        log_anchor = torch.from_numpy(np.log(anchor.astype(np.float32)))[:, None]
        log_depth, moving, sky = self.perception(
            self._picture(rgb), rays.to(self.device), log_anchor.to(self.device)
        )
        sky = (sky > 0).cpu().numpy()
        depth = log_depth.exp().float().cpu().numpy()
        depth = depth * _scale_to_anchor(depth, anchor)[:, None, None]
        depth[sky] = np.inf
        return Perception(depth, (moving > MOVING_LOGIT).cpu().numpy() & ~sky, sky)

    @property
    def _text(self) -> Tensor:
        """The mini model knows no text: one zero token."""
        return torch.zeros(1, 1, self.denoiser.transformer.config.text_dim, device=self.device)

    def _picture(self, rgb: np.ndarray) -> Tensor:
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).to(self.device)
        return picture_from_rgb(picture).contiguous(memory_format=torch.channels_last)


def _scale_to_anchor(depth_m: np.ndarray, anchor_m: np.ndarray) -> np.ndarray:
    """Per frame, the median ratio of anchor to depth over the anchored cells; 1 where too few."""
    ratio = anchor_m / cell_depth(depth_m, depth_m.shape[1] // anchor_m.shape[1])
    scale = np.ones(len(depth_m), np.float32)
    for frame, row in enumerate(ratio):
        known = row[np.isfinite(row)]
        if len(known) >= MIN_ANCHORS:
            scale[frame] = np.median(known)
    return scale

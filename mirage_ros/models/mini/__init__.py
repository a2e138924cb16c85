"""The shipped model: mini codec, denoiser and perceiver as one world model.

The perceiver makes metric depth, moving things and sky of a picture and the readout's depth. One
picture has no scale; the readout has. So the network predicts log depth as a correction of the
readout's log depth where memory saw the cell, and of the readout's mean elsewhere. It is given the
ray of every pixel, so that a wide lens is not taken for a far wall.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.images import cell_share
from mirage_ros.machine import has_fast_bfloat16
from mirage_ros.models.mini.borrowing import borrow_detail
from mirage_ros.models.mini.codec import (
    MiniCodec,
    condition_from_context,
    condition_from_readout,
    residual_stage,
)
from mirage_ros.models.mini.denoiser import (
    TIMESTEPS,
    MemoryDenoiser,
    SamplerConfig,
    SideBranch,
    sample,
)
from mirage_ros.models.parts import picture_from_rgb, rgb_from_picture
from mirage_ros.protocol import MOSTLY, Perception, Readout, readout_side

#: Pictures are padded to multiples of this (the coarsest level of the net).
COARSEST = 32
CUT = 4


class MiniPerception(ModelMixin, ConfigMixin):
    """A small U-net at a quarter of the resolution."""

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int] = (64, 96, 128, 160),
        blocks: int = 2,
        mean_log_depth: float = 1.0,
    ):
        super().__init__()
        self.mean_log_depth = mean_log_depth
        self.stem = nn.Conv2d(3 * CUT**2 + 4, widths[0], 3, padding=1)
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.down = nn.ModuleList(residual_stage(width, blocks) for width in widths)
        self.shrink = nn.ModuleList(
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * a, b, 1)) for a, b in pairs
        )
        self.overview = nn.Sequential(nn.Linear(widths[-1], widths[-1]), nn.SiLU())
        self.grow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2)) for a, b in pairs
        )
        self.up = nn.ModuleList(residual_stage(width, blocks) for width in widths[:-1])
        self.head = nn.Sequential(
            nn.SiLU(), nn.Conv2d(widths[0], 3 * CUT**2, 3, padding=1), nn.PixelShuffle(CUT)
        )

    def forward(
        self,
        picture: Float[Tensor, "b 3 h w"],
        rays: Float[Tensor, "b 2 h w"],
        anchor_log_depth: Float[Tensor, "b 1 lh lw"],
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Log depth (log metres), logit of moving, logit of sky, at picture resolution.

        Args:
            picture: in [-1, 1].
            rays: x/z and y/z of every pixel.
            anchor_log_depth: the readout's log depth at latent resolution, NaN where unseen.
        """
        height, width = picture.shape[-2:]
        base, seen = self._base(anchor_log_depth)
        quarter = (height // CUT, width // CUT)
        given = torch.cat([base - self.mean_log_depth, seen], 1)
        x = torch.cat(
            [
                F.pixel_unshuffle(picture, CUT),
                F.avg_pool2d(rays, CUT),
                F.interpolate(given, quarter, mode="nearest"),
            ],
            1,
        )
        pad = (-width % COARSEST // CUT, -height % COARSEST // CUT)
        x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate").to(self.stem.weight.dtype)
        x = self.head(self._unet(self.stem(x))).float()
        depth, moving, sky = x[..., :height, :width].unbind(1)
        base = F.interpolate(base, (height, width), mode="nearest")[:, 0]
        return base + depth, moving, sky

    def _base(self, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The anchor with its gaps filled by its own mean (or the training mean), and its mask."""
        seen = torch.isfinite(anchor)
        known = torch.where(seen, anchor, torch.zeros(()))
        count = seen.sum((1, 2, 3), keepdim=True)
        mean = known.sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
        mean = torch.where(count > 0, mean, torch.full_like(mean, self.mean_log_depth))
        return torch.where(seen, known, mean.expand_as(known)), seen.float()

    def _unet(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(x)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        x = x + self.overview(x.mean((2, 3)))[..., None, None]
        for level in reversed(range(len(self.grow))):
            x = self.up[level](self.grow[level](x) + skips[level])
        return x


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
        # By what the machine is, not by a measurement: the same machine makes the same frames. Copies, as what is
        # saved would be rounded twice.
        fast = self.device.type == "cpu" and has_fast_bfloat16()
        align = branch.align if branch.config.shortcut else None
        self._decoder = with_bfloat16(self.codec, ("decoder",)) if fast else self.codec
        self._perceiver = with_bfloat16(self.perception) if fast else self.perception
        self._align = with_bfloat16(align, ("first", "stage", "last")) if fast and align else align

    @torch.inference_mode()
    def encode(self, rgb: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "f c lh lw"]:
        """Latents of pictures whose sides are multiples of the stride."""
        return self.codec.encode(self._picture(rgb)).cpu()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "f c lh lw"]) -> UInt8[np.ndarray, "f h w 3"]:
        """Pictures of latents."""
        layout = {"memory_format": torch.channels_last}
        picture = self._decoder.decode(latents.float().to(self.device).contiguous(**layout))
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

        Where memory shows all of them the network is not run: it would add nothing.
        What memory does not show takes its detail from what it shows and from the reference.
        """
        if self._shortcut_is_all and self.from_memory(readout).all():
            return self.recall(readout, cameras, preceding, references)
        count = len(readout.visible)
        condition, context = self._condition(readout, preceding)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.channels, self.chunk_frames, *context.shape[-2:])
        noise = torch.randn(shape, generator=generator)[:, :, :count].to(self.device) * self.config.sampler.noise
        shortcut = self.denoiser.branch.aligned(condition, self._align)

        def network(noisy: Tensor, sigma: Tensor) -> Tensor:
            timestep = torch.zeros(1, context.shape[2] + count, device=self.device)
            timestep[:, context.shape[2] :] = sigma * TIMESTEPS
            frames = torch.cat([context, noisy], 2)
            output = self.denoiser(frames, timestep, condition, self._text, shortcut)
            return output[:, :, context.shape[2] :]

        latents = sample(network, noise, self.config.sampler)[0].transpose(0, 1).cpu()
        return self._with_detail(latents, readout, cameras, preceding, references)

    @torch.inference_mode()
    def recall(
        self,
        readout: Readout,
        cameras: Camera,
        preceding: Float[Tensor, "p c lh lw"],
        references: Float[Tensor, "r c lh lw"],
    ) -> Float[Tensor, "f c lh lw"]:
        """What `generate` would make without its denoiser: the aligned readout and borrowed detail."""
        return self._with_detail(self.aligned(readout), readout, cameras, preceding, references)

    @torch.inference_mode()
    def aligned(self, readout: Readout) -> Float[Tensor, "f c lh lw"]:
        """The latents that memory shows; others are of no meaning."""
        target = condition_from_readout(readout, self.readout_cells)[None].to(self.device)
        return self.denoiser.branch.aligned(target, self._align)[0].transpose(0, 1).cpu()

    @property
    def _shortcut_is_all(self) -> bool:
        """Whether the network's output is the aligned readout wherever memory shows a latent."""
        return self.denoiser.branch.config.shortcut and self.config.sampler.prediction == "sample"

    def _condition(self, readout: Readout, preceding: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given of memory, a frame each, and the frames that it follows."""
        target = condition_from_readout(readout, self.readout_cells)
        context = preceding[-1:].float().transpose(0, 1)
        before = condition_from_context(context, self.readout_cells)
        return torch.cat([before, target], 1)[None].to(self.device), context[None].to(self.device)

    def _with_detail(self, latents, readout: Readout, cameras: Camera, preceding, references) -> Tensor:
        """Latents of which those that memory does not show have borrowed detail."""
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
        log_depth, moving, sky = self._perceiver(
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


def with_bfloat16(network: nn.Module, parts: Sequence[str] = ()) -> nn.Module:
    """A copy that works in bfloat16, channels last: all of it, or its parts of these names."""
    network = copy.deepcopy(network)
    for part in [getattr(network, name) for name in parts] or [network]:
        # Not by diffusers' own `to`, which warns of parts kept in float32 where there are none.
        nn.Module.to(part, torch.bfloat16, memory_format=torch.channels_last)
    return network

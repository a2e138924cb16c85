"""The shipped model: mini codec, aligner, dreamer and perceiver as one world model.

What memory does not show is imagined by the dreamer (dreamer.py), which knows views as principal components of 8x8
blocks of pixels, log depth and sky (imagining.py). mini's latents are turned into such blocks and back by the linear
part of its codec (`Aligner`): neither decoder nor encoder runs. Frames have the depth of what memory shows and of what
was imagined; the perceiver is asked for that of pictures alone that come without any.

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
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.machine import has_fast_bfloat16
from mirage_ros.models.mini.codec import Aligner, MiniCodec, condition_from_readout, residual_stage
from mirage_ros.models.mini.dreamer import STYLE_CHANNELS, SURFACE_CHANNELS, Dreamer
from mirage_ros.models.mini.imagining import STYLE_VIEWS, Blocks, DreamConfig, Question
from mirage_ros.models.mini.imagining import complete, depth_of, ray_channels, style_channels, surfaces, tensor_of
from mirage_ros.models.parts import picture_from_rgb, rgb_from_picture
from mirage_ros.protocol import Perception, Readout, Views, readout_side

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
        chunk_frames: frames that a plan is cut into; each is made by itself.
        dream: how views are completed.
    """

    size: tuple[int, int] = (128, 160)
    chunk_frames: int = 4
    dream: DreamConfig = DreamConfig()


class MiniModel:
    """An Imaginer that runs on two CPU cores. Holds weights, no state of any world.

    Args:
        dreamer: completes views of the linear code `blocks`.

    Attributes:
        network: the dreamer as it is asked, in the numbers that are fastest here.
    """

    preceding_frames = reference_frames = 0

    def __init__(
        self,
        codec: MiniCodec,
        aligner: Aligner,
        perception: MiniPerception,
        dreamer: Dreamer,
        blocks: Blocks,
        config: MiniConfig = MiniConfig(),
        *,
        name: str = "mini",
        device: str = "cpu",
    ):
        self.name, self.config, self.device = name, config, torch.device(device)
        # Channels-last lets oneDNN run the convolutions without reordering (1.4 times faster here).
        layout = torch.channels_last
        self.codec, self.aligner, self.perception, self.dreamer = (
            part.eval().to(self.device, memory_format=layout) for part in (codec, aligner, perception, dreamer)
        )
        self.blocks = blocks
        self.size, self.chunk_frames = config.size, config.chunk_frames
        self.stride, self.channels = codec.stride, codec.config.latent_channels
        self.readout_cells = aligner.cells
        # By what the machine is, not by a measurement: the same machine makes the same frames. Copies, as what is
        # saved would be rounded twice.
        fast = self.device.type == "cpu" and has_fast_bfloat16()
        self._decoder = with_bfloat16(self.codec, ("decoder",)) if fast else self.codec
        self._perceiver = with_bfloat16(self.perception) if fast else self.perception
        self._aligner = with_bfloat16(self.aligner, ("first", "stage", "last")) if fast else self.aligner
        self.network = self.dreamer
        if fast or self.device.type == "cuda":
            self.network = with_bfloat16(self.dreamer)
            for name, buffer in self.dreamer.named_buffers():  # what codes stand for is not rounded at all
                setattr(self.network, name, buffer.clone())
            self.dreamer = self.dreamer.half()  # as it is saved

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
    def aligned(self, readout: Readout) -> Float[Tensor, "f c lh lw"]:
        """The latents that memory shows; others are of no meaning."""
        condition = condition_from_readout(readout, self.readout_cells).to(self.device)
        return self._aligner(condition.transpose(0, 1)).cpu()

    @torch.inference_mode()
    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        """The view of one camera, whole: what memory shows of it stays as it is.

        Args:
            readout: what memory shows to the camera.
            camera: a batch of one.
            style: views of the same world, of which the first `STYLE_VIEWS` are looked at.
            seed: of the noise.
        """
        known = readout.known(self.readout_cells)
        latents, depth = self.aligned(readout), cell_depth(readout.depth_m, self.readout_cells)
        known &= ~np.isnan(depth)
        mask = torch.from_numpy(known[:, None].astype(np.float32))
        view, cells = self._view(latents, depth), known.shape[1:]
        question = Question(view * mask, mask, tensor_of(ray_channels(camera, cells, np.ones(1, bool))), self._style(style, camera.resized(cells)))
        dreamt = complete(self.network, question, torch.Generator().manual_seed(seed), self.config.dream)
        there = np.where(known, depth, depth_of(dreamt))
        return Views(torch.where(mask > 0, latents, self._latents(dreamt)), there, camera)

    def _style(self, style: Views, target: Camera) -> Float[Tensor, "1 s t h w"]:
        """The style views' channels; zeros for those that there are not."""
        channels = self.blocks.basis.shape[1] + SURFACE_CHANNELS + STYLE_CHANNELS
        given = torch.zeros(1, STYLE_VIEWS, channels, *target.size)
        for i in range(min(STYLE_VIEWS, len(style.latents))):
            view = self._view(style.latents[i : i + 1], style.depth_m[i : i + 1]).numpy()
            given[:, i] = tensor_of(style_channels(view, style.cameras[i : i + 1], target))
        return given

    def _view(self, latents: Float[Tensor, "f c h w"], depth_m: Float[np.ndarray, "f h w"]) -> Float[Tensor, "f v h w"]:
        """In the dreamer's channels; where depth is not known or infinite there is sky."""
        pictures = self.aligner.pictures(latents.float().to(self.device)).cpu()
        depth = np.where(np.isfinite(depth_m), depth_m, np.inf)
        return torch.cat([self.blocks.coded(pictures), tensor_of(surfaces(depth))], 1)

    def _latents(self, view: Float[Tensor, "f v h w"]) -> Float[Tensor, "f c h w"]:
        picture = self.blocks.picture(view[:, :-SURFACE_CHANNELS]).to(self.device)
        return self.codec.encode(picture.contiguous(memory_format=torch.channels_last)).cpu()

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

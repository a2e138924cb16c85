"""The mini perceiver: picture + readout depth -> metric depth, moving things, sky.

One picture has no scale; the readout has. The network predicts log depth as a correction of
the readout's log depth where memory saw the cell and of the readout's mean elsewhere, and is
told the ray of every pixel, so that a wide lens is not taken for a far wall.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.models.layers import residual_stage

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
        told = torch.cat([base - self.mean_log_depth, seen], 1)
        x = torch.cat(
            [
                F.pixel_unshuffle(picture, CUT),
                F.avg_pool2d(rays, CUT),
                F.interpolate(told, quarter, mode="nearest"),
            ],
            1,
        )
        pad = (-width % COARSEST // CUT, -height % COARSEST // CUT)
        x = self._unet(self.stem(F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")))
        depth, moving, sky = self.head(x)[..., :height, :width].unbind(1)
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

"""The dreamer: completes one RGB-D view from what memory shows of it, by flow matching.

A U-Net on latent cells. It is given the noisy view, the cells that memory shows, which way every
cell looks in the world, the camera's height above the ground, and other views of the same world
for style; it predicts the clean view: latents, depth and sky together, so that walls are flat where
they look flat. Latents are in the scale of pixel energy (principal components that are not
whitened): noise then drowns detail first and layout is decided first.

Why a network of our own: in bf16 on a core with AMX it trains 61 samples/s, diffusers' UNet2DModel
of the same widths 24 and UNet2DConditionModel 14 (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels of a view beside its latents: log depth, sky.
SURFACE_CHANNELS = 2
#: Channels that say where a cell looks: ray (3), height above the ground and whether it is known.
RAY_CHANNELS = 5
#: Channels of a style view: ray (3), its camera's position (3), whether there is such a view.
STYLE_CHANNELS = 7
_TIME_FREQUENCIES = 128


class Dreamer(ModelMixin, ConfigMixin):
    """Predicts the clean view from a noisy one.

    Args:
        latent_channels: of the codec; a view has `SURFACE_CHANNELS` more.
        widths: channels on the cell grid, on half and on a quarter of it.
        cells: cells to a side that are packed into one position of the first grid.
        deviations: standard deviation of each channel of a view, surface channels included. The network is given and
            gives channels of deviation 1; without them, details of a fiftieth of the first component's strength are
            never learnt. 1 each if left out.
    """

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes what is given by position for a default and forgets it
        latent_channels: int = 48,
        widths: Sequence[int] = (128, 256, 256),
        time_width: int = 256,
        head_width: int = 64,
        cells: int = 1,
        deviations: Sequence[float] | None = None,
    ):
        super().__init__()
        a, b, c = widths
        view = latent_channels + SURFACE_CHANNELS
        block = lambda i, o: ResidualBlock(i, o, time_width)  # noqa: E731
        attention = lambda d: Attention(d, head_width, b)  # noqa: E731
        widened = nn.Linear(2 * _TIME_FREQUENCIES, time_width)
        self.time = nn.Sequential(widened, nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU())
        inputs = (2 * view + 1) * cells**2 + RAY_CHANNELS
        self.into = nn.Conv2d(inputs, a, 3, padding=1)
        self.style_into = nn.Conv2d(4 * (view * cells**2 + STYLE_CHANNELS), b, 3, padding=1)
        self.style = block(b, b)
        self.down_1 = nn.ModuleList([block(a, a), block(a, a)])
        self.to_2 = nn.Conv2d(a, b, 3, 2, 1)
        self.down_2 = nn.ModuleList([block(b, b), block(b, b)])
        self.look_2 = attention(b)
        self.to_3 = nn.Conv2d(b, c, 3, 2, 1)
        self.middle = nn.ModuleList([block(c, c), block(c, c), block(c, c)])
        self.look_3 = nn.ModuleList([attention(c), attention(c)])
        self.from_3 = nn.Conv2d(c, b, 3, padding=1)
        self.up_2 = nn.ModuleList([block(2 * b, b), block(b, b)])
        self.look_up = attention(b)
        self.from_2 = nn.Conv2d(b, a, 3, padding=1)
        self.up_1 = nn.ModuleList([block(2 * a, a), block(a, a)])
        self.out = nn.Sequential(
            nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, view * cells**2, 3, padding=1)
        )
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)

    def forward(
        self,
        noisy: Float[Tensor, "b v h w"],
        time: Float[Tensor, "b"],
        seen: Float[Tensor, "b v h w"],
        mask: Float[Tensor, "b 1 h w"],
        rays: Float[Tensor, "b r h2 w2"],
        style: Float[Tensor, "b s t h2 w2"],
    ) -> Float[Tensor, "b v h w"]:
        """The clean view.

        Args:
            noisy: (1 - time) * noise + time * clean.
            time: 0 is noise alone, 1 is clean.
            seen: the view where memory shows it, zeros elsewhere.
            mask: 1 where memory shows the cell.
            rays: `RAY_CHANNELS` on the first grid (its sides are those of noisy over `cells`).
            style: s other views on the first grid: view channels, then `STYLE_CHANNELS`.
        """
        into, kept, out = self.gains(time)
        deviation = self.deviation(time.device)
        channels = deviation.shape[1]
        style = torch.cat([style[:, :, :channels] / deviation[:, None], style[:, :, channels:]], 2)
        return kept * noisy + out * self._answer(into * noisy, time, seen / deviation, mask, rays, style)

    def deviation(self, device: torch.device | str = "cpu") -> Float[Tensor, "1 v 1 1"]:
        """Of each channel, in float32 whatever the weights are in."""
        view = self.config.latent_channels + SURFACE_CHANNELS
        return torch.tensor(self.config.deviations or [1.0] * view, device=device).view(1, view, 1, 1)

    def gains(self, time: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b v 1 1"], ...]:
        """What the noisy view is multiplied by for the network, and it and the network's answer for the clean one.

        Those of Karras et al. 2022 ("Elucidating the design space of diffusion-based generative models"), for each
        channel's own deviation: were channels normal and independent, the clean view were expected where the answer
        is 0, and lay one deviation of the answer from there.
        """
        time, deviation = time.view(-1, 1, 1, 1).float(), self.deviation(time.device)
        variance = (time * deviation) ** 2 + (1 - time) ** 2
        return variance.rsqrt(), time * deviation**2 / variance, deviation * (1 - time) * variance.rsqrt()

    def _answer(self, noisy: Tensor, time: Tensor, seen: Tensor, mask: Tensor, rays: Tensor, style: Tensor) -> Tensor:
        """Of the network, all views in channels of deviation 1."""
        cells, kind = self.config.cells, self.into.weight.dtype
        t = self.time(_frequencies(time).to(kind))
        given = torch.cat([noisy, seen, mask], 1)
        given = F.pixel_unshuffle(given, cells) if cells > 1 else given
        x = self.into(_channels_last(torch.cat([given, rays], 1).to(kind)))
        x = self.out(self._unet(x, t, self._style(style.to(kind), t))).float()
        return F.pixel_shuffle(x, cells) if cells > 1 else x

    def _unet(self, x: Tensor, t: Tensor, memories: Tensor) -> Float[Tensor, "b a h2 w2"]:
        """Down to a quarter of the first grid and up again, looking at the tokens of the style views."""
        for block in self.down_1:
            x = block(x, t)
        fine, x = x, self.to_2(x)
        for block in self.down_2:
            x = block(x, t)
        half = x = self.look_2(x, memories)
        x = self.middle[0](self.to_3(x), t)
        for look, block in zip(self.look_3, self.middle[1:], strict=True):
            x = block(look(x, memories), t)
        x = torch.cat([self.from_3(F.interpolate(x, size=half.shape[-2:])), half], 1)
        for block in self.up_2:
            x = block(x, t)
        x = self.look_up(x, memories)
        x = torch.cat([self.from_2(F.interpolate(x, size=fine.shape[-2:])), fine], 1)
        for block in self.up_1:
            x = block(x, t)
        return x

    def _style(self, style: Tensor, t: Tensor) -> Float[Tensor, "b n d"]:
        """Tokens of all style views, on half of the first grid."""
        batch, views = style.shape[:2]
        packed = F.pixel_unshuffle(F.pad(style.flatten(0, 1), _to_even(style)), 2)
        x = self.style(self.style_into(_channels_last(packed)), t.repeat_interleave(views, 0))
        return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the second norm is scaled and shifted by the time."""

    def __init__(self, into: int, out: int, time_width: int):
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(8, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm_2, self.conv_2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(t)[:, :, None, None].chunk(2, 1)
        hidden = self.norm_2(self.conv_1(F.silu(self.norm_1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv_2(F.silu(hidden))


class Attention(nn.Module):
    """Every position looks at every other and at the style tokens."""

    def __init__(self, width: int, head_width: int, style_width: int):
        super().__init__()
        self.heads, self.norm = max(1, width // head_width), nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.style_norm, self.style_kv = (
            nn.LayerNorm(style_width),
            nn.Linear(style_width, 2 * width),
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, memories: Tensor) -> Tensor:
        batch, width, height, across = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        style_k, style_v = self.style_kv(self.style_norm(memories)).chunk(2, -1)
        k, v = torch.cat([k, style_k], 1), torch.cat([v, style_v], 1)
        q, k, v = (self._heads(part) for part in (q, k, v))
        weights = (torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1)
        y = torch.bmm(weights, v).view(batch, self.heads, height * across, -1)
        return x + self.out(y.permute(0, 1, 3, 2).reshape(batch, width, height, across))

    def _heads(self, part: Tensor) -> Tensor:
        batch, count, width = part.shape
        part = part.view(batch, count, self.heads, width // self.heads)
        return part.transpose(1, 2).reshape(batch * self.heads, count, -1)


def _frequencies(time: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
    steps = torch.arange(_TIME_FREQUENCIES, device=time.device) / _TIME_FREQUENCIES
    angle = time[:, None].float() * 1000 * torch.exp(-math.log(1000) * steps)
    return torch.cat([angle.cos(), angle.sin()], 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _to_even(x: Tensor) -> tuple[int, int, int, int]:
    return 0, x.shape[-1] % 2, 0, x.shape[-2] % 2

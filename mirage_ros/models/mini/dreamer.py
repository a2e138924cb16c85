"""The dreamer: completes one RGB-D view from what memory shows of it, cell by cell, in codes.

A U-Net on latent cells. It is given the cells that memory shows, those that were drawn already, which way every cell looks
in the world, how far the ground is there, the camera's height above it, and other views of the same world for style. Each cell is
drawn as a few codes, one given those before it: depth or sky, colour in two stages, detail in three (residual quantisation, as in
RQ-Transformer, Lee et al. 2022). Some cells are drawn at a time, the others looking at them, as in MaskGIT (Chang et al. 2022). A
last pass of the same network gives continuous latents and depth for the codes, so that walls are smooth where they look smooth.

Why codes: a network that gives a picture by its numbers is taught the mean of what might be there, fog, and noise must be
taken off it in many steps, of which the last decide all detail; by the same measure and training flow matching stayed as far
from the truth as blurred pictures (docs/log.md). What is drawn in codes is sharp from the first hour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels of a view beside its latents: log depth, sky.
SURFACE_CHANNELS = 2
#: What the sky channel holds where there is sky; minus this elsewhere.
SKY = 0.5
#: Channels that say where a cell looks: ray (3), height above the ground, whether it is known, the ground's log depth.
RAY_CHANNELS = 6
#: Of these, the one of the ground's log depth.
GROUND = 5
#: Channels of a style view: ray (3), its camera's position (3), whether there is such a view.
STYLE_CHANNELS = 7
#: The range of log depths (of a view's channel), and into how many steps it is divided.
NEAREST, FARTHEST, DEPTHS = -2.7, 3.3, 256
#: The codes of depth that a cell of the ground may have, seen from that of the ground in its middle.
BESIDE_GROUND = (-1, 0, 1)
#: Two codes that are near by this in a codebook's deviations are alike to a network that was taught nothing.
LIKENESS = 8.0
#: The finishing pass begins with answers of this share of a channel's deviation.
FINISH = 0.2


@dataclass(frozen=True)
class Codebooks:
    """What the codes of a cell stand for.

    Attributes:
        colour: (c, 3) orthonormal: the directions of the latents in which a cell's mean colour lies.
        books: (codes, c) latents of each stage, which are summed: two of colours, then those of details.
    """

    colour: Float[Tensor, "c 3"]
    books: Sequence[Float[Tensor, "_ c"]]

    COLOURS = 2

    @property
    def sizes(self) -> list[int]:
        """Codes of each part: depths and sky, then the books."""
        return [DEPTHS + 1, *(len(book) for book in self.books)]

    def codes(self, cells: Float[Tensor, "n v"]) -> Int[Tensor, "n p"]:
        """The codes of cells of views: of depth, and the nearest of each stage to what the ones before leave."""
        latents, log_depth, sky = cells[:, :-2], cells[:, -2], cells[:, -1] > 0
        depth = depth_codes(log_depth)
        colour = latents @ self.colour @ self.colour.T
        codes, left = [torch.where(sky, DEPTHS, depth)], colour
        for stage, book in enumerate(self.books):
            left = latents - colour if stage == self.COLOURS else left
            codes.append(nearest(left, book))
            left = left - book[codes[-1]]
        return torch.stack(codes, 1)

    def cells(self, codes: Int[Tensor, "n p"]) -> Float[Tensor, "n v"]:
        """Cells of views that codes stand for."""
        latents = sum(book[codes[:, 1 + stage]] for stage, book in enumerate(self.books))
        sky = codes[:, 0] == DEPTHS
        depth = NEAREST + (codes[:, 0] + 0.5) / DEPTHS * (FARTHEST - NEAREST)
        surface = torch.stack([torch.where(sky, 0.0, depth), torch.where(sky, SKY, -SKY)], 1)
        return torch.cat([latents, surface], 1)

    def likenesses(self) -> list[Float[Tensor, "_ _"]]:
        """Features of each part's codes in which those that mean nearly the same lie near."""
        at = (torch.arange(DEPTHS) + 0.5) / DEPTHS
        bumps = torch.exp(-(((at[:, None] - torch.linspace(0, 1, 16)) * 16) ** 2))
        depths = F.pad(torch.cat([4 * at[:, None] - 2, bumps], 1), (0, 1, 0, 1))
        depths[DEPTHS, -1] = 1.0
        out = [depths]
        for stage, book in enumerate(self.books):
            book = book @ self.colour if stage < self.COLOURS else book
            spread = book.std(0)
            out.append(book / (spread + 0.1 * spread.max()))
        return out


def depth_codes(log_depth: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    return ((log_depth - NEAREST) / (FARTHEST - NEAREST) * DEPTHS).long().clamp(0, DEPTHS - 1)


def nearest(values: Float[Tensor, "n c"], book: Float[Tensor, "k c"]) -> Int[Tensor, "n"]:
    """The code nearest to each value."""
    lengths, columns = book.square().sum(1), book.T.contiguous()
    # numpy finds the least of a row ten times as fast as torch does on a CPU.
    parts = [torch.addmm(lengths, part, columns, alpha=-2).numpy().argmin(1) for part in values.split(2048)]
    return torch.cat([torch.from_numpy(part) for part in parts])


class Dreamer(ModelMixin, ConfigMixin):
    """Draws the codes of cells that are not shown, and finishes a view whose cells are all drawn.

    Args:
        latent_channels: of the views' linear code; a view has `SURFACE_CHANNELS` more.
        widths: channels on the cell grid, on half and on a quarter of it.
        code_width: channels that a cell's codes are predicted from.
        book_sizes: codes of each stage of the codebooks.
        deviations: standard deviation of each channel of a view, surface channels included: the network is given
            channels of deviation 1. 1 each if left out.
    """

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes what is given by position for a default and forgets it
        latent_channels: int = 48,
        widths: Sequence[int] = (128, 256, 256),
        task_width: int = 256,
        head_width: int = 64,
        code_width: int = 256,
        book_sizes: Sequence[int] = (1024, 256, 1024, 512, 512),
        deviations: Sequence[float] | None = None,
    ):
        super().__init__()
        a, b, c = widths
        view = latent_channels + SURFACE_CHANNELS
        block = lambda i, o: ResidualBlock(i, o, task_width)  # noqa: E731
        attention = lambda d: Attention(d, head_width, b)  # noqa: E731
        self.task = nn.Embedding(2, task_width)
        self.into = nn.Conv2d(2 * view + 2 + RAY_CHANNELS, a, 3, padding=1)
        self.style_into = nn.Conv2d(4 * (view + STYLE_CHANNELS), b, 3, padding=1)
        self.style = block(b, b)
        self.down_1, self.look_0 = nn.ModuleList([block(a, a), block(a, a)]), attention(a)
        self.to_2 = nn.Conv2d(a, b, 3, 2, 1)
        self.down_2, self.look_2 = nn.ModuleList([block(b, b), block(b, b)]), attention(b)
        self.to_3 = nn.Conv2d(b, c, 3, 2, 1)
        self.middle = nn.ModuleList([block(c, c), block(c, c), block(c, c)])
        self.look_3 = nn.ModuleList([attention(c), attention(c)])
        self.from_3 = nn.Conv2d(c, b, 3, padding=1)
        self.up_2, self.look_up = nn.ModuleList([block(2 * b, b), block(b, b)]), attention(b)
        self.from_2 = nn.Conv2d(b, a, 3, padding=1)
        self.up_1, self.look_1 = nn.ModuleList([block(2 * a, a), block(a, a)]), attention(a)
        self.out = nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, view, 3, padding=1))
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)
        self.features = nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, code_width, 3, padding=1))
        self._make_heads(latent_channels, code_width, book_sizes)

    def _make_heads(self, latent_channels: int, code_width: int, book_sizes: Sequence[int]) -> None:
        self.register_buffer("colour", torch.zeros(latent_channels, 3))
        for stage, size in enumerate(book_sizes):
            self.register_buffer(f"book_{stage}", torch.zeros(size, latent_channels))
        sizes, features = [DEPTHS + 1, *book_sizes], [18, 3, 3, *[latent_channels] * (len(book_sizes) - 2)]
        parts = list(zip(sizes, features, strict=True))
        self.says = nn.ModuleList(CodeHead(code_width, *part) for part in parts)
        self.names = nn.ModuleList(CodeName(code_width, *part) for part in parts[:-1])
        self.at_ground = nn.Linear(code_width, len(BESIDE_GROUND))
        nn.init.zeros_(self.at_ground.weight)
        nn.init.zeros_(self.at_ground.bias)

    @property
    def codebooks(self) -> Codebooks:
        """In float32, on the CPU."""
        books = [getattr(self, f"book_{stage}").float().cpu() for stage in range(len(self.config.book_sizes))]
        return Codebooks(self.colour.float().cpu(), books)

    def take(self, codebooks: Codebooks) -> None:
        """The codes mean this from now on; before any training."""
        self.colour.copy_(codebooks.colour)
        for stage, book in enumerate(codebooks.books):
            getattr(self, f"book_{stage}").copy_(book)

    def kernels(self) -> list[nn.Parameter]:
        """Of what lies between the first layers and the last ones: matrices, whose rows and columns are alike."""
        ends = "into", "style_into", "task", "out", "says", "names", "at_ground"
        named = [(name.split("."), parameter) for name, parameter in self.named_parameters()]
        return [p for path, p in named if p.dim() > 1 and path[0] not in ends and "task" not in path]

    def forward(
        self,
        seen: Float[Tensor, "b v h w"],
        mask: Float[Tensor, "b 1 h w"],
        rays: Float[Tensor, "b r h w"],
        style: Float[Tensor, "b n d"],
        drawn: Float[Tensor, "b v h w"],
        drawn_mask: Float[Tensor, "b 1 h w"],
        finish: bool = False,
    ) -> Float[Tensor, "b k h w"]:
        """What the codes of every cell are predicted from (`CodeHead`); with `finish`, what is added to the view.

        Args:
            seen: the view where memory shows it, zeros elsewhere.
            mask: 1 where memory shows the cell.
            rays: `RAY_CHANNELS`.
            style: of other views, see `style_tokens`, with the same `finish`.
            drawn: what the codes of the cells that were drawn stand for, zeros elsewhere.
            drawn_mask: 1 where the cell was drawn.
        """
        deviation = self.deviation(seen.device)
        given = torch.cat([drawn / deviation, seen / deviation, mask, rays, drawn_mask], 1)
        x = self.into(_channels_last(given.to(self.into.weight.dtype)))
        x = self._unet(x, self._task_of(seen, finish), style)
        return self.out(x).float() * deviation * FINISH if finish else self.features(x)

    def style_tokens(self, style: Float[Tensor, "b s t h w"], finish: bool = False) -> Float[Tensor, "b n d"]:
        """What forward looks at of s other views (view channels, then `STYLE_CHANNELS`), on half of the grid."""
        batch, views = style.shape[:2]
        deviation = self.deviation(style.device)
        channels = deviation.shape[1]
        style = torch.cat([style[:, :, :channels] / deviation[:, None], style[:, :, channels:]], 2)
        packed = F.pixel_unshuffle(F.pad(style.to(self.style_into.weight.dtype).flatten(0, 1), _to_even(style)), 2)
        x = self.style(self.style_into(_channels_last(packed)), self._task_of(style, finish).repeat_interleave(views, 0))
        return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])

    def _task_of(self, batch: Tensor, finish: bool) -> Float[Tensor, "b t"]:
        return self.task(torch.full((len(batch),), int(finish), device=batch.device))

    def choose_codes(
        self,
        x: Float[Tensor, "n k"],
        ground: Float[Tensor, "n"],
        likenesses: Sequence[Float[Tensor, "_ _"]],
        choose: Callable[[int, Tensor], Int[Tensor, "n"]],
    ) -> Int[Tensor, "n p"]:
        """The codes of cells, part by part.

        Args:
            x: what forward gives for these cells.
            ground: its log depth there.
            likenesses: `Codebooks.likenesses`, where the network is.
            choose: the codes of a part (its number), given their logits.
        """
        codes = []
        for part, (head, likeness) in enumerate(zip(self.says, likenesses, strict=True)):
            logits = head(x, likeness)
            codes.append(choose(part, logits if part else self._beside_ground(logits, x, ground)))
            if part < len(self.names):
                x = x + self.names[part](codes[-1], likeness)
        return torch.stack(codes, 1)

    def _beside_ground(self, logits: Float[Tensor, "n c"], x: Float[Tensor, "n k"], ground: Float[Tensor, "n"]) -> Float[Tensor, "n c"]:
        """Depth's logits; the ground's own code has one of its own. Codes are finer than a network can tell from rays."""
        codes = depth_codes(ground).clamp(1, DEPTHS - 2)[:, None] + torch.tensor(BESIDE_GROUND, device=ground.device)
        return logits.scatter_add(1, codes, self.at_ground(x).float())

    def deviation(self, device: torch.device | str = "cpu") -> Float[Tensor, "1 v 1 1"]:
        """Of each channel, in float32 whatever the weights are in."""
        view = self.config.latent_channels + SURFACE_CHANNELS
        return torch.tensor(self.config.deviations or [1.0] * view, device=device).view(1, view, 1, 1)

    def _unet(self, x: Tensor, t: Tensor, memories: Tensor) -> Float[Tensor, "b a h w"]:
        """Down to a quarter of the grid and up again, looking at the tokens of the style views."""
        x = self.look_0(self.down_1[0](x, t), memories)
        fine = x = self.down_1[1](x, t)
        x = self.to_2(x)
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
        return self.up_1[1](self.look_1(self.up_1[0](x, t), memories), t)


class CodeHead(nn.Module):
    """Predicts one part's code of a cell.

    Beside a row of weights for each code it has one for each feature in which codes are alike, so that a code that was
    seldom seen is drawn where its neighbours are drawn.
    """

    def __init__(self, width: int, codes: int, features: int):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.rows, self.near = nn.Linear(width, codes), nn.Linear(width, features + 1)
        for part in (self.rows, self.near):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x: Float[Tensor, "n k"], likeness: Float[Tensor, "c f"]) -> Float[Tensor, "n c"]:
        """Logits; of a normal density over the features, and of each code alone."""
        y = self.body(x)
        far = likeness.square().mean(1, keepdim=True) * likeness.shape[1] ** 0.5
        near = LIKENESS * torch.cat([likeness, -far], 1)
        return (self.rows(y) + self.near(y) @ near.to(y.dtype).T).float()


class CodeName(nn.Module):
    """What a code that is known adds to what the next one is predicted from."""

    def __init__(self, width: int, codes: int, features: int):
        super().__init__()
        self.row, self.near = nn.Embedding(codes, width), nn.Linear(features, width)
        nn.init.normal_(self.row.weight, std=0.1)

    def forward(self, codes: Int[Tensor, "n"], likeness: Float[Tensor, "c f"]) -> Float[Tensor, "n k"]:
        return self.row(codes) + self.near(likeness[codes].to(self.row.weight.dtype))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the second norm is scaled and shifted by the task."""

    def __init__(self, into: int, out: int, task_width: int):
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(8, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm_2, self.conv_2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.task = nn.Linear(task_width, 2 * out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.task(t)[:, :, None, None].chunk(2, 1)
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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _to_even(x: Tensor) -> tuple[int, int, int, int]:
    return 0, x.shape[-1] % 2, 0, x.shape[-2] % 2

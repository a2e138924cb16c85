"""The mini codec, what networks are given of a readout, and the alignment of latents that memory moved.

Codec. One picture <-> one latent of stride 8. Its skeleton is linear: a block of 8 x 8 pixels to its
principal components, and back. The convolutions beside it start at zero and add what a linear code
cannot hold. Trained without the skeleton the same convolutions stayed below plain principal components
(docs/log.md); and a linear code can be moved by less than a cell, which memory needs of every latent.
Pictures are cut into sub-pixel channels before the first convolution and after the last, so that
no convolution runs at full resolution: that makes it fast on a CPU. Memory warps and quantises
tokens before they are decoded, so training adds noise to them.

Condition. A readout may be taken on a finer grid than the latents, `cells` to a side of each latent
cell. Its geometry stays in units of the latent cell, about its centre, whatever the grid.

Alignment. A latent codes where in its cell things are. Moved by a third of a cell it is as far from the
true latent as that is from zero (measured: docs/log.md), so a readout decodes to blocks. But memory
knows the offset and scale of every token exactly, and the codec is linear up to a remainder. So the
latent is decoded linearly to its block of pixels: each cell of the finer readout takes its few pixels
from the block of its own winning token, at that token's offset, and the cells of a latent together
are coded again. Decoding and coding are one matrix each, fitted to the codec by least squares (`fit`),
so the whole is a linear map of the winning tokens; no network runs on pixels. A few convolutions then
correct the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.protocol import Readout


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions on a scaled residual; no norm, so that any crop decodes alike."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.second(F.silu(self.first(F.silu(x))))


def residual_stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


STRIDE = 8


class MiniCodec(ModelMixin, ConfigMixin):
    """A deterministic autoencoder of single pictures; latents have about unit variance."""

    stride = STRIDE

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        widths: Sequence[int] = (32, 64, 128),
        encoder_blocks: Sequence[int] = (2, 3),
        decoder_blocks: Sequence[int] = (1, 3, 4),
    ):
        super().__init__()
        half, quarter, eighth = widths
        self.blocks_in = nn.Conv2d(3, latent_channels, STRIDE, stride=STRIDE)
        self.blocks_out = nn.Conv2d(latent_channels, 3 * STRIDE**2, 1)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            residual_stage(quarter, encoder_blocks[0]),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * quarter, eighth, 1),
            residual_stage(eighth, encoder_blocks[1]),
            nn.SiLU(),
            nn.Conv2d(eighth, latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            residual_stage(eighth, decoder_blocks[2]),
            nn.Conv2d(eighth, 4 * quarter, 1),
            nn.PixelShuffle(2),
            residual_stage(quarter, decoder_blocks[1]),
            nn.Conv2d(quarter, 4 * half, 1),
            nn.PixelShuffle(2),
            residual_stage(half, decoder_blocks[0]),
            nn.SiLU(),
            nn.Conv2d(half, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        for last in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def encode(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Latents of pictures in [-1, 1] whose sides are multiples of 8."""
        return self.blocks_in(picture) + self.encoder(picture)

    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in about [-1, 1]; clamp before showing them."""
        blocks = nn.functional.pixel_shuffle(self.blocks_out(latents), STRIDE)
        return blocks + in_own_numbers(self.decoder, latents)

    def forward(self, picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.decode(self.encode(picture))

    @torch.no_grad()
    def fit_blocks(self, pictures: Float[Tensor, "n 3 h w"]) -> None:
        """Sets the skeleton to the principal components of the pictures' blocks, of unit variance."""
        blocks = nn.functional.pixel_unshuffle(pictures, STRIDE).transpose(0, 1).flatten(1).double()
        mean = blocks.mean(1)
        variance, basis = torch.linalg.eigh(torch.cov(blocks))
        count = self.blocks_in.out_channels
        spread = variance.flip(0)[:count].clamp(min=1e-8).sqrt()
        basis = basis.flip(1)[:, :count]
        into = (basis / spread).T
        self.blocks_in.weight.copy_(into.reshape(self.blocks_in.weight.shape))
        self.blocks_in.bias.copy_(-into @ mean)
        self.blocks_out.weight.copy_((basis * spread)[..., None, None])
        self.blocks_out.bias.copy_(mean)


#: Visibility, inverse depth (1/m), du, dv (cells), log scale: behind the latent channels.
GEOMETRY_CHANNELS = 5
#: Inverse depth is capped here (1/m), so that a surface at the lens does not swamp the rest.
MAX_INVERSE_DEPTH = 4.0
#: Offsets and log scales beyond these say nothing more.
MAX_OFFSET_CELLS = 2.0
MAX_LOG_SCALE = 2.0


def condition_from_readout(readout: Readout, cells: int = 1) -> Float[Tensor, "k f h w"]:
    """Latents, visibility, inverse depth (1/m), du, dv (cells), log scale; zero where unseen.

    (du, dv) is where a token of that scale would have to be centred, from the latent cell's
    centre, to show in the readout cell's centre what the winning one shows there.

    Args:
        cells: of the readout to a side of each latent cell.
    """
    visible = torch.from_numpy(readout.visible)
    depth = torch.from_numpy(readout.depth_m).float()
    scale = torch.from_numpy(readout.log_scale).float() - math.log(cells)
    scale = scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    centre = torch.from_numpy(_centres(readout.visible.shape[1:], cells))
    offset = centre - torch.from_numpy(readout.place).float() * scale.exp()[:, None]
    offset = offset.clamp(-MAX_OFFSET_CELLS, MAX_OFFSET_CELLS)
    geometry = torch.stack(
        [
            visible.float(),
            (1 / depth).clamp(0, MAX_INVERSE_DEPTH),
            offset[:, 0],
            offset[:, 1],
            scale,
        ]
    )
    seen = torch.cat([readout.latents.float().transpose(0, 1), geometry])
    return torch.where(visible, seen, torch.zeros(()))


def condition_from_context(
    latents: Float[Tensor, "c f h w"], cells: int = 1
) -> Float[Tensor, "k f hc wc"]:
    """A context frame sees itself: its own latents, all visible, no offset."""
    geometry = torch.zeros(GEOMETRY_CHANNELS, *latents.shape[1:], dtype=latents.dtype)
    geometry[0] = 1
    condition = torch.cat([latents, geometry])
    return condition.repeat_interleave(cells, -2).repeat_interleave(cells, -1)


def condition_per_latent(
    condition: Float[Tensor, "b k f hc wc"], cells: int
) -> Float[Tensor, "b k f h w"]:
    """Of the finer cells in each latent cell the one whose token lies nearest to its centre.

    Its visibility becomes the share of the finer cells that are visible.
    """
    if cells == 1:
        return condition
    split = condition.unflatten(-1, (-1, cells)).unflatten(-3, (-1, cells))
    split = split.permute(0, 1, 2, 3, 5, 4, 6).flatten(-2)
    channels = condition.shape[1] - GEOMETRY_CHANNELS
    visible, du, dv = (split[:, channels + i] for i in (0, 2, 3))
    far = du.square() + dv.square() + (visible < 0.5) * 1e3
    nearest = far.argmin(-1)[:, None, ..., None]
    chosen = split.gather(-1, nearest.expand(-1, split.shape[1], -1, -1, -1, -1))[..., 0]
    share = visible.mean(-1)[:, None]
    return torch.cat([chosen[:, :channels], share, chosen[:, channels + 1 :]], 1)


def _centres(size: tuple[int, int], cells: int) -> Float[np.ndarray, "2 h w"]:
    """(du, dv) of every readout cell's centre from its latent cell's centre, in latent cells."""
    rows, columns = (((np.arange(n) % cells) + 0.5) / cells - 0.5 for n in size)
    return np.stack(np.broadcast_arrays(columns[None], rows[:, None])).astype(np.float32)


def in_own_numbers(network: nn.Module, x: Tensor) -> Tensor:
    """What a network makes of x, in the numbers of its weights; given and returned in those of x."""
    return network(x.to(next(network.parameters()).dtype)).to(x.dtype)


#: Pixels to a side of the block that a latent codes.
BLOCK = 8


class Aligner(ModelMixin, ConfigMixin):
    """Readout and geometry to the latents that a camera at that pose would have seen.

    Starts as the linear map: the last convolution is zero.

    Args:
        cells: of the readout to a side of each latent cell.
    """

    @register_to_config
    def __init__(self, *, latent_channels: int = 48, width: int = 128, blocks: int = 4, cells: int = 4):
        super().__init__()
        self.latent_channels, self.cells = latent_channels, cells
        inputs = 2 * latent_channels + GEOMETRY_CHANNELS
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.stage = residual_stage(width, blocks)
        self.last = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("block_from_latent", torch.zeros(3 * BLOCK**2, latent_channels))
        self.register_buffer("block_mean", torch.zeros(3 * BLOCK**2))
        self.register_buffer("latent_from_block", torch.zeros(latent_channels, 3 * BLOCK**2))

    @torch.no_grad()
    def fit(self, latents: Float[Tensor, "n c h w"], pictures: Float[Tensor, "n 3 H W"]) -> None:
        """Sets both matrices to the best ones in the mean square for these pairs."""
        code = latents.double().transpose(0, 1).flatten(1)
        blocks = F.pixel_unshuffle(pictures, BLOCK).double().transpose(0, 1).flatten(1)
        mean, centre = blocks.mean(1), code.mean(1, keepdim=True)
        blocks, code = blocks - mean[:, None], code - centre
        out_of, into = _regression(code, blocks), _regression(blocks, code)
        self.block_from_latent.copy_(out_of)
        self.block_mean.copy_(mean - out_of @ centre[:, 0])
        self.latent_from_block.copy_(into)

    def forward(self, condition: Float[Tensor, "b k hc wc"]) -> Float[Tensor, "b c h w"]:
        """Aligned latents of single frames; see `condition_from_readout` for the channels."""
        nearest = condition_per_latent(condition[:, :, None], self.cells)[:, :, 0]
        moved = self.moved(condition, nearest)
        return moved + in_own_numbers(self._correction, torch.cat([moved, nearest], 1))

    @property
    def _correction(self) -> nn.Module:
        return nn.Sequential(self.first, self.stage, nn.SiLU(), self.last)

    def moved(
        self, condition: Float[Tensor, "b k hc wc"], nearest: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b c h w"]:
        """The nearest tokens' latents, and what the linear map says of how they have to change.

        Where nothing is to be moved nothing changes, whatever the matrices leave out.
        """
        still = self.pictures(nearest[:, : self.latent_channels])
        side = BLOCK // self.cells
        taken = F.pixel_shuffle(self._taken(condition), side)
        visible = F.interpolate(condition[:, self.latent_channels :][:, :1], scale_factor=side)
        return nearest[:, : self.latent_channels] + self.change((taken - still) * visible)

    def pictures(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the linear part of the codec decodes them to, in about [-1, 1]."""
        return F.pixel_shuffle(self._blocks(latents), BLOCK)

    def change(self, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """By how much latents change where their pictures change by so much."""
        blocks = F.pixel_unshuffle(pictures, BLOCK)
        return torch.einsum("co,bohw->bchw", self.latent_from_block, blocks)

    def _blocks(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        blocks = torch.einsum("oc,bchw->bohw", self.block_from_latent, latents)
        return blocks + self.block_mean.view(-1, 1, 1)

    def _taken(self, condition: Float[Tensor, "b k hc wc"]) -> Float[Tensor, "b p hc wc"]:
        """Each readout cell's pixels (3 colours, row, column), out of its token's own block.

        Between the block's pixels it is linear, beyond its edge it goes on as at the edge.
        """
        latents, geometry = condition.tensor_split([self.latent_channels], 1)
        du, dv, log_scale = (geometry[:, i] for i in (2, 3, 4))
        column = self._pixel_index(du, log_scale, across=True)
        row = self._pixel_index(dv, log_scale, across=False)
        low = [index.floor().clamp(max=BLOCK - 2) for index in (row, column)]
        part = [index - floor for index, floor in zip((row, column), low, strict=True)]
        blocks = self._blocks(latents).unflatten(1, (3, BLOCK**2))
        taken = blocks.new_zeros(())
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            index = ((low[0] + down) * BLOCK + low[1] + right).long().flatten(1, 2)
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            index = index[:, None].expand(-1, 3, -1, -1, -1)
            taken = taken + weight.flatten(1, 2)[:, None] * blocks.gather(2, index)
        return taken.flatten(1, 2)

    def _pixel_index(
        self, offset: Float[Tensor, "b hc wc"], log_scale: Float[Tensor, "b hc wc"], across: bool
    ) -> Float[Tensor, "b r c hc wc"]:
        """Where each pixel of a readout cell lies along one axis of its token's block, in pixels."""
        side = BLOCK // self.cells
        count = offset.shape[2 if across else 1]
        pixel = torch.arange(count * side, device=offset.device) % BLOCK - (BLOCK - 1) / 2
        pixel = pixel.view(count, side).T
        shape = (1, 1, side, 1, count) if across else (1, side, 1, count, 1)
        away = (pixel.reshape(shape) - BLOCK * offset[:, None, None]) / log_scale.exp()[
            :, None, None
        ]
        away = away.expand(-1, side, side, -1, -1)
        return (away + (BLOCK - 1) / 2).clamp(0, BLOCK - 1)


def _regression(given: Float[Tensor, "i n"], wanted: Float[Tensor, "o n"]) -> Float[Tensor, "o i"]:
    """The matrix that makes the best of `given`; directions that never vary are left alone."""
    gram = given @ given.T
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.linalg.solve(gram, given @ wanted.T).T

"""Setting right what the warp left askew: tokens that do not sit in their cells' centres.

A latent codes where in its cell things are. Moved by a third of a cell it is as far from the true
latent as that is from zero (measured: docs/log.md), so a readout as it is decodes to blocks. But
memory knows the offset and scale of every token exactly, and the codec is linear but for a
remainder. So a latent is moved as what it is, a code of a block of pixels: memory is read on a
grid finer than the latents, each of its cells takes its few pixels from the block of its own
winning token, where that token lies, and the cells of a latent together are coded again. Both
ways are one matrix each, so this is a linear map of the tokens that win, chosen by where they
lie; no network runs on pixels. A few convolutions then correct the rest.

The matrices are fitted to the codec by least squares (`fit`), not trained.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.models.conditioning import GEOMETRY_CHANNELS, told_per_latent
from mirage_ros.models.layers import residual_stage

#: Pixels to a side of the block that a latent codes.
BLOCK = 8


class Aligner(nn.Module):
    """Readout and geometry to the latents that a camera in that place would have seen.

    Starts as the linear map: the last convolution is zero.

    Args:
        cells: of the readout to a side of each latent cell.
    """

    def __init__(self, latent_channels: int, width: int = 128, blocks: int = 4, cells: int = 4):
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

    def forward(self, condition: Float[Tensor, "b told hc wc"]) -> Float[Tensor, "b c h w"]:
        """Aligned latents of single frames; see conditioning.py for the channels."""
        nearest = told_per_latent(condition[:, :, None], self.cells)[:, :, 0]
        moved = self.moved(condition, nearest)
        x = self.stage(self.first(torch.cat([moved, nearest], 1)))
        return moved + self.last(F.silu(x))

    def moved(
        self, condition: Float[Tensor, "b told hc wc"], nearest: Float[Tensor, "b told h w"]
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

    def _taken(self, condition: Float[Tensor, "b told hc wc"]) -> Float[Tensor, "b p hc wc"]:
        """Each readout cell's pixels (3 colours, row, column), out of its token's own block.

        Between the block's pixels it is linear, beyond its edge it goes on as at the edge.
        """
        latents, geometry = condition.tensor_split([self.latent_channels], 1)
        du, dv, log_scale = (geometry[:, i] for i in (2, 3, 4))
        column = self._place(du, log_scale, across=True)
        row = self._place(dv, log_scale, across=False)
        low = [place.floor().clamp(max=BLOCK - 2) for place in (row, column)]
        part = [place - floor for place, floor in zip((row, column), low, strict=True)]
        blocks = self._blocks(latents).unflatten(1, (3, BLOCK**2))
        taken = blocks.new_zeros(())
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            index = ((low[0] + down) * BLOCK + low[1] + right).long().flatten(1, 2)
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            index = index[:, None].expand(-1, 3, -1, -1, -1)
            taken = taken + weight.flatten(1, 2)[:, None] * blocks.gather(2, index)
        return taken.flatten(1, 2)

    def _place(
        self, offset: Float[Tensor, "b hc wc"], log_scale: Float[Tensor, "b hc wc"], across: bool
    ) -> Float[Tensor, "b r c hc wc"]:
        """Where each pixel of a readout cell lies along one axis of its token's block, in pixels."""
        side = BLOCK // self.cells
        count = offset.shape[2 if across else 1]
        pixel = torch.arange(count * side, device=offset.device) % BLOCK - (BLOCK - 1) / 2
        pixel = pixel.view(count, side).T
        shape = (1, 1, side, 1, count) if across else (1, side, 1, count, 1)
        away = (pixel.reshape(shape) - BLOCK * offset[:, None, None]) / log_scale.exp()[:, None, None]
        away = away.expand(-1, side, side, -1, -1)
        return (away + (BLOCK - 1) / 2).clamp(0, BLOCK - 1)


def _regression(given: Float[Tensor, "i n"], wanted: Float[Tensor, "o n"]) -> Float[Tensor, "o i"]:
    """The matrix that makes the best of `given`; directions that never vary are left alone."""
    gram = given @ given.T
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.linalg.solve(gram, given @ wanted.T).T

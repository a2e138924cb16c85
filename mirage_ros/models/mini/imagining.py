"""Completes views with the dreamer: views of a linear code of 8x8 blocks, log depth and sky; what is asked of the network
for them; and the order in which cells are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mirage_ros.errors import MirageError, report
from mirage_ros.files import atomic_path
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.mini.dreamer import FARTHEST, GROUND, NEAREST, SKY, Codebooks, Dreamer
from mirage_ros.models.parts import picture_from_rgb

STRIDE = 8
#: Of a view's log depth: metres that count as 0, and its spread.
DEPTH_UNIT_M, DEPTH_SPREAD = 3.0, 0.9
#: Principal components times this are latents; the first one's spread is then about 1.
LATENT_SCALE = 0.25

@dataclass(frozen=True)
class Blocks:
    """The linear code of 8x8 blocks: principal components, mirrored ones known by their sign.

    Attributes:
        mean: (192,) of the blocks.
        basis: (192, c) orthonormal.
        signs: (c,) +1 or -1: what a component becomes when the picture is mirrored.
    """

    mean: Float[Tensor, "p"]
    basis: Float[Tensor, "p c"]
    signs: Float[Tensor, "c"]

    @classmethod
    def fit(cls, blocks: Float[Tensor, "n p"], channels: int) -> Blocks:
        """From blocks and their mirror images, so that every component is even or odd."""
        mirrored = mirror_blocks(blocks)
        mean = (blocks.mean(0) + mirrored.mean(0)).double() / 2
        parts = []
        for sign in (1, -1):
            half = (blocks + sign * mirrored).double() / 2 - (mean if sign > 0 else 0)
            values, vectors = torch.linalg.eigh(half.T @ half / len(half))
            parts += [
                (value, sign, vector) for value, vector in zip(values, vectors.T, strict=True)
            ]
        parts.sort(key=lambda part: -float(part[0]))
        basis = torch.stack([vector for _, _, vector in parts[:channels]], 1)
        signs = torch.tensor([float(sign) for _, sign, _ in parts[:channels]])
        return cls(mean.float(), basis.float(), signs)

    @classmethod
    def load(cls, folder: Path) -> Blocks:
        """From a folder that `save` wrote to."""
        path = folder / "blocks.safetensors"
        if not path.exists():
            raise MirageError(f"{path} is missing; fetch the folder again, or make its views first.")
        return cls(**load_file(path))

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        with atomic_path(folder / "blocks.safetensors") as new:
            save_file(tensors, new)

    def encode(self, rgb: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c lh lw"]:
        return self.coded(picture_from_rgb(torch.from_numpy(np.ascontiguousarray(rgb))))

    def coded(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c lh lw"]:
        """Of pictures in [-1, 1]."""
        blocks = F.pixel_unshuffle(pictures, STRIDE) - self.mean[None, :, None, None]
        return torch.einsum("nphw,pc->nchw", blocks, self.basis) * LATENT_SCALE

    def picture(self, latents: Float[Tensor, "n c lh lw"]) -> Float[Tensor, "n 3 h w"]:
        """In [-1, 1]; nothing but the linear code, so a little softer than a decoder's."""
        blocks = torch.einsum("nchw,pc->nphw", latents.float() / LATENT_SCALE, self.basis)
        return F.pixel_shuffle(blocks + self.mean[None, :, None, None], STRIDE).clamp(-1, 1)


def picture_blocks(rgb: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n p lh lw"]:
    return F.pixel_unshuffle(picture_from_rgb(torch.from_numpy(np.ascontiguousarray(rgb))), STRIDE)


def mirror_blocks(blocks: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    return blocks.view(-1, 3, STRIDE, STRIDE).flip(-1).reshape(len(blocks), -1)


def surfaces(depth: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 2 h w"]:
    """Log depth (0 where there is sky or nothing) and sky of every cell, from its depth in metres."""
    known = np.isfinite(depth)
    log = np.log(np.where(known, depth, DEPTH_UNIT_M) / DEPTH_UNIT_M) / DEPTH_SPREAD
    return np.stack([np.where(known, log, 0), np.where(np.isinf(depth), SKY, -SKY)], 1)


def depth_of(view: Float[Tensor, "b v h w"]) -> Float[np.ndarray, "b h w"]:
    """Metres, +inf where there is sky."""
    depth = DEPTH_UNIT_M * (view[:, -2].float() * DEPTH_SPREAD).exp()
    return torch.where(view[:, -1] > 0, torch.inf, depth).numpy()


def heading_rays(
    camera: Camera, target: Camera, cells: tuple[int, int]
) -> tuple[Float[np.ndarray, "b 3 h w"], Float[np.ndarray, "b 3"]]:
    """Where cameras look and stand, in axes that turn with the target's heading and stay upright.

    Returns unit rays of every cell and the cameras' places seen from the target's, metres: x ahead
    on the floor, y left, z up. Both cameras are batches of b.
    """
    ahead = target.world_from_camera[:, :2, 2]
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    c, s, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    heading_from_world = np.stack([c, s, zero, -s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    rays = camera.resized(cells).rays()
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    turn = heading_from_world @ camera.world_from_camera[:, :3, :3]
    away = camera.position_world - target.position_world
    place = np.einsum("nij,nj->ni", heading_from_world, away)
    return np.einsum("nij,nhwj->nihw", turn, rays), place


#: Metres of height above the ground, and between cameras, that count as 1.
HEIGHT_UNIT_M, PLACE_UNIT_M = 1.5, 3.0
#: Views that show the dreamer how the world looks, at most.
STYLE_VIEWS = 2
#: In so many parts all open cells are drawn again.
REDRAWN_PARTS = 2


@dataclass(frozen=True)
class Question:
    """b views to complete.

    Attributes:
        seen: the views where memory shows them, zeros elsewhere.
        mask: 1 where memory shows the cell.
        rays, style: as `Dreamer.forward` and `Dreamer.style_tokens` have them.
    """

    seen: Float[Tensor, "b v h w"]
    mask: Float[Tensor, "b 1 h w"]
    rays: Float[Tensor, "b r h w"]
    style: Float[Tensor, "b s t h w"]


@dataclass(frozen=True)
class DreamConfig:
    """How a view is drawn.

    Attributes:
        steps: in which the cells of a view of which nothing is shown are drawn; fewer where less is open.
        depth_heat, colour_heat, detail_heat: what the codes' logits are divided by: 1 draws as often as was learnt,
            less draws what is likelier still more often.
        slow_start: the share of the open cells that is drawn after a share of the steps, as its power: the first cells have
            the least to go by.
        redraws: so often a part of the cells of such a view is drawn again, given all others: what was drawn at once, or
            while little was there, comes to fit.
        redraw_heat, redraw_detail_heat: of depth and colours then, and of details.
    """

    steps: int = 10
    depth_heat: float = 0.5
    colour_heat: float = 0.6
    detail_heat: float = 0.9
    slow_start: float = 1.5
    redraws: int = 12
    redraw_heat: float = 0.1
    redraw_detail_heat: float = 0.6

    def heat(self, part: int, again: bool = False) -> float:
        """Of one of a cell's codes."""
        if part > Codebooks.COLOURS:
            return self.redraw_detail_heat if again else self.detail_heat
        return self.redraw_heat if again else (self.colour_heat if part else self.depth_heat)


@torch.inference_mode()
def complete(
    network: Dreamer, question: Question, generator: torch.Generator, config: DreamConfig
) -> Float[Tensor, "b v h w"]:
    """The views as the network dreams them; what is seen is kept."""
    drawing = Drawing(network, question, generator, config)
    open_cells = question.mask[:, 0] == 0
    count = open_cells.sum((1, 2)).view(-1, 1, 1)
    share = float(open_cells.float().mean((1, 2)).max()) ** 0.5
    rank, steps = ranked(open_cells, generator), max(1, round(config.steps * share))
    for step in range(steps):
        until = torch.ceil(count * ((step + 1) / steps) ** config.slow_start)
        drawing.draw(open_cells & (rank < until) & ~drawing.drawn)
    for step in range(round(config.redraws * share)):
        rank = rank if step % REDRAWN_PARTS else ranked(open_cells, generator)
        drawing.redraw(open_cells & (rank * REDRAWN_PARTS // count.clamp(min=1) == step % REDRAWN_PARTS))
    return drawing.finished()


def ranked(open_cells: Bool[Tensor, "b h w"], generator: torch.Generator) -> Int[Tensor, "b h w"]:
    """Each open cell's place in an order in which those that follow on each other lie far apart; the others come last."""
    rank = torch.where(open_cells, scattered(open_cells.shape, generator), open_cells[0].numel())
    return rank.flatten(1).argsort(1).argsort(1).view(rank.shape)


class Drawing:
    """Views of which some cells are drawn already."""

    def __init__(self, network: Dreamer, question: Question, generator: torch.Generator, config: DreamConfig) -> None:
        self.network, self.question, self.config, self._generator = network, question, config, generator
        self.device = next(network.parameters()).device
        self.codebooks = network.codebooks
        self._likenesses = [one.to(self.device) for one in self.codebooks.likenesses()]
        self.view = torch.zeros_like(question.seen)
        self.drawn = torch.zeros(question.mask[:, 0].shape, dtype=torch.bool)
        self._again = False
        self._shown = [part.to(self.device) for part in (question.seen, question.mask, question.rays)]
        self._style: dict[bool, Tensor] = {}

    def draw(self, cells: Bool[Tensor, "b h w"]) -> None:
        """Draws these cells, all at once: they do not look at each other."""
        if not cells.any():
            return
        there = cells.to(self.device)
        x = self._asked(finish=False).permute(0, 2, 3, 1)[there]
        ground = self._shown[2][:, GROUND][there]
        codes = self.network.choose_codes(x, ground, self._likenesses, self._chosen).cpu()
        self.view.permute(0, 2, 3, 1)[cells] = self.codebooks.cells(codes)
        self.drawn |= cells

    def redraw(self, cells: Bool[Tensor, "b h w"]) -> None:
        """Draws these cells again, given all others that are drawn."""
        self.drawn &= ~cells
        self.view *= self.drawn[:, None]
        self._again = True
        self.draw(cells)

    def _chosen(self, part: int, logits: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
        return drawn_codes(logits, self.config.heat(part, self._again), self._generator)

    def finished(self) -> Float[Tensor, "b v h w"]:
        """The views in continuous numbers."""
        drawn = self.view + self._asked(finish=True).cpu() * self.drawn[:, None]
        return torch.where(self.question.mask > 0, self.question.seen, drawn)

    def _asked(self, finish: bool) -> Tensor:
        report()
        if finish not in self._style:
            self._style[finish] = self.network.style_tokens(self.question.style.to(self.device), finish)
        drawn = self.view.to(self.device), self.drawn[:, None].float().to(self.device)
        return self.network(*self._shown, self._style[finish], *drawn, finish=finish)


def drawn_codes(logits: Float[Tensor, "n c"], heat: float, generator: torch.Generator) -> Int[Tensor, "n"]:
    """As often as the logits divided by the heat say, by Gumbel's way."""
    chance = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return (logits.cpu() / heat - torch.log(-torch.log(chance))).argmax(1).to(logits.device)


def scattered(shape: tuple[int, int, int], generator: torch.Generator) -> Int[Tensor, "b h w"]:
    """Each cell's place in an order in which those that follow on each other lie far apart: the R2 sequence (Roberts 2018),
    begun anywhere."""
    batch, height, width = shape
    steps = torch.arange(8 * height * width, dtype=torch.float64)
    begin = torch.rand(batch, 2, 1, generator=generator, dtype=torch.float64)
    along = (begin + steps * torch.tensor([[0.7548776662466927], [0.5698402909980532]], dtype=torch.float64)) % 1
    cells = (along[:, 0] * height).long() * width + (along[:, 1] * width).long()
    first = torch.full((batch, height * width), len(steps))  # cells that are never met come last
    first.scatter_reduce_(1, cells, torch.arange(len(steps)).expand(batch, -1), "amin")
    return first.argsort(1).argsort(1).view(batch, height, width)


def ray_channels(target: Camera, cells: tuple[int, int], height_known: Bool[np.ndarray, "b"]) -> Float[np.ndarray, "b r h w"]:
    """Which way every cell of b views looks, their height above z = 0, whether that is the ground, and how far off it is
    then in every cell: log depth, as in a view."""
    rays, _ = heading_rays(target, target, cells)
    height = target.position_world[:, 2]
    known = np.stack([height / HEIGHT_UNIT_M * height_known, height_known], 1)
    ground = surfaces(cell_depth(ground_depth_m(target.resized((cells[0] * STRIDE, cells[1] * STRIDE))), STRIDE))[:, :1]
    ground = ground.clip(NEAREST, FARTHEST) * height_known[:, None, None, None]
    return np.concatenate([rays, spread_over(known, cells), ground], 1)


def ground_depth_m(camera: Camera) -> Float[np.ndarray, "b h w"]:
    """Of the plane z = 0 in every pixel; some 60 m where rays do not meet it, or only farther away."""
    down = -camera.rays_world()[..., 2]
    height, farthest = camera.position_world[:, 2, None, None], DEPTH_UNIT_M * np.exp(FARTHEST * DEPTH_SPREAD)
    depth = height / np.where(down == 0, 1e-9, down)
    return np.where(depth > 0, depth, farthest).clip(max=farthest)


def style_channels(view: Float[np.ndarray, "b v h w"], camera: Camera, target: Camera) -> Float[np.ndarray, "b t h w"]:
    """Views that tell how the worlds of the target views look, and where they were taken from."""
    cells = view.shape[-2:]
    rays, place = heading_rays(camera, target, cells)
    there = np.concatenate([place / PLACE_UNIT_M, np.ones((len(view), 1))], 1)
    return np.concatenate([view, rays, spread_over(there, cells)], 1)


def spread_over(values: Float[np.ndarray, "b n"], cells: tuple[int, int]) -> Float[np.ndarray, "b n h w"]:
    return np.broadcast_to(values[:, :, None, None], (*values.shape, *cells))


def tensor_of(array: np.ndarray) -> Tensor:
    """In float32, without gaps."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))

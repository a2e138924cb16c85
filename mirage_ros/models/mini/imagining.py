"""Imagines what memory does not show: mini's latents and depth to the dreamer's views and back.

The dreamer (dreamer.py) knows views as principal components of 8x8 blocks of pixels, log depth and sky. mini's latents
are turned into such blocks and back by the linear part of its codec (`Aligner`): neither decoder nor encoder runs. What
is imagined is remembered before it is shown, so its first look and every later one are read from one memory.
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
from mirage_ros.machine import has_fast_bfloat16
from mirage_ros.models.mini import MiniModel, with_bfloat16
from mirage_ros.models.mini.dreamer import SKY, STYLE_CHANNELS, SURFACE_CHANNELS, Dreamer
from mirage_ros.models.parts import picture_from_rgb
from mirage_ros.protocol import Readout, Views

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


@dataclass(frozen=True)
class Question:
    """b views to complete, as `Dreamer.forward` is given them.

    Attributes:
        seen: the views where memory shows them, zeros elsewhere.
        mask: 1 where memory shows the cell.
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
    """

    steps: int = 10
    depth_heat: float = 0.8
    colour_heat: float = 0.75
    detail_heat: float = 0.9
    slow_start: float = 1.5

    def heat(self, part: int) -> float:
        """Of one of a cell's codes."""
        return (self.depth_heat, self.colour_heat, self.colour_heat)[part] if part < 3 else self.detail_heat


@torch.inference_mode()
def complete(
    network: Dreamer, question: Question, generator: torch.Generator, config: DreamConfig
) -> Float[Tensor, "b v h w"]:
    """The views as the network dreams them; what is seen is kept."""
    drawing = Drawing(network, question, generator, config)
    open_cells = question.mask[:, 0] == 0
    rank = torch.where(open_cells, scattered(open_cells.shape, generator), open_cells[0].numel())
    rank = rank.flatten(1).argsort(1).argsort(1).view(rank.shape)
    count = open_cells.sum((1, 2))
    steps = max(1, round(config.steps * float(open_cells.float().mean((1, 2)).max()) ** 0.5))
    for step in range(steps):
        until = torch.ceil(count * ((step + 1) / steps) ** config.slow_start).view(-1, 1, 1)
        drawing.draw(open_cells & (rank < until) & ~drawing.drawn)
    return drawing.finished()


class Drawing:
    """Views of which some cells are drawn already."""

    def __init__(self, network: Dreamer, question: Question, generator: torch.Generator, config: DreamConfig) -> None:
        self.network, self.question, self.config, self._generator = network, question, config, generator
        self.device = next(network.parameters()).device
        self.codebooks = network.codebooks
        self._likenesses = [one.to(self.device) for one in self.codebooks.likenesses()]
        self.view = torch.zeros_like(question.seen)
        self.drawn = torch.zeros(question.mask[:, 0].shape, dtype=torch.bool)

    def draw(self, cells: Bool[Tensor, "b h w"]) -> None:
        """Draws these cells, all at once: they do not look at each other."""
        if not cells.any():
            return
        x = self._asked(finish=False).permute(0, 2, 3, 1)[cells.to(self.device)]
        codes = self.network.choose_codes(x, self._likenesses, self._chosen).cpu()
        self.view.permute(0, 2, 3, 1)[cells] = self.codebooks.cells(codes)
        self.drawn |= cells

    def _chosen(self, part: int, logits: Float[Tensor, "n c"]) -> Int[Tensor, "n"]:
        """Drawn from the logits, by Gumbel's way."""
        chance = torch.rand(logits.shape, generator=self._generator).clamp(1e-9, 1 - 1e-7)
        return (logits.cpu() / self.config.heat(part) - torch.log(-torch.log(chance))).argmax(1).to(logits.device)

    def finished(self) -> Float[Tensor, "b v h w"]:
        """The views in continuous numbers."""
        drawn = self.view + self._asked(finish=True).cpu() * self.drawn[:, None]
        return torch.where(self.question.mask > 0, self.question.seen, drawn)

    def _asked(self, finish: bool) -> Tensor:
        report()
        asked = self.question
        given = asked.seen, asked.mask, asked.rays, asked.style, self.view, self.drawn[:, None].float()
        return self.network(*(part.to(self.device) for part in given), finish=finish)


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
    """Which way every cell of b views looks, their height above z = 0, and whether that is the ground."""
    rays, _ = heading_rays(target, target, cells)
    height = target.position_world[:, 2] / HEIGHT_UNIT_M * height_known
    return np.concatenate([rays, spread_over(np.stack([height, height_known], 1), cells)], 1)


def style_channels(view: Float[np.ndarray, "b v h w"], camera: Camera, target: Camera) -> Float[np.ndarray, "b t h w"]:
    """Views that tell how the worlds of the target views look, and where they were taken from."""
    cells = view.shape[-2:]
    rays, place = heading_rays(camera, target, cells)
    there = np.concatenate([place / PLACE_UNIT_M, np.ones((len(view), 1))], 1)
    return np.concatenate([view, rays, spread_over(there, cells)], 1)


def spread_over(values: Float[np.ndarray, "b n"], cells: tuple[int, int]) -> Float[np.ndarray, "b n h w"]:
    return np.broadcast_to(values[:, :, None, None], (*values.shape, *cells))


class DreamingModel(MiniModel):
    """The mini model with a dreamer in place of its denoiser.

    Args:
        dreamer: for views of the linear code `blocks`.
        dream: how it draws.
    """

    def __init__(self, *parts, dreamer: Dreamer, blocks: Blocks, dream: DreamConfig = DreamConfig(), **settings):
        super().__init__(*parts, **settings)
        self.dreamer, self.blocks, self.dream = dreamer.eval(), blocks, dream
        self._dreamer = dreamer
        # By what the machine is, not by a measurement: the same machine draws the same frames.
        if self.device.type == "cuda" or has_fast_bfloat16():
            # A copy, as what is saved would be rounded twice; what codes stand for is not rounded at all.
            self._dreamer = with_bfloat16(dreamer)
            for name, buffer in dreamer.named_buffers():
                setattr(self._dreamer, name, buffer.clone())
        torch.nn.Module.to(self._dreamer, self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        """The view of one camera, whole: what memory shows of it stays as it is.

        Args:
            readout: what memory shows to the camera.
            camera: a batch of one.
            style: views of the same world, of which the first `STYLE_VIEWS` are looked at.
            seed: of the noise.
        """
        known = self.from_memory(readout)
        latents, depth = self.aligned(readout), cell_depth(readout.depth_m, self.readout_cells)
        known &= np.isfinite(depth)
        mask = torch.from_numpy(known[:, None].astype(np.float32))
        view, cells = self._view(latents, depth), known.shape[1:]
        question = Question(view * mask, mask, tensor_of(ray_channels(camera, cells, np.ones(1, bool))), self._style(style, camera))
        dreamt = complete(self._dreamer, question, torch.Generator().manual_seed(seed), self.dream)
        there = np.where(known, depth, depth_of(dreamt))
        return Views(torch.where(mask > 0, latents, self._latents(dreamt)), there, camera)

    def _style(self, style: Views, target: Camera) -> Float[Tensor, "1 s t h w"]:
        views = self._view(style.latents, style.depth_m).numpy()
        given = [
            style_channels(views[i : i + 1], style.cameras[i : i + 1], target)
            for i in range(min(STYLE_VIEWS, len(views)))
        ]
        absent = np.zeros((1, views.shape[1] + STYLE_CHANNELS, *views.shape[2:]))
        return tensor_of(np.stack(given + [absent] * (STYLE_VIEWS - len(given)), 1))

    def _view(self, latents: Float[Tensor, "f c h w"], depth_m: Float[np.ndarray, "f h w"]) -> Float[Tensor, "f v h w"]:
        """In the dreamer's channels; where depth is not known or infinite there is sky."""
        pictures = self.denoiser.branch.align.pictures(latents.float().to(self.device)).cpu()
        depth = np.where(np.isfinite(depth_m), depth_m, np.inf)
        return torch.cat([self.blocks.coded(pictures), tensor_of(surfaces(depth))], 1)

    def _latents(self, view: Float[Tensor, "f v h w"]) -> Float[Tensor, "f c h w"]:
        picture = self.blocks.picture(view[:, :-SURFACE_CHANNELS]).to(self.device)
        return self.codec.encode(picture.contiguous(memory_format=torch.channels_last)).cpu()


def tensor_of(array: np.ndarray) -> Tensor:
    """In float32, without gaps."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))

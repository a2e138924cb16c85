"""Stages one and two of the recipe: the mini codec and the aligner together, on frames and textures; then the mini
perceiver, given a readout depth as noisy as in a run.

A latent codes where in its cell things are, and memory moves latents. Trained alone, a codec
takes no account of that: moved by a third of a cell, its latents are as far from the true ones as
those are from zero (docs/log.md). Trained through the aligner it makes latents that can be moved.
The idea of asking a codec for equivariance is that of EQ-VAE (Kouzelis et al. 2025); here the
moves are those that memory makes, and the aligner gets them as input.

A sample is two crops of one picture, the second an affine view of the first. Each latent cell of the
second takes the token of the first whose centre falls nearest, with its exact offset and scale, as
the readout of a plane does. So no memory is needed, and any picture serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.mini.codec import GEOMETRY_CHANNELS, Aligner, MiniCodec
from mirage_ros.models.parts import picture_from_rgb
from mirage_ros.training import coloured_depth, sheet
from mirage_ros.training.clips import StoredClip


@dataclass(frozen=True)
class WarpConfig:
    """How far the second view may be from the first.

    Attributes:
        log_scale: largest natural log of the change in size, and half of it more along one axis.
        turn_deg: largest turn about the optical axis.
        shift_cells: largest shift.
    """

    log_scale: float = 0.3
    turn_deg: float = 6.0
    shift_cells: float = 2.0


def random_warp(rng: np.random.Generator, side: int, stride: int, config: WarpConfig) -> np.ndarray:
    """(2, 3) map of pixels, first_from_second, about the crops' common centre."""
    size = math.exp(rng.uniform(-1, 1) * config.log_scale)
    aspect = math.exp(rng.uniform(-0.5, 0.5) * config.log_scale)
    turn = math.radians(rng.uniform(-1, 1) * config.turn_deg)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ np.diag([size * aspect, size / aspect])
    centre = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-1, 1, 2) * config.shift_cells * stride
    return np.concatenate([linear, (centre + shift - linear @ centre)[:, None]], 1)


def second_view(picture: np.ndarray, corner: tuple[int, int], first_from_second, side: int):
    """The second crop, (side, side, 3) uint8; `corner` is the first crop's (top, left)."""
    to_picture = first_from_second.copy()
    to_picture[:, 2] += corner[::-1]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, to_picture, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )


def planar_readout(
    latents: Float[Tensor, "c h w"],
    first_from_second: np.ndarray,
    stride: int,
    inverse_depth: float,
    cells: int = 1,
) -> Float[Tensor, "k hc wc"]:
    """The second view's condition from the first view's latents, with the channels of `condition_from_readout`.

    Args:
        cells: of the readout to a side of each latent cell.
    """
    _, height, width = latents.shape
    linear, shift = first_from_second[:, :2], first_from_second[:, 2]
    grid = np.stack(np.meshgrid(np.arange(width * cells), np.arange(height * cells)), -1)
    centres = (grid + 0.5) * stride / cells - 0.5
    middles = (grid // cells + 0.5) * stride - 0.5
    nearest = np.rint((centres @ linear.T + shift + 0.5) / stride - 0.5).astype(int)
    seen = ((nearest >= 0) & (nearest < (width, height))).all(-1)
    tokens = (nearest + 0.5) * stride - 0.5
    offset = ((tokens - shift) @ np.linalg.inv(linear).T - middles) / stride
    log_scale = -0.5 * math.log(abs(np.linalg.det(linear)))
    geometry = np.zeros((GEOMETRY_CHANNELS, *seen.shape), np.float32)
    geometry[0], geometry[1] = 1, inverse_depth
    geometry[2], geometry[3], geometry[4] = offset[..., 0], offset[..., 1], log_scale
    column, row = (nearest[..., i].clip(0, n - 1) for i, n in enumerate((width, height)))
    condition = torch.cat([latents[:, row, column], torch.from_numpy(geometry).to(latents.device)])
    return condition * torch.from_numpy(seen).to(latents.device)


@dataclass(frozen=True)
class CodecLossConfig:
    """Attributes:
    crop: side of the square crops in pixels.
    batch: pairs of crops per step.
    texture_share: pairs from textures rather than frames.
    latent_noise: standard deviation added to latents before decoding (they are pulled to unit
        variance): memory stores them in half precision and what is imagined comes inexactly.
    gradient_weight: of the difference of image gradients.
    moved_weight: of the second view, decoded from the first view's aligned latents.
    """

    crop: int = 64
    batch: int = 16
    texture_share: float = 0.3
    latent_noise: float = 0.04
    gradient_weight: float = 0.5
    moved_weight: float = 0.7
    warp: WarpConfig = field(default_factory=WarpConfig)


#: Keeps latents near zero mean and unit variance without shaping them otherwise.
UNIT_WEIGHT = 1e-3
#: Pixels to a side of the pictures whose blocks give the codec its skeleton.
MAX_BLOCK_SIDE = 96


class MovedCodec(nn.Module):
    """Codec and aligner as one network to train."""

    def __init__(self, codec: MiniCodec, align: Aligner):
        super().__init__()
        self.codec, self.align = codec, align


class CodecLoss:
    """Draws pairs of crops and scores the first decoded and the second decoded from the first."""

    def __init__(self, clips: list[StoredClip], textures: np.ndarray, config: CodecLossConfig):
        self.frames = [clip.rgb for clip in clips]
        self.textures, self.config = textures, config

    def __call__(self, network: MovedCodec, generator: torch.Generator) -> dict[str, Tensor]:
        first, second, again, moved, latents, seen = self._draw(network, generator)
        spread = latents.var((0, 2, 3)) - 1
        unit = latents.mean((0, 2, 3)).square().mean() + spread.square().mean()
        loss = self._score(again, first, torch.ones_like(seen)) + UNIT_WEIGHT * unit
        loss = loss + self.config.moved_weight * self._score(moved, second, seen)
        report = {"psnr_db": _psnr(again, first), "moved_db": _psnr(moved * seen, second * seen)}
        return {"loss": loss} | {k: v.detach() for k, v in report.items()} | {"unit": unit.detach()}

    def picture(
        self, network: MovedCodec, generator: torch.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: first view, decoded; second view, decoded from the first where it sees it."""
        first, second, again, moved, _, seen = self._draw(network, generator)
        return sheet([first[:6], again[:6], second[:6], (moved * seen)[:6]])

    def _draw(self, network: MovedCodec, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Both views, both decoded, the first's latents, and where the second sees the first."""
        codec, device = network.codec, next(network.parameters()).device
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        first, second, warps = self._pairs(rng)
        first, second = first.to(device), second.to(device)
        latents = codec.encode(first)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy = latents + self.config.latent_noise * noise
        condition = torch.stack(
            [
                planar_readout(
                    row, warp, codec.stride, float(rng.uniform(0.1, 1)), network.align.cells
                )
                for row, warp in zip(noisy, warps, strict=True)
            ]
        )
        again, moved = codec.decode(torch.cat([noisy, network.align(condition)])).chunk(2)
        seen = F.interpolate(condition[:, -GEOMETRY_CHANNELS :][:, :1], second.shape[-2:])
        return first, second, again, moved, latents, seen

    def _score(self, picture: Tensor, truth: Tensor, where: Tensor) -> Tensor:
        picture, truth = picture * where, truth * where
        pixel = F.smooth_l1_loss(picture, truth, beta=0.05)
        gradient = sum(F.l1_loss(picture.diff(dim=d), truth.diff(dim=d)) for d in (-1, -2))
        return (pixel + self.config.gradient_weight * gradient) / where.mean().clamp(min=0.1)

    def _pairs(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[np.ndarray]]:
        """First and second crops (b, 3, side, side) in [-1, 1], and the maps between them."""
        side, firsts, seconds, warps = self.config.crop, [], [], []
        for _ in range(self.config.batch):
            picture = self._picture(rng)
            corner = tuple(int(rng.integers(n - side + 1)) for n in picture.shape[:2])
            warp = random_warp(rng, side, MiniCodec.stride, self.config.warp)
            firsts.append(picture[corner[0] : corner[0] + side, corner[1] : corner[1] + side])
            seconds.append(second_view(picture, corner, warp, side))
            warps.append(warp)
        return _tensor(firsts), _tensor(seconds), warps

    def _picture(self, rng: np.random.Generator) -> np.ndarray:
        """A frame or a texture, mirrored and transposed at random."""
        source = self.textures
        if rng.random() >= self.config.texture_share:
            source = self.frames[rng.integers(len(self.frames))]
        picture = source[rng.integers(len(source))]
        picture = picture[:, ::-1] if rng.random() < 0.5 else picture
        picture = picture.swapaxes(0, 1) if rng.random() < 0.5 else picture
        return np.ascontiguousarray(picture)


def block_pictures(groups: Sequence[UInt8[np.ndarray, "_ _ _ 3"]]) -> Float[Tensor, "n 3 s s"]:
    """Corners of every eighth picture of each group, all of one size: what a code has to carry."""
    side = min(MAX_BLOCK_SIDE, *(n for group in groups for n in group.shape[1:3]))
    return _tensor([picture[:side, :side] for group in groups for picture in group[::8]])


def _tensor(pictures: list[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    batch = picture_from_rgb(torch.from_numpy(np.stack(pictures)))
    return batch.contiguous(memory_format=torch.channels_last)


def _psnr(picture: Tensor, truth: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (picture - truth).square().mean())


@dataclass(frozen=True)
class PerceptionLossConfig:
    """Attributes:
    batch: frames per step.
    blind_share: frames without any readout, as when a photograph seeds a world.
    scale_spread: standard deviation of the log scale by which a whole frame and its readout are
        stretched, so that the readout's scale is believed before the picture's.
    anchor_noise: standard deviation of the readout's log depth error per cell.
    moving_share: frames from clips with moving bodies.
    paste_share: frames into which the bodies of another frame are pasted, by depth.
    anchor_px: side of the readout's cells in pixels.
    coarse_share: readouts whose tokens are twice as wide as its cells.
    """

    batch: int = 8
    blind_share: float = 0.3
    scale_spread: float = 0.15
    anchor_noise: float = 0.02
    gradient_weight: float = 1.0
    moving_weight: float = 0.3
    sky_weight: float = 0.2
    moving_share: float = 0.3
    paste_share: float = 0.4
    anchor_px: int = 4
    coarse_share: float = 0.6


class PerceptionLoss:
    """Draws frames and readout depths and scores depth, moving things and sky."""

    def __init__(self, clips: list[StoredClip], config: PerceptionLossConfig):
        self.clips, self.config = clips, config
        self.cells = [
            torch.from_numpy(cell_depth(clip.depth_m.astype(np.float32), config.anchor_px))
            for clip in clips
        ]
        moving = [(i, np.flatnonzero(c.moving.any((1, 2)))) for i, c in enumerate(clips)]
        #: (clip, frame) of every frame that shows a moving body.
        self.bodies = [(i, int(frame)) for i, frames in moving for frame in frames]

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        picture, rays, anchor, depth, moving, sky = self._batch(network, generator)
        log_depth, moving_logit, sky_logit = network(picture, rays, anchor)
        valid = ~sky & torch.isfinite(depth)
        target = torch.where(valid, depth.clamp(min=0.05).log(), log_depth.detach())
        error = log_depth - target
        flat = [error.diff(dim=d).abs().mean() for d in (-1, -2)]
        value = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.02)
        value = value + config.gradient_weight * sum(flat)
        sky_loss = F.binary_cross_entropy_with_logits(sky_logit, sky.float())
        moving_loss = F.binary_cross_entropy_with_logits(
            moving_logit, moving.float(), pos_weight=torch.tensor(8.0, device=moving.device)
        )
        loss = value + config.sky_weight * sky_loss + config.moving_weight * moving_loss
        seen = torch.isfinite(anchor).flatten(1).any(1)
        relative = error.detach().abs().mean((1, 2))
        log = {"loss": loss, "sky": sky_loss.detach(), "moving": moving_loss.detach()}
        if seen.any():
            log["log_error_anchored"] = relative[seen].mean()
        if (~seen).any():
            log["log_error_blind"] = relative[~seen].mean()
        return log

    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: picture, true depth, depth, moving (red) and sky (blue) as they are said."""
        picture, rays, anchor, depth, _, _ = self._batch(network, generator)
        log_depth, moving, sky = network(picture, rays, anchor)
        masks = torch.stack([moving, torch.full_like(moving, -1), sky], 1).sign()
        columns = [picture, coloured_depth(depth.log()), coloured_depth(log_depth), masks]
        return sheet([column[:6] for column in columns])

    def _batch(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Picture, rays, anchor, depth, moving, sky, on the network's device."""
        device = next(network.parameters()).device
        rows = [self._draw(generator) for _ in range(self.config.batch)]
        parts = [torch.stack(part).to(device) for part in zip(*rows, strict=True)]
        parts[0] = parts[0].contiguous(memory_format=torch.channels_last)
        return tuple(parts)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        config = self.config
        which, frame = self._pick(config.moving_share, generator)
        clip, cells = self.clips[which], self.cells[which][frame].clone()
        moving = torch.from_numpy(clip.moving[frame])
        is_coarse = _chance(generator) < config.coarse_share
        # Memory never holds a body, so the readout has a hole there, or what was seen behind it.
        token_px = config.anchor_px * (2 if is_coarse else 1)
        touched = F.max_pool2d(moving[None].float(), token_px)
        cells[F.interpolate(touched[None], cells.shape)[0, 0] > 0] = float("nan")
        if is_coarse:
            cells = _coarsened(cells, generator)
        picture = picture_from_rgb(torch.from_numpy(clip.rgb[frame]))
        depth = torch.from_numpy(clip.depth_m[frame].astype(np.float32))
        sky = torch.from_numpy(clip.sky[frame])
        if self.bodies and _chance(generator) < config.paste_share:
            picture, depth, moving, sky = self._paste(picture, depth, moving, sky, generator)
        gain = 1 + 0.15 * torch.randn(3, 1, 1, generator=generator)
        picture = (((picture + 1) * gain) - 1).clamp(-1, 1)
        anchor = self._anchor(cells, generator)
        if torch.isfinite(anchor).any():
            stretch = (torch.randn((), generator=generator) * config.scale_spread).exp()
            depth, anchor = depth * stretch, anchor + stretch.log()
        rays = torch.from_numpy(clip.cameras[frame].rays()[..., :2]).float().permute(2, 0, 1)
        row = [picture, rays, anchor[None], depth, moving, sky]
        if _chance(generator) < 0.5:
            row = [part.flip(-1) for part in row]
            row[1] = row[1] * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        return tuple(row)

    def _pick(self, moving_share: float, generator: torch.Generator) -> tuple[int, int]:
        """Clip and frame; with moving bodies in a share of the draws."""
        if self.bodies and _chance(generator) < moving_share:
            return self.bodies[int(torch.randint(len(self.bodies), (), generator=generator))]
        which = int(torch.randint(len(self.clips), (), generator=generator))
        return which, int(torch.randint(len(self.clips[which].rgb), (), generator=generator))

    def _paste(self, picture, depth, moving, sky, generator: torch.Generator) -> list[Tensor]:
        """The bodies of another frame, moved sideways, where they are nearer than what is there."""
        which, frame = self._pick(1.0, generator)
        clip, width = self.clips[which], picture.shape[-1]
        shift = int(torch.randint(-width // 2, width // 2, (), generator=generator))
        parts = (clip.rgb[frame], clip.depth_m[frame].astype(np.float32), clip.moving[frame])
        if _chance(generator) < 0.5:
            parts = [part[:, ::-1] for part in parts]
        rgb, body_depth, body = (torch.from_numpy(np.roll(part, shift, 1)) for part in parts)
        body = body.clone()
        body[:, slice(0, shift) if shift >= 0 else slice(shift, None)] = False
        body &= body_depth < depth
        picture = torch.where(body, picture_from_rgb(rgb), picture)
        return [picture, torch.where(body, body_depth, depth), moving | body, sky & ~body]

    def _anchor(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """Log depth per cell with noise and holes; NaN where the readout would be empty."""
        if torch.rand((), generator=generator) < self.config.blind_share:
            return torch.full_like(cells, float("nan"))
        log_depth = cells.log()
        noise = torch.randn(cells.shape, generator=generator) * self.config.anchor_noise
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = torch.roll(log_depth, shift, (0, 1))
        astray = torch.rand(cells.shape, generator=generator) < 0.1
        log_depth = torch.where(astray, moved, log_depth) + noise
        coarse = torch.rand(1, 1, 4, 5, generator=generator)
        holes = F.interpolate(coarse, cells.shape, mode="bilinear")[0, 0]
        covered = torch.rand((), generator=generator).mul(1.2).clamp(max=1)
        seen = holes <= torch.quantile(holes, covered)
        log_depth = torch.where(seen, log_depth, float("nan"))
        return torch.where(torch.isfinite(log_depth), log_depth, float("nan"))


def _coarsened(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Depth of cells as tokens twice as wide show it, which lie anywhere over the grid."""
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    wide = cells[1::2, 1::2].repeat_interleave(2, 0).repeat_interleave(2, 1)
    return torch.roll(wide, shift, (0, 1))


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))

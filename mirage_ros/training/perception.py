"""Stage two of the recipe: the mini perceiver, given a readout depth as noisy as in a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.resizing import picture_from_rgb
from mirage_ros.training.clips import StoredClip
from mirage_ros.training.loop import coloured_depth, sheet


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

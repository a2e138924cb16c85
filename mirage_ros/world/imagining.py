"""Worlds of models that imagine depth together with what they show: what memory does not show is imagined once,
remembered, and then read as all the rest.

So a place looks at first as it does at every return, and its depth is that of the surfaces that
were imagined with it. Where and what is imagined follows from memory and one camera alone, frame after frame: the same
world comes out however its frames are cut into chunks.

A crack between surfaces is filled with what is nearest. A gap at one side of the picture is looked at from a camera that turns towards it, so that one imagined
view serves the frames of the turn that follows. What is open after that is imagined from the frame's own camera. What
then still is not shown, a crack between surfaces, is taken from that view as it is.

After RGBD2 (Lei et al., CVPR 2023), which completes views of a mesh one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, finer_depth
from mirage_ros.geometry.images import upsample
from mirage_ros.protocol import (
    Chunk,
    Imaginer,
    Perception,
    Readout,
    Views,
    readout_cells,
    readout_side,
)

MOST_TURN_RAD = 0.5
"""That a camera turns at most towards a gap."""
BEHIND = 0.05
"""By which share of its depth a surface stands behind a body."""
MOST_CRACK = 0.02
"""Share of the picture."""
LEAST_OPEN, MOST_OPEN = 0.02, 0.4
"""Share of the picture that is open, up to which there is no gap worth turning to, and from which on a camera need not
turn to see a wide one."""


@dataclass(frozen=True)
class Imagination:
    """Completes views of a memory.

    Attributes:
        read: what memory shows to cameras.
        placed: a view whose surfaces stand where they may.
        remember: writes a view into the memory.
    """

    model: Imaginer
    read: Callable[[Camera], Readout]
    placed: Callable[[Views], Views]
    remember: Callable[[Views], None]

    def __call__(self, camera: Camera, style: Views, seed: int) -> Views:
        """The view of one camera (a batch of one, at the readout's size), whole, after it was remembered."""
        model, cells = self.model, readout_cells(self.model)
        shown = self.read(camera)
        turn = turn_towards(~shown.known(cells)[0], camera)
        if turn:
            aside = camera.turned(-turn)
            self.remember(self.placed(model.imagine(self.read(aside), aside, style, seed)))
            shown = self.read(camera)
        if shown.known(cells).all():
            return Views(model.aligned(shown), cell_depth(shown.depth_m, cells), camera)
        # What a view from aside leaves at the border is a crack as well: there is no more to come.
        crack = is_crack(~shown.known(cells)[0], turn != 0)
        view = self.placed(nearest_shown(model, shown, camera) if crack else model.imagine(shown, camera, style, seed))
        self.remember(view)
        return view


def nearest_shown(model: Imaginer, readout: Readout, camera: Camera) -> Views:
    """The view of one camera in which every cell that memory does not show is the nearest that it shows; sky without any."""
    latents, depth = model.aligned(readout), cell_depth(readout.depth_m, readout_cells(model))
    known = readout.known(readout_cells(model)) & np.isfinite(depth)
    if not known.any():
        return Views(torch.zeros_like(latents), np.full_like(depth, np.inf), camera)
    places, shown = np.argwhere(np.ones_like(known[0])), np.argwhere(known[0])
    row, column = shown[((places[:, None] - shown[None]) ** 2).sum(-1).argmin(1)].T.reshape(2, *known.shape[1:])
    return Views(latents[:, :, row, column], depth[:, row, column], camera)


def stacked(views: Sequence[Views]) -> Views:
    """Views of several cameras as one batch."""
    cameras = Camera.stack([view.cameras[0] for view in views])
    return Views(torch.cat([view.latents for view in views]), np.concatenate([view.depth_m for view in views]), cameras)


def put_together(
    model: Imaginer, readout: Readout, imagined: Views | None
) -> Float[torch.Tensor, "f c lh lw"]:
    """Latents that memory shows, and those of imagined views where it shows none."""
    latents = model.aligned(readout)
    if imagined is None:
        return latents
    return torch.where(torch.from_numpy(readout.known(readout_cells(model)))[:, None], latents, imagined.latents)


def surfaces_of(model: Imaginer, view: Views | None, shown: Readout | None = None) -> Perception:
    """Of pictures: memory's own depth where it shows something, and what was imagined elsewhere. Nothing moves."""
    cells = readout_cells(model)
    depth = np.full((), np.nan) if view is None else upsample(view.depth_m, cells)
    if shown is not None:
        whole = upsample(cell_depth(shown.depth_m, cells), cells)
        remembered = np.where(np.isfinite(shown.depth_m), shown.depth_m, whole)
        depth = np.where(np.isnan(remembered), depth, remembered)
    depth = finer_depth(depth, readout_side(model))
    sky = np.isinf(depth)
    return Perception(depth, np.zeros_like(sky), sky)


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks that follow on each other as one."""
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    frames = tuple(frame for chunk in chunks for frame in chunk.frames)
    seconds = {stage: sum(chunk.seconds[stage] for chunk in chunks) for stage in last.seconds}
    share = sum(chunk.observed_fraction * len(chunk.frames) for chunk in chunks) / len(frames)
    return Chunk(frames, seconds, share, last.tokens, last.memory_bytes)


def behind_bodies(
    cameras: Camera, depth_m: Float[np.ndarray, "f h w"], bodies: Iterable, stamp_ns: int
) -> Float[np.ndarray, "f h w"]:
    """Depth of f cameras' cells, moved to behind the boxes around entities (world/entities.py) where it lies in or before them: what is
    dreamt hides no robot that stands there."""
    depth, rays = np.array(depth_m, np.float32), cameras.rays_world()
    for body in bodies:
        pose, bounds = body.state.pose_at(stamp_ns), body.state.bounds_m
        place = (cameras.position_world - pose[:3, 3]) @ pose[:3, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = (bounds[:, None, None, None] - place[:, None, None]) / (rays @ pose[:3, :3])
        near, far = np.nanmax(ends.min(0), -1), np.nanmin(ends.max(0), -1)
        hides = (far > np.maximum(near, 0)) & (depth < far)
        depth[hides] = far[hides] * np.float32(1 + BEHIND)
    return depth


def is_crack(open_cells: Bool[np.ndarray, "h w"], at_border: bool) -> bool:
    """Whether so little is open, and nothing at the picture's border, where there is more to come, that surfaces go on over it.

    Args:
        at_border: it may lie there all the same.
    """
    inner = open_cells if at_border else open_cells[1:-1, 1:-1]
    return bool(0 < open_cells.sum() == inner.sum() <= MOST_CRACK * open_cells.size)


def turn_towards(open_cells: Bool[np.ndarray, "h w"], camera: Camera) -> float:
    """Radians to the right by which a camera (a batch of one) turns to bring a gap at one side into its middle."""
    if not LEAST_OPEN < open_cells.mean() <= MOST_OPEN:
        return 0.0
    width = open_cells.shape[1]
    columns = np.flatnonzero(open_cells.any(0))
    low, high = columns[0] / width, (columns[-1] + 1) / width
    if low < 0.5 < high:
        return 0.0
    edge, k = low if low >= 0.5 else high, camera.intrinsics[0]
    angle = float(np.arctan((edge * camera.size[1] - 0.5 - k[0, 2]) / k[0, 0]))
    return float(np.clip(angle, -MOST_TURN_RAD, MOST_TURN_RAD))

"""Worlds of models that imagine depth together with what they show: what memory does not show is imagined once,
remembered, and then read as all the rest.

So a place looks at first as it does at every return, and its depth is that of the surfaces that
were imagined with it. Where and what is imagined follows from memory and one camera alone, frame after frame: the same
world comes out however its frames are cut into chunks.

A gap at one side of the picture is looked at from a camera that turns towards it, so that one imagined
view serves the frames of the turn that follows. What is open after that is imagined from the frame's own camera. What
then still is not shown, the sky or a crack between surfaces, is taken from that view as it is.

After RGBD2 (Lei et al., CVPR 2023), which completes views of a mesh one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, finer_depth
from mirage_ros.geometry.images import upsample
from mirage_ros.protocol import (
    Chunk,
    Perception,
    Readout,
    SpatialMemory,
    Views,
    readout_cells,
    readout_side,
)

MOST_TURN_RAD = 0.5
"""That a camera turns at most towards a gap."""
MOST_OPEN = 0.4
"""Share of the picture that is open, from which on a camera need not turn to see a wide gap."""


@runtime_checkable
class Imaginer(Protocol):
    """What a WorldModel has besides that imagines depth with latents; used in place of `generate`."""

    def from_memory(self, readout: Readout) -> Bool[np.ndarray, "f lh lw"]: ...

    def aligned(self, readout: Readout) -> Float[torch.Tensor, "f c lh lw"]:
        """The latents that memory shows; those that it does not show mean nothing."""

    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        """The whole view of one camera (a batch of one, at the readout's size); what memory shows of it is kept.
        `style` are views of the same world, which tell how it looks."""


@dataclass(frozen=True)
class Imagination:
    """Completes views of a memory.

    Attributes:
        remember: writes a view into the memory.
    """

    model: Imaginer
    memory: SpatialMemory
    remember: Callable[[Views], None]

    def __call__(self, camera: Camera, style: Views, seed: int) -> Views:
        """The view of one camera (a batch of one, at the readout's size), whole, after it was remembered."""
        model, memory = self.model, self.memory
        shown = memory.read(camera)
        turn = turn_towards(~model.from_memory(shown)[0], camera)
        if turn:
            aside = camera.turned(-turn)
            self.remember(model.imagine(memory.read(aside), aside, style, seed))
            shown = memory.read(camera)
        if model.from_memory(shown).all():
            return Views(model.aligned(shown), cell_depth(shown.depth_m, readout_cells(model)), camera)
        view = model.imagine(shown, camera, style, seed)
        self.remember(view)
        return view


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
    return torch.where(torch.from_numpy(model.from_memory(readout))[:, None], latents, imagined.latents)


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


def turn_towards(open_cells: Bool[np.ndarray, "h w"], camera: Camera) -> float:
    """Radians to the right by which a camera (a batch of one) turns to bring a gap at one side into its middle."""
    if open_cells.mean() > MOST_OPEN or not open_cells.any():
        return 0.0
    width = open_cells.shape[1]
    columns = np.flatnonzero(open_cells.any(0))
    low, high = columns[0] / width, (columns[-1] + 1) / width
    if low < 0.5 < high:
        return 0.0
    edge, k = low if low >= 0.5 else high, camera.intrinsics[0]
    angle = float(np.arctan((edge * camera.size[1] - 0.5 - k[0, 2]) / k[0, 0]))
    return float(np.clip(angle, -MOST_TURN_RAD, MOST_TURN_RAD))

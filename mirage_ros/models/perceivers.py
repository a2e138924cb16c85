"""Who perceives for the large model: a depth model, a segmenter, and memory's own vote.

`mini` is the shipped perceiver: depth, moving things and sky from one small net. Any other depth
model is made metric by what memory shows; masks come from a text-prompted segmenter. Where
aligned depth and memory disagree something stands that was not there, or something has gone:
either way it is not to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.pictures import upsample
from mirage_ros.core.types import Perception, WorldModel
from mirage_ros.models import depth_estimators, segmenters
from mirage_ros.models.depth_alignment import align_depth, disagreeing
from mirage_ros.models.depth_estimators import DepthEstimator, load_depth_estimator
from mirage_ros.models.parts import stored_bytes
from mirage_ros.models.resizing import block_means
from mirage_ros.models.segmenters import Segmenter, load_segmenter


class MiniPerceiver:
    """The shipped perceiver behind a codec of a coarser stride.

    It is shown pictures shrunk so far that its cells are the codec's: nearer to the size that
    it was trained at, and for a stride of 16 a quarter of the work.
    """

    def __init__(self, mini: WorldModel, stride: int):
        self.mini, self.times = mini, stride // mini.stride

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        small = block_means(rgb, self.times)
        told = self.mini.perceive(small, cameras.resized(small.shape[1:3]), anchor_depth_m)
        parts = (told.depth_m, told.dynamic, told.sky)
        return Perception(*(upsample(part, self.times) for part in parts))


class AdaptedPerceiver:
    """A depth model and, where there is one, a segmenter.

    Args:
        stride: pixels per cell of the readout.
    """

    def __init__(self, depth: DepthEstimator, masks: Segmenter | None, stride: int):
        self.depth, self.masks, self.stride = depth, masks, stride

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        raw, model = self.depth(rgb, cameras), self.depth
        depth = align_depth(raw, anchor_depth_m, self.stride, model.inverse, model.metric)
        dynamic = sky = np.zeros(depth.shape, bool)
        if self.masks is not None:
            dynamic, sky = self.masks(rgb)
        if anchor_depth_m is not None:
            dynamic = dynamic | disagreeing(depth, anchor_depth_m, self.stride)
        sky = sky | np.isposinf(depth)
        return Perception(np.where(sky, np.float32(np.inf), depth), dynamic & ~sky, sky)


class MaskedPerceiver:
    """Another perceiver's depth, a segmenter's masks."""

    def __init__(self, perceiver: Callable[..., Perception], masks: Segmenter):
        self.perceiver, self.masks = perceiver, masks

    def __call__(
        self,
        rgb: UInt8[np.ndarray, "f h w 3"],
        cameras: Camera,
        anchor_depth_m: Float[np.ndarray, "f lh lw"] | None,
    ) -> Perception:
        told = self.perceiver(rgb, cameras, anchor_depth_m)
        dynamic, sky = self.masks(rgb)
        sky = sky | told.sky
        depth = np.where(sky, np.float32(np.inf), told.depth_m)
        return Perception(depth, (dynamic | told.dynamic) & ~sky, sky)


def load_perceiver(
    depth: str,
    masks: str,
    prompts: Sequence[str],
    load_mini: Callable[[str], WorldModel],
    stride: int,
    device: str,
) -> MiniPerceiver | AdaptedPerceiver | MaskedPerceiver:
    """The perceiver of a config: names of depth model and segmenter, what may move.

    Args:
        load_mini: loads the shipped model to a device; called for depth "mini" only.
    """
    segmenter = load_segmenter(masks, prompts, device) if masks else None
    if depth != "mini":
        return AdaptedPerceiver(load_depth_estimator(depth, device), segmenter, stride)
    perceiver = MiniPerceiver(load_mini(device), stride)
    return perceiver if segmenter is None else MaskedPerceiver(perceiver, segmenter)


def perceiver_bytes(depth: str, masks: str) -> int:
    """What a config's depth model and segmenter take, as far as they are on this machine."""
    return sum(stored_bytes(source) for source in sources_of(depth, masks) if source != "mini")


def sources_of(depth: str, masks: str) -> list[str]:
    """Folders or hub ids of a config's depth model and segmenter; "mini" is the shipped model."""
    found = []
    for name, known in ((depth, depth_estimators.SOURCES), (masks, segmenters.SOURCES)):
        kind, _, source = name.partition(":")
        if name == "mini" or source or kind in known:
            found.append(source or known.get(kind, name))
    return found

"""Latents that stand for several frames: codecs that are causal in time.

A picture codec has one latent per frame. A video codec such as Wan's gives the first frame of a
stream a latent of its own and every later latent `frames_per_latent` frames, whose decoder looks
back at what it decoded before. So the seed is the stream's first frame, every chunk continues
the stream, and what the decoder remembers belongs to the world's state: that is what keeps
chunk borders from flickering.

A latent that stands for several frames is read and written through the camera of one of them,
its anchor, in the middle, where the others are nearest.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.core.types import Readout, WorldModel

DecoderState = dict[str, torch.Tensor]
"""What a causal decoder remembers. Its tensors are never changed in place, so states share them."""


@runtime_checkable
class StreamDecoder(Protocol):
    """What a WorldModel with a causal video codec has besides.

    Attributes:
        frames_per_latent: frames that a latent after the first stands for.
    """

    frames_per_latent: int

    def decode_stream(
        self, latents: Float[torch.Tensor, "n c lh lw"], state: DecoderState | None
    ) -> tuple[UInt8[np.ndarray, "f h w 3"], DecoderState]:
        """The pictures that follow on those after which `state` was returned, and the new state.

        Without a state the first latent begins a stream and gives one picture.
        """
        ...


def frames_per_latent(model: WorldModel) -> int:
    """1 for a picture codec."""
    return int(getattr(model, "frames_per_latent", 1))


def anchor_frames(frames: int, per_latent: int) -> Int[np.ndarray, "n"]:
    """The frame of a chunk through whose camera each of its latents is read and written.

    A last group that is not full is continued by its last frame.
    """
    latents = -(-frames // per_latent)
    return np.minimum(np.arange(latents) * per_latent + per_latent // 2, frames - 1)


def any_in_group(mask: Bool[np.ndarray, "f h w"], per_latent: int) -> Bool[np.ndarray, "n h w"]:
    """True where any frame of a latent's group is; the last group may be short."""
    whole = len(mask) // per_latent * per_latent
    groups = mask[:whole].reshape(-1, per_latent, *mask.shape[1:]).any(1)
    return np.concatenate([groups, mask[whole:].any(0, keepdims=True)[: len(mask) - whole]])


def rows(readout: Readout, index: Int[np.ndarray, "n"]) -> Readout:
    """The readout of some of its cameras."""
    return Readout(**{entry.name: getattr(readout, entry.name)[index] for entry in fields(Readout)})


def decode_next(
    model: WorldModel,
    latents: Float[torch.Tensor, "n c lh lw"],
    state: DecoderState | None,
    frames: int,
) -> tuple[UInt8[np.ndarray, "f h w 3"], DecoderState | None]:
    """The next `frames` pictures, and what the decoder remembers.

    When the last group is not full its surplus pictures are dropped: they show the last camera
    again, at times that the plan does not have.
    """
    if not isinstance(model, StreamDecoder):
        return model.decode(latents), None
    pictures, state = model.decode_stream(latents, state)
    return pictures[:frames], state

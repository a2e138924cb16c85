"""What a world remembers between steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from mirage_ros.core.camera import Camera
from mirage_ros.core.memory import LatentMemory


@dataclass(frozen=True)
class WorldState:
    """A world between two steps.

    `latents` maps frame ids to (c, h, w) float16; `frames_seen` is the next frame's id; camera
    and stamp are the last frame's, the camera at the model's picture size.
    """

    memory: LatentMemory
    latents: dict[int, Float[torch.Tensor, "c h w"]]
    frames_seen: int
    camera: Camera
    stamp_ns: int

    def forked(self) -> WorldState:
        """A state of its own; memory is shared until one of both changes."""
        return replace(self, memory=self.memory.fork(), latents=dict(self.latents))

"""What a world hands out: plain arrays and numbers, for callers that do without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from mirage_ros.core.camera import Camera


@dataclass(frozen=True)
class Frame:
    """One generated picture with everything that belongs to its instant.

    Attributes:
        stamp_ns: the planned time.
        camera: a single Camera of the picture's size.
        rgb: the picture.
        depth_m: along z; NaN invalid, +inf beyond range (REP 117, 118).
        observed: True where the model took the pixel from memory, latent cell by latent cell, False
            where it imagined it (grids.from_memory).
    """

    stamp_ns: int
    camera: Camera
    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    observed: Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Chunk:
    """One step of the cycle.

    Attributes:
        frames: in time order.
        seconds: wall seconds by stage: read, generate, decode, perceive, write.
        observed_fraction: share of the chunk's latent cells that the model took from memory.
        tokens: tokens in memory after the write.
        memory_bytes: bytes of memory after the write.
    """

    frames: tuple[Frame, ...]
    seconds: dict[str, float]
    observed_fraction: float
    tokens: int
    memory_bytes: int


class Points(NamedTuple):
    """The memory as a cloud, for viewing. Confidence is the cosine under which a token was
    seen: 1 frontal, towards 0 grazing."""

    xyz: Float32[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]
    confidence: Float32[np.ndarray, "n"]
    birth_ns: Int64[np.ndarray, "n"]

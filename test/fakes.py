"""A world model without a network, for tests of everything around it."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch

from mirage_ros.errors import MirageError, report
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Perception, Readout


class PixelModel:
    """Latents are the cell's own pixels (lossless); imagined cells are mid grey.

    Depth is the anchor where memory saw the cell and `far_m` elsewhere.
    """

    name = "pixel-fake"
    preceding_frames = 1
    reference_frames = 1

    def __init__(self, size=(64, 80), stride=8, chunk_frames=4, far_m=3.0):
        self.size, self.stride, self.chunk_frames, self.far_m = size, stride, chunk_frames, far_m
        self.channels = 3 * stride * stride

    def encode(self, rgb):
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float()
        return torch.nn.functional.pixel_unshuffle(picture / 127.5 - 1, self.stride)

    def decode(self, latents):
        picture = torch.nn.functional.pixel_shuffle(latents.float(), self.stride)
        picture = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return picture.permute(0, 2, 3, 1).contiguous().numpy()

    def generate(self, readout: Readout, cameras: Camera, preceding, references, seed: int):
        return readout.latents.float() * torch.from_numpy(readout.visible)[:, None]

    def perceive(self, rgb, cameras: Camera, anchor_depth_m):
        shape = rgb.shape[:3]
        depth = np.full(shape, self.far_m, np.float32)
        if anchor_depth_m is not None:
            anchor = anchor_depth_m.repeat(self.stride, 1).repeat(self.stride, 2)
            depth = np.where(np.isfinite(anchor), anchor, depth).astype(np.float32)
        nothing = np.zeros(shape, bool)
        return Perception(depth, nothing, nothing)


def pixel_model(config=None):
    """What a node's worker can be given: a function that another process finds by its name."""
    return PixelModel()


class Stumbling(PixelModel):
    """Fails at the first chunk."""

    stumbles = 1

    def decode(self, latents):
        if len(latents) > 1 and self.stumbles:
            self.stumbles -= 1
            raise RuntimeError("out of luck")
        return super().decode(latents)


def no_model():
    """A checkpoint that is not there."""
    raise MirageError("No model at nowhere.")


class Greedy(PixelModel):
    """Asks for more memory than there is once it comes to the second chunk."""

    def perceive(self, rgb, cameras: Camera, anchor_depth_m):
        if len(rgb) > 1 and -0.3 < cameras.world_from_camera[0, 1, 3] < -0.22:
            torch.empty(2**60)
        return super().perceive(rgb, cameras, anchor_depth_m)


class Mined(PixelModel):
    """Takes its process down where a file says so: at a prompt, a picture, or what a world asks."""

    def __init__(self, mine):
        self._mine = mine
        super().__init__()

    def _tread_on(self, part: str) -> None:
        if self._mine.exists() and self._mine.read_text() == part:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def channels(self):
        self._tread_on("world")
        return self._channels

    @channels.setter
    def channels(self, count):
        self._channels = count

    def set_prompt(self, text):
        self._tread_on("prompt")

    def encode(self, rgb):
        self._tread_on("picture")
        return super().encode(rgb)


class Stuck(PixelModel):
    """Reads from a pipe into which nobody writes, as long as there is one, when it makes a chunk."""

    def __init__(self, pipe):
        super().__init__()
        self._pipe = pipe

    def generate(self, readout: Readout, cameras: Camera, preceding, references, seed: int):
        if self._pipe.exists():
            self._pipe.read_bytes()
        return super().generate(readout, cameras, preceding, references, seed)


class Plodding(PixelModel):
    """Takes three seconds for a chunk and tells how it goes on."""

    def generate(self, readout: Readout, cameras: Camera, preceding, references, seed: int):
        for _ in range(6):
            report()
            time.sleep(0.5)
        return super().generate(readout, cameras, preceding, references, seed)


class Wooden(PixelModel):
    """Takes its process down before it is there."""

    def __init__(self):
        os._exit(3)


class Gated(PixelModel):
    """Makes a chunk when a byte can be read from the gate, see gate.py."""

    def __init__(self, gate: str):
        super().__init__()
        self._gate = open(gate, "rb", buffering=0)  # noqa: SIM115 - as long as the process

    def generate(self, readout: Readout, cameras: Camera, preceding, references, seed: int):
        self._gate.read(1)
        return super().generate(readout, cameras, preceding, references, seed)


def gated_model(gate: str, config=None):
    return Gated(gate)

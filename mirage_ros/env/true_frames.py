"""Frames of the true scene, rendered by MuJoCo: the ground truth behind the same face."""

from __future__ import annotations

import numpy as np

from mirage_ros.core.camera import Camera
from mirage_ros.core.types import Frame
from mirage_ros.env.stepping import SECOND_NS
from mirage_ros.scenes.render import Renderer
from mirage_ros.scenes.worlds import Scene


class TrueFrames:
    """Like WorldFrames, but every pixel is rendered and none imagined."""

    def __init__(self, size: tuple[int, int], period_s: float) -> None:
        self.size = (int(size[0]), int(size[1]))
        self._period_ns = round(period_s * SECOND_NS)
        self._renderer: Renderer | None = None

    def reset(self, scene: Scene, camera: Camera) -> Frame:
        """The first frame of a scene, stamped 0."""
        self.close()
        self._renderer = Renderer(scene, self.size)
        self._stamp_ns = -self._period_ns
        return self.advance(camera)

    def advance(self, camera: Camera, held: Camera | None = None) -> Frame:
        """The next frame; nothing is gained by knowing what follows."""
        clip = self._renderer.render(Camera.stack([camera]))
        self._stamp_ns += self._period_ns
        seen = np.ones(self.size, bool)
        rgb = np.ascontiguousarray(clip.rgb[0])
        return Frame(self._stamp_ns, camera, rgb, clip.depth_m[0], seen)

    def close(self) -> None:
        """Gives the drawing context back."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

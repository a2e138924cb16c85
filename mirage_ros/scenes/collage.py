"""Collages of overlapping shapes whose sizes follow a power law ("dead leaves").

Their edges, occlusions and spectrum are like those of photographs (Lee, Mumford and Huang 2001),
so that a codec that never saw a photograph meets the statistics of one (Baradad et al. 2021).
"""

from __future__ import annotations

import cv2
import numpy as np

from mirage_ros.scenes.noise import colour, fractal_noise, palette
from mirage_ros.scenes.textures import make_texture

#: Radii in pixels are drawn between these with density 1 / r^3.
SMALLEST_PX, LARGEST_RELATIVE = 1.5, 0.5
COVERS = 2.5
"""How often the shapes' areas add up to the picture's."""
TEXTURED_PX = 24
"""Shapes from this radius on wear a texture; smaller ones are plain or shaded."""


def collage(rng: np.random.Generator, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    """One collage, (height, width, 3) uint8 RGB."""
    colours = palette(rng, int(rng.integers(4, 10)))
    canvas = np.broadcast_to(colour(rng), (*size, 3)).astype(np.float32).copy()
    radii = _radii(rng, size)
    for radius in radii:
        _stamp(rng, canvas, radius, colours)
    light = 0.75 + 0.5 * fractal_noise(rng, size, (2, 2), 3)[..., None]
    canvas = canvas * light + rng.standard_normal((*size, 1)) * rng.uniform(0, 4)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.2))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _radii(rng, size) -> np.ndarray:
    """Until the picture is covered; large ones first in half of the collages: more small ones stay."""
    low, high = SMALLEST_PX * rng.uniform(1, 3), LARGEST_RELATIVE * min(size)
    radii = (low**-2 - rng.random(4000) * (low**-2 - high**-2)) ** -0.5
    count = np.searchsorted(np.cumsum(np.pi * radii**2), COVERS * size[0] * size[1]) + 1
    radii = radii[: min(count, 2500)]
    return np.sort(radii)[::-1] if rng.random() < 0.5 else radii


def _stamp(rng, canvas: np.ndarray, radius: float, colours: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    centre = rng.random(2) * (width, height)
    outline = _outline(rng, centre, radius)
    low = np.maximum(np.floor(outline.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(outline.max(0)).astype(int) + 1, (width, height))
    if (high - low).min() < 1:
        return
    window = canvas[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(window.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round((outline - low) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    share = mask[..., None].astype(np.float32) / 255
    window += share * (_fill(rng, window.shape[:2], radius, colours) - window)


def _outline(rng, centre: np.ndarray, radius: float) -> np.ndarray:
    """An ellipse, a rectangle or a ragged polygon, (n, 2) x and y in pixels."""
    style, turn = rng.integers(3), rng.uniform(0, 2 * np.pi)
    count = (24, 4, int(rng.integers(5, 12)))[style]
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + np.pi / 4
    reach = np.ones(count) if style < 2 else rng.uniform(0.5, 1.3, count)
    stretch = np.exp(rng.uniform(-0.8, 0.8) * (style < 2))
    local = np.stack([np.cos(angles) * reach * stretch, np.sin(angles) * reach / stretch], -1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return centre + radius * local @ rotation.T


def _fill(rng, size, radius: float, colours: np.ndarray):
    shade = colours[rng.integers(len(colours))] * rng.uniform(0.7, 1.2) + rng.normal(0, 8, 3)
    if radius < TEXTURED_PX:
        slope = np.linspace(-1, 1, size[1])[None, :, None] * rng.normal(0, 12)
        return (shade + slope).astype(np.float32)
    texture = make_texture(rng, None, size).astype(np.float32)
    contrast = rng.uniform(0.1, 1.0)
    return shade + contrast * (texture - texture.mean((0, 1)))

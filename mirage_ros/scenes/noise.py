"""Random fields and palettes that textures and skies are made of."""

from __future__ import annotations

import cv2
import numpy as np


def value_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]):
    """A smooth periodic field in [0, 1], (h, w) float32, with `cells` bumps down and across."""
    height, width = size
    rows, columns = (min(max(1, int(c)), s) for c, s in zip(cells, size, strict=True))
    grid = np.pad(rng.random((rows, columns), dtype=np.float32), 2, mode="wrap")
    step_y, step_x = height / rows, width / columns
    # The grid point (2, 2) of the padded grid lands on the picture's first pixel.
    warp = np.array([[1 / step_x, 0, 2.0], [0, 1 / step_y, 2.0]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.clip(cv2.warpAffine(grid, warp, (width, height), flags=flags), 0, 1)


def fractal_noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    cells: tuple[float, float] = (4, 4),
    octaves: int = 4,
    gain: float = 0.5,
):
    """Octaves of `value_noise`, stretched to [0, 1]; (h, w) float32, periodic."""
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        scaled = (cells[0] * 2**octave, cells[1] * 2**octave)
        total += np.float32(gain**octave) * value_noise(rng, size, scaled)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def colour(rng: np.random.Generator, pale: float | None = None) -> np.ndarray:
    """One random RGB colour in [0, 255], float32; `pale` 0 is saturated, 1 is near grey."""
    pale = rng.random() if pale is None else pale
    saturation = (1 - pale) * rng.uniform(0.5, 1.0) + pale * rng.uniform(0.0, 0.2)
    value = rng.uniform(0.25, 1.0) ** 0.7
    return hsv(rng.random(), saturation, value)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in [0, 255] float32 from hue, saturation and value in [0, 1]."""
    pixel = np.array([[[hue % 1 * 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]])
    return cv2.cvtColor(pixel.astype(np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255


def palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` colours that go together, (count, 3) float32 RGB in [0, 255]."""
    style = rng.integers(5)
    hue, saturation = rng.random(), rng.uniform(0.1, 0.9)
    spread = (0.04, 0.12, 0.5, 1.0, 0.02)[style]
    if style == 4:
        saturation *= 0.2
    values = rng.permutation(np.linspace(rng.uniform(0.15, 0.6), rng.uniform(0.75, 1.0), count))
    hues = hue + spread * rng.uniform(-1, 1, count)
    saturations = saturation * rng.uniform(0.6, 1.2, count)
    return np.stack([hsv(*triple) for triple in zip(hues, saturations, values, strict=True)])


def ramp(field: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Maps a field in [0, 1] through colours at even steps: (h, w) -> (h, w, 3) float32."""
    place = np.linspace(0, 255, len(colours))
    levels = np.arange(256)
    table = np.stack([np.interp(levels, place, colours[:, i]) for i in range(3)], -1)
    return table.astype(np.float32)[np.clip(field * 255, 0, 255).astype(np.uint8)]

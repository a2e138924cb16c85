"""Textures that are not repeated (posters, book rows, text pages, doors, windows), random fields and palettes."""

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


FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def _word(rng, longest=8):
    return "".join(rng.choice(list(LETTERS), int(rng.integers(1, longest + 1))))


def gradient(rng, size):
    """A smooth sweep of colours, linear or round."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y, x = y / size[0] - 0.5, x / size[1] - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        field = 0.5 + 0.7 * (np.cos(angle) * x + np.sin(angle) * y)
    else:
        centre = rng.uniform(-0.5, 0.5, 2)
        field = np.hypot(x - centre[0], y - centre[1]) * rng.uniform(0.7, 2)
    return ramp(np.clip(field, 0, 1), palette(rng, int(rng.integers(2, 5))))


def _shape(rng, canvas, ink):
    """Draws one random filled or outlined shape."""
    height, width = canvas.shape[:2]
    centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
    span = int(min(height, width) * rng.uniform(0.04, 0.4)) + 2
    thick = -1 if rng.random() < 0.65 else int(rng.integers(1, max(2, height // 30)))
    style = rng.integers(5)
    if style == 0:
        cv2.circle(canvas, centre, span, ink, thick, cv2.LINE_AA)
    elif style == 1:
        other = (centre[0] + span, centre[1] + int(span * rng.uniform(0.3, 2)))
        cv2.rectangle(canvas, centre, other, ink, thick, cv2.LINE_AA)
    elif style == 2:
        axes = (span, int(span * rng.uniform(0.2, 1)))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, ink, thick, cv2.LINE_AA)
    elif style == 3:
        corners = np.array(centre) + rng.normal(0, span, (int(rng.integers(3, 7)), 2))
        cv2.fillPoly(canvas, [corners.astype(np.int32)], ink, cv2.LINE_AA)
    else:
        other = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        cv2.line(
            canvas, centre, other, ink, int(rng.integers(1, max(2, height // 25))), cv2.LINE_AA
        )


def _ink(rng, colours):
    return tuple(float(c) for c in colours[rng.integers(len(colours))])


def poster(rng, size):
    """A picture with shapes, letters and a frame over a gradient or noise."""
    if rng.random() < 0.5:
        canvas = gradient(rng, size)
    else:
        canvas = ramp(fractal_noise(rng, size, (3, 3), 4), palette(rng, 3))
    canvas = np.ascontiguousarray(canvas)
    colours = np.concatenate([palette(rng, 4), colour(rng, 0.1)[None], np.float32([[250] * 3])])
    painted = np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
    for _ in range(int(rng.integers(2, 14))):
        _shape(rng, painted, _ink(rng, colours))
    for _ in range(int(rng.integers(0, 5))):
        scale = size[0] / 256 * rng.uniform(0.5, 4)
        place = (int(rng.uniform(-0.1, 0.7) * size[1]), int(rng.uniform(0.1, 1) * size[0]))
        font = FONTS[rng.integers(len(FONTS))]
        thick = max(1, int(scale * rng.uniform(0.8, 3)))
        word = _word(rng)
        cv2.putText(painted, word, place, font, scale, _ink(rng, colours), thick, cv2.LINE_AA)
    if rng.random() < 0.6:
        edge = int(size[0] * rng.uniform(0.02, 0.06)) + 1
        cv2.rectangle(painted, (0, 0), (size[1] - 1, size[0] - 1), _ink(rng, colours), edge)
    return painted


def text_page(rng, size):
    """A printed page or notice board: a heading, lines of text, a figure."""
    paper = (200 + 55 * rng.random(3)) if rng.random() < 0.8 else colour(rng)
    page = np.empty((*size, 3), np.uint8)
    page[:] = np.clip(paper, 0, 255)
    ink = tuple(float(c) for c in colour(rng, 0.3) * 0.35)
    step = int(size[0] / rng.uniform(7, 22)) + 3
    font = FONTS[rng.integers(len(FONTS))]
    for y in range(step, size[0] - 2, step):
        line = " ".join(_word(rng, 7) for _ in range(int(rng.integers(2, 7))))
        scale = step / 40 * (2 if y == step else 1)
        cv2.putText(page, line, (size[1] // 20, y), font, scale, ink, 1, cv2.LINE_AA)
    if rng.random() < 0.5:
        top, left = (int(s * rng.uniform(0.2, 0.6)) for s in size)
        part = page[top : top + size[0] // 3, left : left + size[1] // 3]
        part[:] = np.clip(gradient(rng, part.shape[:2]), 0, 255)
    return page


def books(rng, size):
    """A row of book spines, bottom aligned, over a dark shelf."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = np.clip(colour(rng, 0.6) * 0.25, 0, 255)
    colours = np.concatenate([palette(rng, 4), palette(rng, 4)])
    x = 0
    while x < size[1]:
        wide = max(3, int(size[1] * rng.uniform(0.025, 0.1)))
        top = int(size[0] * rng.uniform(0.03, 0.3))
        ink = colours[rng.integers(len(colours))]
        round_ = 1 - 0.35 * np.linspace(-1, 1, wide) ** 2
        spine = np.clip(ink * round_[:, None], 0, 255).astype(np.uint8)
        part = canvas[top:, x : x + wide]
        part[:] = spine[None, : part.shape[1]]
        band = top + int((size[0] - top) * rng.uniform(0.1, 0.7))
        label = tuple(float(c) for c in colours[rng.integers(len(colours))])
        cv2.rectangle(canvas, (x + 1, band), (x + wide - 2, band + size[0] // 12), label, -1)
        x += wide + (int(rng.integers(0, wide)) if rng.random() < 0.08 else 0)
    return canvas


def door(rng, size):
    """A door leaf with fields and a handle; it fills the picture."""
    base = colour(rng, rng.uniform(0.2, 0.8))
    grain = fractal_noise(rng, size, (2, 40), 3)[..., None]
    leaf = np.ascontiguousarray(np.clip(base * (0.75 + 0.35 * grain), 0, 255).astype(np.uint8))
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    light, dark = (tuple(float(c) for c in np.clip(base * f, 0, 255)) for f in (1.25, 0.5))
    for row in range(rows):
        for column in range(columns):
            top = int(size[0] * (0.06 + row * 0.9 / rows))
            left = int(size[1] * (0.1 + column * 0.84 / columns))
            low = int(top + size[0] * 0.82 / rows)
            right = int(left + size[1] * 0.7 / columns)
            thick = max(1, size[0] // 90)
            cv2.rectangle(leaf, (left, top), (right, low), dark, thick, cv2.LINE_AA)
            cv2.rectangle(leaf, (left + thick, top + thick), (right, low), light, 1, cv2.LINE_AA)
    place = (int(size[1] * 0.9), int(size[0] * 0.52))
    cv2.circle(leaf, place, max(2, size[1] // 28), (225, 215, 160), -1, cv2.LINE_AA)
    cv2.rectangle(leaf, (0, 0), (size[1] - 1, size[0] - 1), dark, max(1, size[1] // 60))
    return leaf


def window(rng, size):
    """A bright view through panes: sky, hills, a frame with bars."""
    sky = np.stack([colour(rng, 0.8) * 0.2 + 200, np.array([120, 175, 235.0]), np.full(3, 245.0)])
    canvas = ramp(fractal_noise(rng, size, (2, 3), 4) ** 1.5, sky[[1, 0, 2]].astype(np.float32))
    x = np.arange(size[1])
    for layer in range(int(rng.integers(1, 4))):
        wave = fractal_noise(rng, (8, size[1]), (1, 3), 3)[0]
        line = size[0] * (0.45 + 0.15 * layer + 0.25 * wave)
        below = np.arange(size[0])[:, None] > line[x][None]
        tint = (np.array([70, 120, 70.0]) * rng.uniform(0.6, 1.5, 3)).astype(np.float32)
        leaves = 0.7 + 0.6 * value_noise(rng, size, (24, 24))
        canvas[below] = leaves[below][:, None] * tint
    canvas = np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
    bar = tuple(float(c) for c in colour(rng, 0.95))
    thick = max(2, int(size[1] * rng.uniform(0.03, 0.07)))
    for row in np.linspace(0, size[0] - 1, int(rng.integers(2, 4))):
        cv2.line(canvas, (0, int(row)), (size[1], int(row)), bar, thick)
    for column in np.linspace(0, size[1] - 1, int(rng.integers(2, 5))):
        cv2.line(canvas, (int(column), 0), (int(column), size[0]), bar, thick)
    return canvas


def softened(picture: np.ndarray, contrast: float) -> np.ndarray:
    """The texture with its deviations from its mean colour scaled by `contrast`."""
    mean = picture.mean((0, 1), keepdims=True)
    return np.clip(mean + contrast * (picture - mean), 0, 255).astype(np.uint8)


def lighter(picture: np.ndarray, least_mean: float) -> np.ndarray:
    """Lifts a dark texture so that a room does not swallow its own light."""
    mean = float(picture.mean())
    if mean >= least_mean:
        return picture
    share = (least_mean - mean) / (255 - mean)
    return (picture + (255.0 - picture) * share).astype(np.uint8)

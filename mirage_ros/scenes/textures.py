"""Procedural textures: what walls, floors, furniture and pictures are covered with, and collages.

Every kind is a function (rng, (height, width)) -> (h, w, 3) float32 in [0, 255].
All but the pictures repeat without a seam, or nearly so.

Collages are of overlapping shapes whose sizes follow a power law ("dead leaves"). Their edges,
occlusions and spectrum are like those of photographs (Lee, Mumford and Huang 2001), so that a codec
that never saw a photograph is trained on the statistics of one (Baradad et al. 2021).
"""

from __future__ import annotations

import cv2
import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.scenes.pictures import (
    books,
    colour,
    door,
    fractal_noise,
    gradient,
    palette,
    poster,
    ramp,
    text_page,
    value_noise,
    window,
)


def _grain(rng, size, strength):
    return rng.standard_normal((*size, 1), dtype=np.float32) * np.float32(strength)


def _grid(size, rows, columns, shift=0.0):
    """Row and column number of each pixel in a brick bond, and its place inside (0..1)."""
    y = np.arange(size[0], dtype=np.float32)[:, None] / size[0] * rows
    x = np.arange(size[1], dtype=np.float32)[None] / size[1] * columns
    row = np.floor(y).astype(int)
    x = x + shift * row
    column = np.floor(x).astype(int)
    row = np.broadcast_to(row, column.shape)
    return row % rows, column % columns, np.broadcast_to(y % 1, x.shape), x % 1


def _cells(rng, size, rows, columns, joint, shift=0.0, colours=None, vary=0.12):
    """Bricks or tiles with bevelled joints; (h, w, 3)."""
    colours = palette(rng, rng.integers(2, 5)) if colours is None else colours
    row, column, y, x = _grid(size, rows, columns, shift)
    pick = rng.integers(len(colours), size=(rows, columns))
    shade = 1 + rng.normal(0, vary, (rows, columns)).astype(np.float32)
    picture = colours[pick][row, column] * shade[row, column][..., None]
    gap_y, gap_x = joint * rows / size[0], joint * columns / size[1]
    edge = np.minimum(np.minimum(y, 1 - y) / gap_y, np.minimum(x, 1 - x) / gap_x)
    light = (1 + 0.08 * ((y < 2 * gap_y) | (x < 2 * gap_x)).astype(np.float32))[..., None]
    body = np.clip(edge - 0.5, 0, 1)[..., None].astype(np.float32)
    return picture * light * body + (1 - body) * colour(rng, 0.9) * rng.uniform(0.4, 1.0)


def brick(rng, size):
    rows = int(rng.integers(4, 15))
    columns = max(2, round(rows / rng.uniform(1.8, 3.2)))
    base = colour(rng, rng.uniform(0, 0.7)) if rng.random() < 0.6 else np.array([170, 80, 60.0])
    colours = base * rng.uniform(0.75, 1.15, (4, 1)) + rng.normal(0, 8, (4, 3))
    rows += rows % 2
    joint = rng.uniform(1, 2.5) * size[0] / 256
    picture = _cells(rng, size, rows, columns, joint, 0.5, colours.astype(np.float32))
    mottle = fractal_noise(rng, size, (16, 16), 3)[..., None]
    return picture * (0.75 + 0.4 * mottle) + _grain(rng, size, 5)


def tiles(rng, size):
    count = int(rng.integers(2, 11))
    joint = rng.uniform(0.8, 3) * size[0] / 256
    picture = _cells(rng, size, count, count, joint, vary=rng.uniform(0, 0.12))
    if rng.random() < 0.6:
        picture = picture * (0.8 + 0.3 * fractal_noise(rng, size, (6, 6), 4)[..., None])
    return picture + _grain(rng, size, rng.uniform(0, 4))


def checker(rng, size):
    count = int(rng.choice([2, 4, 6, 8, 16]))
    row, column, _, _ = _grid(size, count, count)
    picture = palette(rng, 2)[(row + column) % 2]
    return picture * (0.85 + 0.2 * fractal_noise(rng, size, (5, 5), 4)[..., None])


def wood(rng, size):
    planks = int(rng.choice([1, 2, 4, 6, 8]))
    warp = value_noise(rng, size, (3, 2 * planks))
    fibre = fractal_noise(rng, size, (3, 24 * max(1, planks // 2)), 3)
    x = np.linspace(0, planks, size[1], endpoint=False, dtype=np.float32)[None]
    plank = np.broadcast_to(np.floor(x).astype(int), size)
    offset = rng.random(planks).astype(np.float32)[plank] * 7
    rings = 0.5 + 0.5 * np.sin((warp * rng.uniform(2, 7) + offset) * 2 * np.pi)
    hue = (
        colour(rng, 0.5) if rng.random() < 0.25 else np.array([165, 110, 65]) + rng.normal(0, 25, 3)
    )
    dark = np.clip(hue * rng.uniform(0.45, 0.75), 0, 255)
    mix = (0.45 * rings + 0.55 * fibre)[..., None]
    shade = (1 + rng.normal(0, 0.12, planks)).astype(np.float32)[plank][..., None]
    picture = (hue * mix + dark * (1 - mix)) * shade
    seam = np.minimum(x % 1, 1 - x % 1) * size[1] / planks < 0.8 * size[1] / 256
    if planks > 1:
        picture = np.where(seam[..., None], picture * 0.45, picture)
    picture = picture + _grain(rng, size, 4)
    return np.swapaxes(picture, 0, 1) if rng.random() < 0.5 and size[0] == size[1] else picture


def noise(rng, size):
    cells = 2.0 ** rng.uniform(1, 6)
    stretch = 2.0 ** rng.uniform(-1.5, 1.5)
    field = fractal_noise(
        rng,
        size,
        (cells * stretch, cells / stretch),
        int(rng.integers(1, 6)),
        rng.uniform(0.3, 0.8),
    )
    return ramp(field, palette(rng, int(rng.integers(2, 6))))


def marble(rng, size):
    field = fractal_noise(rng, size, (3, 3), 5)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    along = x / size[1] * rng.integers(1, 5) + y / size[0] * rng.integers(0, 4)
    veins = np.abs(np.sin(np.pi * (along + field * rng.uniform(1, 4)))) ** rng.uniform(0.2, 1.5)
    return ramp(veins, palette(rng, 3)) + _grain(rng, size, 2)


def stripes(rng, size):
    count = int(rng.integers(2, 24))
    colours = palette(rng, int(rng.integers(2, 5)))
    edges = np.sort(rng.random(count))
    place = np.linspace(0, 1, size[1], endpoint=False)
    bands = colours[np.searchsorted(edges, place) % len(colours)]
    picture = np.broadcast_to(bands[None], (*size, 3)).astype(np.float32)
    if rng.random() < 0.3:  # plaid
        rows = colours[np.searchsorted(edges, np.linspace(0, 1, size[0])) % len(colours)]
        picture = 0.5 * picture + 0.5 * rows[:, None]
    elif rng.random() < 0.4 and size[0] == size[1]:
        picture = np.swapaxes(picture, 0, 1)
    return picture * (0.9 + 0.15 * fractal_noise(rng, size, (8, 8), 3)[..., None])


def plaster(rng, size):
    base = colour(rng, rng.uniform(0.3, 1)) * 0.6 + 0.4 * 235
    coarse = fractal_noise(rng, size, (3, 3), 4)[..., None]
    relief = fractal_noise(rng, size, (24, 24), 3)
    slope = np.roll(relief, 1, 1) - np.roll(relief, -1, 1) + np.roll(relief, 1, 0) - relief
    return base * (0.8 + 0.25 * coarse) + rng.uniform(20, 110) * slope[..., None]


def carpet(rng, size):
    colours = palette(rng, 3)
    field = fractal_noise(rng, size, (6, 6), 2)
    picture = ramp(np.round(field * 4) / 4, colours) if rng.random() < 0.5 else ramp(field, colours)
    tuft = value_noise(rng, size, (size[0] // 2, size[1] // 2))[..., None]
    return picture * (0.6 + 0.6 * tuft) + _grain(rng, size, rng.uniform(3, 14))


def concrete(rng, size):
    base = (rng.uniform(90, 200) + rng.normal(0, 8, 3)).astype(np.float32)
    field = fractal_noise(rng, size, (2, 2), 6, 0.65)[..., None]
    picture = base * (0.65 + 0.55 * field) + _grain(rng, size, rng.uniform(2, 9))
    pits = value_noise(rng, size, (48, 48)) > 0.93
    picture[pits] *= 0.7
    return picture


def panels(rng, size):
    rows, columns = (int(rng.integers(1, 5)) for _ in range(2))
    picture = _cells(rng, size, rows, columns, rng.uniform(2, 5) * size[0] / 256, vary=0.06)
    row, column, y, x = _grid(size, rows, columns)
    rivet = ((np.abs(y - 0.5) - 0.4) * size[0] / rows) ** 2
    rivet = rivet + ((np.abs(x - 0.5) - 0.4) * size[1] / columns) ** 2
    picture[rivet < (size[0] / 90) ** 2] *= 0.55
    if rng.random() < 0.4:
        vent = (row + column) % 3 == 0
        slots = (y * rng.integers(5, 12)) % 1 < 0.35
        picture[vent & slots & (np.abs(x - 0.5) < 0.3)] *= 0.4
    return picture * (0.9 + 0.15 * fractal_noise(rng, size, (2, 16), 3)[..., None])


def gravel(rng, size):
    """Pebbles: cells of the nearest of jittered points, shaded round."""
    count = int(rng.integers(8, 28))
    step_y, step_x = size[0] / count, size[1] / count
    seeds = np.full((3 * size[0], 3 * size[1]), 255, np.uint8)
    grid = np.stack(np.mgrid[:count, :count], -1).reshape(-1, 2) + rng.random((count**2, 2)) * 0.8
    points = (grid * (step_y, step_x)).astype(int) % size
    for row in range(3):
        for column in range(3):
            seeds[points[:, 0] + row * size[0], points[:, 1] + column * size[1]] = 0
    around = tuple(slice(s // 2, s // 2 + 2 * s) for s in size)
    distance, labels = cv2.distanceTransformWithLabels(
        seeds[around], cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    crop = (
        slice(size[0] // 2, size[0] // 2 + size[0]),
        slice(size[1] // 2, size[1] // 2 + size[1]),
    )
    colours = palette(rng, 4)
    tint = colours[rng.integers(4, size=labels.max() + 1)]
    tint = (tint * rng.uniform(0.7, 1.15, (len(tint), 1))).astype(np.float32)
    round_ = np.clip(1.15 - distance[crop] / (0.8 * step_y), 0.2, 1.1)[..., None]
    return tint[labels[crop]] * round_ + _grain(rng, size, 4)


def grass(rng, size):
    base = rng.uniform((60, 110, 35), (130, 165, 75)).astype(np.float32)
    blades = fractal_noise(rng, size, (size[0] // 6, size[1] // 3), 2)[..., None]
    patches = fractal_noise(rng, size, (3, 3), 4)[..., None]
    return base * (0.45 + 0.75 * blades) * (0.75 + 0.45 * patches) + _grain(rng, size, 6)


def fabric(rng, size):
    colours = palette(rng, 3)
    threads = int(rng.integers(12, 64))
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    u, v = np.sin(2 * np.pi * x * threads / size[1]), np.sin(2 * np.pi * y * threads / size[0])
    weave = np.where(u * v > 0, np.abs(u), np.abs(v))[..., None]
    pattern = ramp(fractal_noise(rng, size, (4, 4), 2) > rng.uniform(0.35, 0.65), colours[:2])
    return pattern * (0.65 + 0.4 * weave)


def rings(rng, size):
    """Repeating dots or rings, as on wallpaper."""
    count = int(rng.integers(2, 9))
    row, column, y, x = _grid(size, count, count, 0.5 if count % 2 == 0 else 0.0)
    radius = np.hypot(x - 0.5, y - 0.5) * rng.uniform(1.2, 4)
    colours = palette(rng, int(rng.integers(2, 5)))
    index = np.minimum(radius.astype(int), len(colours) - 1)
    picture = colours[index]
    return picture * (0.88 + 0.2 * fractal_noise(rng, size, (8, 8), 3)[..., None])


SURFACES = {
    "wood": wood,
    "brick": brick,
    "tiles": tiles,
    "noise": noise,
    "panels": panels,
    "stripes": stripes,
    "plaster": plaster,
    "carpet": carpet,
    "concrete": concrete,
    "checker": checker,
    "marble": marble,
    "gravel": gravel,
    "grass": grass,
    "fabric": fabric,
    "rings": rings,
}
PICTURES = {
    "poster": poster,
    "gradient": gradient,
    "text": text_page,
    "books": books,
    "door": door,
    "window": window,
}
KINDS = (*SURFACES, *PICTURES)


def make_texture(
    rng: np.random.Generator, kind: str | None = None, size: tuple[int, int] = (256, 256)
) -> np.ndarray:
    """One random texture, (height, width, 3) uint8 RGB.

    Args:
        kind: one of `KINDS`; None draws one, posters more often than the rest.
        size: (height, width) in pixels.
    Raises:
        MirageError: an unknown kind.
    """
    if kind is None:
        kind = "poster" if rng.random() < 0.2 else KINDS[rng.integers(len(KINDS))]
    painter = SURFACES.get(kind) or PICTURES.get(kind)
    if painter is None:
        raise MirageError(f"There is no texture kind {kind!r}; choose one of {', '.join(KINDS)}.")
    picture = painter(rng, (int(size[0]), int(size[1])))
    return np.clip(picture, 0, 255).astype(np.uint8)


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

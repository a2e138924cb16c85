"""The contact sheet: a whole rollout on one page.

Turns the streams of a frame into pictures a person can read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mirage_ros.files import atomic_file

BACKGROUND = (17, 19, 24)
INK = (232, 234, 240)
FAINT_INK = (150, 156, 170)
MEMORY_TINT = (64, 196, 180)
IMAGINED_TINT = (255, 159, 67)
CAPTION_PX = 26
GAP_PX = 6


@lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """The face that Pillow brings along."""
    return ImageFont.load_default(size_px)


def enlarge(picture: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "H W 3"]:
    """Enlarged smoothly by a factor."""
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)


def depth_range_m(depths_m: Sequence[np.ndarray]) -> tuple[float, float]:
    """Near and far ends, in metres, that suit all given depth pictures."""
    finite = np.concatenate([depth[np.isfinite(depth)][::7] for depth in depths_m] or [[]])
    if finite.size == 0:
        return 0.5, 5.0
    near, far = np.percentile(finite, (1, 99))
    return float(max(near, 0.05)), float(max(far, near + 0.1))


def colour_depth(
    depth_m: Float[np.ndarray, "h w"], range_m: tuple[float, float]
) -> UInt8[np.ndarray, "h w 3"]:
    """Near warm, far cool, by the logarithm of depth; invalid black, beyond range dark blue."""
    near, far = range_m
    with np.errstate(divide="ignore", invalid="ignore"):
        nearness = np.log(far / depth_m) / np.log(far / near)
    level = np.nan_to_num(np.clip(nearness, 0, 1) * 235 + 20, nan=0).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[np.isnan(depth_m)] = 0
    colours[np.isinf(depth_m)] = (24, 26, 48)
    return colours


def colour_observed(
    rgb: UInt8[np.ndarray, "h w 3"], observed: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in grey, teal where it came from memory and amber where it was imagined."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] / 255
    tint = np.where(observed[..., None], MEMORY_TINT, IMAGINED_TINT).astype(np.float32)
    return np.clip((0.25 + 0.9 * grey) * tint, 0, 255).astype(np.uint8)


def compose_row(
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]], captions: Sequence[str], factor: float = 1.0
) -> UInt8[np.ndarray, "H W 3"]:
    """Equal-sized pictures side by side, each enlarged and with its caption above."""
    tiles = [enlarge(picture, factor) for picture in pictures]
    height, width = tiles[0].shape[:2]
    canvas = Image.new(
        "RGB", (GAP_PX + len(tiles) * (width + GAP_PX), CAPTION_PX + height + GAP_PX), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    for column, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left = GAP_PX + column * (width + GAP_PX)
        canvas.paste(Image.fromarray(tile), (left, CAPTION_PX))
        draw.text((left + 2, 5), caption, fill=INK, font=font(15))
    return np.asarray(canvas)


def compose_frame(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth_m: Float[np.ndarray, "h w"],
    observed: Bool[np.ndarray, "h w"],
    range_m: tuple[float, float],
    time_s: float,
    factor: float = 2.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """One video picture: RGB, depth and what memory knew, side by side."""
    share = 100 * float(observed.mean())
    return compose_row(
        [rgb, colour_depth(depth_m, range_m), colour_observed(rgb, observed)],
        [
            f"RGB   {time_s:5.2f} s",
            f"depth   {range_m[0]:.1f} to {range_m[1]:.1f} m",
            f"from memory {share:.0f} % (teal), imagined (amber)",
        ],
        factor,
    )


MARGIN_PX = 28
TITLE_PX = 84
LABEL_PX = 26
GRID = (3, 4)
TILE_WIDTH_PX = 256


@dataclass(frozen=True)
class Picture:
    """A picture with the line of text that stands above it."""

    rgb: UInt8[np.ndarray, "h w 3"]
    caption: str


def pick_moments(count: int, wanted: int = GRID[0] * GRID[1]) -> list[int]:
    """Indices spread evenly over a rollout, first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()))


def cloud_size(aspect: float) -> tuple[int, int]:
    """(height, width) that the picture of the cloud fills, given frames' height over width."""
    rows = GRID[0] * (round(TILE_WIDTH_PX * aspect) + LABEL_PX) + (GRID[0] - 1) * GAP_PX
    return rows - LABEL_PX, rows - LABEL_PX


def compose_sheet(
    title: str,
    subtitle: str,
    moments: Sequence[Picture],
    cloud: Picture,
    comparison: Sequence[Picture],
) -> UInt8[np.ndarray, "H W 3"]:
    """Frames in a grid, the cloud beside them, the comparison in a row below.

    Args:
        moments: up to 12 equal-sized frames in time order.
        cloud: of `cloud_size`.
        comparison: pictures to look at beside each other, such as first and returned view.
    """
    aspect = moments[0].rgb.shape[0] / moments[0].rgb.shape[1]
    tile = (round(TILE_WIDTH_PX * aspect), TILE_WIDTH_PX)
    grid_width = GRID[1] * (tile[1] + GAP_PX)
    grid_height = GRID[0] * (tile[0] + LABEL_PX + GAP_PX)
    width = grid_width + cloud.rgb.shape[1]
    below = (width - (len(comparison) - 1) * GAP_PX) // max(len(comparison), 1)
    below_size = (round(below * aspect), below)
    height = TITLE_PX + grid_height + LABEL_PX + below_size[0] + 8
    sheet = Image.new("RGB", (width + 2 * MARGIN_PX, height + 2 * MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX - 6), title, fill=INK, font=font(34))
    draw.text((MARGIN_PX, MARGIN_PX + 38), subtitle, fill=FAINT_INK, font=font(18))
    top = MARGIN_PX + TITLE_PX
    for index, picture in enumerate(moments[: GRID[0] * GRID[1]]):
        row, column = divmod(index, GRID[1])
        corner = (
            MARGIN_PX + column * (tile[1] + GAP_PX),
            top + row * (tile[0] + LABEL_PX + GAP_PX),
        )
        _place(sheet, picture, corner, tile)
    _place(sheet, cloud, (MARGIN_PX + grid_width, top), cloud.rgb.shape[:2])
    for index, picture in enumerate(comparison):
        corner = (MARGIN_PX + index * (below + GAP_PX), top + grid_height + 8)
        _place(sheet, picture, corner, below_size)
    return np.asarray(sheet)


def save_picture(path, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG atomically."""
    with atomic_file(path) as file:
        Image.fromarray(rgb).save(file, format="PNG", optimize=True)


def _place(sheet: Image.Image, picture: Picture, corner, size: tuple[int, int]) -> None:
    """Caption, then the picture fitted into `size` below it."""
    draw = ImageDraw.Draw(sheet)
    draw.text((corner[0] + 1, corner[1] + 3), picture.caption, fill=FAINT_INK, font=font(16))
    fitted = ImageOps.fit(
        Image.fromarray(picture.rgb), (size[1], size[0]), Image.Resampling.BICUBIC
    )
    sheet.paste(fitted, (corner[0], corner[1] + LABEL_PX))

"""The contact sheet: a whole rollout on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageOps

from mirage_ros.recording.panels import BACKGROUND, FAINT_INK, GAP_PX, INK, font

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
    """Write a PNG under a temporary name and rename it."""
    partial = path.with_name(path.name + ".tmp")
    Image.fromarray(rgb).save(partial, format="PNG", optimize=True)
    partial.replace(path)


def _place(sheet: Image.Image, picture: Picture, corner, size: tuple[int, int]) -> None:
    """Caption, then the picture fitted into `size` below it."""
    draw = ImageDraw.Draw(sheet)
    draw.text((corner[0] + 1, corner[1] + 3), picture.caption, fill=FAINT_INK, font=font(16))
    fitted = ImageOps.fit(
        Image.fromarray(picture.rgb), (size[1], size[0]), Image.Resampling.BICUBIC
    )
    sheet.paste(fitted, (corner[0], corner[1] + LABEL_PX))

"""What people look at: sheets of pictures, the memory's cloud drawn from above, and the cloud as a PLY file.

MeshLab, Blender, CloudCompare and Open3D open the PLY.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mirage_ros.files import atomic_file, write_file
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.protocol import Points

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


VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    + [("confidence", "<f4")]
)
"""One point: metres in the world, colour, confidence in 0..1."""

_NAMES = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: str | os.PathLike, points: Points) -> None:
    """Writes binary little-endian PLY, all or nothing; raises MirageError where that fails."""
    vertices = np.empty(len(points.xyz), VERTEX)
    for i, axis in enumerate("xyz"):
        vertices[axis] = points.xyz[:, i]
    for i, colour in enumerate(("red", "green", "blue")):
        vertices[colour] = points.rgb[:, i]
    vertices["confidence"] = points.confidence
    lines = ["ply", "format binary_little_endian 1.0", "comment metres, z up",
             f"element vertex {len(vertices)}"]  # fmt: skip
    lines += [f"property {_NAMES[VERTEX[name].str]} {name}" for name in VERTEX.names]
    head = "\n".join([*lines, "end_header", ""]).encode()
    write_file(path, head, vertices.view(np.uint8).data)


SUPERSAMPLING = 2
TRIM_PERCENT = 1.0
MARGIN = 0.06
VEIL = 70
FAULT_TINT = (255, 70, 70)


@dataclass(frozen=True)
class _Floor:
    """Maps world positions to pixels of the drawing: two horizontal axes and a scale."""

    right: np.ndarray
    forward: np.ndarray
    centre: np.ndarray
    pixels_per_m: float
    size: tuple[int, int]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        plane = np.stack([points @ self.right, -(points @ self.forward)], -1) - self.centre
        return plane * self.pixels_per_m + np.array(self.size[::-1]) / 2


def draw_cloud_from_above(
    xyz: Float[np.ndarray, "n 3"],
    rgb: UInt8[np.ndarray, "n 3"],
    cameras: Camera,
    size: tuple[int, int],
    cells_across: int = 24,
    headroom_m: float = 0.35,
    beside: Camera | None = None,
    body_m: float = 0.0,
    touching: Bool[np.ndarray, "m"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The cloud from above, forward of the first camera up, with the path drawn on it.

    Points higher than the cameras by `headroom_m` (a ceiling) are left out, higher points
    cover lower ones.

    Args:
        xyz, rgb: world positions in metres and colours.
        cameras: the path, a batch of poses.
        size: (height, width) of the drawing.
        cells_across: latent cells in a picture's width; a point paints a square as large as a
            cell seen from the path.
        beside: another path to draw, thinner and in the colour of memory.
        body_m: width of what drove along the path; 0 draws the line alone.
        touching: marks, for each camera, whether the body was in something there.
    """
    paths = [camera.position_world for camera in (cameras, beside) if camera is not None]
    picture, floor = _draw_points(xyz, rgb, cameras, paths, size, cells_across, headroom_m)
    if body_m:
        _draw_swept(picture, floor, cameras, body_m)
    if beside is not None:
        _draw_line(picture, floor, beside, MEMORY_TINT, 3)
    _draw_path(picture, floor, cameras)
    if touching is not None and touching.any():
        _draw_contacts(picture, floor, cameras.position_world[touching], body_m)
    picture = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    _draw_scale_bar(picture, floor.pixels_per_m / SUPERSAMPLING)
    return np.asarray(picture)


def _draw_points(
    xyz, rgb, cameras: Camera, paths, size: tuple[int, int], cells_across: int, headroom_m: float
) -> tuple[Image.Image, _Floor]:
    """The cloud alone, SUPERSAMPLING times as large, with room for the positions in `paths`; and its scale."""
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    up, forward, right = floor_axes(cameras[0].world_from_camera)
    keep = np.isfinite(xyz).all(-1)
    keep &= xyz @ up < (cameras.position_world @ up).max() + headroom_m
    xyz, rgb = xyz[keep].astype(np.float64), rgb[keep]
    floor = _fit_floor(xyz, np.concatenate(paths), right, forward, large)
    canvas = np.full((*large, 3), BACKGROUND, np.uint8)
    order = np.argsort(xyz @ up, kind="stable")
    edge_px = _footprints_m(xyz[order], cameras, cells_across) * floor.pixels_per_m
    _splat(canvas, floor.pixels(xyz[order]), rgb[order], edge_px)
    return Image.fromarray(canvas), floor


def _fit_floor(points, positions, right: np.ndarray, forward: np.ndarray, size) -> _Floor:
    """A drawing that holds the whole path and the cloud without its few strays."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for part, trim in ((points, TRIM_PERCENT), (positions, 0)):
        if len(part):
            plane = np.stack([part @ right, -(part @ forward)], -1)
            low = np.minimum(low, np.percentile(plane, trim, axis=0))
            high = np.maximum(high, np.percentile(plane, 100 - trim, axis=0))
    span = np.maximum(high - low, 0.5) * (1 + 2 * MARGIN)
    scale = float(min(size[1] / span[0], size[0] / span[1]))
    return _Floor(right, forward, (low + high) / 2, scale, size)


def _footprints_m(points: np.ndarray, cameras: Camera, cells_across: int) -> np.ndarray:
    """Width of a latent cell at each point, seen from the nearest place of the path."""
    distance = np.full(len(points), np.inf)
    for index in np.linspace(0, len(cameras) - 1, min(len(cameras), 16)).astype(int):
        position = cameras.position_world[index]
        distance = np.minimum(distance, np.linalg.norm(points - position, axis=-1))
    half = np.tan(np.radians(float(cameras[0].hfov_deg)) / 2)
    return distance * 2 * half / cells_across


def _splat(canvas: np.ndarray, pixels: np.ndarray, rgb: np.ndarray, edge_px: np.ndarray) -> None:
    """Paint points back to front as squares; later ones cover earlier ones."""
    reaches = np.clip(np.round(edge_px / 2), 2, 40).astype(int)
    for (u, v), colour, reach in zip(np.round(pixels).astype(int), rgb, reaches, strict=True):
        if u + reach >= 0 and v + reach >= 0:
            canvas[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1] = colour


def _draw_path(picture: Image.Image, floor: _Floor, cameras: Camera) -> None:
    draw = ImageDraw.Draw(picture, "RGBA")
    track = floor.pixels(cameras.position_world)
    count = len(cameras)
    for index in np.linspace(0, count - 1, min(count, 13)).astype(int):
        _draw_view(draw, floor, cameras[int(index)], (*INK, 150))
    _draw_line(picture, floor, cameras, IMAGINED_TINT, 5)
    u, v = track[0]
    draw.ellipse((u - 9, v - 9, u + 9, v + 9), fill=INK, outline=(0, 0, 0), width=2)


def _draw_swept(picture: Image.Image, floor: _Floor, cameras: Camera, body_m: float) -> None:
    """The ground that the body covered, as one even veil."""
    mask, radius = Image.new("L", picture.size), body_m / 2 * floor.pixels_per_m
    draw = ImageDraw.Draw(mask)
    points = [tuple(point) for point in floor.pixels(cameras.position_world)]
    draw.line(points, fill=VEIL, width=round(2 * radius))
    for u, v in points:
        draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=VEIL)
    picture.paste(Image.new("RGB", picture.size, IMAGINED_TINT), mask=mask)


def _draw_contacts(
    picture: Image.Image, floor: _Floor, places: np.ndarray, body_m: float
) -> None:
    """The body's outline wherever it was in something."""
    draw, radius = ImageDraw.Draw(picture), max(body_m / 2 * floor.pixels_per_m, 9)
    for u, v in floor.pixels(places):
        draw.ellipse((u - radius, v - radius, u + radius, v + radius), outline=FAULT_TINT, width=5)


def _draw_line(picture: Image.Image, floor: _Floor, cameras: Camera, colour, width: int) -> None:
    """A path with a dark rim."""
    draw = ImageDraw.Draw(picture, "RGBA")
    points = [tuple(point) for point in floor.pixels(cameras.position_world)]
    draw.line(points, fill=(0, 0, 0, 180), width=width + 4, joint="curve")
    draw.line(points, fill=(*colour, 255), width=width, joint="curve")


def _draw_view(draw: ImageDraw.ImageDraw, floor: _Floor, camera: Camera, colour) -> None:
    """A small wedge as wide as the field of view."""
    tip = floor.pixels(camera.position_world[None])[0]
    half = np.tan(np.radians(float(camera.hfov_deg)) / 2)
    rays = np.array([[-half, 0, 1.0], [half, 0, 1.0]]) @ camera.world_from_camera[:3, :3].T
    ends = floor.pixels(camera.position_world + rays) - tip
    ends *= 34 / max(np.linalg.norm(ends.mean(0)), 1e-6)
    wedge = [tuple(tip), tuple(tip + ends[0]), tuple(tip + ends[1])]
    draw.polygon(wedge, fill=(255, 255, 255, 28), outline=colour)


def _draw_scale_bar(picture: Image.Image, pixels_per_m: float) -> None:
    draw = ImageDraw.Draw(picture)
    length = pixels_per_m
    left, bottom = 14, picture.height - 16
    draw.line((left, bottom, left + length, bottom), fill=INK, width=3)
    draw.text((left, bottom - 22), "1 m", fill=FAINT_INK, font=font(14))

"""Walls with openings, whole rooms, panels on walls, lamps, suns and skies.

Lights are keyword arguments of MjSpec's add_light, skies textures for MuJoCo's skybox.
"""

from __future__ import annotations

import cv2
import numpy as np

from mirage_ros.scenes.builder import Builder, MaterialSet
from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.pictures import colour, fractal_noise, hsv
from mirage_ros.scenes.placing import SIDES

# For each face of the box: the world direction of its centre, of its right and of its down edge.
_FACES = np.array(
    [
        [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
        [[0, 0, -1], [1, 0, 0], [0, 1, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
        [[0, -1, 0], [-1, 0, 0], [0, 0, -1]],
    ],
    float,
)


def spot(rng, place, aim, strength, *, shadow, cutoff=80.0) -> dict:
    """A lamp at `place` shining towards `aim`."""
    tint = 1 + 0.12 * (colour(rng, 0.3) / 255 - 0.5)
    aim = np.asarray(aim, float) - place
    return dict(
        pos=np.asarray(place, float),
        dir=aim / np.linalg.norm(aim),
        type=mujoco.mjtLightType.mjLIGHT_SPOT,
        diffuse=strength * tint,
        ambient=(0, 0, 0),
        specular=np.full(3, 0.2),
        cutoff=cutoff,
        exponent=1.0,
        attenuation=(1, 0, 0.012),
        castshadow=shadow,
    )


def sun(rng, direction, strength, *, shadow=False, centre=(0, 0, 0)) -> dict:
    """Parallel light along `direction`; shadows fall within the map around `centre`."""
    direction = np.asarray(direction, float) / np.linalg.norm(direction)
    return dict(
        pos=np.asarray(centre, float) - 12 * direction,
        dir=direction,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        diffuse=strength * np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.82, 1.0)]),
        ambient=(0, 0, 0),
        specular=np.full(3, 0.1),
        castshadow=shadow,
    )


def indoor_lights(rng, rooms) -> tuple[np.ndarray, list[dict]]:
    """Ambient light, and a ceiling lamp in each of `rooms` (x, y, wide, deep, high) with fills.

    The first lamp throws shadows, the others seldom: each costs two more draws of the scene.
    """
    ambient = rng.uniform(0.36, 0.5) * (1 + 0.12 * (colour(rng, 0.5) / 255 - 0.5))
    lights = []
    for index, (x, y, wide, deep, high) in enumerate(rooms):
        place = np.array([x, y, high - 0.12])
        place[:2] += rng.uniform(-0.25, 0.25, 2) * (wide, deep)
        shadow = index == 0 or rng.random() < 0.15
        lights.append(spot(rng, place, (x, y, 0), rng.uniform(0.5, 0.8), shadow=shadow))
    # Fills without shadows give every wall its own shade; one comes from below, for ceilings.
    for vertical in (-0.5, 0.8):
        turn = rng.uniform(0, 2 * np.pi)
        direction = (np.cos(turn), np.sin(turn), vertical)
        lights.append(sun(rng, direction, rng.uniform(0.18, 0.35)))
    return ambient, lights


def sky_faces(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """(6 * side, side, 3) uint8: right, left, up, down, front, back."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    down, right = np.meshgrid(place, place, indexing="ij")
    rays = _FACES[:, None, None, 0] + right[..., None] * _FACES[:, None, None, 1]
    rays = rays + down[..., None] * _FACES[:, None, None, 2]
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    up = rays[..., 2]
    low = 0.35 * colour(rng, 0.7) + 0.65 * np.array([215, 225, 235.0])
    top = hsv(rng.uniform(0.55, 0.64), rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.95))
    if rng.random() < 0.2:
        low, top = np.array([245, 190, 140.0]) + rng.normal(0, 15, 3), top * 0.8
    mix = np.clip(up, 0, 1)[..., None] ** 0.6
    picture = low * (1 - mix) + top * mix
    # Clouds lie on a plane overhead, so they shrink towards the horizon.
    field = fractal_noise(rng, (512, 512), (5, 5), 5)
    plane = rays[..., :2] / np.maximum(up, 0.06)[..., None] * 40
    flat = (plane % 512).astype(np.float32).reshape(6 * side, side, 2)
    cloud = cv2.remap(
        field, flat[..., 0], flat[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    cloud = cloud.reshape(6, side, side)
    cover = rng.uniform(0.35, 0.7)
    share = np.clip((cloud - cover) * 4, 0, 0.95) * np.clip(up * 5, 0, 1)
    share = share[..., None]
    picture = picture * (1 - share) + share * np.full(3, rng.uniform(215, 252))
    return np.clip(picture, 0, 255).astype(np.uint8).reshape(6 * side, side, 3)


WALL_M = 0.16


def wall(b: Builder, paint, start, end, high, openings=(), low_paint=None, thick=WALL_M):
    """A wall from start to end (2D) of height `high`; openings are (from, to, bottom, top)."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(end - start))
    turn = np.arctan2(*(end - start)[::-1])
    with b.at(*start, turn):
        x = 0.0
        for left, right, bottom, top in (*sorted(openings), (length, length, 0, high)):
            if left - x > 1e-3:
                b.box(paint, ((x + left) / 2, 0, high / 2), (left - x, thick, high))
            if right > left:
                middle, wide = (left + right) / 2, right - left
                if high - top > 1e-3:
                    b.box(paint, (middle, 0, (top + high) / 2), (wide, thick, high - top))
                if bottom > 1e-3:
                    b.box(paint, (middle, 0, bottom / 2), (wide, thick, bottom))
            x = right


def shell(b: Builder, w: MaterialSet, x, y, wide, deep, high, paints=None, gaps=None):
    """Floor, ceiling and four walls around the middle (x, y); gaps: side -> openings."""
    paints = paints or [w.wall() for _ in range(2)]
    gaps = gaps or {}
    t = WALL_M / 2
    b.box(w.floor(), (x, y, -0.1), (wide + 2 * t, deep + 2 * t, 0.2), skip="b")
    b.box(w.ceiling(), (x, y, high + 0.1), (wide + 2 * t, deep + 2 * t, 0.2), skip="t")
    x0, x1, y0, y1 = x - wide / 2 - t, x + wide / 2 + t, y - deep / 2 - t, y + deep / 2 + t
    corners = {
        "south": ((x0, y0), (x1, y0)),
        "north": ((x0, y1), (x1, y1)),
        "west": ((x0, y0), (x0, y1)),
        "east": ((x1, y0), (x1, y1)),
    }
    for index, (side, (start, end)) in enumerate(corners.items()):
        if gaps.get(side) != "none":
            wall(b, paints[index % len(paints)], start, end, high, gaps.get(side, ()))
    if w.rng.random() < 0.6:
        _skirting(b, w, x, y, wide, deep, gaps)


def _skirting(b, w, x, y, wide, deep, gaps):
    """A low board along the walls without openings."""
    paint = w.furniture()
    for side, place, size in (
        ("south", (x, y - deep / 2 + 0.01, 0.05), (wide, 0.02, 0.1)),
        ("north", (x, y + deep / 2 - 0.01, 0.05), (wide, 0.02, 0.1)),
        ("west", (x - wide / 2 + 0.01, y, 0.05), (0.02, deep, 0.1)),
        ("east", (x + wide / 2 - 0.01, y, 0.05), (0.02, deep, 0.1)),
    ):
        if side not in gaps:
            b.box(paint, place, size, solid=False, skip="b")


def ceiling_lamps(b, w, rng, rect, every=3.0):
    x, y, wide, deep, high = rect
    for px in np.arange(-wide / 2 + every / 2, wide / 2, every):
        for py in np.arange(-deep / 2 + every / 2, deep / 2, every):
            place = (x + px, y + py, high - 0.03)
            b.box(w.glow(), place, (0.9, 0.3, 0.06), solid=False, skip="t")


INNER_M, OUTER_M = WALL_M / 2, 0.22


def home_room(b, paints, rect, openings, outer, floor, ceiling, board):
    """A room whose walls stand around `rect` (x, y, wide, deep, high), half as thick towards other rooms.

    Args:
        paints: of south, north, west, east.
        openings: side -> (from, to, bottom, top), along the side from the wall's middle.
        outer: sides that face the open.
        board: material of the skirting, or None.
    """
    x, y, wide, deep, high = rect
    thick = {side: OUTER_M if side in outer else INNER_M for side in SIDES}
    spread = (wide + thick["west"] + thick["east"], deep + thick["south"] + thick["north"])
    middle = (x + (thick["east"] - thick["west"]) / 2, y + (thick["north"] - thick["south"]) / 2)
    b.box(floor, (*middle, -0.1), (*spread, 0.2))
    b.box(ceiling, (*middle, high + 0.1), (*spread, 0.2))
    for paint, (side, (outward, yaw)) in zip(paints, SIDES.items(), strict=True):
        along = np.array([np.cos(yaw), np.sin(yaw)])
        flat = side in ("south", "north")
        length, reach = (wide, deep / 2) if flat else (deep, wide / 2)
        # The walls of the south and the north take the corners.
        ends = (thick["west"], thick["east"]) if flat else (0.0, 0.0)
        ends = ends if side != "north" else ends[::-1]
        line = np.array([x, y]) + outward * (reach + thick[side] / 2)
        holes = [(f + length / 2 + ends[0], t + length / 2 + ends[0], *z) for f, t, *z in openings.get(side, ())]
        wall(b, paint, line - along * (length / 2 + ends[0]), line + along * (length / 2 + ends[1]), high,
             holes, thick=thick[side])  # fmt: skip
        if board is not None:
            _boards(b, board, (x, y) + outward * reach, yaw, length, openings.get(side, ()))


def _boards(b, paint, middle, yaw, length, openings):
    """Skirting along a wall, but for its doors."""
    start = -length / 2
    with b.at(*middle, yaw):
        for left, right, bottom, _ in (*sorted(openings), (length / 2, length / 2, 0.0, 0.0)):
            if bottom < 0.1:
                if left - start > 0.05:
                    b.box(paint, ((start + left) / 2, 0.008, 0.045), (left - start, 0.016, 0.09), solid=False, skip="b")
                start = right


def window_frame(b, paint, wide, bottom, top, columns, thick=OUTER_M):
    """Bars and a sill in an opening of a wall whose inner face is at the local y = 0, facing +y."""
    high, level, bar = top - bottom, -0.6 * thick, 0.055
    for x in np.linspace(-wide / 2 + bar / 2, wide / 2 - bar / 2, columns + 1):
        b.box(paint, (x, level, bottom + high / 2), (bar, 0.06, high), solid=False)
    for z in (bottom + bar / 2, top - bar / 2):
        b.box(paint, (0, level, z), (wide, 0.06, bar), solid=False)
    if bottom > 0.3:
        b.box(paint, (0, 0.02, bottom - 0.015), (wide + 0.1, 0.16, 0.03), solid=False)
    b.solid((0, -thick / 2, bottom + high / 2), (wide, thick, high))


def door_frame(b, paint, wide, high, thick=WALL_M):
    """A casing around an opening through the wall around the local y = 0."""
    for x in (-1, 1):
        b.box(paint, (x * (wide / 2 - 0.02), 0, high / 2), (0.04, thick + 0.006, high), skip="b")
        for y in (-1, 1):
            b.box(paint, (x * (wide / 2 + 0.03), y * (thick / 2 + 0.008), high / 2), (0.06, 0.016, high), solid=False)
    b.box(paint, (0, 0, high - 0.02), (wide, thick + 0.006, 0.04))
    for y in (-1, 1):
        b.box(paint, (0, y * (thick / 2 + 0.008), high + 0.03), (wide + 0.12, 0.016, 0.06), solid=False)


def door_leaf(b, picture, paint, wide, high):
    """A leaf hinged at the local origin, along +x, painted on both sides."""
    b.box(paint, (wide / 2, 0, high / 2 + 0.005), (wide, 0.04, high))
    for side in (1, -1):
        corner = (wide / 2 * (1 + side), side * 0.0215, high)
        b.quad(picture, corner, (-side * wide, 0, 0), (0, 0, -(high - 0.005)))

"""Walls with openings, whole rooms, panels on walls, ceiling lamps."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.builder import Builder
from mirage_ros.scenes.wardrobe import Wardrobe

WALL_M = 0.16
# For each side of a rectangle: outward direction and the yaw that turns a thing's back to it.
SIDES = {
    "south": (np.array([0, -1.0]), 0.0),
    "north": (np.array([0, 1.0]), np.pi),
    "west": (np.array([-1.0, 0]), -np.pi / 2),
    "east": (np.array([1.0, 0]), np.pi / 2),
}


def wall(b: Builder, paint, start, end, high, openings=(), low_paint=None):
    """A wall from start to end (2D) of height `high`; openings are (from, to, bottom, top)."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(end - start))
    turn = np.arctan2(*(end - start)[::-1])
    with b.at(*start, turn):
        x = 0.0
        for left, right, bottom, top in (*sorted(openings), (length, length, 0, high)):
            if left - x > 1e-3:
                b.box(paint, ((x + left) / 2, 0, high / 2), (left - x, WALL_M, high))
            if right > left:
                middle, wide = (left + right) / 2, right - left
                if high - top > 1e-3:
                    b.box(paint, (middle, 0, (top + high) / 2), (wide, WALL_M, high - top))
                if bottom > 1e-3:
                    b.box(paint, (middle, 0, bottom / 2), (wide, WALL_M, bottom))
            x = right


def shell(b: Builder, w: Wardrobe, x, y, wide, deep, high, paints=None, gaps=None):
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


def panel(b, picture, frame, broad, tall, level, thick=0.03):
    """A framed picture standing out of the wall at the local y = 0, facing +y."""
    b.box(frame, (0, thick / 2, level + tall / 2), (broad, thick, tall), solid=False)
    edge = 0.04
    corner = (broad / 2 - edge, thick + 0.004, level + tall - edge)
    b.quad(picture, corner, (-(broad - 2 * edge), 0, 0), (0, 0, -(tall - 2 * edge)))


def ceiling_lamps(b, w, rng, rect, every=3.0):
    x, y, wide, deep, high = rect
    for px in np.arange(-wide / 2 + every / 2, wide / 2, every):
        for py in np.arange(-deep / 2 + every / 2, deep / 2, every):
            place = (x + px, y + py, high - 0.03)
            b.box(w.glow(), place, (0.9, 0.3, 0.06), solid=False, skip="t")

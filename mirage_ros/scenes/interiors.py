"""What rooms are built of and what stands in them: walls with openings, doors, windows, lamps, and furniture-like things.

Each is built in a local frame. A thing stands on the floor at the local origin with its back towards -y (a wall) and its
front towards +y, and keeps inside the footprint that `FOOTPRINTS` draws for it: (width along x, depth along y, height).
"""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.builder import Builder, MaterialSet
from mirage_ros.scenes.placing import SIDES

WALL_M = 0.16
INNER_M, OUTER_M = WALL_M / 2, 0.22


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


def table(b: Builder, w: MaterialSet, rng, size):
    wide, deep, high = size
    top, leg = w.furniture(), w.furniture()
    b.box(top, (0, 0, high - 0.02), (wide, deep, 0.04))
    thick = rng.uniform(0.04, 0.09)
    for x in (-1, 1):
        for y in (-1, 1):
            place = (x * (wide / 2 - thick), y * (deep / 2 - thick), (high - 0.04) / 2)
            b.box(leg, place, (thick, thick, high - 0.04), skip="tb")
    things(b, w, rng, (wide, deep, high), int(rng.integers(1, 5)))


def things(b: Builder, w: MaterialSet, rng, size, count):
    """Small things on a top at height size[2]: boxes, books, pots, balls, a screen."""
    wide, deep, high = size
    slots = rng.permutation(max(count, int(wide / 0.25)))[:count]
    for slot in slots:
        x = ((slot + 0.5) / max(count, int(wide / 0.25)) - 0.5) * (wide - 0.1)
        y = rng.uniform(-0.25, 0.25) * deep
        turn, kind = rng.uniform(-0.6, 0.6), rng.integers(5)
        with b.at(x, y, turn, high):
            if kind == 0:
                s = rng.uniform((0.08, 0.08, 0.05), (0.2, 0.2, 0.3))
                b.box(w.accent(), (0, 0, s[2] / 2), s, skip="b")
            elif kind == 1:
                b.cylinder(w.accent(), (0, 0, 0), rng.uniform(0.04, 0.09), rng.uniform(0.08, 0.3))
            elif kind == 2:
                r = rng.uniform(0.05, 0.11)
                b.ball(w.accent(), (0, 0, r), r)
            elif kind == 3:
                for i in range(int(rng.integers(1, 5))):
                    b.box(w.accent(), (0, 0, 0.02 + 0.04 * i), (0.2, 0.15, 0.036), skip="b")
            else:
                b.box(w.dark(), (0, 0, 0.04), (0.12, 0.1, 0.08), skip="b", solid=False)
                b.box(w.dark(), (0, 0, 0.24), (0.46, 0.04, 0.32))
                b.quad(w.picture(), (0.21, 0.021, 0.38), (-0.42, 0, 0), (0, 0, -0.28))


def chair(b: Builder, w: MaterialSet, rng, size):
    wide, deep, high = size
    seat, frame = w.fabric(), w.furniture()
    level = 0.45
    b.box(seat, (0, 0, level - 0.03), (wide, deep, 0.06))
    for x in (-1, 1):
        for y in (-1, 1):
            place = (x * (wide / 2 - 0.03), y * (deep / 2 - 0.03), (level - 0.06) / 2)
            b.box(frame, place, (0.04, 0.04, level - 0.06), skip="tb")
    b.box(seat, (0, -deep / 2 + 0.025, (level + high) / 2), (wide, 0.05, high - level))


def shelf(b: Builder, w: MaterialSet, rng, size):
    """An open shelf: back, sides and boards, with books or boxes on them."""
    wide, deep, high = size
    wood = w.furniture()
    thick = 0.03
    b.box(wood, (0, -deep / 2 + 0.01, high / 2), (wide, 0.02, high), solid=False)
    for x in (-1, 1):
        b.box(
            wood, (x * (wide - thick) / 2, 0.01, high / 2), (thick, deep - 0.02, high), solid=False
        )
    b.solid((0, 0, high / 2), size)
    boards = max(2, round(high / rng.uniform(0.32, 0.5)))
    levels = np.linspace(0.05, high - thick / 2, boards + 1)
    inner = wide - 2 * thick
    for index, level in enumerate(levels):
        b.box(wood, (0, 0.01, level), (inner, deep - 0.02, thick), solid=False)
        if index == boards:
            break
        room = levels[index + 1] - level - thick
        if rng.random() < 0.6:
            part = inner * rng.uniform(0.5, 1.0)
            fill = room * rng.uniform(0.75, 0.95)
            x = (inner - part) / 2 * rng.choice([-1, 1])
            place = (x, -0.02, level + thick / 2 + fill / 2)
            b.box(w.books(), place, (part, deep * 0.75, fill), solid=False, skip="b")
        else:
            with b.at(0, 0, 0, level + thick / 2):
                for x in np.arange(-inner / 2 + 0.15, inner / 2 - 0.1, 0.3):
                    if rng.random() < 0.7:
                        s = rng.uniform((0.1, 0.1, 0.3), (0.25, 0.8, 0.9)) * (1, deep * 0.8, room)
                        b.box(w.accent(), (x, 0, s[2] / 2), s, solid=False, skip="b")


def cabinet(b: Builder, w: MaterialSet, rng, size):
    """A closed cupboard with door fields, handles and things on its top."""
    wide, deep, high = size
    body, front = w.furniture(), w.furniture()
    b.box(body, (0, -0.01, high / 2), (wide, deep - 0.02, high), skip="b")
    columns, rows = max(1, round(wide / 0.5)), max(1, round(high / rng.uniform(0.3, 0.9)))
    cell_x, cell_z = wide / columns, (high - 0.08) / rows
    for column in range(columns):
        for row in range(rows):
            x, z = -wide / 2 + (column + 0.5) * cell_x, 0.06 + (row + 0.5) * cell_z
            place = (x, deep / 2 - 0.01, z)
            b.box(front, place, (cell_x - 0.02, 0.02, cell_z - 0.02), solid=False)
            handle = (x + 0.3 * cell_x, deep / 2 + 0.008, z)
            b.box(w.dark(), handle, (0.02, 0.016, min(0.12, cell_z / 3)), solid=False)
    if high < 1.5:
        things(b, w, rng, size, int(rng.integers(1, 4)))


def crates(b: Builder, w: MaterialSet, rng, size):
    """A stack of boxes, each a little turned."""
    wide, deep, high = size
    level = 0.0
    while level < high - 0.15:
        tall = min(rng.uniform(0.25, 0.6), high - level)
        shrink = rng.uniform(0.6, 0.85)
        with b.at(0, 0, rng.uniform(-0.15, 0.15), level):
            box = (wide * shrink, deep * shrink, tall)
            b.box(w.crate(), (0, 0, tall / 2), box, skip="b")
        level += tall
        if rng.random() < 0.3:
            break


def sofa(b: Builder, w: MaterialSet, rng, size):
    wide, deep, high = size
    cloth = w.fabric()
    b.box(cloth, (0, 0, 0.2), (wide, deep, 0.4), skip="b")
    b.box(cloth, (0, -deep / 2 + 0.1, (0.4 + high) / 2), (wide, 0.2, high - 0.4), skip="b")
    for x in (-1, 1):
        b.box(cloth, (x * (wide / 2 - 0.09), 0.1, 0.5), (0.18, deep - 0.2, 0.2), skip="b")
    for x in np.linspace(-wide / 2 + 0.45, wide / 2 - 0.45, max(1, int(wide / 0.6))):
        b.box(w.accent(), (x, -deep / 2 + 0.27, 0.58), (0.38, 0.12, 0.34), solid=False)


def bed(b: Builder, w: MaterialSet, rng, size):
    wide, deep, high = size
    b.box(w.furniture(), (0, 0.03, 0.15), (wide, deep - 0.06, 0.3), skip="b")
    b.box(w.fabric(), (0, 0.05, 0.4), (wide - 0.06, deep - 0.14, 0.2), skip="b")
    b.box(w.furniture(), (0, -deep / 2 + 0.03, high / 2), (wide, 0.06, high))
    for x in (-0.25, 0.25):
        b.box(w.accent(), (x * wide, -deep / 2 + 0.3, 0.55), (0.4 * wide, 0.35, 0.12))


def lamp(b: Builder, w: MaterialSet, rng, size):
    high = size[2]
    b.cylinder(w.dark(), (0, 0, 0), 0.14, 0.03)
    b.cylinder(w.dark(), (0, 0, 0.03), 0.015, high - 0.3)
    b.cylinder(w.glow(), (0, 0, high - 0.32), 0.17, 0.3, top_radius=0.1)


def plant(b: Builder, w: MaterialSet, rng, size):
    wide, _, high = size
    pot = min(0.35, high * 0.3)
    b.cylinder(w.accent(), (0, 0, 0), wide * 0.22, pot, top_radius=wide * 0.3)
    b.cylinder(w.dark(), (0, 0, pot), 0.02, max(0.75 * high - pot, 0.1), solid=False)
    for _ in range(int(rng.integers(3, 7))):
        radius = rng.uniform(0.18, 0.26) * wide
        place = rng.uniform(-0.14, 0.14, 2) * wide
        level = rng.uniform(pot + radius * 0.6, max(high - radius, pot + radius))
        b.ball(w.leaves(), (*place, level), radius, squash=rng.uniform(0.8, 1.5))


def barrel(b: Builder, w: MaterialSet, rng, size):
    radius = min(size[:2]) / 2 * 0.9
    b.cylinder(w.accent(), (0, 0, 0), radius, size[2])
    if rng.random() < 0.5:
        b.box(w.crate(), (0, 0, size[2] + 0.12), (radius, radius, 0.24), skip="b")


def pillar(b: Builder, w: MaterialSet, rng, size):
    wide, _, high = size
    paint = w.structure()
    if rng.random() < 0.5:
        b.cylinder(paint, (0, 0, 0), wide / 2 * 0.8, high)
        b.box(paint, (0, 0, 0.1), (wide, wide, 0.2), skip="b")
        b.box(paint, (0, 0, high - 0.1), (wide, wide, 0.2))
    else:
        b.box(paint, (0, 0, high / 2), (wide, wide, high), skip="b")
        b.box(w.accent(), (0, 0, 0.5), (wide + 0.04, wide + 0.04, 0.2))


def rack(b: Builder, w: MaterialSet, rng, size):
    """A warehouse rack: posts, beams, decks, boxes of many sizes, seen from both sides."""
    wide, deep, high = size
    steel, deck = w.accent(), w.furniture()
    bays = max(1, round(wide / 2.2))
    for x in np.linspace(-wide / 2 + 0.04, wide / 2 - 0.04, bays + 1):
        for y in (-deep / 2 + 0.04, deep / 2 - 0.04):
            b.box(steel, (x, y, high / 2), (0.08, 0.08, high), solid=False, skip="b")
    b.solid((0, 0, high / 2), size)
    for level in np.arange(0.12, high - 0.4, rng.uniform(0.9, 1.5)):
        b.box(deck, (0, 0, level), (wide, deep - 0.02, 0.06), solid=False)
        x = -wide / 2 + 0.12
        while x < wide / 2 - 0.5:
            s = rng.uniform((0.3, 0.5, 0.25), (0.8, 0.9, 0.75)) * (1, deep, 1)
            s[0] = min(s[0], wide / 2 - 0.1 - x)
            if rng.random() < 0.85:
                place = (x + s[0] / 2, rng.uniform(-0.03, 0.03), level + 0.03 + s[2] / 2)
                b.box(w.crate(), place, s, solid=False, skip="b")
            x += s[0] + rng.uniform(0.03, 0.25)


def bench(b: Builder, w: MaterialSet, rng, size):
    wide, deep, high = size
    b.box(w.furniture(), (0, 0, high - 0.03), (wide, deep, 0.06))
    for x in (-0.38, 0.38):
        b.box(
            w.dark(), (x * wide, 0, (high - 0.06) / 2), (0.08, deep * 0.8, high - 0.06), skip="tb"
        )


def tree(b: Builder, w: MaterialSet, rng, size):
    wide, _, high = size
    trunk = 0.45 * high
    b.cylinder(w.structure(), (0, 0, 0), 0.16, trunk, top_radius=0.11)
    if rng.random() < 0.4:
        for i in range(3):
            base = trunk * 0.6 + i * 0.2 * high
            b.cylinder(
                w.leaves(), (0, 0, base), wide * (0.5 - 0.11 * i), 0.3 * high, top_radius=0.02
            )
    else:
        for _ in range(6):
            place = rng.uniform(-0.22, 0.22, 2) * wide
            level = trunk + rng.uniform(0, 0.4) * high
            b.ball(w.leaves(), (*place, level), rng.uniform(0.2, 0.28) * wide, solid=False)
        b.solid((0, 0, trunk + 0.25 * high), (wide, wide, 0.5 * high))


# Smallest and largest (width, depth, height) in metres.
FOOTPRINTS = {
    table: ((0.8, 0.6, 0.65), (1.8, 0.95, 0.8)),
    chair: ((0.4, 0.4, 0.8), (0.5, 0.5, 1.05)),
    shelf: ((0.7, 0.28, 1.0), (1.6, 0.42, 2.1)),
    cabinet: ((0.6, 0.4, 0.6), (1.8, 0.6, 2.0)),
    crates: ((0.4, 0.4, 0.4), (0.9, 0.9, 1.6)),
    sofa: ((1.4, 0.8, 0.7), (2.2, 0.95, 0.95)),
    bed: ((0.95, 1.95, 0.7), (1.8, 2.1, 1.2)),
    lamp: ((0.36, 0.36, 1.3), (0.36, 0.36, 1.8)),
    plant: ((0.5, 0.5, 0.7), (0.9, 0.9, 1.7)),
    barrel: ((0.5, 0.5, 0.7), (0.7, 0.7, 1.1)),
    pillar: ((0.3, 0.3, 2.2), (0.6, 0.6, 3.2)),
    rack: ((2.0, 0.8, 2.0), (6.0, 1.1, 4.0)),
    bench: ((1.0, 0.35, 0.42), (2.0, 0.5, 0.5)),
    tree: ((1.4, 1.4, 2.2), (2.8, 2.8, 4.5)),
}

"""Floor plans: what each kind of world is made of."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes import interiors as f
from mirage_ros.scenes.builder import Builder, MaterialSet
from mirage_ros.scenes.gl import indoor_lights, sun
from mirage_ros.scenes.interiors import WALL_M, ceiling_lamps, shell, wall
from mirage_ros.scenes.placing import SIDES, Layout, panel

HOME = (f.shelf, f.cabinet, f.table, f.sofa, f.bed, f.plant, f.lamp, f.cabinet, f.shelf, f.chair)
OFFICE = (f.shelf, f.cabinet, f.table, f.chair, f.crates, f.plant, f.bench)
AISLE_M = 0.95  # kept between free-standing things, so that cameras get through


def _bounds(rect):
    x, y, wide, deep, high = rect
    return (x - wide / 2, y - deep / 2, 0.0), (x + wide / 2, y + deep / 2, high)


def room(b: Builder, w: MaterialSet, rng) -> Layout:
    rect = (0.0, 0.0, rng.uniform(4.2, 7.5), rng.uniform(4.0, 6.5), rng.uniform(2.4, 3.1))
    layout = Layout(*_bounds(rect))
    shell(b, w, *rect)
    side = str(rng.choice(list(SIDES)))
    door_panel(b, w, layout, side, rect, 0.0)
    style = HOME if rng.random() < 0.65 else OFFICE
    furnish_walls(b, w, rng, layout, rect, style, 0.75, [(side, -0.7, 0.7)])
    if rng.random() < 0.6:
        scatter(b, w, rng, layout, rect, (f.table, f.chair, f.crates, f.plant), 1)
    if rng.random() < 0.6:
        ceiling_lamps(b, w, rng, rect, 2.5)
    layout.ambient, layout.lights = indoor_lights(rng, [rect])
    return layout


def corridor(b: Builder, w: MaterialSet, rng) -> Layout:
    rect = (0.0, 0.0, rng.uniform(9, 16), rng.uniform(2.0, 3.0), rng.uniform(2.4, 3.0))
    layout = Layout(*_bounds(rect))
    shell(b, w, *rect)
    gaps = []
    for side in ("south", "north"):
        for place in np.arange(-rect[2] / 2 + 1.2, rect[2] / 2 - 1, rng.uniform(2.5, 4)):
            if rng.random() < 0.75:
                door_panel(b, w, layout, side, rect, place)
                gaps.append((side, place - 0.6, place + 0.6))
    slim = (f.plant, f.bench, f.shelf, f.crates, f.lamp)
    furnish_walls(b, w, rng, layout, rect, slim, 0.22, gaps)
    ceiling_lamps(b, w, rng, rect, rng.uniform(2, 3.5))
    third = rect[2] / 3
    layout.ambient, layout.lights = indoor_lights(
        rng, [(k * third, 0.0, third, *rect[3:]) for k in (0, -1, 1)]
    )
    return layout


def hall(b: Builder, w: MaterialSet, rng) -> Layout:
    rect = (0.0, 0.0, rng.uniform(8, 14), rng.uniform(8, 13), rng.uniform(3.2, 4.8))
    layout = Layout(*_bounds(rect))
    shell(b, w, *rect)
    side = str(rng.choice(list(SIDES)))
    door_panel(b, w, layout, side, rect, 0.0)
    furnish_walls(b, w, rng, layout, rect, (*OFFICE, f.sofa), 0.6, [(side, -0.7, 0.7)])
    middle = (f.pillar, f.table, f.sofa, f.plant, f.crates, f.shelf, f.bench)
    scatter(b, w, rng, layout, rect, middle, int(rng.integers(4, 9)))
    ceiling_lamps(b, w, rng, rect, rng.uniform(2.5, 4))
    half = rect[2] / 2
    layout.ambient, layout.lights = indoor_lights(
        rng, [(k * half / 2, 0.0, half, *rect[3:]) for k in (-1, 1)]
    )
    return layout


def warehouse(b: Builder, w: MaterialSet, rng) -> Layout:
    rect = (0.0, 0.0, rng.uniform(10, 16), rng.uniform(8, 13), rng.uniform(3.6, 5.0))
    layout = Layout(*_bounds(rect))
    shell(b, w, *rect)
    door_panel(b, w, layout, "east", rect, rng.uniform(-1, 1))
    tall = min(rect[4] - 0.4, rng.uniform(2.2, 4.0))
    deep = rng.uniform(0.8, 1.1)
    rows = np.arange(
        -rect[3] / 2 + deep / 2 + 0.03, rect[3] / 2 - deep / 2, deep + rng.uniform(2, 3)
    )
    for y in rows:
        x = -rect[2] / 2 + rng.uniform(1.8, 2.8)
        while x < rect[2] / 2 - 3.5:
            wide = min(rng.uniform(2.2, 5.5), rect[2] / 2 - 1.8 - x)
            if rng.random() < 0.85:
                with b.at(x + wide / 2, y):
                    f.rack(b, w, rng, np.array([wide, deep, tall]))
                layout.points_of_interest.append((x + wide / 2, y, 1.0))
                for part in np.arange(x + 0.5, x + wide, 1.0):
                    layout.taken.append((part, y, 0.6))
            x += wide + (rng.uniform(1.4, 2.4) if rng.random() < 0.4 else 0.0)
    furnish_walls(b, w, rng, layout, rect, (f.crates, f.barrel, f.cabinet), 0.4)
    scatter(b, w, rng, layout, rect, (f.crates, f.barrel, f.pillar), int(rng.integers(0, 4)))
    ceiling_lamps(b, w, rng, rect, 3.5)
    half = rect[2] / 2
    layout.ambient, layout.lights = indoor_lights(
        rng, [(k * half / 2, 0.0, half, *rect[3:]) for k in (-1, 1)]
    )
    return layout


def doorway(b: Builder, w: MaterialSet, rng) -> Layout:
    """Two rooms side by side along x, joined by an open door in the wall between them."""
    wide = rng.uniform(3.6, 5.5, 2)
    deep, high = rng.uniform(4.0, 6.0), rng.uniform(2.5, 3.0)
    half, gap = rng.uniform(0.55, 0.9), rng.uniform(-0.25, 0.25) * deep
    hole = [(deep / 2 + WALL_M / 2 + gap - half, deep / 2 + WALL_M / 2 + gap + half, 0.0, 2.15)]
    left = (-wide[0] / 2 - WALL_M / 2, 0.0, wide[0], deep, high)
    right = (wide[1] / 2 + WALL_M / 2, 0.0, wide[1], deep, high)
    layout = Layout(_bounds(left)[0], _bounds(right)[1])
    shell(b, w, *left, gaps={"east": hole})
    shell(b, w, *right, gaps={"west": "none"})
    frame = w.furniture()
    for y in (gap - half + 0.03, gap + half - 0.03):
        b.box(frame, (0, y, 1.07), (WALL_M + 0.04, 0.06, 2.14), skip="b")
    b.box(frame, (0, gap, 2.12), (WALL_M + 0.04, 2 * half, 0.06))
    for rect, side, sign in ((left, "east", 1), (right, "west", -1)):
        gaps = [(side, sign * gap - half - 0.5, sign * gap + half + 0.5)]
        furnish_walls(b, w, rng, layout, rect, HOME if rng.random() < 0.6 else OFFICE, 0.7, gaps)
        if rng.random() < 0.5:
            ceiling_lamps(b, w, rng, rect, 2.5)
    layout.points_of_interest += [(0.0, gap, 1.2)] * 3
    layout.ambient, layout.lights = indoor_lights(rng, [left, right])
    return layout


def yard(b: Builder, w: MaterialSet, rng) -> Layout:
    wide, deep = rng.uniform(10, 16, 2)
    layout = Layout((-wide / 2, -deep / 2, 0.0), (wide / 2, deep / 2, 4.0), has_sky=True)
    b.cell_m = 2.0
    b.quad(w.ground(), (-30, 30, 0), (60, 0, 0), (0, -60, 0))
    b.solid((0, 0, -0.1), (60, 60, 0.2))
    b.cell_m = 0.8
    rect = (0.0, 0.0, wide, deep, 2.5)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (wide / 2, deep / 2)
    for index in range(4):
        if rng.random() < 0.65:
            high = rng.uniform(0.7, 2.8)
            wall(b, w.wall(), corners[index], corners[(index + 1) % 4], high)
    _houses(b, w, rng, wide, deep)
    outside = (f.tree, f.crates, f.barrel, f.bench, f.pillar, f.plant, f.table, f.tree)
    scatter(b, w, rng, layout, rect, outside, int(rng.integers(6, 12)), 0.8)
    turn, climb = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.6)
    shine = np.array([np.cos(turn), np.sin(turn), -climb])
    layout.lights.append(sun(rng, shine, rng.uniform(0.55, 0.75), shadow=True))
    back = np.array([-shine[0], -shine[1], -0.6])
    layout.lights.append(sun(rng, back, rng.uniform(0.1, 0.2)))
    layout.ambient = np.full(3, rng.uniform(0.42, 0.52)) * (0.95, 1.0, 1.05)
    return layout


def _houses(b, w, rng, wide, deep):
    """Buildings behind the yard's edges, with doors and windows on the side that faces it."""
    for _, (outward, yaw) in SIDES.items():
        if rng.random() < 0.35:
            continue
        size = np.array([rng.uniform(4, 9), rng.uniform(3, 5), rng.uniform(2.6, 6)])
        reach = (deep if outward[0] == 0 else wide) / 2 + size[1] / 2 + rng.uniform(0.3, 4)
        along = np.array([np.cos(yaw), np.sin(yaw)]) * rng.uniform(-3, 3)
        with b.at(*(outward * reach + along), yaw):
            b.box(w.wall(), (0, 0, size[2] / 2), size, skip="b")
            b.box(w.furniture(), (0, 0, size[2] + 0.1), (*(size[:2] + 0.5), 0.2))
            with b.at(0, size[1] / 2):
                panel(b, w.door(), w.furniture(), 1.0, 2.1, 0.0, 0.05)
            for x in np.arange(-size[0] / 2 + 1, size[0] / 2 - 0.8, 1.9):
                if abs(x) > 1.2:
                    with b.at(x, size[1] / 2):
                        panel(b, w.window(), w.furniture(), 1.1, 1.1, 0.95)


def furnish_walls(b, w, rng, layout, rect, things, share=0.7, gaps=()):
    """Rows of furniture with their backs to the walls, pictures in between and above."""
    x, y, wide, deep, high = rect
    for side, (outward, yaw) in SIDES.items():
        along = np.array([np.cos(yaw), np.sin(yaw)])
        length = wide if side in ("south", "north") else deep
        reach = (deep if side in ("south", "north") else wide) / 2
        place = -length / 2 + rng.uniform(0.1, 0.9)
        while place < length / 2 - 0.5:
            thing = things[rng.integers(len(things))]
            size = rng.uniform(*f.FOOTPRINTS[thing])
            size[2] = min(size[2], high - 0.05)
            blocked = any(s == side and a < place + size[0] and place < z for s, a, z in gaps)
            if place + size[0] > length / 2 - 0.75 and place > -length / 2 + 1.0:
                break
            if blocked or rng.random() > share:
                if not blocked:
                    hang(b, w, rng, layout, side, rect, place + size[0] / 2, 0.0, size[0])
                place += rng.uniform(0.7, 1.4)
                continue
            middle = np.array([x, y]) + along * (place + size[0] / 2)
            middle = middle + outward * (reach - size[1] / 2 - 0.005)
            if stand(b, w, rng, layout, thing, middle, yaw, size):
                hang(b, w, rng, layout, side, rect, place + size[0] / 2, size[2], size[0])
            place += size[0] + rng.uniform(0.1, 0.7)


def stand(b, w, rng, layout, thing, middle, yaw, size, spare=0.0) -> bool:
    """Puts a thing on the floor where nothing stands yet."""
    radius = float(np.hypot(size[0], size[1])) / 2 * 0.9 + spare
    for px, py, other in layout.taken:
        if np.hypot(px - middle[0], py - middle[1]) < (radius + other) * 0.82:
            return False
    layout.taken.append((*middle, radius - spare))
    with b.at(*middle, yaw):
        thing(b, w, rng, size)
    layout.points_of_interest.append((*middle, min(size[2], 1.4) * 0.8))
    return True


def hang(b, w, rng, layout, side, rect, place, above, room_m):
    """A picture, window or notice on the wall above height `above`, centred at `place`."""
    x, y, wide, deep, high = rect
    wall = wide if side in ("south", "north") else deep
    window = rng.random() < 0.3
    tall = rng.uniform(0.7, 1.3) if window else rng.uniform(0.35, 0.9)
    broad = min(tall * rng.uniform(0.7, 1.8), room_m * 1.3, 2 * (wall / 2 - abs(place)) - 0.2)
    level = max(above + 0.12, rng.uniform(0.9, 1.2))
    if level + tall > high - 0.1 or broad < 0.2 or rng.random() < 0.15:
        return
    outward, yaw = SIDES[side]
    along = np.array([np.cos(yaw), np.sin(yaw)])
    reach = (deep if side in ("south", "north") else wide) / 2
    spot = np.array([x, y]) + along * place + outward * reach
    for px, py, other in layout.hung:
        if np.hypot(px - spot[0], py - spot[1]) < (broad + other) / 2 + 0.05:
            return
    layout.hung.append((*spot, broad))
    with b.at(*spot, yaw):
        panel(b, w.window() if window else w.picture(), w.furniture(), broad, tall, level)
    layout.points_of_interest.append((*spot, level + tall / 2))


def door_panel(b, w, layout, side, rect, place):
    x, y, wide, deep, high = rect
    outward, yaw = SIDES[side]
    along = np.array([np.cos(yaw), np.sin(yaw)])
    reach = (deep if side in ("south", "north") else wide) / 2
    spot = np.array([x, y]) + along * place + outward * reach
    layout.hung.append((*spot, 1.0))
    with b.at(*spot, yaw):
        panel(b, w.door(), w.furniture(), 0.98, 2.06, 0.0, 0.05)
    layout.points_of_interest.append((*spot, 1.2))


def scatter(b, w, rng, layout, rect, things, count, margin=1.2):
    """Free-standing things away from the walls with aisles between them."""
    x, y, wide, deep, high = rect
    for _ in range(count * 4):
        if count <= 0:
            return
        thing = things[rng.integers(len(things))]
        size = rng.uniform(*f.FOOTPRINTS[thing])
        size[2] = high if thing is f.pillar else min(size[2], high - 0.05)
        spare = np.array([wide, deep]) / 2 - margin - size[:2].max() / 2
        if (spare < 0.1).any():
            continue
        middle = np.array([x, y]) + rng.uniform(-spare, spare)
        turn = rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0, 0.25)
        count -= stand(b, w, rng, layout, thing, middle, turn, size, AISLE_M)

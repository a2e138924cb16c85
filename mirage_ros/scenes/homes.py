"""Furnished homes and offices: rooms behind rooms, and what each kind of room is furnished with from a cache."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.builder import Builder, MaterialSet
from mirage_ros.scenes.catalogue import Catalogue, Look
from mirage_ros.scenes.gl import spot, sun
from mirage_ros.scenes.interiors import WALL_M, door_frame, door_leaf, home_room, window_frame
from mirage_ros.scenes.pictures import colour
from mirage_ros.scenes.placing import OPPOSITE, SIDES, Furnisher, Layout, Room, panel, turned
from mirage_ros.scenes.placing import dining, hang_all, on_floor, rug, stands, stocked, workplace  # fmt: skip

# Smallest and largest (width, depth) in metres.
SIZES = {
    "living": ((4.0, 3.8), (6.2, 5.6)),
    "bedroom": ((3.1, 3.1), (4.8, 4.4)),
    "kitchen": ((2.8, 2.9), (4.8, 4.6)),
    "office": ((3.2, 3.0), (7.0, 5.6)),
    "bathroom": ((2.3, 2.3), (3.4, 3.4)),
    "hallway": ((1.7, 2.6), (2.4, 5.0)),
}
DOOR_HIGH_M = 2.05
FACES = 29_000  # in a whole home: what a frame costs


def make_home(kind: str, catalogue: Catalogue):
    """A floor plan in the manner of `layouts.py` whose first room is of the given kind."""

    def layout(b: Builder, w: MaterialSet, rng) -> Layout:
        b.cell_m = 0.85
        rooms = _plan(rng, kind)
        low = np.array([[r.rect[k] - r.rect[2 + k] / 2 for k in (0, 1)] for r in rooms]).min(0)
        high = np.array([[r.rect[k] + r.rect[2 + k] / 2 for k in (0, 1)] for r in rooms]).max(0)
        tall = rooms[0].rect[4]
        made = Layout((*low, 0.0), (*high, tall), has_sky=any(r.windows for r in rooms))
        look = Look(w, catalogue, rng)
        frame, board = w.frame(), w.frame() if rng.random() < 0.7 else None
        leaf_paint, parquet = look.door(), look.cover("floor", "parquet", 0.4)
        for room in rooms:
            _build(b, w, rng, look, room, frame, board, parquet)
        left, tints = FACES, {}
        for number, room in enumerate(rooms):
            share = (0.6 if len(rooms) > 1 else 1.0) if number == 0 else 1 / (len(rooms) - number)
            furnisher = Furnisher(b, catalogue, made, room.rect, rng, int(left * share), tints)
            before = furnisher.faces_left
            _block_openings(furnisher, room, leaf_paint, frame)
            furnish(furnisher, look, room)
            left -= before - furnisher.faces_left
            x, y = room.rect[:2]
            made.points_of_interest += [(x, y, 1.0)] * 2
        if made.has_sky:
            _outside(b, w, rng, low, high)
        made.ambient, made.lights = _lights(rng, rooms, made.has_sky)
        return made

    return layout


def _plan(rng, kind: str) -> list[Room]:
    """A room and up to three more, in columns beside it, all within one rectangle."""
    wide, deep = (float(v) for v in rng.uniform(*SIZES[kind]))
    tall = float(rng.uniform(2.35, 2.9))
    main = Room(kind, (0.0, 0.0, wide, deep, tall), tuple(SIDES))
    rooms, other = [main], ("office",) if kind == "office" else ("living", "bedroom", "kitchen", "bathroom", "hallway")
    for side, sign in (("east", 1), ("west", -1)):
        if rng.random() > (0.72 if side == "east" else 0.3):
            continue
        broad = float(rng.uniform(2.3, 4.2))
        cuts = [(-deep / 2, deep / 2)]
        if deep > 4.7 and rng.random() < 0.6:
            at = rng.uniform(-0.1, 0.1) * deep
            cuts = [(-deep / 2, at - WALL_M / 2), (at + WALL_M / 2, deep / 2)]
        for low, high in cuts:
            area = broad * (high - low)
            fitting = [k for k in other if area < np.prod(SIZES[k][1]) + 2 and area > np.prod(SIZES[k][0]) - 3]
            what = str(rng.choice(fitting or [kind]))
            x = sign * (wide / 2 + WALL_M + broad / 2)
            outer = [s for s in SIDES if s != OPPOSITE[side]]
            if len(cuts) > 1:
                outer.remove("north" if low == -deep / 2 else "south")
            room = Room(what, (x, (low + high) / 2, broad, high - low, tall), tuple(outer))
            _join(rng, main, side, room)
            rooms.append(room)
        main.outer = tuple(s for s in main.outer if s != side)
    for room in rooms:
        _open_up(rng, room)
    return rooms


def _join(rng, main: Room, side: str, room: Room) -> None:
    """A door, mostly open, or an archway between two rooms."""
    arch = rng.random() < 0.25
    wide = min(rng.uniform(1.2, 2.0) if arch else rng.uniform(0.8, 0.95), room.rect[3] - 0.5)
    spare = (room.rect[3] - wide) / 2 - 0.15
    y = room.rect[1] + rng.uniform(-spare, spare)
    high = rng.uniform(2.05, 2.25) if arch else DOOR_HIGH_M
    sign = 1 if side == "east" else -1
    leaf = None if arch else ("main" if rng.random() < 0.5 else "room")
    main.doors.append((side, sign * (y - main.rect[1]), wide, high, leaf == "main"))
    room.doors.append((OPPOSITE[side], -sign * (y - room.rect[1]), wide, high, leaf == "room"))


def _open_up(rng, room: Room) -> None:
    """Windows in outer walls, and a closed door where a room has none or by chance."""
    for side in room.outer:
        length = room.rect[2] if side in ("south", "north") else room.rect[3]
        chance = {"bathroom": 0.35, "hallway": 0.15}.get(room.kind, 0.6)
        if rng.random() < chance:
            count = 1 if length < 3.4 or rng.random() < 0.6 else 2
            for number in range(count):
                part = length / count
                wide = min(rng.uniform(0.7, 2.0), part - 0.7)
                spare = (part - wide) / 2 - 0.25
                at = -length / 2 + (number + 0.5) * part + rng.uniform(-spare, spare)
                bottom = 0.1 if rng.random() < 0.15 else rng.uniform(0.75, 1.1)
                bottom = 1.25 if room.kind == "bathroom" else bottom
                room.windows.append((side, at - wide / 2, at + wide / 2, bottom, rng.uniform(2.0, 2.2)))
        elif length > 2 and rng.random() < (0.5 if len(room.doors) < 2 else 0.1):
            room.doors.append((side, rng.uniform(-1, 1) * (length / 2 - 0.7), 0.92, DOOR_HIGH_M, None))


def _build(b, w, rng, look, room: Room, frame, board, parquet) -> None:
    """Walls, floor, ceiling, frames of windows and doors."""
    wet = room.kind in ("bathroom", "kitchen")
    if room.kind == "bathroom":
        paints = [look.cover("tiles", "wall_tiles", 0.2)] * 4
    else:
        first = look.cover("wall", "paint", 0.12)
        paints = [first] * 4
        if rng.random() < 0.35:
            paints[rng.integers(4)] = look.cover("wall", "paint", 0.2)
    floor = look.cover("floor", "floor_tiles", 0.4) if wet and rng.random() < 0.8 else parquet
    floor = w.carpeting() if room.kind in ("bedroom", "office") and rng.random() < 0.4 else floor
    openings: dict[str, list] = {}
    for side, at, wide, high, leaf in room.doors:
        if leaf is not None:
            openings.setdefault(side, []).append((at - wide / 2, at + wide / 2, 0.0, high))
    for side, *rest in room.windows:
        openings.setdefault(side, []).append(tuple(rest))
    ceiling = look.cover("ceiling", "paint", 0.7 if room.kind == "office" else 0.25)
    home_room(b, paints, room.rect, openings, room.outer, floor, ceiling, None if room.kind == "bathroom" else board)
    for side, left, right, bottom, top in room.windows:
        outward, yaw = SIDES[side]
        x, y = _on_wall(room, side, (left + right) / 2)
        with b.at(x, y, yaw):
            window_frame(b, frame, right - left, bottom, top, max(1, round((right - left) / 0.8)))


def _on_wall(room: Room, side: str, at: float) -> np.ndarray:
    outward, yaw = SIDES[side]
    reach = room.rect[3] if side in ("south", "north") else room.rect[2]
    return np.array(room.rect[:2]) + outward * reach / 2 + at * np.array([np.cos(yaw), np.sin(yaw)])


def _block_openings(f: Furnisher, room: Room, picture, frame) -> None:
    """Hangs the doors and keeps furniture away from them and from windows."""
    for side, left, right, bottom, top in room.windows:
        f.block_wall(side, left - 0.03, right + 0.03, bottom - 0.04, top + 0.04, 0.28)
        f.layout.points_of_interest.append((*_on_wall(room, side, (left + right) / 2), (bottom + top) / 2))
    for side, at, wide, high, leaf in room.doors:
        spot, (outward, yaw) = _on_wall(room, side, at), SIDES[side]
        f.block_wall(side, at - wide / 2 - 0.1, at + wide / 2 + 0.1, 0.0, 2.2, 0.95)
        f.layout.points_of_interest.append((*spot, 1.2))
        if leaf is None:
            with f.b.at(*spot, yaw):
                panel(f.b, picture, frame, wide, high, 0.0, 0.05)
            continue
        if side in ("east", "south") or side not in room.outer:
            middle = spot + outward * WALL_M / 2
            if room.rect[:2] == (0.0, 0.0):
                with f.b.at(*middle, yaw):
                    door_frame(f.b, frame, wide, high)
        if leaf:
            _hang_leaf(f, spot, yaw, side, at, wide, high, picture, frame)


def _hang_leaf(f: Furnisher, spot, yaw, side, at, wide, high, picture, frame) -> None:
    """An open door, hinged left or right and swung into the room by 75 to 110 degrees."""
    hinge = f.rng.choice([-1, 1])
    swing = np.radians(f.rng.uniform(78, 100))
    place = spot + turned(yaw, hinge * (wide / 2 - 0.05), 0.035)
    turn = yaw + (swing if hinge < 0 else np.pi - swing)
    with f.b.at(*place, turn):
        door_leaf(f.b, picture, frame, wide - 0.1, high - 0.06)
    side_from = at + hinge * wide / 2
    f.block_wall(side, side_from - 0.3, side_from + 0.3, 0.0, 2.2, wide + 0.05)


def _outside(b, w, rng, low, high) -> None:
    """Ground, houses and trees as windows show them, from the ground floor or from above."""
    level = -rng.uniform(0.25, 0.6) if rng.random() < 0.5 else -rng.uniform(2.8, 9)
    b.cell_m, cell = 6.0, b.cell_m
    b.quad(w.ground(), (-30, 30, level), (60, 0, 0), (0, -60, 0))
    middle, reach = (low + high) / 2, float((high - low).max() / 2)
    for turn in np.arange(0, 2 * np.pi, rng.uniform(0.7, 1.2)):
        if rng.random() < 0.3:
            continue
        away = reach + rng.uniform(5, 16)
        with b.at(*(middle + away * np.array([np.cos(turn), np.sin(turn)])), turn + np.pi / 2, level):
            if rng.random() < 0.55:
                size = rng.uniform((4, 3, 3), (9, 6, 9))
                b.box(w.wall(), (0, 0, size[2] / 2), size, skip="b", solid=False)
                b.box(w.furniture(), (0, 0, size[2] + 0.1), (*(size[:2] + 0.5), 0.2), solid=False)
                for z in np.arange(1.0, size[2] - 1.2, 2.7):
                    for x in np.arange(-size[0] / 2 + 1, size[0] / 2 - 0.5, 1.9):
                        with b.at(x, size[1] / 2):
                            b.quad(w.window(), (0.5, 0.02, z + 1.2), (-1.0, 0, 0), (0, 0, -1.2))
            else:
                tall = rng.uniform(3, 8)
                b.cylinder(w.structure(), (0, 0, 0), 0.2, tall * 0.4, top_radius=0.15, solid=False)
                for _ in range(2):
                    at = (*rng.uniform(-0.6, 0.6, 2), tall * rng.uniform(0.45, 0.85))
                    b.ball(w.foliage(), at, tall * rng.uniform(0.16, 0.24), solid=False)
    b.cell_m = cell


def _lights(rng, rooms: list[Room], sky: bool) -> tuple[np.ndarray, list[dict]]:
    """By day the sun through the windows and what it spreads, by night a lamp in each room; both now and then."""
    day = sky and rng.random() < 0.65
    ambient = rng.uniform(0.38, 0.5) * (1 + 0.1 * (colour(rng, 0.5) / 255 - 0.5))
    lights = []
    if day:
        turn, climb = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.3)
        shine = np.array([np.cos(turn), np.sin(turn), -climb])
        lights.append(sun(rng, shine, rng.uniform(0.45, 0.7), shadow=True))
    for number, room in enumerate(rooms[:3]):
        x, y, wide, deep, high = room.rect
        place = np.array([x, y, high - 0.12]) + [*(rng.uniform(-0.2, 0.2, 2) * (wide, deep)), 0.0]
        strength = rng.uniform(0.25, 0.4) if day else rng.uniform(0.5, 0.75)
        lights.append(spot(rng, place, (x, y, 0), strength, shadow=number == 0 and not day))
    for vertical in (-0.5, 0.8):
        turn = rng.uniform(0, 2 * np.pi)
        lights.append(sun(rng, (np.cos(turn), np.sin(turn), vertical), rng.uniform(0.12, 0.26)))
    return ambient, lights


def _living(f: Furnisher, look: Look) -> None:
    rng, models = f.rng, f.catalogue.models
    sofa = f.choose("sofa", fits=lambda m: m.size_m[0] < min(f.rect[2], f.rect[3]) - 0.8)
    got = f.along_wall(sofa, tries=30)
    if got:
        placed, side, at = got
        deep = float(models[placed.index].size_m[1])
        low = f.beside(f.choose("coffee table"), placed, rng.uniform(-0.1, 0.1), deep / 2 + rng.uniform(0.6, 0.8), 0.0)
        f.on_top(low, ("thing", "vase", "desk thing", "kitchen thing", "plant", "tv"), int(rng.integers(1, 5)))
        rug(f, look, *turned(placed.yaw, 0, deep / 2 + 0.6) + [placed.x, placed.y], placed.yaw)
        wide = float(models[placed.index].size_m[0])
        for sign in (-1, 1):
            if rng.random() < 0.5:
                f.beside(f.choose("lamp", "plant", "bedside table", fits=lambda m: m.size_m[2] > 0.42), placed,
                         sign * (wide / 2 + rng.uniform(0.3, 0.45)), -deep / 2 + 0.35, 0.0)  # fmt: skip
        for sign in (-1, 1):
            if low and rng.random() < 0.6:
                f.beside(f.choose("armchair"), low, sign * rng.uniform(1.15, 1.5), rng.uniform(0, 0.3),
                         sign * (np.pi / 2 + rng.uniform(-0.3, 0.3)))  # fmt: skip
        stand = f.along_wall(f.choose("tv stand", "cabinet"), [OPPOSITE[side]], -at, tries=1)
        stand = stand or f.along_wall(f.choose("tv stand"), [OPPOSITE[side]])
        if stand and models[stand[0].index].size_m[2] < 1.1:
            f.on_top(stand[0], ("tv",), 1, turn=0.0, whole=True)
            f.on_top(stand[0], ("thing", "vase", "plant"), 2)
        elif not stand:
            f.along_wall(f.choose("wall tv"), [OPPOSITE[side]], -at, tries=1, z=rng.uniform(0.9, 1.1))
    for _ in range(int(rng.integers(2, 6))):
        kinds = ["bookcase", "cabinet", "piano", "armchair", "plant", "fireplace", "bench", "tv stand", "big thing"]
        kind = rng.choice(kinds, p=[0.3, 0.16, 0.07, 0.12, 0.15, 0.04, 0.04, 0.06, 0.06])
        stocked(f, f.choose(str(kind), fits=stands), ("thing", "vase", "plant", "desk thing", "lamp", "toy"))
    if f.rect[2] * f.rect[3] > 18 and rng.random() < 0.7:
        dining(f, look)


def _bedroom(f: Furnisher, look: Look) -> None:
    rng, models = f.rng, f.catalogue.models
    for _ in range(2 if f.rect[2] * f.rect[3] > 15 and rng.random() < 0.2 else 1):
        got = f.along_wall(f.choose("bed"), tries=40)
        if not got:
            continue
        bed = got[0]
        wide, deep = (float(v) for v in models[bed.index].size_m[:2])
        table = f.choose("bedside table")
        for sign in (-1, 1):
            if table is not None and rng.random() < 0.85:
                size = models[table].size_m
                place = sign * (wide / 2 + size[0] / 2 + rng.uniform(0.03, 0.12))
                small = f.beside(table, bed, place, -deep / 2 + size[1] / 2, 0.0)
                f.on_top(small, ("lamp",), 1)
                f.on_top(small, ("desk thing", "bedroom thing", "kitchen thing", "thing"), int(rng.integers(0, 3)))
        f.on_top(bed, ("toy", "bedroom thing"), int(rng.integers(0, 3)))
        rug(f, look, *turned(bed.yaw, 0, deep * 0.3) + [bed.x, bed.y], bed.yaw)
    stocked(f, f.choose("wardrobe"), ())
    for _ in range(int(rng.integers(1, 4))):
        kinds = ["cabinet", "bookcase", "armchair", "plant", "wardrobe", "tv stand", "big thing", "clothes basket"]
        kind = rng.choice(kinds, p=[0.25, 0.2, 0.1, 0.1, 0.12, 0.08, 0.1, 0.05])
        stocked(f, f.choose(str(kind), fits=stands), ("toy", "bedroom thing", "thing", "lamp", "vase"))
    if rng.random() < 0.6:
        workplace(f, ("chair", "office chair", "stool"))
    for _ in range(int(rng.integers(0, 4))):
        on_floor(f, ("toy", "bedroom thing"))


def _kitchen(f: Furnisher, look: Look) -> None:
    rng, models = f.rng, f.catalogue.models
    authors = {models[i].author for i in f.catalogue.of("lower cabinet")}
    author = str(rng.choice(sorted(authors))) if authors else ""
    sides = list(rng.permutation(list(SIDES)))[: 2 if rng.random() < 0.5 else 1]
    wanted = ["fridge", "lower cabinet", "kitchen sink", "lower cabinet", "stove", "lower cabinet", "washing machine",
              "lower cabinet", "lower cabinet", "lower cabinet"]  # fmt: skip
    if rng.random() < 0.5:
        wanted[1:3] = wanted[2:0:-1]
    for side in sides:
        length, at, hung = f.wall_of(side)[3], 0.0, None
        while wanted and at < length - 0.4:
            index = f.choose(wanted[0], fits=lambda m: m.author == author) if rng.random() < 0.85 else None
            index = f.choose(wanted[0]) if index is None else index
            wide = float(models[index].size_m[0]) if index is not None else 9.0
            start = -length / 2 + at + 0.01
            got = f.along_wall(index, [side], start + wide / 2, tries=1) if at + wide < length else None
            if not got:
                at += 0.1
                if index is None or at + wide >= length:
                    break
                continue
            role = wanted.pop(0)
            at += wide + 0.004
            if role in ("lower cabinet", "kitchen sink", "washing machine"):
                things = ("kitchen thing", "kitchen thing", "vase", "plant")
                f.on_top(got[0], things, int(rng.integers(0, 4)))
            if role == "lower cabinet" and rng.random() < 0.15:
                f.on_top(got[0], ("cooktop",), 1, turn=0.0, whole=True)
            if role not in ("fridge", "stove") and rng.random() < 0.8:
                hung = f.choose("upper cabinet", fits=lambda m: m.author == author) if hung is None else hung
                if hung is not None:
                    f.along_wall(hung, [side], got[2], tries=1, z=1.45)
            elif role == "stove":
                f.along_wall(f.choose("hood"), [side], got[2], tries=1, z=1.6)
    dining(f, look)
    for _ in range(int(rng.integers(0, 3))):
        index = f.choose("dustbin", "freezer", "bookcase", "cabinet", "plant", fits=stands)
        stocked(f, index, ("kitchen thing", "vase"))


def _office(f: Furnisher, look: Look) -> None:
    rng, area = f.rng, f.rect[2] * f.rect[3]
    for _ in range(max(1, int(rng.uniform(0.08, 0.2) * area))):
        workplace(f, ("office chair", "office chair", "chair"))
    for _ in range(int(rng.integers(2, 6))):
        kinds = ["bookcase", "filing cabinet", "cabinet", "plant", "white board", "water cooler", "dustbin"]
        kind = rng.choice(kinds, p=[0.3, 0.2, 0.12, 0.14, 0.1, 0.06, 0.08])
        stocked(f, f.choose(str(kind), fits=stands), ("desk thing", "thing", "plant", "vase", "big thing"))
    if area > 16 and rng.random() < 0.6:
        dining(f, look, ("desk thing", "screen", "kitchen thing"), ("table", "desk"))


def _bathroom(f: Furnisher, look: Look) -> None:
    rng = f.rng
    got = f.along_wall(f.choose("bath", "bath", "shower"), tries=30)
    if got and rng.random() < 0.6:
        mat = f.choose("bathmat")
        deep = float(f.catalogue.models[got[0].index].size_m[1])
        f.beside(mat, got[0], 0.0, deep / 2 + 0.35, 0.0, solid=False)
    for role in ("washbasin", "toilet", "towel rack", "washing machine", "clothes basket", "bidet", "dustbin"):
        if rng.random() < {"washbasin": 1.0, "toilet": 0.95, "towel rack": 0.8}.get(role, 0.4):
            index = f.choose(role)
            level = f.catalogue.models[index].level_m if index is not None else 0.0
            placed = f.along_wall(index, tries=20, z=level if role == "towel rack" else 0.0)
            if placed and role in ("washbasin", "washing machine"):
                f.on_top(placed[0], ("bath thing",), int(rng.integers(1, 5)))
    if got:
        f.on_top(got[0], ("bath thing",), int(rng.integers(0, 3)))


def _hallway(f: Furnisher, look: Look) -> None:
    rng = f.rng
    for _ in range(int(rng.integers(2, 5))):
        kind = rng.choice(["cabinet", "wardrobe", "plant", "bench", "big thing", "bookcase", "chair"])
        index = f.choose(str(kind), fits=lambda m: stands(m) and m.size_m[1] < 0.7)
        stocked(f, index, ("thing", "vase", "bedroom thing"))
    for _ in range(int(rng.integers(0, 4))):
        on_floor(f, ("bedroom thing", "big thing"))


PROGRAMS = {
    "living": _living,
    "bedroom": _bedroom,
    "kitchen": _kitchen,
    "office": _office,
    "bathroom": _bathroom,
    "hallway": _hallway,
}


def furnish(f: Furnisher, look: Look, room: Room) -> None:
    """All that stands and hangs in a room."""
    PROGRAMS[room.kind](f, look)
    hang_all(f, look, room)

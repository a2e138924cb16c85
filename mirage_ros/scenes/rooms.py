"""What each kind of room is furnished with, and what hangs in all of them."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.catalogue import Look
from mirage_ros.scenes.placing import OPPOSITE, SIDES, Furnisher, Room, turned


def _living(f: Furnisher, look: Look) -> None:
    rng, models = f.rng, f.catalogue.models
    sofa = f.choose("sofa", fits=lambda m: m.size_m[0] < min(f.rect[2], f.rect[3]) - 0.8)
    got = f.along_wall(sofa, tries=30)
    if got:
        placed, side, at = got
        deep = float(models[placed.index].size_m[1])
        low = f.beside(f.choose("coffee table"), placed, rng.uniform(-0.1, 0.1), deep / 2 + rng.uniform(0.6, 0.8), 0.0)
        f.on_top(low, ("thing", "vase", "desk thing", "kitchen thing", "plant", "tv"), int(rng.integers(1, 5)))
        _rug(f, look, *turned(placed.yaw, 0, deep / 2 + 0.6) + [placed.x, placed.y], placed.yaw)
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
        _stocked(f, f.choose(str(kind), fits=_stands), ("thing", "vase", "plant", "desk thing", "lamp", "toy"))
    if f.rect[2] * f.rect[3] > 18 and rng.random() < 0.7:
        _dining(f, look)


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
        _rug(f, look, *turned(bed.yaw, 0, deep * 0.3) + [bed.x, bed.y], bed.yaw)
    _stocked(f, f.choose("wardrobe"), ())
    for _ in range(int(rng.integers(1, 4))):
        kinds = ["cabinet", "bookcase", "armchair", "plant", "wardrobe", "tv stand", "big thing", "clothes basket"]
        kind = rng.choice(kinds, p=[0.25, 0.2, 0.1, 0.1, 0.12, 0.08, 0.1, 0.05])
        _stocked(f, f.choose(str(kind), fits=_stands), ("toy", "bedroom thing", "thing", "lamp", "vase"))
    if rng.random() < 0.6:
        _workplace(f, ("chair", "office chair", "stool"))
    for _ in range(int(rng.integers(0, 4))):
        _on_floor(f, ("toy", "bedroom thing"))


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
    _dining(f, look)
    for _ in range(int(rng.integers(0, 3))):
        index = f.choose("dustbin", "freezer", "bookcase", "cabinet", "plant", fits=_stands)
        _stocked(f, index, ("kitchen thing", "vase"))


def _office(f: Furnisher, look: Look) -> None:
    rng, area = f.rng, f.rect[2] * f.rect[3]
    for _ in range(max(1, int(rng.uniform(0.08, 0.2) * area))):
        _workplace(f, ("office chair", "office chair", "chair"))
    for _ in range(int(rng.integers(2, 6))):
        kinds = ["bookcase", "filing cabinet", "cabinet", "plant", "white board", "water cooler", "dustbin"]
        kind = rng.choice(kinds, p=[0.3, 0.2, 0.12, 0.14, 0.1, 0.06, 0.08])
        _stocked(f, f.choose(str(kind), fits=_stands), ("desk thing", "thing", "plant", "vase", "big thing"))
    if area > 16 and rng.random() < 0.6:
        _dining(f, look, ("desk thing", "screen", "kitchen thing"), ("table", "desk"))


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
        index = f.choose(str(kind), fits=lambda m: _stands(m) and m.size_m[1] < 0.7)
        _stocked(f, index, ("thing", "vase", "bedroom thing"))
    for _ in range(int(rng.integers(0, 4))):
        _on_floor(f, ("bedroom thing", "big thing"))


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
    _hang_all(f, look, room)


def _stands(model) -> bool:
    return model.placement == "floor"


def _stocked(f: Furnisher, index, things) -> None:
    """Something along a wall with things on its tops and boards."""
    got = f.along_wall(index, turn=f.rng.uniform(-0.02, 0.02))
    if got and things and f.rng.random() < 0.85:
        tops = f.catalogue.models[index].tops
        room = float(((tops[:, 1] - tops[:, 0]) * (tops[:, 3] - tops[:, 2])).sum())
        f.on_top(got[0], things, int(np.clip(f.rng.uniform(2, 8) * room, 1, 9)))


def _on_floor(f: Furnisher, roles) -> None:
    index = f.choose(*roles)
    x, y, wide, deep, _ = f.rect
    for _ in range(4 if index is not None else 0):
        spot = np.array([x, y]) + f.rng.uniform(-0.45, 0.45, 2) * (wide, deep)
        if f.put(index, *spot, f.rng.uniform(0, 6.28), room_m=0.05):
            return


def _workplace(f: Furnisher, chairs) -> None:
    """A desk at a wall, a chair before it, a screen and what lies about."""
    got = f.along_wall(f.choose("desk"), tries=20)
    if not got:
        return
    desk, rng, models = got[0], f.rng, f.catalogue.models
    chair = f.choose(*chairs)
    if chair is not None:
        gap = (models[desk.index].size_m[1] + models[chair].size_m[1]) / 2 + rng.uniform(0.03, 0.2)
        turn = np.pi + rng.normal(0, 0.25)
        f.beside(chair, desk, rng.uniform(-0.2, 0.2), gap + 0.08, turn)
    f.on_top(desk, ("screen",), 1 + (rng.random() < 0.3), turn=0.25)
    f.on_top(desk, ("lamp", "desk thing", "desk thing", "kitchen thing", "plant"), int(rng.integers(1, 6)))


def _dining(f: Furnisher, look: Look, things=("kitchen thing", "vase", "plant"), tables=("table",)) -> None:
    """A table with chairs around it."""
    rng, models = f.rng, f.catalogue.models
    room = f.rng.uniform(0.45, 0.7)
    index = f.choose(*tables, fits=lambda m: max(m.size_m[:2]) < min(f.rect[2:4]) - 1.2)
    table = f.free(index, room_m=room, margin_m=room)
    if table is None:
        return
    wide, deep, high = (float(v) for v in models[table.index].size_m)
    _rug(f, look, table.x, table.y, table.yaw, share=0.3)
    chair = f.choose("stool") if high > 0.9 else f.choose("chair")
    if chair is not None:
        size = models[chair].size_m
        for turn in (0.0, np.pi, np.pi / 2, -np.pi / 2):
            length, reach = (wide, deep) if turn in (0.0, np.pi) else (deep, wide)
            count = int(length / (size[0] + 0.12))
            for number in range(count):
                if rng.random() < 0.85:
                    along = (number + 0.5 - count / 2) * length / count + rng.normal(0, 0.02)
                    away = reach / 2 + size[1] / 2 + rng.uniform(0.01, 0.15)
                    x, y = turned(turn, along, -away)
                    f.beside(chair, table, x, y, turn + rng.normal(0, 0.06))
    f.on_top(table, things, int(rng.integers(1, 8)))


def _rug(f: Furnisher, look: Look, x, y, yaw, share=0.6) -> None:
    if f.rng.random() > share:
        return
    size = f.rng.uniform((1.2, 1.0), (2.4, 1.8))
    x0, y0, wide, deep, _ = f.rect
    half = np.abs([turned(yaw, *size), turned(yaw, size[0], -size[1])]).max(0) / 2
    if (np.abs(np.array([x - x0, y - y0])) + half > np.array([wide, deep]) / 2).any():
        return
    with f.b.at(x, y, yaw):
        cloth = look.w.fabric() if f.rng.random() < 0.6 else look.w.carpeting()
        f.b.box(cloth, (0, 0, 0.006), (*size, 0.012), solid=False, skip="b")


def _hang_all(f: Furnisher, look: Look, room: Room) -> None:
    """Pictures, clocks, radiators, lamps of the wall and the ceiling."""
    rng, w = f.rng, look.w
    for _ in range(int(rng.integers(0, 4 if room.kind in ("bathroom", "kitchen") else 8))):
        tall = rng.uniform(0.25, 0.9)
        f.hang(look.picture(), w.furniture(), tall * rng.uniform(0.7, 1.5), tall, rng.uniform(1.05, 1.5))
    if rng.random() < 0.4 and room.windows:
        side, left, right, bottom, _ = room.windows[rng.integers(len(room.windows))]
        radiator = f.choose("radiator", fits=lambda m: m.size_m[2] < bottom - 0.05)
        f.along_wall(radiator, [side], (left + right) / 2, tries=1, z=0.06)
    for role, chance in (("wall clock", 0.15), ("wall lamp", 0.2), ("wall unit", 0.1)):
        if rng.random() < chance:
            f.along_wall(f.choose(role), z=rng.uniform(1.5, 1.8), tries=4)
    lamp = f.choose("ceiling lamp", fits=lambda m: m.face_count < 3000)
    if lamp is not None and rng.random() < 0.75:
        x, y, _, _, high = f.rect
        size = f.catalogue.models[lamp].size_m
        if high - size[2] > 1.75:
            f.put(lamp, x, y, 0.0, high - float(size[2]) - 0.005)

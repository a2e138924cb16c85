"""Floor plans and rooms, and where models of a furniture cache go in them: never into each other; and what stands together,
as chairs around a table. `look` is a home's `catalogue.Look`: what covers it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mirage_ros.scenes.pictures import colour

DYED = ("sofa", "armchair", "chair", "stool", "bed", "cabinet", "wardrobe", "lower cabinet", "upper cabinet",
        "bookcase", "office chair", "table", "desk", "tv stand", "bedside table", "vase", "big thing", "desk thing",
        "coffee table")  # fmt: skip
# For each side of a rectangle: outward direction and the yaw that turns a thing's back to it.
SIDES = {
    "south": (np.array([0, -1.0]), 0.0),
    "north": (np.array([0, 1.0]), np.pi),
    "west": (np.array([-1.0, 0]), -np.pi / 2),
    "east": (np.array([1.0, 0]), np.pi / 2),
}
OPPOSITE = {"east": "west", "west": "east", "south": "north", "north": "south"}


@dataclass
class Layout:
    """What a floor plan tells the scene; lights are keyword arguments of MjSpec's add_light."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    lights: list[dict] = field(default_factory=list)
    ambient: np.ndarray = field(default_factory=lambda: np.full(3, 0.4))
    points_of_interest: list = field(default_factory=list)
    has_sky: bool = False
    taken: list[tuple[float, float, float]] = field(default_factory=list)
    hung: list[tuple[float, float, float]] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)


@dataclass(frozen=True)
class Placed:
    """A model of the furniture cache where it stands.

    Attributes:
        index: in the catalogue.
        x, y, z, yaw: of its origin, its lowest point.
        low, high: (3,) corners of the upright box around it.
        on: what it stands on; None is the floor, a wall or the ceiling.
    """

    index: int
    x: float
    y: float
    z: float
    yaw: float
    low: np.ndarray
    high: np.ndarray
    on: Placed | None = None


@dataclass
class Room:
    """One room of a home: `rect` is x, y, wide, deep, high; `outer` the sides that face the open."""

    kind: str
    rect: tuple[float, float, float, float, float]
    outer: tuple[str, ...]
    doors: list = field(default_factory=list)  # (side, place, wide, high, leaf)
    windows: list = field(default_factory=list)  # (side, from, to, bottom, top)


def panel(b, picture, frame, broad, tall, level, thick=0.03):
    """A framed picture standing out of the wall at the local y = 0, facing +y."""
    b.box(frame, (0, thick / 2, level + tall / 2), (broad, thick, tall), solid=False)
    edge = 0.04
    corner = (broad / 2 - edge, thick + 0.004, level + tall - edge)
    b.quad(picture, corner, (-(broad - 2 * edge), 0, 0), (0, 0, -(tall - 2 * edge)))


def turned(yaw: float, x: float, y: float) -> np.ndarray:
    """A local point in the axes that `yaw` turns away from."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([c * x - s * y, s * x + c * y])


class Furnisher:
    """Puts models of a catalogue into one room, never into each other, walls, doors or windows.

    Attributes:
        rect: x, y, wide, deep, high of the room.
        blocked: (low, high) boxes that nothing may enter: what stands, doors' swings, windows.
        faces_left: how many triangles may still be drawn.
        tints: colours that models and suites of them are dyed in, shared by the rooms of a home.
    """

    def __init__(self, builder, catalogue, layout, rect, rng, faces_left: int, tints: dict) -> None:
        self.b, self.catalogue, self.layout, self.rng, self.tints = builder, catalogue, layout, rng, tints
        self.rect, self.faces_left = rect, faces_left
        self.blocked: list[tuple[np.ndarray, np.ndarray, Placed | None]] = []

    def wall_of(self, side: str) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Middle of a wall's inner face, the direction along it, its yaw and its length."""
        x, y, wide, deep, _ = self.rect
        outward, yaw = SIDES[side]
        flat = side in ("south", "north")
        middle = np.array([x, y]) + outward * (deep if flat else wide) / 2
        return middle, np.array([np.cos(yaw), np.sin(yaw)]), yaw, wide if flat else deep

    def block_wall(self, side, left, right, bottom, top, deep) -> None:
        """Keeps what is before a part of a wall free, `deep` metres into the room."""
        middle, along, yaw, _ = self.wall_of(side)
        corners = np.array([middle + along * place + turned(yaw, 0, y)
                            for place in (left, right) for y in (-0.3, deep)])  # fmt: skip
        self.blocked.append((np.append(corners.min(0), bottom), np.append(corners.max(0), top), None))

    def choose(self, *roles: str, fits=None) -> int | None:
        """A random model of some roles that is light enough; `fits` takes a model."""
        models = self.catalogue.models
        found = [i for i in self.catalogue.of(*roles) if models[i].face_count <= self.faces_left]
        found = [i for i in found if fits is None or fits(models[i])]
        return found[self.rng.integers(len(found))] if found else None

    def put(self, index, x, y, yaw, z=0.0, on: Placed | None = None, room_m=0.0, solid=True) -> Placed | None:
        """The model where it is wanted, or nothing if it would not be free there."""
        model = self.catalogue.models[index]
        wide, deep, high = (float(v) for v in model.size_m)
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        half = np.array([c * wide + s * deep, s * wide + c * deep]) / 2
        low, top = np.array([x - half[0], y - half[1], z]), np.array([x + half[0], y + half[1], z + high])
        if model.face_count > self.faces_left or not self._inside(low, top):
            return None
        for other_low, other_high, owner in self.blocked:
            spare = np.array([room_m, room_m, 0.0])
            free = (low >= other_high - 0.002 + spare) | (top <= other_low + 0.002 - spare)
            if not free.any() and (owner is None or owner is not on):
                return None
        self.faces_left -= model.face_count
        with self.b.at(x, y, yaw, z):
            self.catalogue.draw(self.b, index, solid=solid, tint=self._tint(index))
        placed = Placed(index, float(x), float(y), float(z), float(yaw), low, top, on)
        self.layout.placed.append(placed)
        self.blocked.append((low, top, placed))
        if high > 0.3:
            self.layout.points_of_interest.append((x, y, z + min(high, 1.4) * 0.7))
        return placed

    def _tint(self, index: int) -> np.ndarray:
        """What a model's colours are multiplied with: most furniture of the cache is white or beech."""
        role = self.catalogue.models[index].role
        key = "kitchen" if role in ("lower cabinet", "upper cabinet", "kitchen sink") else index
        if key not in self.tints:
            dyed = role in DYED and self.rng.random() < 0.6
            rgb = colour(self.rng, self.rng.uniform(0.2, 0.95)) / 255
            self.tints[key] = 0.35 + 0.65 * rgb / max(rgb.mean(), 0.45) if dyed else np.ones(3)
        return self.tints[key]

    def _inside(self, low, high) -> bool:
        x, y, wide, deep, tall = self.rect
        edge = np.array([wide, deep]) / 2
        return bool((low[:2] >= [x, y] - edge).all() and (high[:2] <= [x, y] + edge).all() and high[2] < tall - 0.004)

    def along_wall(self, index, sides=None, place=None, tries=12, z=0.0, turn=0.0) -> tuple[Placed, str, float] | None:
        """With its back to a wall, in a corner more often than by chance; also the side and the place."""
        if index is None:
            return None
        wide, deep, high = self.catalogue.models[index].size_m
        for _ in range(tries):
            side = str(self.rng.choice(sides or list(SIDES)))
            middle, along, yaw, length = self.wall_of(side)
            spare = length / 2 - wide / 2 - 0.02
            if spare < 0:
                continue
            at = self.rng.uniform(-spare, spare) if place is None else place
            if place is None and self.rng.random() < 0.3:
                at = spare * self.rng.choice([-1, 1])
            spot = middle + along * at + turned(yaw, 0, deep / 2 + 0.02)
            placed = self.put(index, *spot, yaw + turn, z)
            if placed:
                return placed, side, at
        return None

    def beside(self, index, other: Placed, x: float, y: float, turn: float, **more) -> Placed | None:
        """At a place in another one's own axes."""
        if index is None:
            return None
        spot = np.array([other.x, other.y]) + turned(other.yaw, x, y)
        return self.put(index, *spot, other.yaw + turn, **more)

    def free(self, index, margin_m=0.5, tries=25, room_m=0.55) -> Placed | None:
        """Free-standing with an aisle around it."""
        if index is None:
            return None
        x, y, wide, deep, _ = self.rect
        reach = max(self.catalogue.models[index].size_m[:2]) / 2 + margin_m
        spare = np.maximum([wide / 2 - reach, deep / 2 - reach], 0)
        for _ in range(tries):
            spot = np.array([x, y]) + self.rng.uniform(-spare, spare)
            turn = self.rng.choice([0, 1, 2, 3]) * np.pi / 2
            placed = self.put(index, *spot, turn, room_m=room_m)
            if placed:
                return placed
        return None

    def on_top(self, other: Placed | None, roles, count: int, turn=0.5, whole=False) -> list[Placed]:
        """Up to `count` things of some roles on another one's tops; `whole`: in the middle of the widest."""
        made: list[Placed] = []
        if other is None:
            return made
        tops = self.catalogue.models[other.index].tops
        areas = (tops[:, 1] - tops[:, 0]) * (tops[:, 3] - tops[:, 2])
        for _ in range(4 * count if len(tops) else 0):
            if len(made) >= count:
                break
            pick = int(areas.argmax()) if whole else self.rng.choice(len(tops), p=areas / areas.sum())
            x0, x1, y0, y1, level, clear = (float(v) for v in tops[pick])
            # A twentieth more, as tops are measured on a grid.
            def fits(m, wide=1.05 * (x1 - x0), deep=1.05 * (y1 - y0), tall=clear):
                return m.size_m[0] < wide and m.size_m[1] < deep and m.size_m[2] < tall - 0.02

            index = self.choose(*roles, fits=fits)
            if index is None:
                continue
            size = self.catalogue.models[index].size_m
            yaw = float(np.clip(self.rng.normal(0, turn), -1.2, 1.2)) if turn else 0.0
            c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
            spare = np.array([x1 - x0 - c * size[0] - s * size[1], y1 - y0 - s * size[0] - c * size[1]]) / 2
            at = self.rng.uniform(-1, 1, 2) * np.maximum(spare, 0) * (not whole)
            if (spare < -0.03).any():
                continue
            placed = self.beside(index, other, (x0 + x1) / 2 + at[0], (y0 + y1) / 2 + at[1], yaw,
                                 z=other.z + level + 0.001, on=other)  # fmt: skip
            made += [placed] if placed else []
        return made

    def hang(self, picture, frame, broad, tall, level, tries=10, sides=None) -> None:
        """A framed picture on a free part of a wall."""
        for _ in range(tries):
            side = str(self.rng.choice(sides or list(SIDES)))
            middle, along, yaw, length = self.wall_of(side)
            if length < broad + 0.3:
                continue
            spot = middle + along * self.rng.uniform(-1, 1) * (length - broad - 0.2) / 2
            ends = np.array([spot + turned(yaw, x, y) for x in (-broad / 2, broad / 2) for y in (0.0, 0.05)])
            low, high = np.append(ends.min(0), level), np.append(ends.max(0), level + tall)
            clash = any(((low < h + 0.04) & (high > o - 0.04)).all() for o, h, _ in self.blocked)
            if clash or high[2] > self.rect[4] - 0.1:
                continue
            with self.b.at(*spot, yaw):
                panel(self.b, picture, frame, broad, tall, level)
            self.blocked.append((low, high, None))
            self.layout.points_of_interest.append((*spot, level + tall / 2))
            return


def stands(model) -> bool:
    return model.placement == "floor"


def stocked(f: Furnisher, index, things) -> None:
    """Something along a wall with things on its tops and boards."""
    got = f.along_wall(index, turn=f.rng.uniform(-0.02, 0.02))
    if got and things and f.rng.random() < 0.85:
        tops = f.catalogue.models[index].tops
        room = float(((tops[:, 1] - tops[:, 0]) * (tops[:, 3] - tops[:, 2])).sum())
        f.on_top(got[0], things, int(np.clip(f.rng.uniform(2, 8) * room, 1, 9)))


def on_floor(f: Furnisher, roles) -> None:
    index = f.choose(*roles)
    x, y, wide, deep, _ = f.rect
    for _ in range(4 if index is not None else 0):
        spot = np.array([x, y]) + f.rng.uniform(-0.45, 0.45, 2) * (wide, deep)
        if f.put(index, *spot, f.rng.uniform(0, 6.28), room_m=0.05):
            return


def workplace(f: Furnisher, chairs) -> None:
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


def dining(f: Furnisher, look, things=("kitchen thing", "vase", "plant"), tables=("table",)) -> None:
    """A table with chairs around it."""
    rng, models = f.rng, f.catalogue.models
    room = f.rng.uniform(0.45, 0.7)
    index = f.choose(*tables, fits=lambda m: max(m.size_m[:2]) < min(f.rect[2:4]) - 1.2)
    table = f.free(index, room_m=room, margin_m=room)
    if table is None:
        return
    wide, deep, high = (float(v) for v in models[table.index].size_m)
    rug(f, look, table.x, table.y, table.yaw, share=0.3)
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


def rug(f: Furnisher, look, x, y, yaw, share=0.6) -> None:
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


def hang_all(f: Furnisher, look, room: Room) -> None:
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

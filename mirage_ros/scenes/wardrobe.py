"""The materials of one scene: a few textures for each role, drawn when first asked for."""

from __future__ import annotations

import numpy as np

from mirage_ros.scenes.builder import Material
from mirage_ros.scenes.noise import colour
from mirage_ros.scenes.textures import make_texture

# role: (texture kinds, how many different ones at most, tile width range in metres)
ROLES = {
    "floor": (("wood", "wood", "tiles", "carpet", "checker", "concrete", "marble", "stripes", "noise",
               "fabric", "rings"), 3, (1.2, 2.6)),
    "ground": (("grass", "gravel", "concrete", "tiles", "brick", "panels"), 2, (1.5, 3.0)),
    "ceiling": (("plaster", "panels", "concrete", "tiles", "wood", "plaster"), 2, (1.5, 3.0)),
    "wall": (("brick", "plaster", "stripes", "panels", "wood", "tiles", "concrete", "noise",
              "rings", "marble", "fabric", "plaster", "plaster", "plaster"), 4, (1.2, 3.0)),
    "structure": (("concrete", "brick", "marble", "wood", "panels"), 2, (1.0, 2.0)),
    "furniture": (("wood", "wood", "marble", "noise", "plaster", "panels", "stripes"), 4,
                  (0.6, 1.4)),
    "fabric": (("fabric", "stripes", "carpet", "noise", "checker", "rings"), 2, (0.5, 1.2)),
    "accent": (("noise", "stripes", "checker", "tiles", "gradient", "rings", "poster", "text",
                "marble"), 6, (0.25, 0.8)),
    "crate": (("wood", "text", "poster", "panels", "noise", "stripes"), 5, (0.0, 0.0)),
    "leaves": (("grass", "grass", "grass", "noise"), 2, (0.5, 1.0)),
    "books": (("books",), 3, (0.0, 0.0)),
    "picture": (("poster", "text", "poster", "gradient", "noise"), 7, (0.0, 0.0)),
    "window": (("window",), 2, (0.0, 0.0)),
    "door": (("door",), 2, (0.0, 0.0)),
    "paint": (("plaster", "plaster", "plaster", "plaster", "noise", "fabric", "stripes", "rings"), 6, (1.5, 3.0)),
    "parquet": (("wood", "wood", "wood", "wood", "tiles"), 3, (1.2, 2.2)),
    "carpeting": (("carpet", "carpet", "fabric", "wood"), 3, (1.5, 3.0)),
    "foliage": (("grass",), 2, (0.5, 1.0)),
    "wall_tiles": (("tiles", "tiles", "tiles", "checker", "marble"), 3, (0.6, 1.5)),
    "floor_tiles": (("tiles", "tiles", "checker", "concrete", "marble"), 3, (0.9, 2.0)),
    "frame": (("plaster", "plaster", "wood"), 2, (1.0, 2.0)),
}  # fmt: skip

HOME_WALLS, HOME_FLOORS = ("paint", "wall_tiles", "frame"), ("parquet", "carpeting", "floor_tiles")
BIG = ("floor", "ground", "wall", "ceiling", "paint", "wall_tiles", *HOME_FLOORS)


class Wardrobe:
    """Hands out `Material`s by role; deterministic by its generator."""

    def __init__(self, rng: np.random.Generator, texture_px: int = 256) -> None:
        self.rng = rng
        self.texture_px = texture_px
        self._made: dict[str, list[Material]] = {}
        # Most real rooms are muted and share a tint; some are as gaudy as the textures come.
        self._mute = rng.uniform(0.35, 0.9) if rng.random() < 0.85 else 0.0
        self._tint = 1 + 0.25 * (colour(rng, 0.6) / 255 - 0.6)

    def pick(self, role: str) -> Material:
        """One of the scene's materials of a role; a new one while there are few."""
        kinds, most, tile = ROLES[role]
        made = self._made.setdefault(role, [])
        if len(made) < most and self.rng.random() < 1.2 - len(made) / most:
            made.append(self._make(role, kinds, tile, len(made)))
            return made[-1]
        return made[self.rng.integers(len(made))]

    def _make(self, role, kinds, tile, number) -> Material:
        kind = str(self.rng.choice(kinds))
        size = self.texture_px // (1 if role in BIG else 2)
        picture = make_texture(self.rng, kind, (size, size))
        if role in BIG or role in ("structure", "furniture"):
            picture = _softened(picture, self._contrast() * (0.5 if role == "paint" else 1.0))
        if role == "frame":
            picture = _softened(picture, 0.12)
        if role in ("ground", "leaves"):
            picture = self._muted(picture, max(self._mute, 0.45 if kind == "grass" else 0.65))
        elif role in (*HOME_WALLS, *HOME_FLOORS):
            picture = self._muted(picture, max(self._mute, self.rng.uniform(0.3, 0.9)))
        elif role == "foliage":
            picture = self._muted(picture, self.rng.uniform(0, 0.3))
        elif role not in ("picture", "window", "books"):
            picture = self._muted(picture, self._mute * (1 if role in BIG else self.rng.random()))
        if role in ("wall", "ceiling", "floor"):
            picture = _lighter(picture, 100 if role == "floor" else 130)
        if role in HOME_WALLS:
            picture = _lighter(picture, self.rng.uniform(140, 215))
        if role in HOME_FLOORS:
            picture = _lighter(picture, self.rng.uniform(75, 150))
        emission = {"window": 0.6}.get(role, 0.0)
        specular = float(self.rng.choice([0.0, 0.05, 0.15]))
        return Material(f"{role}{number}", picture, self.rng.uniform(*tile), specular, emission)

    def _contrast(self) -> float:
        """Paint, planks and stone mostly keep to shades of one colour; a few are bold."""
        return self.rng.uniform(0.12, 0.5) if self.rng.random() < 0.85 else self.rng.uniform(0.5, 1)

    def _muted(self, picture: np.ndarray, amount: float) -> np.ndarray:
        """Part of the way to grey in the scene's tint."""
        grey = picture.mean(-1, keepdims=True) * self._tint
        return np.clip(picture * (1 - amount) + grey * amount, 0, 255).astype(np.uint8)

    def _plain(self, name: str, rgb, emission: float = 0.0) -> Material:
        made = self._made.setdefault(name, [])
        if not made:
            picture = np.full((16, 16, 3), np.clip(rgb, 0, 255), np.uint8)
            made.append(Material(name, picture, 1.0, 0.1, emission))
        return made[0]

    def dark(self) -> Material:
        return self._plain("dark", colour(self.rng, 0.95) * 0.3)

    def glow(self) -> Material:
        return self._plain("glow", 0.25 * colour(self.rng, 0.8) + 190, 0.9)

    def __getattr__(self, role: str):
        if role not in ROLES:
            raise AttributeError(role)
        return lambda: self.pick(role)


def _softened(picture: np.ndarray, contrast: float) -> np.ndarray:
    """The texture with its deviations from its mean colour scaled by `contrast`."""
    mean = picture.mean((0, 1), keepdims=True)
    return np.clip(mean + contrast * (picture - mean), 0, 255).astype(np.uint8)


def _lighter(picture: np.ndarray, least_mean: float) -> np.ndarray:
    """Lifts a dark texture so that a room does not swallow its own light."""
    mean = float(picture.mean())
    if mean >= least_mean:
        return picture
    share = (least_mean - mean) / (255 - mean)
    return (picture + (255.0 - picture) * share).astype(np.uint8)

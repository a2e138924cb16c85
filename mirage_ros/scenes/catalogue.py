"""A cache of real furniture: models with colours, sizes, tops to put things on, licences and authors.

The models are those of Sweet Home 3D (Debian's `sweethome3d-furniture`), wall coverings and wall pictures those of
`miniworld` (PyPI). Nothing of either is part of this project: `scenes/sweethome.py` makes the cache from them once.
Scenes use it where they are given one; without it they are what they were.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.files import write_file
from mirage_ros.scenes.builder import Builder, Material, MaterialSet
from mirage_ros.scenes.pictures import colour

VERSION = 1
PLACEMENTS = ("floor", "wall", "top", "ceiling")


@dataclass(frozen=True)
class Part:
    """Triangles of one texture, in metres: x to the right, front at +y, z up, standing on z = 0.

    Attributes:
        vertices, normals: (n, 3) float32.
        texcoords: (n, 2) float32, v down.
        faces: (m, 3) int32.
        picture: (h, w, 3) uint8.
        emission: in [0, 1]; shades of lamps glow.
    """

    vertices: np.ndarray
    normals: np.ndarray
    texcoords: np.ndarray
    faces: np.ndarray
    picture: np.ndarray
    emission: float = 0.0


@dataclass(frozen=True)
class Model:
    """A piece of furniture or a thing.

    Attributes:
        name, category: of its own catalogue.
        role: what scenes use it as, such as "sofa"; `sweethome.ROLES` has them all.
        placement: one of `PLACEMENTS`.
        size_m: (3,) width, depth, height.
        level_m: height of its lowest point above the floor where it hangs on a wall.
        tops: (k, 6) free rectangles on it: x0, x1, y0, y1, z and the clear height above, metres.
        licence, author, source: for the credits.
    """

    name: str
    category: str
    role: str
    placement: str
    size_m: np.ndarray
    level_m: float
    tops: np.ndarray
    licence: str
    author: str
    source: str
    parts: tuple[Part, ...]

    @property
    def face_count(self) -> int:
        return sum(len(part.faces) for part in self.parts)


@dataclass(frozen=True)
class Surface:
    """A covering of floors, walls or ceilings, or a picture to hang; (h, w, 3) uint8."""

    name: str
    role: str
    picture: np.ndarray
    licence: str
    author: str
    source: str


@dataclass(frozen=True)
class Catalogue:
    """All that scenes may be furnished with."""

    models: tuple[Model, ...]
    surfaces: tuple[Surface, ...] = ()
    _by_role: dict[str, list[int]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for index, model in enumerate(self.models):
            self._by_role.setdefault(model.role, []).append(index)

    def of(self, *roles: str) -> list[int]:
        """Indices of the models of some roles."""
        return [index for role in roles for index in self._by_role.get(role, ())]

    def covering(self, role: str) -> list[Surface]:
        return [surface for surface in self.surfaces if surface.role == role]

    def draw(self, builder: Builder, index: int, *, solid: bool = True, tint=(1.0, 1.0, 1.0)) -> None:
        """A model standing at the builder's local origin, its back towards -y; one tint for each model and scene."""
        model = self.models[index]
        for number, part in enumerate(model.parts):
            picture = np.clip(part.picture * np.asarray(tint), 0, 255).astype(np.uint8)
            paint = Material(f"model{index}_{number}", picture, 1.0, 0.05, part.emission)
            builder.mesh(paint, part.vertices, part.normals, part.texcoords, part.faces)
        if solid:
            builder.solid((0, 0, model.size_m[2] / 2), model.size_m)

    def summary(self) -> str:
        """How many models there are, by licence, and how many surfaces."""
        licences = Counter(model.licence for model in self.models)
        counted = ", ".join(f"{count} {licence}" for licence, count in sorted(licences.items()))
        return f"{len(self.models)} models: {counted}; {len(self.surfaces)} surfaces"

    def credits(self) -> str:
        """One line a licence, author and source with what is used of them, for the model card."""
        used: dict[tuple[str, str, str], list[str]] = {}
        for thing in (*self.models, *self.surfaces):
            used.setdefault((thing.licence, thing.author, thing.source), []).append(thing.name)
        lines = []
        for (licence, author, source), names in sorted(used.items()):
            counted = Counter(names)
            listed = ", ".join(n if c == 1 else f"{n} ({c})" for n, c in sorted(counted.items()))
            lines.append(f"- {author} ({licence}, {source}): {listed}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes everything into one npz file; it is there whole or not at all."""
        texts, packed, pictures = [], [], []
        for model in self.models:
            about = {key: getattr(model, key) for key in _TEXTS}
            about |= {"level_m": model.level_m, "size_m": list(map(float, model.size_m)),
                      "tops": np.asarray(model.tops).reshape(-1, 6).tolist(), "parts": []}  # fmt: skip
            for part in model.parts:
                about["parts"].append(
                    [len(part.vertices), len(part.faces), len(pictures), part.emission]
                )
                packed.append((part, model.size_m))
                pictures.append(part.picture)
            texts.append(about)
        covers = []
        for surface in self.surfaces:
            covers.append({k: getattr(surface, k) for k in _COVER_TEXTS} | {"picture": len(pictures)})
            pictures.append(surface.picture)
        about = json.dumps({"version": VERSION, "models": texts, "surfaces": covers})
        arrays = _pack(packed) | {
            "about": np.frombuffer(about.encode(), np.uint8),
            "picture_sizes": np.array([p.shape[:2] for p in pictures], np.int32).reshape(-1, 2),
            "pictures": np.concatenate([np.zeros(0, np.uint8), *[p.ravel() for p in pictures]]),
        }
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_file(path, file.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Catalogue:
        """Reads what `save` wrote.

        Raises:
            MirageError: no such file, or one of another version.
        """
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays["about"].tobytes())
        except (OSError, KeyError, ValueError) as error:
            raise MirageError(
                f"The furniture cache {path} cannot be read ({error}); "
                "make it with `mirage data furniture`."
            ) from error
        if about["version"] != VERSION:
            raise MirageError(
                f"The furniture cache {path} has version {about['version']} and version {VERSION} "
                "is needed; make it again with `mirage data furniture`."
            )
        sizes = arrays["picture_sizes"]
        ends = np.cumsum(sizes.prod(1) * 3)[:-1]
        flat = np.split(arrays["pictures"], ends) if len(sizes) else []
        pictures = [p.reshape(*size, 3) for p, size in zip(flat, sizes, strict=True)]
        unpack = _Unpacker(arrays)
        models = []
        for text in about["models"]:
            size = np.array(text["size_m"], np.float32)
            parts = [
                replace(unpack(count, faces, size), picture=pictures[number], emission=emission)
                for count, faces, number, emission in text.pop("parts")
            ]
            tops = np.array(text.pop("tops"), np.float32).reshape(-1, 6)
            models.append(Model(**(text | {"size_m": size}), tops=tops, parts=tuple(parts)))
        surfaces = [
            Surface(**(text | {"picture": pictures[text["picture"]]})) for text in about["surfaces"]
        ]
        return cls(tuple(models), tuple(surfaces))


class Look:
    """What covers a home: a cache's coverings now and then, the material set's otherwise."""

    def __init__(self, w: MaterialSet, catalogue: Catalogue, rng) -> None:
        self.w, self.catalogue, self.rng = w, catalogue, rng

    def cover(self, role: str, other: str, share: float) -> Material:
        found = self.catalogue.covering(role)
        if found and self.rng.random() < share:
            chosen = found[self.rng.integers(len(found))]
            tint = 1 + self.rng.uniform(0, 0.25) * (colour(self.rng, 0.7) / 255 - 0.6)
            light = np.clip(chosen.picture.astype(np.float32) * tint * self.rng.uniform(0.85, 1.2), 0, 255)
            return Material(f"{role}_{chosen.name}", light.astype(np.uint8), self.rng.uniform(1.2, 2.4))
        return self.w.pick(other)

    def door(self) -> Material:
        """White mostly, of wood now and then, of any colour seldom."""
        picture, style = self.w.door().picture.astype(np.float32), self.rng.random()
        if style < 0.85:
            grey = picture.mean(-1, keepdims=True) / max(float(picture.mean()), 1.0)
            white, wood = np.full(3, self.rng.uniform(195, 240)), self.rng.uniform((120, 75, 40), (190, 140, 95))
            base = white if style < 0.5 else wood
            picture = np.clip((0.4 + 0.6 * grey) * base, 0, 255)
        return Material("home_door", picture.astype(np.uint8), 0.0)

    def picture(self) -> Material:
        found = self.catalogue.covering("picture")
        if found and self.rng.random() < 0.5:
            chosen = found[self.rng.integers(len(found))]
            return Material(f"picture_{chosen.name}", chosen.picture, 0.0)
        return self.w.picture()


_TEXTS = ("name", "category", "role", "placement", "licence", "author", "source")
_COVER_TEXTS = ("name", "role", "licence", "author", "source")
_STEPS = 65535


def _pack(parts) -> dict[str, np.ndarray]:
    """Places in 16 bits of the model's own box, normals in 8, texture coordinates as they are."""
    def joined(arrays, kind, width):
        return np.concatenate([np.zeros((0, width), kind), *arrays])

    places = [
        np.round((p.vertices / size + [0.5, 0.5, 0]) * _STEPS).clip(0, _STEPS).astype(np.uint16)
        for p, size in parts
    ]
    return {
        "vertices": joined(places, np.uint16, 3),
        "normals": joined([np.round(p.normals * 127).astype(np.int8) for p, _ in parts], np.int8, 3),
        "texcoords": joined([p.texcoords.astype(np.float32) for p, _ in parts], np.float32, 2),
        "faces": joined([p.faces.astype(np.int32) for p, _ in parts], np.int32, 3),
    }


class _Unpacker:
    """Hands out the packed parts in their order."""

    def __init__(self, arrays) -> None:
        self._arrays, self._vertex, self._face = arrays, 0, 0

    def __call__(self, count: int, faces: int, size: np.ndarray) -> Part:
        rows = slice(self._vertex, self._vertex + count)
        triangles = slice(self._face, self._face + faces)
        self._vertex, self._face = rows.stop, triangles.stop
        places = self._arrays["vertices"][rows].astype(np.float32) / _STEPS - (0.5, 0.5, 0)
        normals = self._arrays["normals"][rows].astype(np.float32)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        return Part((places * size).astype(np.float32), normals, self._arrays["texcoords"][rows],
                    self._arrays["faces"][triangles], np.zeros((1, 1, 3), np.uint8))  # fmt: skip

"""Collects textured surfaces and solid boxes into a MuJoCo model, and hands out a scene's materials.

Surfaces of one material are merged into one mesh with its own texture
coordinates: texel density is the same everywhere and few draws are needed.
Lighting is computed at vertices, so big faces are cut into small quads.

A `MaterialSet` holds a few textures for each role, made when first asked for.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from mirage_ros.scenes.gl import mujoco
from mirage_ros.scenes.pictures import colour, lighter, softened
from mirage_ros.scenes.textures import make_texture


@dataclass(frozen=True)
class Material:
    """A texture and how it is laid.

    Attributes:
        name: unique in its scene.
        picture: (h, w, 3) uint8.
        tile_m: width on the surface that one copy covers; 0 stretches it over each face.
        specular, emission: in [0, 1].
    """

    name: str
    picture: np.ndarray
    tile_m: float = 1.0
    specular: float = 0.05
    emission: float = 0.0


@dataclass
class _Mesh:
    vertices: list = field(default_factory=list)
    normals: list = field(default_factory=list)
    texcoords: list = field(default_factory=list)
    faces: list = field(default_factory=list)
    count: int = 0

    def add(self, vertices, normals, texcoords, faces) -> None:
        self.vertices.append(vertices)
        self.normals.append(normals)
        self.texcoords.append(texcoords)
        self.faces.append(faces + self.count)
        self.count += len(vertices)


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


# Faces of a box seen from outside: (normal, right, down) axes.
_BOX_FACES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, -1]],
        [[0, -1, 0], [1, 0, 0], [0, 0, -1]],
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
        [[0, 0, -1], [1, 0, 0], [0, 1, 0]],
    ],
    float,
)


# All 24 corners, face by face in the order of `_grid(1, 1)`, and what belongs to them.
_BOX_CORNERS = np.stack(
    [
        _BOX_FACES[:, 0] + v * _BOX_FACES[:, 2] + u * _BOX_FACES[:, 1]
        for v, u in ((-1, -1), (-1, 1), (1, -1), (1, 1))
    ],
    1,
)
_BOX_NORMALS = np.repeat(_BOX_FACES[:, None, 0], 4, 1)
_BOX_RIGHT, _BOX_DOWN = np.abs(_BOX_FACES[:, 1]), np.abs(_BOX_FACES[:, 2])


@lru_cache(maxsize=512)
def _grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(u, v) in [0, 1] of a grid's vertices and the triangles between them."""
    v, u = np.mgrid[: rows + 1, : columns + 1].reshape(2, -1) / np.array([[rows], [columns]])
    first = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
    below = first + columns + 1
    upper = np.stack([first, below + 1, first + 1], -1)
    return np.stack([u, v], -1), np.concatenate([np.stack([first, below, below + 1], -1), upper])


class Builder:
    """Surfaces by material and solids (for collision), in a movable local frame."""

    def __init__(self, cell_m: float = 0.6) -> None:
        self.cell_m = cell_m
        self.meshes: dict[str, _Mesh] = {}
        self.materials: dict[str, Material] = {}
        self.solids: list[tuple[np.ndarray, np.ndarray, float]] = []
        self._origin, self._angle = np.zeros(3), 0.0

    @contextmanager
    def at(self, x: float, y: float, yaw: float = 0.0, z: float = 0.0):
        """Within the block, coordinates are local to a frame at (x, y, z) turned by yaw."""
        before = self._origin, self._angle
        self._origin = self._origin + _yaw(self._angle) @ np.array([x, y, z])
        self._angle += yaw
        try:
            yield self
        finally:
            self._origin, self._angle = before

    def place(self, point) -> np.ndarray:
        """The world position of a local point."""
        return self._origin + _yaw(self._angle) @ np.asarray(point, float)

    def _emit(self, material: Material, vertices, normals, texcoords, faces) -> None:
        self.materials.setdefault(material.name, material)
        mesh = self.meshes.setdefault(material.name, _Mesh())
        if self._angle:
            rotation = _yaw(self._angle)
            vertices, normals = vertices @ rotation.T, normals @ rotation.T
        mesh.add(vertices + self._origin, normals, texcoords, faces)

    def mesh(self, material: Material, vertices, normals, texcoords, faces) -> None:
        """Triangles (m, 3) between (n, 3) vertices with their normals and (n, 2) coordinates, v down."""
        self._emit(material, vertices, normals, texcoords, faces)

    def quad(self, material: Material, corner, right, down, shift=(0.0, 0.0)) -> None:
        """A rectangle seen from its front: top-left corner, edge to the right, edge down."""
        corner, right, down = (np.asarray(a, float) for a in (corner, right, down))
        wide, high = float(np.sqrt(right @ right)), float(np.sqrt(down @ down))
        columns, rows = (int(np.clip(-(-s // self.cell_m), 1, 40)) for s in (wide, high))
        grid, faces = _grid(rows, columns)
        vertices = corner + grid[:, :1] * right + grid[:, 1:] * down
        (rx, ry, rz), (dx, dy, dz) = right, down
        normal = np.array([dy * rz - dz * ry, dz * rx - dx * rz, dx * ry - dy * rx])
        normals = np.broadcast_to(normal / (wide * high), vertices.shape)
        scale = (1, 1) if material.tile_m == 0 else (wide / material.tile_m, high / material.tile_m)
        self._emit(material, vertices, normals, grid * scale + shift, faces)

    def box(self, material, centre, size, *, solid=True, skip="", caps=None) -> None:
        """A box from its centre and full size. `skip` drops faces ('b' bottom, 't' top)."""
        centre, half = np.asarray(centre, float), np.asarray(size, float) / 2
        if caps is None and half.max() * 2 <= self.cell_m:
            self._small_box(material, centre, half, skip)
        else:
            for index, (normal, right, down) in enumerate(_BOX_FACES):
                if (index == 5 and "b" in skip) or (index == 4 and "t" in skip):
                    continue
                corner = centre + half * (normal - right - down)
                paint = caps if caps is not None and index >= 4 else material
                shift = (float(centre @ np.abs(right)), float(centre @ np.abs(down)))
                shift = (0.0, 0.0) if paint.tile_m == 0 else shift
                self.quad(paint, corner, 2 * half * right, 2 * half * down, shift)
        if solid:
            self.solid(centre, size)

    def _small_box(self, material, centre, half, skip) -> None:
        """The same without cutting faces, all at once."""
        keep = [
            i for i in range(6) if not (i == 5 and "b" in skip) and not (i == 4 and "t" in skip)
        ]
        grid, faces = _grid(1, 1)
        texcoords = np.broadcast_to(grid, (len(keep), 4, 2))
        if material.tile_m:
            reach = np.stack([_BOX_RIGHT[keep] @ half, _BOX_DOWN[keep] @ half], -1)[:, None]
            shift = np.stack([_BOX_RIGHT[keep] @ centre, _BOX_DOWN[keep] @ centre], -1)[:, None]
            texcoords = texcoords * 2 * reach / material.tile_m + shift
        vertices = (centre + half * _BOX_CORNERS[keep]).reshape(-1, 3)
        every = (4 * np.arange(len(keep))[:, None, None] + faces).reshape(-1, 3)
        self._emit(
            material, vertices, _BOX_NORMALS[keep].reshape(-1, 3), texcoords.reshape(-1, 2), every
        )

    def solid(self, centre, size) -> None:
        """Registers a box that cameras must keep away from, without drawing it."""
        half = np.asarray(size, float) / 2
        self.solids.append((self.place(centre), half, self._angle))

    def cylinder(self, material, base, radius, height, *, top_radius=None, solid=True) -> None:
        """An upright cylinder or cone from the centre of its base, with both caps."""
        top_radius = radius if top_radius is None else top_radius
        base = np.asarray(base, float)
        sides = 14 if radius < 0.1 else 24
        rows = int(np.clip(np.ceil(height / self.cell_m), 1, 20))
        turn = np.linspace(0, 2 * np.pi, sides + 1)
        v, angle = (
            a.ravel() for a in np.meshgrid(np.linspace(0, 1, rows + 1), turn, indexing="ij")
        )
        ring = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
        reach = (top_radius + (radius - top_radius) * v)[:, None]
        vertices = base + ring * reach + np.outer(1 - v, [0, 0, height])
        slope = (radius - top_radius) / height
        normals = (ring + [0, 0, slope]) / np.hypot(1, slope)
        around = 2 * np.pi * radius
        repeat = 1 if material.tile_m == 0 else max(1, round(around / material.tile_m))
        high = 1 if material.tile_m == 0 else height / material.tile_m
        texcoords = np.stack([angle / (2 * np.pi) * repeat, v * high], -1)
        self._emit(material, vertices, normals, texcoords, _grid(rows, sides)[1])
        self._cap(material, base + [0, 0, height], top_radius, sides, 1)
        self._cap(material, base, radius, sides, -1)
        if solid:
            wide = 2 * max(radius, top_radius)
            self.solid(base + [0, 0, height / 2], (wide, wide, height))

    def _cap(self, material, centre, radius, sides, sign) -> None:
        if radius < 1e-3:
            return
        turn = np.linspace(0, 2 * np.pi, sides, endpoint=False) * sign
        ring = np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], -1)
        vertices = np.concatenate([[centre], centre + radius * ring])
        normals = np.tile([0.0, 0, sign], (sides + 1, 1))
        scale = 2 * radius if material.tile_m == 0 else material.tile_m
        texcoords = 0.5 + (vertices - centre)[:, :2] / scale
        index = np.arange(sides)
        faces = np.stack([np.zeros(sides, int), 1 + index, 1 + (index + 1) % sides], -1)
        self._emit(material, vertices, normals, texcoords, faces)

    def ball(self, material, centre, radius, *, squash=1.0, solid=True) -> None:
        """A sphere, or an upright ellipsoid with `squash` as its relative height."""
        slices, stacks = 20, 12
        v, u = (a.ravel() for a in np.mgrid[: stacks + 1, : slices + 1].astype(float))
        polar, turn = v / stacks * np.pi, u / slices * 2 * np.pi
        unit = np.stack(
            [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1
        )
        normals = unit / [1, 1, squash]
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        vertices = np.asarray(centre) + radius * unit * [1, 1, squash]
        texcoords = np.stack([u / slices * 2, v / stacks], -1)
        lower, upper = np.split(_grid(stacks, slices)[1], 2)
        faces = np.concatenate([lower[:-slices], upper[slices:]])  # none of no area at the poles
        self._emit(material, vertices, normals, texcoords, faces)
        if solid:
            size = 2 * radius * np.array([1, 1, squash])
            self.solid(centre, size)

    def add_to(self, spec: mujoco.MjSpec, body, prefix: str, group: int) -> None:
        """Adds one mesh geom per material to a body of the spec, materials once."""
        for index, (name, mesh) in enumerate(self.meshes.items()):
            if spec.material(name) is None:
                _add_material(spec, self.materials[name])
            faces = np.concatenate(mesh.faces).astype(int).ravel()
            made = spec.add_mesh(name=f"{prefix}{index}")
            made.uservert = np.concatenate(mesh.vertices).ravel()
            made.usernormal = np.concatenate(mesh.normals).ravel()
            made.usertexcoord = np.concatenate(mesh.texcoords).ravel()
            made.userface = faces
            made.userfacenormal = faces
            made.userfacetexcoord = faces
            made.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_MESH,
                meshname=made.name,
                material=name,
                contype=0,
                conaffinity=0,
                group=group,
            )


def _add_material(spec: mujoco.MjSpec, material: Material) -> None:
    height, width = material.picture.shape[:2]
    texture = spec.add_texture(
        name=f"{material.name}_texture",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        width=width,
        height=height,
        nchannel=3,
    )
    texture.data = np.ascontiguousarray(material.picture).tobytes()
    made = spec.add_material(
        name=material.name,
        specular=material.specular,
        shininess=0.3,
        emission=material.emission,
    )
    made.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture.name


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


class MaterialSet:
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
            picture = softened(picture, self._contrast() * (0.5 if role == "paint" else 1.0))
        if role == "frame":
            picture = softened(picture, 0.12)
        if role in ("ground", "leaves"):
            picture = self._muted(picture, max(self._mute, 0.45 if kind == "grass" else 0.65))
        elif role in (*HOME_WALLS, *HOME_FLOORS):
            picture = self._muted(picture, max(self._mute, self.rng.uniform(0.3, 0.9)))
        elif role == "foliage":
            picture = self._muted(picture, self.rng.uniform(0, 0.3))
        elif role not in ("picture", "window", "books"):
            picture = self._muted(picture, self._mute * (1 if role in BIG else self.rng.random()))
        if role in ("wall", "ceiling", "floor"):
            picture = lighter(picture, 100 if role == "floor" else 130)
        if role in HOME_WALLS:
            picture = lighter(picture, self.rng.uniform(140, 215))
        if role in HOME_FLOORS:
            picture = lighter(picture, self.rng.uniform(75, 150))
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

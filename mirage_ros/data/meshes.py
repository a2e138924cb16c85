"""What entities are made of: primitive shapes and mesh files (OBJ, GLB, glTF, STL, PLY, DAE), read by trimesh.

A file is read only where spawnables may lie: with this package, in the share folders of ROS packages, and in the
folder that the user names. What a file refers to (materials, buffers, included files) has to lie there, too. How large a
file is, and how many triangles its scene draws, is known before any of it is unpacked. XML that declares
entities or a document type is refused unread.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, open_file, share_path, user_path
from mirage_ros.world.entities import LARGEST_M, EntityError, Mesh, check_triangles

MOST_BYTES = 64 * 2**20
MESHES = (".obj", ".glb", ".gltf", ".stl", ".ply", ".dae")
GREY = (190, 190, 190)
Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""glTF's axes, y up, to z up, as Blender and Gazebo read them."""
SHAPES = {
    "box": {"size": (1.0, 1.0, 1.0)},
    "sphere": {"radius": (0.5,)},
    "cylinder": {"radius": (0.5,), "length": (1.0,)},
    "capsule": {"radius": (0.25,), "length": (0.5,)},
    "plane": {"size": (1.0, 1.0)},
}
"""Primitive shapes with their measures, metres, as they are where none are given; the middle is the origin."""
SHAPE_SCHEME = "shape"


@dataclass(frozen=True)
class Spawnables:
    """Where models may lie.

    Attributes:
        folder: the user's own; None has none.
    """

    folder: Path | None = None

    def shipped(self) -> Path:
        return share_path("config", "spawnables")

    def check(self, path: Path) -> Path:
        """The path without symbolic links, if it lies in one of the places. Raises EntityError."""
        real = Path(os.path.realpath(path))
        roots = [self.shipped(), *_shares(), *([self.folder] if self.folder else [])]
        if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
            own = f"in {self.folder}" if self.folder else "in a folder that the parameter spawnables_folder names"
            raise EntityError(
                f"{path} lies outside of the folders that models are read from; put it {own}, or into a ROS package.",
                "not_allowed",
            )
        return real

    def path_of(self, uri: str) -> Path:
        """The file that a URI names: package://, file:// or a path.

        Raises EntityError where it may not be read.
        """
        parts = urlsplit(uri)
        if parts.scheme in ("package", "model"):
            if not parts.netloc or not parts.path.strip("/"):
                raise EntityError(f"{uri} names no file of a package; give package://NAME/PATH.", "parse")
            return self.check(_package(parts.netloc) / unquote(parts.path).lstrip("/"))
        try:
            path = user_path(uri)
        except MirageError as error:
            raise EntityError(str(error), "parse") from error
        return self.check(Path.cwd() / path)

    def files(self, endings: Sequence[str]) -> Iterator[Path]:
        """All models that come with the package and lie in the folder."""
        for root in [self.shipped(), *([self.folder] if self.folder else [])]:
            yield from (path for path in sorted(root.rglob("*")) if path.suffix.lower() in endings and path.is_file())


def _shares() -> list[Path]:
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    return [Path(prefix) / "share" for prefix in prefixes if prefix]


def _package(name: str) -> Path:
    """The share folder of a ROS package. Raises EntityError where there is none."""
    if name == "mirage_ros":
        return share_path("config").parent
    for share in _shares():
        if "/" not in name and name not in ("", ".", "..") and (share / name).is_dir():
            return share / name
    raise EntityError(f"There is no ROS package '{name}' here; install it, or give a file:// URI.", "missing_assets")


def shape(uri: str) -> Mesh:
    """A primitive such as shape://box?size=0.4,0.4,0.4&color=c8503c. Raises EntityError for what is none."""
    parts = urlsplit(uri)
    kind, given = parts.netloc or parts.path.strip("/"), parse_qs(parts.query, keep_blank_values=True)
    if kind not in SHAPES or not given.keys() <= {*SHAPES[kind], "color"}:
        usual = "; ".join(f"{name} with {' and '.join(known)}" for name, known in SHAPES.items())
        raise EntityError(f"{uri} is no shape; there are: {usual}; all take color=RRGGBB.", "parse")
    measures = {name: _numbers(uri, name, given, usual) for name, usual in SHAPES[kind].items()}
    return Mesh.of(*primitive(kind, measures), _colour(uri, given), f"The {kind}")


def box_mesh(bounds_m: Float[np.ndarray, "2 3"]) -> Mesh:
    """A grey box between two corners, where more of a body is not known."""
    vertices, faces = primitive("box", {"size": tuple(np.maximum(np.ptp(bounds_m, axis=0), 1e-3))})
    return Mesh.of(vertices + bounds_m.mean(0), faces, GREY, "The box")


def _numbers(uri: str, name: str, given: dict, usual: tuple) -> tuple[float, ...]:
    text = given.get(name, [",".join(map(str, usual))])[-1]
    try:
        values = tuple(float(value) for value in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != len(usual) or not all(0 < value <= LARGEST_M for value in values):
        raise EntityError(
            f"{uri} has {name}={text!r}; give {len(usual)} number{'s' * (len(usual) > 1)} above 0, "
            f"up to {LARGEST_M:g} m, with commas between.",
            "parse",
        )
    return values


def _colour(uri: str, given: dict) -> tuple[int, ...]:
    text = given.get("color", ["bebebe"])[-1].lstrip("#")
    try:
        return tuple(bytes.fromhex(text)[:3]) if len(text) == 6 else _fail()
    except ValueError:
        raise EntityError(f"{uri} has color={text!r}; give six hexadecimal digits, RRGGBB.", "parse") from None


def _fail():
    raise ValueError


def primitive(kind: str, measures: dict[str, tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of one of SHAPES."""
    create = _trimesh().creation
    if kind == "plane":
        x, y = (side / 2 for side in measures["size"])
        return np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]]), np.array([[0, 1, 2], [0, 2, 3]])
    if kind == "box":
        made = create.box(extents=measures["size"])
    elif kind == "sphere":
        made = create.icosphere(subdivisions=3, radius=measures["radius"][0])
    elif kind == "cylinder":
        made = create.cylinder(radius=measures["radius"][0], height=measures["length"][0], sections=32)
    else:
        made = create.capsule(radius=measures["radius"][0], height=measures["length"][0], count=[24, 24])
        made.apply_translation(-made.bounds.mean(0))
    return np.asarray(made.vertices), np.asarray(made.faces)


def _trimesh():
    try:
        return importlib.import_module("trimesh")
    except ImportError as error:
        raise EntityError("Entities need trimesh and it is not installed; pip install 'mirage_ros[entities]'.") from error


def read_bytes(path: Path) -> bytes:
    """All of a model's file. Raises EntityError where it is missing, empty, too large or no file."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise EntityError(
                f"{path} has {size / 2**20:,.0f} MiB, models of at most {MOST_BYTES // 2**20} are read; simplify it.",
                "unsupported_assets",
            )
        with open_file(path) as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise EntityError(f"{path} cannot be read ({error.strerror}); give a model's file.", "missing_assets") from error
    if not data:
        raise EntityError(f"{path} is empty; give a model's file.", "parse")
    return data


def check_xml(data: bytes, what: str) -> None:
    """Raises EntityError for what is no XML, or declares a document type: entities could unfold without end."""

    def refuse(*_) -> None:
        raise EntityError(f"{what} declares a document type, which may unfold without end; remove it.", "parse")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise EntityError(f"{what} is no whole XML ({error}); mend the file.", "parse") from error


def mesh_file(path: Path, spawnables: Spawnables) -> Mesh:
    """The mesh of a file that `Spawnables` allowed. Raises EntityError for one that cannot be drawn."""
    return Mesh.of(*triangles_of(path, spawnables), what=path.name)


def triangles_of(path: Path, spawnables: Spawnables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and the faces' colours of all that a file draws, z up, in metres."""
    data, kind = read_bytes(path), path.suffix.lower()
    if kind == ".dae":
        check_xml(data, path.name)
        _need_collada(path)
    scene = _scene(path, data, kind, spawnables)
    nodes = [(scene.geometry[name], node) for name, there in scene.graph.geometry_nodes.items() for node in there]
    nodes = [(mesh, node) for mesh, node in nodes if len(getattr(mesh, "faces", ()))]
    check_triangles(sum(len(mesh.faces) for mesh, _ in nodes), path.name)
    parts = [(mesh, scene.graph[node][0]) for mesh, node in nodes]
    vertices, faces, colours, count = [np.zeros((0, 3))], [np.zeros((0, 3), int)], [np.zeros((0, 3), np.uint8)], 0
    for mesh, place in parts:
        placed = np.asarray(mesh.vertices) @ place[:3, :3].T + place[:3, 3]
        turned = np.asarray(mesh.faces)[:, ::-1] if np.linalg.det(place[:3, :3]) < 0 else np.asarray(mesh.faces)
        vertices.append(placed)
        faces.append(turned + count)
        colours.append(_colours(mesh))
        count += len(placed)
    upright = _dae_axes(data) if kind == ".dae" else Y_UP if kind in (".glb", ".gltf") else np.eye(3)
    return np.concatenate(vertices) @ upright.T, np.concatenate(faces), np.concatenate(colours)


def _dae_axes(data: bytes) -> np.ndarray:
    """From a COLLADA file's axes and units to z up and metres."""
    asset = ElementTree.fromstring(data).find("{*}asset")
    up = (asset is not None and asset.findtext("{*}up_axis")) or "Y_UP"
    unit = None if asset is None else asset.find("{*}unit")
    metres = float(unit.get("meter", 1)) if unit is not None else 1.0
    turns = {"Y_UP": Y_UP, "X_UP": np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])}
    return metres * turns.get(up.strip(), np.eye(3))


def _scene(path: Path, data: bytes, kind: str, spawnables: Spawnables):
    trimesh, outside = _trimesh(), []

    class Beside(trimesh.resolvers.Resolver):
        """Files that a model names, where they may be read."""

        def __init__(self) -> None:
            pass

        def get(self, name: str) -> bytes:
            try:
                return read_bytes(spawnables.check(path.parent / unquote(name.strip())))
            except EntityError as error:
                outside.extend([error] if error.kind == "not_allowed" else [])
                raise FileNotFoundError(name) from error

        def keys(self) -> list[str]:
            return []

        def write(self, name: str, data) -> None:
            raise OSError("models are only read")

        def namespaced(self, namespace: str):
            return self

    beside = Beside()
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], resolver=beside, process=False)
    except Exception as error:  # noqa: BLE001 - trimesh and what it is built on raise whatever they like
        if outside:
            raise outside[0] from error
        missing = isinstance(error, FileNotFoundError)
        reason = f"it needs {error}, which is not there" if missing else f"{error!r:.100}"
        kind = "missing_assets" if missing else "parse"
        raise EntityError(f"{path.name} cannot be read ({reason}); mend the file.", kind) from error
    if outside:
        raise outside[0]
    return scene


def _need_collada(path: Path) -> None:
    try:
        importlib.import_module("collada")
    except ImportError as error:
        raise EntityError(
            f"{path.name} needs pycollada and it is not installed; pip install 'mirage_ros[entities]'.",
            "unsupported_format",
        ) from error


def _colours(mesh) -> np.ndarray:
    """A colour for each face, from whatever the file gives: face or vertex colours, a texture, a material."""
    visual, count = mesh.visual, len(mesh.faces)
    try:
        if visual.kind == "texture":
            material = visual.material
            if visual.uv is None or getattr(material, "image", getattr(material, "baseColorTexture", None)) is None:
                return np.broadcast_to(np.asarray(material.main_color, np.uint8)[:3], (count, 3))
            visual = visual.to_color()
        if visual.kind == "face":
            return np.asarray(visual.face_colors, np.uint8)[:, :3]
        if visual.kind == "vertex":
            return np.asarray(visual.vertex_colors)[:, :3][np.asarray(mesh.faces)].mean(1).astype(np.uint8)
    except (*UNREADABLE, IndexError, OSError):
        pass  # colours are the least of a model
    return np.broadcast_to(np.array(GREY, np.uint8), (count, 3))


def description_of(uri: str, name: str, spawnables: Spawnables) -> str:
    """URDF of a robot that looks like a model: one link, base_link, whose axes are the model's; of URDF itself that."""
    if urlsplit(uri).path.lower().endswith(".urdf"):
        return read_bytes(spawnables.path_of(uri)).decode(errors="replace")
    if urlsplit(uri).scheme == SHAPE_SCHEME:
        low, high = (" ".join(f"{v:g}" for v in corner) for corner in (lambda b: (b.mean(0), np.ptp(b, axis=0)))(shape(uri).bounds_m))
        drawn = f'<origin xyz="{low}"/><geometry><box size="{high}"/></geometry>'
    else:
        found = uri if urlsplit(uri).scheme == "package" else spawnables.path_of(uri).as_uri()
        drawn = f"<geometry><mesh filename={quoteattr(found)}/></geometry>"
    return f'<?xml version="1.0"?>\n<robot name={quoteattr(name)}><link name="base_link"><visual>{drawn}</visual></link></robot>\n'


def stamp_of(uri: str, spawnables: Spawnables) -> tuple:
    """Changes when the file that a URI names does; () for one that names none."""
    try:
        found = spawnables.path_of(uri).stat() if uri and urlsplit(uri).scheme != SHAPE_SCHEME else None
    except (OSError, MirageError, ValueError):
        return ()
    return () if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def load(uri: str, spawnables: Spawnables) -> tuple[str, Mesh]:
    """A model's own name and its mesh. EntityError for what cannot be drawn.

    Args:
        uri: shape://box?size=..., package://, file:// or a path.
    """
    try:
        return _loaded(uri, spawnables)
    except ValueError as error:  # of urllib and of names that no file may have
        raise EntityError(f"'{uri:.100}' names no model ({error}); give a uri, such as shape://box.", "parse") from error


def _loaded(uri: str, spawnables: Spawnables) -> tuple[str, Mesh]:
    if not uri:
        raise EntityError("No model was named; give a uri, such as shape://box.", "no_resource")
    if urlsplit(uri).scheme == SHAPE_SCHEME:
        return urlsplit(uri).netloc, shape(uri)
    path = spawnables.path_of(uri)
    if path.suffix.lower() not in MESHES:
        raise EntityError(f"{path} is no model that can be read; give one of {', '.join(MESHES)}.", "unsupported_format")
    return "", mesh_file(path, spawnables)

"""Models with joints: URDF, read by yourdfpy, and MJCF, read by MuJoCo. What is drawn of them, and how it stands when joints move.

Their meshes are read as all models are (meshes.py): where models may lie, of bounded size, counted before they are put together.
Neither reader opens a file: each gets the bytes of those that were let through.
"""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float
from transforms3d.axangles import axangle2mat

from mirage_ros.data.meshes import GREY, MESHES, SHAPE_SCHEME, Spawnables, check_xml, load, mesh_file, primitive, read_bytes
from mirage_ros.errors import MirageError
from mirage_ros.world.entities import EntityError, Mesh, check_triangles

JOINTED = (".urdf", ".xml", ".mjcf")
MODELS = (*MESHES, ".urdf", ".mjcf")
MOST_PARTS = 1000
SHOWN_GROUPS = 3
"""MuJoCo shows groups 0 to 2; the others are what collides."""
Pose = Float[np.ndarray, "4 4"]


@dataclass(frozen=True, eq=False)
class Model:
    """A model that can be spawned.

    Attributes:
        name: its own; '' has none.
        mesh: with all joints at zero.
        joints: names of those that move; `posed` gives its mesh with some of them elsewhere (rad, m), the others at zero.
    """

    name: str
    mesh: Mesh
    joints: tuple[str, ...] = ()
    posed: Callable[[Mapping[str, float]], Mesh] | None = None


def read_model(uri: str, spawnables: Spawnables, text: str = "") -> Model:
    """A shape, a mesh file, URDF or MJCF. EntityError for what cannot be drawn.

    Args:
        text: URDF or MJCF itself, in place of a uri; its files have to be named by package:// or file://.
    """
    if text:
        return _jointed(text.encode(), "The model", None, spawnables)
    try:
        jointed = bool(uri) and urlsplit(uri).scheme != SHAPE_SCHEME and urlsplit(uri).path.lower().endswith(JOINTED)
        if not jointed:
            return Model(*load(uri, spawnables))
        path = spawnables.path_of(uri)
        return _jointed(read_bytes(path), path.name, path, spawnables)
    except ValueError as error:  # of urllib and of names that no file may have
        raise EntityError(f"'{uri:.100}' names no model ({error}); give a uri, such as shape://box.", "parse") from error


def _jointed(data: bytes, what: str, path: Path | None, spawnables: Spawnables) -> Model:
    check_xml(data, what)
    kind = ElementTree.fromstring(data).tag
    readers = {"robot": _urdf, "mujoco": _mjcf}
    if kind not in readers:
        raise EntityError(f"{what} is XML of '{kind:.50}', neither URDF (robot) nor MJCF (mujoco); give one of these.", "unsupported_format")
    try:
        return readers[kind](data, what, path, spawnables)
    except MirageError:
        raise
    except ImportError as error:
        extra = "physics" if error.name == "mujoco" else "entities"
        raise EntityError(f"{what} needs {error.name} and it is not installed; pip install 'mirage_ros[{extra}]'.", "unsupported_format") from error
    except Exception as error:  # noqa: BLE001 - the readers raise whatever they like
        raise EntityError(f"{what} cannot be read ({' '.join(str(error).split())!r:.150}); mend the file.", "parse") from error


def _found(name: str, path: Path | None, folder: str, spawnables: Spawnables) -> Path:
    """The file that a model names, where it may be read."""
    if urlsplit(name).scheme in ("package", "model", "file") or name.startswith("/"):
        return spawnables.path_of(name)
    if path is None:
        raise EntityError(f"The model names the file {name:.100}, which a text lies beside nowhere; name it by package:// or file://.", "missing_assets")
    return spawnables.check(path.parent / folder / name)


def joined(parts: Sequence[Mesh], poses: Sequence[Pose]) -> Mesh:
    """One mesh of several, each placed."""
    if not parts:
        raise EntityError("The model draws nothing; give one with visible geometry.", "parse")
    starts = np.cumsum([0, *(len(part.vertices_m) for part in parts)])
    placed = [part.vertices_m @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32) for part, pose in zip(parts, poses, strict=True)]
    return Mesh(
        np.concatenate(placed).astype(np.float32),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)]).astype(np.int32),
        np.concatenate([part.normals @ pose[:3, :3].T.astype(np.float32) for part, pose in zip(parts, poses, strict=True)]),
        np.concatenate([part.colours for part in parts]),
        all(part.closed for part in parts),
    )


def _checked(name: str, links: Sequence[tuple[Any, Mesh]], place: Callable[[Mapping[str, float]], Sequence[Pose]], joints: Sequence[str]) -> Model:
    """A model whose parts lie where `place` says for the joints' positions."""
    meshes = [mesh for _, mesh in links]
    known = frozenset(joints)

    def posed(positions: Mapping[str, float]) -> Mesh:
        unknown = sorted(positions.keys() - known)
        if unknown:
            there = ", ".join(sorted(known)[:20]) or "none"
            raise EntityError(f"'{name}' has no joint {', '.join(unknown):.200} that moves; there are: {there}.", "not_found")
        if not np.isfinite(list(positions.values())).all():
            raise EntityError(f"A joint of '{name}' was to stand at NaN or infinity; give finite numbers.", "pose")
        return joined(meshes, place(positions))

    at_zero = posed({})
    Mesh.of(at_zero.vertices_m, at_zero.faces, at_zero.colours, f"The model '{name}'")  # of a size that is drawn, and no NaN
    return Model(name, at_zero, tuple(joints), posed)


class _Parts:
    """Meshes of a model as they come, counted."""

    def __init__(self, what: str) -> None:
        self.found: list[tuple[Any, Mesh]] = []
        self._what, self._triangles, self._files = what, 0, {}

    def add(self, where: Any, mesh: Mesh) -> None:
        self._triangles += len(mesh.faces)
        check_triangles(self._triangles, self._what)
        if len(self.found) >= MOST_PARTS:
            raise EntityError(f"{self._what} has more than {MOST_PARTS} visible parts; simplify it.", "unsupported_assets")
        self.found.append((where, mesh))

    def file(self, path: Path, spawnables: Spawnables) -> Mesh:
        if path not in self._files:
            self._files[path] = mesh_file(path, spawnables)
        return self._files[path]


def _urdf(data: bytes, what: str, path: Path | None, spawnables: Spawnables) -> Model:
    yourdfpy = importlib.import_module("yourdfpy")
    logging.getLogger("yourdfpy").setLevel(logging.CRITICAL)
    robot = yourdfpy.URDF.load(io.BytesIO(data), build_scene_graph=False, load_meshes=False).robot
    named = {material.name: material for material in robot.materials}
    parts = _Parts(what)
    for link in robot.links:
        for visual in link.visuals:
            material = named.get(getattr(visual.material, "name", None), visual.material)
            material = visual.material if getattr(visual.material, "color", None) is not None else material
            colour = GREY if getattr(material, "color", None) is None else (255 * np.clip(material.color.rgba[:3], 0, 1)).astype(np.uint8)
            mesh = _visual(visual.geometry, colour, path, parts, spawnables, what)
            if mesh is not None:
                origin = np.eye(4) if visual.origin is None else np.asarray(visual.origin, np.float64)
                parts.add((link.name, origin), mesh)
    order = _tree(robot, what)
    moving = [joint for joint in order if joint.type in ("revolute", "continuous", "prismatic")]

    def place(positions: Mapping[str, float]) -> list[Pose]:
        poses: dict[str, Pose] = {}
        for joint in order:
            parent = poses.setdefault(joint.parent, np.eye(4))  # a root has no joint
            poses[joint.child] = parent @ _motion(joint, positions)
        return [poses.get(link, np.eye(4)) @ origin for (link, origin), _ in parts.found]

    return _checked(str(robot.name or "robot"), parts.found, place, [joint.name for joint in moving if joint.mimic is None])


def _visual(geometry: Any, colour: Any, path: Path | None, parts: _Parts, spawnables: Spawnables, what: str) -> Mesh | None:
    if all(getattr(geometry, shape) is None for shape in ("box", "cylinder", "sphere", "mesh")):
        return None
    if geometry.box is not None:
        return Mesh.of(*primitive("box", {"size": tuple(geometry.box.size)}), colour, what)
    if geometry.cylinder is not None:
        measures = {"radius": (geometry.cylinder.radius,), "length": (geometry.cylinder.length,)}
        return Mesh.of(*primitive("cylinder", measures), colour, what)
    if geometry.sphere is not None:
        return Mesh.of(*primitive("sphere", {"radius": (geometry.sphere.radius,)}), colour, what)
    file = _found(geometry.mesh.filename, path, "", spawnables)
    mesh, scale = parts.file(file, spawnables), geometry.mesh.scale
    if scale is None and file.suffix.lower() != ".stl":
        return mesh
    scale = np.ones(3) if scale is None else np.broadcast_to(np.asarray(scale, np.float64), (3,))
    faces = mesh.faces if np.prod(scale) > 0 else mesh.faces[:, ::-1]
    return Mesh.of(mesh.vertices_m * scale, faces, colour if file.suffix.lower() == ".stl" else mesh.colours, what)


def _tree(robot: Any, what: str) -> list[Any]:
    """The joints, parents first. Raises EntityError where they make no tree."""
    links, children = {link.name for link in robot.links}, [joint.child for joint in robot.joints]
    waiting, reached, order = list(robot.joints), links - set(children), []
    while waiting:
        ready = [joint for joint in waiting if joint.parent in reached]
        if not ready or len(set(children)) < len(children):
            raise EntityError(f"{what} has links that hang on nothing, on themselves or on two joints; mend the file.", "parse")
        order, reached = order + ready, reached | {joint.child for joint in ready}
        waiting = [joint for joint in waiting if joint not in ready]
    return order


def _motion(joint: Any, positions: Mapping[str, float]) -> Pose:
    """parent_from_child."""
    pose = np.eye(4) if joint.origin is None else np.asarray(joint.origin, np.float64)
    name, scale, offset = joint.name, 1.0, 0.0
    if joint.mimic is not None:
        name, scale, offset = joint.mimic.joint, joint.mimic.multiplier or 1.0, joint.mimic.offset or 0.0
    value, axis = scale * positions.get(name, 0.0) + offset, np.array([1.0, 0, 0]) if joint.axis is None else np.asarray(joint.axis, np.float64)
    moved = np.eye(4)
    if joint.type in ("revolute", "continuous") and value:
        moved[:3, :3] = axangle2mat(axis, value)
    elif joint.type == "prismatic":
        moved[:3, 3] = axis / max(float(np.linalg.norm(axis)), 1e-9) * value
    return pose @ moved


def _mjcf(data: bytes, what: str, path: Path | None, spawnables: Spawnables) -> Model:
    mujoco = importlib.import_module("mujoco")
    included, assets = _assets(data, what, path, spawnables)
    model = mujoco.MjSpec.from_string(data.decode(), include=included, assets=assets).compile()
    parts, kinds = _Parts(what), mujoco.mjtGeom
    for geom in range(model.ngeom):
        if model.geom_group[geom] < SHOWN_GROUPS and (mesh := _geom(model, geom, kinds, what)) is not None:
            parts.add(geom, mesh)
    hinges = [int(kind) for kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)]
    address = {model.joint(joint).name: model.jnt_qposadr[joint] for joint in range(model.njnt) if int(model.jnt_type[joint]) in hinges}

    def place(positions: Mapping[str, float]) -> list[Pose]:
        state = mujoco.MjData(model)
        for name, value in positions.items():
            state.qpos[address[name]] = value
        mujoco.mj_kinematics(model, state)
        poses = np.broadcast_to(np.eye(4), (model.ngeom, 4, 4)).copy()
        poses[:, :3, :3], poses[:, :3, 3] = state.geom_xmat.reshape(-1, 3, 3), state.geom_xpos
        return [poses[geom] for geom, _ in parts.found]

    name = ElementTree.fromstring(data).get("model") or "model"
    return _checked(name, parts.found, place, [name for name in address if name])


def _assets(data: bytes, what: str, path: Path | None, spawnables: Spawnables) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The bytes of all files that MJCF names, included ones and theirs too; without them MuJoCo would open files itself."""
    included: dict[str, bytes] = {}
    assets: dict[str, bytes] = {}
    trees, waiting = [], [data]
    while waiting:
        tree = ElementTree.fromstring(waiting.pop())
        trees.append(tree)
        for element in tree.iter("include"):
            name = element.get("file", "")
            if name not in included:
                included[name] = read_bytes(_found(name, path, "", spawnables))
                check_xml(included[name], name)
                waiting.append(included[name])
            if len(included) > MOST_PARTS:
                raise EntityError(f"{what} includes more than {MOST_PARTS} files; simplify it.", "unsupported_assets")
    compilers = [compiler for tree in trees for compiler in tree.iter("compiler")]

    def folder(kind: str) -> str:
        names = [compiler.get(key) for compiler in compilers for key in ("assetdir", kind) if compiler.get(key) is not None]
        return names[-1] if names else ""

    for element in (element for tree in trees for element in tree.iter()):
        for key, name in element.attrib.items():
            if not key.startswith("file") or element.tag == "include":
                continue
            if element.tag not in ("mesh", "texture", "hfield"):
                raise EntityError(f"{what} has a {element.tag} of the file {name:.100}; only meshes, textures and height fields are read.", "unsupported_assets")
            inside = folder("texturedir" if element.tag == "texture" else "meshdir")
            file = _found(name, path, inside, spawnables)
            if element.tag == "mesh":
                mesh_file(file, spawnables)
            content = read_bytes(file)
            assets |= {name: content, f"{inside.rstrip('/')}/{name}" if inside else name: content}
    return included, assets


def _geom(model: Any, geom: int, kinds: Any, what: str) -> Mesh | None:
    """What is drawn of a geom in its own axes; None for planes, which are floors, and for height fields."""
    kind, size, rgba = kinds(int(model.geom_type[geom])), model.geom_size[geom], model.geom_rgba[geom]
    if model.geom_matid[geom] >= 0:
        rgba = model.mat_rgba[model.geom_matid[geom]]
    colour = (255 * np.clip(rgba[:3], 0, 1)).astype(np.uint8)
    if kind == kinds.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
        return Mesh.of(model.mesh_vert[vertices], model.mesh_face[faces], colour, what)
    made = {
        kinds.mjGEOM_BOX: lambda: primitive("box", {"size": tuple(2 * size)}),
        kinds.mjGEOM_SPHERE: lambda: primitive("sphere", {"radius": (size[0],)}),
        kinds.mjGEOM_CYLINDER: lambda: primitive("cylinder", {"radius": (size[0],), "length": (2 * size[1],)}),
        kinds.mjGEOM_CAPSULE: lambda: primitive("capsule", {"radius": (size[0],), "length": (2 * size[1],)}),
        kinds.mjGEOM_ELLIPSOID: lambda: (lambda shape: (shape[0] * size, shape[1]))(primitive("sphere", {"radius": (1.0,)})),
    }.get(kind)
    return None if made is None else Mesh.of(*made(), colour, what)

"""What a world remembers as models of other tools: textured meshes, colliders, MuJoCo models, nerfstudio folders.

A mesh's triangles that were imagined are an object of their own, so that they can be told apart, hidden or left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numba import njit

from mirage_ros.errors import MirageError
from mirage_ros.files import sync_folder, write_file, write_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory
from mirage_ros.protocol import Frame
from mirage_ros.recording.drawing import write_ply
from mirage_ros.recording.pictures import millimetres, write_png
from mirage_ros.recording.surface import Skin, Splats, Surface
from mirage_ros.world.world import World

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""From z up to glTF's axes."""

SPLAT = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
         "rot_0", "rot_1", "rot_2", "rot_3")  # fmt: skip
"""What viewers of 3D Gaussians read of a vertex, all float32 (Kerbl et al., 3D Gaussian Splatting, 2023)."""
CONSTANT_HARMONIC = 0.28209479177387814
OPACITY, SPREAD, THICKNESS = 0.98, 0.35, 0.05
"""Of a Gaussian: its standard deviation in sides of its cell, and its thickness in its longer one."""


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that takes the name `out` when the block ends; where it raises nothing stays.

    Raises MirageError where something is there already, or nothing can be.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise MirageError(f"{out} is there already; choose another folder, or remove it.")
    room = out.with_name(f".{out.name}.exporting")
    try:
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        yield room
        os.replace(room, out)
        sync_folder(out.parent)
    except OSError as error:
        raise MirageError(f"{out} cannot be written ({error.strerror}); choose a writable folder with free space.") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def shown_by(world: World, cameras: Camera, tick: Callable[[int], object] = lambda _: None) -> list[Frame]:
    """What a world shows to each of f cameras; the world stays as it is."""
    frames, each = [], world.model.chunk_frames
    for start in range(0, len(cameras), each):
        some = cameras[start : start + each]
        stamps = world.stamp_ns + 1 + np.arange(len(some), dtype=np.int64)
        frames += world.cycle.stepped(world.state, some, stamps)[1].frames
        tick(len(some))
    return frames


def _parts(surface: Surface, skin: Skin) -> dict[str, tuple[Surface, Float[np.ndarray, "m 3 2"]]]:
    """What real pictures showed and what was imagined, each with its corners in the texture; none that is empty."""
    chosen = {"real": surface.real, "imagined": ~surface.real}
    return {name: (surface.of(mask), skin.uv[mask]) for name, mask in chosen.items() if mask.any()}


def write_mesh(out: Path, surface: Surface, skin: Skin) -> None:
    """A textured mesh as .glb, or as .obj with its .mtl and .png beside it.

    Raises MirageError for other endings, or where trimesh is missing for .glb.
    """
    parts = _parts(surface, skin)
    if out.suffix == ".glb":
        write_file(out, _glb(parts, skin.picture))
    elif out.suffix == ".obj":
        write_file(out.with_suffix(".png"), _png(skin.picture))
        write_file(out.with_suffix(".mtl"), f"newmtl shown\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nmap_Kd {out.stem}.png\n")
        write_file(out, _obj(parts, f"mtllib {out.stem}.mtl\n"))
    else:
        raise MirageError(f"{out} does not end in .glb or .obj, the kinds of mesh that are written; rename it.")


def _png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def _obj(parts: dict, head: str = "") -> str:
    """Vertices are shared between triangles, places in the texture are each corner's own."""
    lines, points, corners = [f"# metres, z up\n{head}"], 1, 1
    for name, (part, uv) in parts.items():
        lines.append(f"o {name}\n" + ("usemtl shown\n" if head else ""))
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in part.vertices_m.tolist()]
        lines += [f"vt {u:.6f} {1 - v:.6f}\n" for u, v in uv.reshape(-1, 2).tolist()]
        places = (np.arange(3 * len(uv)) + corners).reshape(-1, 3)
        lines += [f"f {a}/{d} {b}/{e} {c}/{f}\n" for a, b, c, d, e, f in np.concatenate([part.faces + points, places], 1).tolist()]
        points, corners = points + len(part.vertices_m), corners + 3 * len(uv)
    return "".join(lines)


def _glb(parts: dict, picture: np.ndarray) -> bytes:
    """glTF's axes are y up; its vertices have one place in the texture each."""
    try:
        import trimesh
        from PIL import Image
        from trimesh.visual.material import PBRMaterial
    except ImportError as error:
        raise MirageError(f"A .glb needs the package trimesh ({error}); pip install 'mirage_ros[mesh]'.") from error
    material = PBRMaterial(name="shown", baseColorTexture=Image.fromarray(picture), metallicFactor=0.0, roughnessFactor=1.0)
    scene = trimesh.Scene()
    for name, (part, uv) in parts.items():
        rows = np.concatenate([part.faces[..., None], uv.view(np.int32).astype(np.int64)], -1).reshape(-1, 3)
        rows, number = np.unique(rows, axis=0, return_inverse=True)
        places = np.ascontiguousarray(rows[:, 1:].astype(np.int32)).view(np.float32)
        visual = trimesh.visual.TextureVisuals(uv=np.stack([places[:, 0], 1 - places[:, 1]], -1), material=material)
        mesh = trimesh.Trimesh(part.vertices_m[rows[:, 0]], number.reshape(-1, 3), visual=visual, process=False)
        scene.add_geometry(mesh.apply_transform(Y_UP), node_name=name, geom_name=name)
    return scene.export(file_type="glb")


def write_collider(out: Path, surface: Surface) -> None:
    """A plain mesh as .obj or .stl, z up."""
    if out.suffix == ".obj":
        lines = ["# metres, z up\no collider\n", *(f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in surface.vertices_m.tolist())]
        write_file(out, "".join([*lines, *(f"f {a} {b} {c}\n" for a, b, c in (surface.faces + 1).tolist())]))
    elif out.suffix == ".stl":
        triangles = np.zeros(len(surface.faces), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("none", "<u2")]))
        triangles["corners"] = surface.vertices_m[surface.faces]
        write_file(out, bytes(80), np.uint32(len(triangles)).tobytes(), triangles.tobytes())
    else:
        raise MirageError(f"{out} does not end in .obj or .stl, the kinds of collider that are written; rename it.")


def write_nerfstudio(
    out: Path, frames: Sequence[Frame], memory: LatentMemory, real: bool, tick: Callable[[int], object] = lambda _: None
) -> None:
    """A folder for nerfstudio: images/, depth/ (16-bit millimetres, 0 unknown), sparse_pc.ply, transforms.json.

    With `real`, masks/ as well: white where a real picture showed the pixel's surface, what is black is not trained on.
    """
    values = {"camera_model": "OPENCV", "depth_unit_scale_factor": 1e-3, "ply_file_path": "sparse_pc.ply", "frames": []}
    with new_folder(out) as folder:
        for name in ("images", "depth", *(["masks"] if real else [])):
            (folder / name).mkdir()
        write_ply(folder / "sparse_pc.ply", memory.to_points())
        for i, frame in enumerate(frames):
            name = f"frame_{i + 1:05d}.png"
            write_png(folder / "images" / name, frame.rgb[..., ::-1])
            write_png(folder / "depth" / name, millimetres(np.where(np.isinf(frame.depth_m), np.nan, frame.depth_m)))
            values["frames"].append(_nerfstudio_frame(frame.camera, name))
            if real:
                values["frames"][-1]["mask_path"] = f"masks/{name}"
                shown = memory.measure(Camera.stack([frame.camera]))[1][0]
                write_png(folder / "masks" / name, shown.astype(np.uint8) * 255)
            tick(1)
        write_json(folder / "transforms.json", values)


def _nerfstudio_frame(camera: Camera, name: str) -> dict:
    """Its pixels' edges stand at integers, ours their centres."""
    (height, width), k = camera.size, camera.intrinsics
    return {
        "file_path": f"images/{name}", "depth_file_path": f"depth/{name}", "w": width, "h": height,
        "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5,
        "transform_matrix": (camera.world_from_camera @ OPENGL_FROM_OPENCV).tolist(),
    }  # fmt: skip


FLOOR_BIN_M, LEVEL, FLOOR_SHARE = 0.05, 0.9, 0.2
"""The floor is the lowest height at which so much level surface lies, as a share of where most of it lies."""
THICKNESS_M = 0.05
"""Of a collider's pieces, behind the surface."""


def floor_m(surface: Surface) -> float:
    """z of the floor; the lowest vertex where nothing is level."""
    a, b, c = surface.vertices_m[surface.faces.T].astype(np.float64)
    normal = np.cross(b - a, c - a)
    area = 0.5 * np.linalg.norm(normal, axis=1)
    level = normal[:, 2] > LEVEL * 2 * area
    if not level.any():
        return float(surface.vertices_m[:, 2].min())
    height, area = ((a + b + c)[level, 2] / 3, area[level])
    bins = np.floor((height - height.min()) / FLOOR_BIN_M).astype(int)
    areas = np.bincount(bins, area, minlength=bins.max() + 2)
    areas = areas[:-1] + areas[1:]  # a floor may lie across a border
    lowest = int(np.argmax(areas >= FLOOR_SHARE * areas.max()))
    there = (bins == lowest) | (bins == lowest + 1)
    return float(np.average(height[there], weights=area[there]))


def write_mjcf(out: Path, surface: Surface, skin: Skin, collider: Surface, camera: Camera) -> None:
    """A folder with world.xml: the textured meshes to see, the collider to touch (a thin convex piece for each
    triangle: MuJoCo takes a mesh for its convex hull), a plane where the floor goes on, and a camera "start"."""
    parts = _parts(surface, skin)
    with new_folder(out) as folder:
        write_file(folder / "texture.png", _png(skin.picture))
        for name, part in parts.items():
            write_file(folder / f"{name}.obj", _obj({name: part}))
        write_file(folder / "world.xml", _mjcf(out.name, list(parts), collider, camera))


def _mjcf(name: str, parts: list[str], collider: Surface, camera: Camera) -> str:
    low, high = collider.vertices_m.min(0), collider.vertices_m.max(0)
    pieces = _prisms(collider)
    assets = [f'    <mesh name="{part}" file="{part}.obj" inertia="shell"/>' for part in parts]
    assets += [f'    <mesh name="piece{i}" vertex="{_numbers(piece)}"/>' for i, piece in enumerate(pieces)]
    geoms = [f'    <geom name="{part}" class="seen" mesh="{part}"/>' for part in parts]
    geoms += [f'    <geom class="touched" mesh="piece{i}"/>' for i in range(len(pieces))]
    pose, (height, _), k = camera.world_from_camera, camera.size, camera.intrinsics
    axes = np.concatenate([pose[:3, 0], -pose[:3, 1]])
    fovy = float(np.degrees(2 * np.arctan(height / 2 / k[1, 1])))
    return f"""<mujoco model={quoteattr(name)}>
  <!-- metres, z up; "real": what real pictures showed, "imagined": what they did not -->
  <option gravity="0 0 -9.81"/>
  <statistic center="{_numbers((low + high) / 2)}" extent="{np.linalg.norm(high - low):.4g}"/>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <default>
    <default class="seen"><geom type="mesh" material="shown" contype="0" conaffinity="0" group="1"/></default>
    <default class="touched"><geom type="mesh" group="3" rgba="0.3 0.7 0.6 0.5"/></default>
  </default>
  <asset>
    <texture name="shown" type="2d" file="texture.png"/>
    <material name="shown" texture="shown" specular="0" shininess="0"/>
{chr(10).join(assets)}
  </asset>
  <worldbody>
    <camera name="start" pos="{_numbers(pose[:3, 3])}" xyaxes="{_numbers(axes)}" fovy="{fovy:.4f}"/>
    <geom name="floor" type="plane" size="0 0 1" pos="0 0 {floor_m(collider):.4f}" group="3" rgba="0.3 0.7 0.6 0.5"/>
{chr(10).join(geoms)}
  </worldbody>
</mujoco>
"""


def _prisms(surface: Surface) -> Float[np.ndarray, "m 6 3"]:
    """Each triangle, and the same so far behind it."""
    corners = surface.vertices_m[surface.faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    sound = length > 1e-6
    behind = corners[sound] - THICKNESS_M * (normal[sound] / length[sound, None])[:, None]
    return np.concatenate([corners[sound], behind], 1)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in np.asarray(values, np.float64).reshape(-1))


FITTED_VIEWS, ROUNDS, EAGER, BLUR_PX2 = 8, 10, 1.5, 0.3
"""Colours are fitted to so many pictures, those that colour most Gaussians, in so many rounds, each so much of the way; readers
widen what they draw by this variance."""


def fitted(splats: Splats, cameras: Camera, pictures: UInt8[np.ndarray, "v h w 3"], shown: np.ndarray) -> Splats:
    """With colours that make a reader's drawing of them look like the pictures: blurred by its own rule and covered from the
    front, Gaussians in the pictures' own colours would be softer than these.

    A linear problem, solved by averages of what is missing (SIRT).
    """
    counts = np.bincount(splats.picture[splats.picture >= 0], minlength=len(pictures))
    chosen, rgb = np.argsort(-counts, kind="stable")[:FITTED_VIEWS], splats.rgb.astype(np.float64)
    drawn = [_projected(splats, cameras[int(i)]) for i in chosen]
    wanted = [np.where(shown[i][..., None], pictures[i].astype(np.float64), np.nan) for i in chosen]
    for _ in range(ROUNDS):
        pull, weight = np.zeros_like(rgb), np.zeros(len(rgb))
        for one, picture in zip(drawn, wanted, strict=True):
            sums, through = np.zeros(picture.shape), np.ones(picture.shape[:2])
            _draw(*one, rgb, sums, through, sums, pull, weight, False)
            missing = np.nan_to_num(picture * (1 - through)[..., None] - sums)
            _draw(*one, rgb, sums, np.ones(picture.shape[:2]), missing, pull, weight, True)
        moved = weight > 0.02
        rgb[moved] = np.clip(rgb[moved] + EAGER * pull[moved] / weight[moved, None], 0, 255)
    return splats._replace(rgb=np.rint(rgb).astype(np.uint8))


def _projected(splats: Splats, camera: Camera) -> tuple[np.ndarray, ...]:
    """Of Gaussians before a camera, from front to back, as readers draw them: numbers, middles (pixels), inverse covariances
    (a, b, c), and how far they reach (pixels)."""
    there, k = camera.camera_from_world, camera.intrinsics
    points = splats.xyz @ there[:3, :3].T + there[:3, 3]
    order = np.argsort(points[:, 2], kind="stable")
    order = order[points[order, 2] > 0.05]
    (x, y, z), zero = points[order].T, np.zeros(len(order))
    slope = np.stack([np.stack([k[0, 0] / z, zero, -k[0, 0] * x / z**2], -1), np.stack([zero, k[1, 1] / z, -k[1, 1] * y / z**2], -1)], 1)
    sides = SPREAD * splats.sides_m[order] @ there[:3, :3].T
    sides = np.einsum("nij,nkj->nki", slope, sides)  # each side's image
    wide = np.einsum("nki,nkj->nij", sides, sides) + BLUR_PX2 * np.eye(2)
    inverse = np.linalg.inv(wide)
    middle = np.stack([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]], -1)
    reach = 3 * np.sqrt(np.diagonal(wide, axis1=1, axis2=2))
    return order, middle, np.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1), reach


@njit(cache=True, nogil=True, error_model="numpy")
def _draw(order, middle, inverse, reach, rgb, sums, through, missing, pull, weight, back):
    """Adds to `sums` what each pixel shows, and takes from `through` what is seen through them; or, `back`, adds to `pull` and
    `weight` of each Gaussian what is missing where it shows."""
    height, width = through.shape
    for n in range(len(order)):
        u, v = middle[n]
        a, b, c = inverse[n]
        for row in range(max(0, int(np.ceil(v - reach[n, 1]))), min(height - 1, int(np.floor(v + reach[n, 1]))) + 1):
            for column in range(max(0, int(np.ceil(u - reach[n, 0]))), min(width - 1, int(np.floor(u + reach[n, 0]))) + 1):
                dx, dy = column - u, row - v
                share = OPACITY * np.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy))
                seen = through[row, column] * share
                through[row, column] -= seen
                for k in range(3):
                    if back:
                        pull[order[n], k] += seen * missing[row, column, k]
                    else:
                        sums[row, column, k] += seen * rgb[order[n], k]
                if back:
                    weight[order[n]] += seen


def write_splats(out: Path, splats: Splats) -> None:
    """3D Gaussians as binary PLY; all or nothing."""
    normals, sides = splats.normals.astype(np.float64), splats.sides_m.astype(np.float64)
    # The turn of least angle from z to the normal, wxyz, and where it brings x and y.
    turn = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0]], -1)
    turn[turn[:, 0] < 1e-6] = (0, 1, 0)
    w, x, y = (turn / np.linalg.norm(turn, axis=-1, keepdims=True)).T
    basis = np.stack([np.stack([1 - 2 * y * y, 2 * x * y, -2 * w * y], -1), np.stack([2 * x * y, 1 - 2 * x * x, 2 * w * x], -1)], 1)
    flat = np.einsum("nki,nbi->nkb", sides, basis)
    (a, b), (_, c) = np.einsum("nkb,nkc->bcn", flat, flat)
    angle, middle, half = 0.5 * np.arctan2(2 * b, a - c), (a + c) / 2, np.hypot((a - c) / 2, b)
    wide = SPREAD * np.sqrt(np.maximum(np.stack([middle + half, middle - half], -1), 1e-12))
    cosine, sine = np.cos(angle / 2), np.sin(angle / 2)
    values = np.concatenate([
        splats.xyz, normals, (splats.rgb / 255 - 0.5) / CONSTANT_HARMONIC,
        np.full((len(normals), 1), np.log(OPACITY / (1 - OPACITY))), np.log(wide), np.log(THICKNESS * wide[:, :1]),
        np.stack([w * cosine, x * cosine + y * sine, y * cosine - x * sine, w * sine], -1),
    ], -1).astype("<f4")  # fmt: skip
    lines = ["ply", "format binary_little_endian 1.0", "comment metres, z up", f"element vertex {len(values)}"]
    lines += [f"property float {name}" for name in SPLAT]
    write_file(out, "\n".join([*lines, "end_header", ""]).encode(), np.ascontiguousarray(values).view(np.uint8).data)

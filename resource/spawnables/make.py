"""Makes the models in config/spawnables, of primitive shapes alone: python resource/spawnables/make.py

They stand on z = 0 and look along x. What this script makes is CC0 1.0, as the script is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from trimesh.creation import box, capsule, cylinder, icosphere
from trimesh.transformations import rotation_matrix

FOLDER = Path(__file__).resolve().parents[2] / "config" / "spawnables"
WOOD, DARK, RED, SKIN, SHIRT, TROUSERS, WHITE, BLUE = (
    (168, 116, 70), (60, 58, 56), (200, 62, 48), (205, 160, 130), (74, 110, 160), (70, 74, 90), (225, 225, 220),
    (60, 120, 190),
)  # fmt: skip
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def part(mesh, colour, at=(0, 0, 0), axis=None, angle=0.0):
    """A copy of a shape, turned about an axis and put somewhere."""
    mesh = mesh.copy()
    if axis is not None:
        mesh.apply_transform(rotation_matrix(angle, axis))
    mesh.apply_translation(at)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=(*colour, 255))
    return mesh


def limb(start, end, radius, colour):
    """A capsule between two points."""
    start, end = np.array(start, float), np.array(end, float)
    length = np.linalg.norm(end - start)
    mesh = capsule(radius=radius, height=length, count=[12, 12])
    mesh.apply_translation([0, 0, -mesh.bounds.mean(0)[2]])
    mesh.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], (end - start) / length))
    return part(mesh, colour, (start + end) / 2)


def chair():
    legs = [part(box(extents=(0.04, 0.04, 0.44)), WOOD, (x, y, 0.22)) for x in (-0.19, 0.19) for y in (-0.19, 0.19)]
    posts = [part(box(extents=(0.04, 0.04, 0.46)), WOOD, (-0.19, y, 0.69)) for y in (-0.19, 0.19)]
    slats = [part(box(extents=(0.025, 0.36, 0.07)), WOOD, (-0.19, 0, z)) for z in (0.62, 0.74, 0.87)]
    return [*legs, *posts, *slats, part(box(extents=(0.44, 0.44, 0.04)), RED, (0, 0, 0.46))]


def carton():
    tape = part(box(extents=(0.402, 0.06, 0.402)), (205, 185, 150), (0, 0, 0.2))
    return [part(box(extents=(0.4, 0.4, 0.4)), (176, 132, 84), (0, 0, 0.2)), tape]


def ball():
    mesh = icosphere(subdivisions=3, radius=0.12)
    mesh.apply_translation((0, 0, 0.12))
    sectors = np.floor(np.arctan2(*mesh.triangles_center[:, 1::-1].T) / (np.pi / 3)).astype(int) % 2
    mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=np.array([(*WHITE, 255), (*BLUE, 255)])[sectors])
    return [mesh]


def mannequin():
    """A person of 1.75 m who stands."""
    body = [
        limb((0, 0, 0.98), (0, 0, 1.30), 0.13, SHIRT),
        limb((0, 0.09, 1.36), (0, -0.09, 1.36), 0.075, SHIRT),
        limb((0, 0, 1.42), (0.005, 0, 1.52), 0.05, SKIN),
        part(icosphere(subdivisions=2, radius=0.115), SKIN, (0.01, 0, 1.635)),
    ]
    for side in (-1, 1):
        body += [
            limb((0, 0.09 * side, 0.93), (0, 0.1 * side, 0.5), 0.075, TROUSERS),
            limb((0, 0.1 * side, 0.5), (-0.01, 0.1 * side, 0.1), 0.055, TROUSERS),
            part(box(extents=(0.26, 0.09, 0.07)), DARK, (0.05, 0.1 * side, 0.035)),
            limb((0, 0.2 * side, 1.36), (0, 0.24 * side, 1.08), 0.045, SHIRT),
            limb((0, 0.24 * side, 1.08), (0.05, 0.24 * side, 0.82), 0.038, SKIN),
        ]
    return body


def robot():
    """A small base with two wheels, a caster, a mast and a camera that looks along x."""
    wheel = cylinder(radius=0.07, height=0.04, sections=24)
    wheels = [part(wheel, DARK, (0, 0.15 * side, 0.07), (1, 0, 0), np.pi / 2) for side in (-1, 1)]
    return [
        *wheels,
        part(icosphere(subdivisions=2, radius=0.025), DARK, (-0.11, 0, 0.025)),
        part(cylinder(radius=0.16, height=0.10, sections=32), WHITE, (0, 0, 0.11)),
        part(cylinder(radius=0.05, height=0.05, sections=24), DARK, (0, 0, 0.185)),
        part(box(extents=(0.03, 0.03, 0.16)), (150, 150, 155), (-0.08, 0, 0.24)),
        part(box(extents=(0.05, 0.12, 0.05)), BLUE, (-0.06, 0, 0.33)),
    ]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for make in (chair, carton, ball, mannequin, robot):
        mesh = trimesh.util.concatenate(make())
        mesh.apply_transform(Y_UP)
        mesh.unmerge_vertices()  # a colour for each face: vertices are no two faces'
        data = mesh.export(file_type="glb")
        (FOLDER / f"{make.__name__}.glb").write_bytes(data)
        print(f"{make.__name__}.glb: {len(mesh.faces)} triangles, {len(data) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

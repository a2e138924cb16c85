"""A remembered cloud as a PLY file, which MeshLab, Blender, CloudCompare and Open3D open."""

from __future__ import annotations

import os

import numpy as np

from mirage_ros.core.files import write_file
from mirage_ros.core.frames import Points

VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    + [("confidence", "<f4")]
)
"""One point: metres in the world, colour, confidence in 0..1."""

_NAMES = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: str | os.PathLike, points: Points) -> None:
    """Writes binary little-endian PLY, all or nothing; raises MirageError where that fails."""
    vertices = np.empty(len(points.xyz), VERTEX)
    for i, axis in enumerate("xyz"):
        vertices[axis] = points.xyz[:, i]
    for i, colour in enumerate(("red", "green", "blue")):
        vertices[colour] = points.rgb[:, i]
    vertices["confidence"] = points.confidence
    lines = ["ply", "format binary_little_endian 1.0", "comment metres, z up",
             f"element vertex {len(vertices)}"]  # fmt: skip
    lines += [f"property {_NAMES[VERTEX[name].str]} {name}" for name in VERTEX.names]
    head = "\n".join([*lines, "end_header", ""]).encode()
    write_file(path, head, vertices.view(np.uint8))

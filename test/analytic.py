"""Scenes of flat rectangles, ray-cast exactly: ground truth without a renderer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.zbuffer import find_winners

CONFIG = MemoryConfig(channels=4, dtype="float16")
"""Of a memory of the latents that `features` makes."""


@dataclass(frozen=True)
class Quad:
    """The rectangle corner + s * a + t * b for s, t in 0..1; a and b at right angles, metres."""

    corner: tuple[float, float, float]
    a: tuple[float, float, float]
    b: tuple[float, float, float]


def look(position, target, roll_deg: float = 0.0) -> np.ndarray:
    """world_from_camera of a camera at `position` that looks at `target` with the world's z up."""
    forward = np.subtract(target, position).astype(float)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward], -1)
    angle = np.radians(roll_deg)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation @ turn, position
    return pose


WALL = [Quad((-6, 4, -6), (12, 0, 0), (0, 0, 12))]
HERE = (0.5, -1.0, 1.2)
"""A place in the room."""
AHEAD = look(HERE, (0.5, 2.0, 1.0))


def cameras(poses, size=(44, 80), hfov_deg: float = 70.0) -> Camera:
    """A batch of equal cameras at the poses."""
    return Camera.from_hfov(hfov_deg, size, np.stack(poses))


def raycast(batch: Camera, quads: list[Quad]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth along z (inf where nothing is hit), the quad's number (-1) and (s, t), per pixel."""
    rays = np.einsum("fij,fhwj->fhwi", batch.world_from_camera[:, :3, :3], batch.rays())
    eye = batch.position_world[:, None, None]
    depth, number = np.full(rays.shape[:3], np.inf), np.full(rays.shape[:3], -1)
    place = np.zeros((*rays.shape[:3], 2))
    for i, quad in enumerate(quads):
        a, b, corner = (np.asarray(x, float) for x in (quad.a, quad.b, quad.corner))
        normal = np.cross(a, b)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = ((corner - eye) @ normal) / (rays @ normal)
            inside = eye + rays * distance[..., None] - corner
        s, t = inside @ a / (a @ a), inside @ b / (b @ b)
        hit = (distance > 1e-6) & (distance < depth) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
        depth[hit], number[hit], place[hit] = distance[hit], i, np.stack([s, t], -1)[hit]
    return depth, number, place


def features(number: np.ndarray, place: np.ndarray) -> torch.Tensor:
    """Latents (f, 4, h, w) that tell what was hit and where: number, s, t and 1."""
    stack = np.stack([number, place[..., 0], place[..., 1], np.ones_like(number)], 1)
    return torch.from_numpy(stack.astype(np.float32))


def remember(memory, batch: Camera, quads: list[Quad], stamp_ns=0, first_id=0, new=False) -> int:
    """Writes what the cameras see of the scene; returns the number of tokens stored."""
    depth, number, place = raycast(batch, quads)
    ids = np.arange(first_id, first_id + len(batch))
    colours = np.repeat((number[..., None] * 40 + 50).astype(np.uint8), 3, -1)
    write = memory.write_new if new else memory.write
    static = np.ones(depth.shape, bool)
    return write(
        features(number, place), batch, depth, static, ids * 1000 + stamp_ns, colours, ids
    )


def written(batch, quads, **options):
    memory = LatentMemory(CONFIG)
    remember(memory, batch, quads, **options)
    return memory


def offsets(memory, batch: Camera) -> np.ndarray:
    """(du, dv) in cells (f, 2, h, w) of each winning token's projected centre from its cell's centre."""
    store = memory._store
    return find_winners(store.surfels, batch, memory.config.rule, store.blocks).offset


def room(width=6.0, length=8.0, height=2.5) -> list[Quad]:
    """Floor, ceiling and four walls around the origin, and a box on the floor."""
    x, y, z = width / 2, length / 2, height
    walls = [
        Quad((-x, -y, 0), (width, 0, 0), (0, length, 0)),
        Quad((-x, -y, z), (width, 0, 0), (0, length, 0)),
        Quad((-x, -y, 0), (width, 0, 0), (0, 0, z)),
        Quad((-x, y, 0), (width, 0, 0), (0, 0, z)),
        Quad((-x, -y, 0), (0, length, 0), (0, 0, z)),
        Quad((x, -y, 0), (0, length, 0), (0, 0, z)),
    ]
    box = [
        Quad((1, 1, 0), (1, 0, 0), (0, 0, 1)),
        Quad((1, 2, 0), (1, 0, 0), (0, 0, 1)),
        Quad((1, 1, 0), (0, 1, 0), (0, 0, 1)),
        Quad((2, 1, 0), (0, 1, 0), (0, 0, 1)),
        Quad((1, 1, 1), (1, 0, 0), (0, 1, 0)),
    ]
    return walls + box


def loop(count=24):
    """Views on a circle in the room, looking outwards."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    poses = [look((np.cos(a), np.sin(a), 1.2), (5 * np.cos(a), 5 * np.sin(a), 1)) for a in angles]
    return cameras(poses, (22, 40))

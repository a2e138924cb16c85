"""Draws entities into pictures and ranges by depth, as seen by pinhole cameras: a z-buffer of triangles.

Nothing of it reaches the memory: a chunk is drawn when it is handed out. Depth is that of the triangle's plane at the
pixel's centre. What stands behind a surface of the world, or of another body, is hidden by it; where the world's depth is
unknown a body is seen. Colours: a body's own times the light from six sides, which are the colours that memory holds
around it, and a weak light from above, so that sides differ. A contact shadow darkens what lies close to a
body's box.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import inverse
from mirage_ros.protocol import Chunk, Frame, SpatialMemory, Surfaces
from mirage_ros.world.entities import Body, Entities

NEAR_M = 0.02
MOST_POINTS = 4096
"""Of memory, that light is gathered from."""
REACH_M = 3.0
"""Surfaces twice as far away give a quarter of the light."""
GAIN = 1.45
"""Surfaces show what they reflect, about two thirds of what falls on them."""
GREY = np.array([0.55, 0.55, 0.55])
KEY = np.array([0.25, 0.35, 0.9])
"""Where the weak light comes from."""
SHADOW, SHADOW_SHARE, SHADOW_LEAST_M, SHADOW_MOST_M = 0.55, 0.3, 0.03, 0.25
"""How dark, and how far it reaches as a share of the body's size."""


@dataclass(frozen=True, eq=False)
class Solid:
    """The surfaces of a memory and the entities among them at one time: what sensors measure."""

    memory: Surfaces
    entities: Entities
    stamp_ns: int

    def measure(self, cameras: Camera) -> tuple[np.ndarray, np.ndarray]:
        """As LatentMemory.measure: depth along z (f, h, w), and where a real picture showed it."""
        depth_m, real = self.memory.measure(cameras)
        if not len(self.entities):
            return depth_m, real
        for index, camera in enumerate(cameras):
            inverse_m = _inverse(depth_m[index])
            body_of, _ = _buffers(_placed(camera, self.entities, self.stamp_ns), inverse_m)
            hit = body_of >= 0
            depth_m[index][hit] = 1 / inverse_m[hit]
            real[index][hit] = False
        return depth_m, real


def drawn(chunk: Chunk, entities: Entities, memory: SpatialMemory) -> Chunk:
    """The chunk with the entities in its frames, each where it is at the frame's stamp."""
    if not len(entities):
        return chunk
    light = lights(memory, np.stack([_middle(b, chunk.frames[-1].stamp_ns) for b in entities]))
    return replace(chunk, frames=tuple(_drawn(frame, entities, light) for frame in chunk.frames))


@dataclass(frozen=True, eq=False)
class _Placed:
    """A body where a camera meets it.

    Attributes:
        index: its place in the registry.
        pose: world_from_body.
        pinhole: fx, fy, cx, cy of the camera, whose pictures have the `size`.
        middle, radius: of a ball around it, in the camera's axes.
    """

    body: Body
    index: int
    pose: np.ndarray
    camera_from_body: np.ndarray
    pinhole: np.ndarray
    size: tuple[int, int]
    middle: np.ndarray
    radius: float

    def shows(self, margin_m: float = 0.0) -> bool:
        """Whether what is so close to it may show."""
        return _in_view(self.middle, self.radius + margin_m, self.pinhole, self.size)

    def window(self, margin_m: float = 0.0) -> np.ndarray:
        """First and last row and column, exclusive, that what is so close to it may show in."""
        return _window(self.middle, self.radius + margin_m, self.pinhole, self.size)


def _placed(camera: Camera, entities: Entities, stamp_ns: int) -> list[_Placed]:
    camera_from_world, pinhole, found = camera.camera_from_world, _pinhole(camera), []
    for index, body in enumerate(entities):
        bounds, pose = body.state.bounds_m, body.state.pose_at(stamp_ns)
        camera_from_body = camera_from_world @ pose
        middle = camera_from_body[:3, :3] @ bounds.mean(0) + camera_from_body[:3, 3]
        radius = 0.5 * float(np.linalg.norm(bounds[1] - bounds[0]))
        found.append(_Placed(body, index, pose, camera_from_body, pinhole, camera.size, middle, radius))
    return found


def _drawn(frame: Frame, entities: Entities, light: np.ndarray) -> Frame:
    inverse_m = _inverse(frame.depth_m)
    world = inverse_m.copy()
    bodies = _placed(frame.camera, entities, frame.stamp_ns)
    body_of, face_of = _buffers(bodies, inverse_m)
    rgb, depth_m = frame.rgb.copy(), frame.depth_m.copy()
    labels = np.zeros(body_of.shape, np.int32)
    for placed in bodies:
        _shade_ground(rgb, world, body_of, placed)
    key = KEY / np.linalg.norm(KEY)
    for placed in bodies:
        if placed.shows():
            mesh = placed.body.mesh
            _shade(rgb, labels, inverse_m, body_of, face_of, placed.window(), placed.index, placed.body.state.number,
                   placed.pinhole, inverse(placed.camera_from_body), placed.pose[:3, :3].copy(), mesh.vertices_m,
                   mesh.faces, mesh.normals, mesh.colours, mesh.closed, light[placed.index], key)  # fmt: skip
    hit = body_of >= 0
    depth_m[hit] = 1 / inverse_m[hit]
    return replace(frame, rgb=rgb, depth_m=depth_m, labels=labels)


def _inverse(depth_m: np.ndarray) -> np.ndarray:
    """1 / depth, 0 where it is unknown or endless, so that everything stands before it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result = 1 / depth_m.astype(np.float32)
    return np.where(np.isfinite(result) & (result > 0), result, np.float32(0))


def _pinhole(camera: Camera) -> np.ndarray:
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics
    return np.array([fx, fy, cx, cy])


def _middle(body: Body, stamp_ns: int) -> np.ndarray:
    return body.state.box_at(stamp_ns).mean(0)


def _buffers(bodies: list[_Placed], inverse_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which body (by place in the registry) and which face of it each pixel shows, -1 none; `inverse_m` is updated."""
    body_of, face_of = (np.full(inverse_m.shape, -1, np.int32) for _ in range(2))
    for placed in bodies:
        if placed.shows():
            mesh = placed.body.mesh
            _fill(mesh.vertices_m, mesh.faces, mesh.closed, placed.camera_from_body, placed.pinhole, placed.index,
                  inverse_m, body_of, face_of)  # fmt: skip
    return body_of, face_of


def _in_view(middle: np.ndarray, radius: float, pinhole: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a ball in the camera's axes may show."""
    (x, y, z), (fx, fy, cx, cy), (height, width) = middle, pinhole, size
    sides = ((fx, x, cx + 0.5), (-fx, x, width - 0.5 - cx), (fy, y, cy + 0.5), (-fy, y, height - 0.5 - cy))
    return z + radius > NEAR_M and all(f * p + edge * z >= -radius * np.hypot(f, edge) for f, p, edge in sides)


def lights(memory: SpatialMemory, places: np.ndarray) -> np.ndarray:
    """The light that falls on each of n places from -x, +x, -y, +y, -z and +z: (n, 6, 3), 1 is a white wall's.

    It comes from the colours of what memory holds around; a side where that is nothing has the mean of the others.
    """
    if not hasattr(memory, "to_points") or not memory.tokens:
        return np.broadcast_to(GREY, (len(places), 6, 3)).copy()
    points = memory.to_points()
    step = -(-len(points.xyz) // MOST_POINTS)
    xyz, rgb = points.xyz[::step].astype(np.float64), points.rgb[::step] / 255.0
    result = np.empty((len(places), 6, 3))
    for index, place in enumerate(places):
        away = xyz - place
        far = np.maximum(np.linalg.norm(away, axis=1), 1e-3)
        near = 1 / (1 + (far / REACH_M) ** 2)
        mean = (near[:, None] * rgb).sum(0) / near.sum()
        for side in range(6):
            towards = np.maximum((2 * (side % 2) - 1) * away[:, side // 2] / far, 0) * near
            # As much of the mean as of a few surfaces: few of them are no light of their own.
            result[index, side] = ((towards[:, None] * rgb).sum(0) + 2.0 * mean) / (towards.sum() + 2.0)
    return result


def _shade_ground(rgb, world, body_of, placed: _Placed) -> None:
    """The contact shadow of one body on the world's pixels."""
    bounds = placed.body.state.bounds_m.astype(np.float64)
    size = bounds[1] - bounds[0]
    reach = float(np.clip(SHADOW_SHARE * np.sort(size)[1], SHADOW_LEAST_M, SHADOW_MOST_M))
    if placed.shows(reach):
        body_from_camera = inverse(placed.camera_from_body)
        _darken(rgb, world, body_of, placed.window(reach), placed.pinhole, body_from_camera, bounds, reach)


def _window(middle: np.ndarray, radius: float, pinhole: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """First and last row and column, exclusive, that a ball may show in."""
    (x, y, z), (fx, fy, cx, cy), (height, width) = middle, pinhole, size
    if z - radius < NEAR_M:
        return np.array([0, height, 0, width])
    spans = []
    for p, f, c, side in ((y, fy, cy, height), (x, fx, cx, width)):
        ends = [f * (p + s * radius) / (z + t * radius) + c for s in (-1, 1) for t in (-1, 1)]
        spans += [int(np.clip(np.floor(min(ends)), 0, side)), int(np.clip(np.ceil(max(ends)) + 1, 0, side))]
    return np.array(spans)


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(vertices, faces, closed, camera_from_body, pinhole, body, inverse_m, body_of, face_of):
    """Draws the triangles of one body, cut off where they come too close."""
    fx, fy, cx, cy = pinhole[0], pinhole[1], pinhole[2], pinhole[3]
    m, count = camera_from_body, len(vertices)
    x, y, z = np.empty(count), np.empty(count), np.empty(count)
    u, v, w = np.empty(count), np.empty(count), np.empty(count)
    for i in range(count):
        a, b, c = float(vertices[i, 0]), float(vertices[i, 1]), float(vertices[i, 2])
        x[i] = m[0, 0] * a + m[0, 1] * b + m[0, 2] * c + m[0, 3]
        y[i] = m[1, 0] * a + m[1, 1] * b + m[1, 2] * c + m[1, 3]
        z[i] = m[2, 0] * a + m[2, 1] * b + m[2, 2] * c + m[2, 3]
        w[i] = 1.0 / max(z[i], NEAR_M)
        u[i], v[i] = fx * x[i] * w[i] + cx, fy * y[i] * w[i] + cy
    cut = np.empty((4, 3))
    for face in range(len(faces)):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        ahead = (z[i] >= NEAR_M) + (z[j] >= NEAR_M) + (z[k] >= NEAR_M)
        if ahead == 3:
            _triangle(u[i], v[i], w[i], u[j], v[j], w[j], u[k], v[k], w[k], closed, body, face, inverse_m, body_of, face_of)
        elif ahead:
            corners = _cut(x, y, z, faces[face], cut)
            for n in range(corners):
                w0 = 1.0 / cut[n, 2]
                cut[n, 0], cut[n, 1], cut[n, 2] = fx * cut[n, 0] * w0 + cx, fy * cut[n, 1] * w0 + cy, w0
            for n in range(1, corners - 1):
                _triangle(cut[0, 0], cut[0, 1], cut[0, 2], cut[n, 0], cut[n, 1], cut[n, 2], cut[n + 1, 0],
                          cut[n + 1, 1], cut[n + 1, 2], closed, body, face, inverse_m, body_of, face_of)  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy")
def _cut(x, y, z, face, into):
    """The corners of the part of a triangle that is far enough away; returns how many."""
    count = 0
    for n in range(3):
        i, j = face[n], face[(n + 1) % 3]
        if z[i] >= NEAR_M:
            into[count, 0], into[count, 1], into[count, 2] = x[i], y[i], z[i]
            count += 1
        if (z[i] >= NEAR_M) != (z[j] >= NEAR_M):
            share = (NEAR_M - z[i]) / (z[j] - z[i])
            into[count, 0] = x[i] + share * (x[j] - x[i])
            into[count, 1] = y[i] + share * (y[j] - y[i])
            into[count, 2] = NEAR_M
            count += 1
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _triangle(u0, v0, w0, u1, v1, w1, u2, v2, w2, closed, body, face, inverse_m, body_of, face_of):
    """Pixels whose centres lie in a triangle of the picture and before what is drawn already; w is 1 / depth."""
    area = (u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)
    # In the picture, y down, faces that look here turn the other way.
    if area == 0 or (closed and area > 0):
        return
    height, width = inverse_m.shape
    left, right = max(min(u0, u1, u2), 0.0), min(max(u0, u1, u2), width - 1.0)
    top, bottom = max(min(v0, v1, v2), 0.0), min(max(v0, v1, v2), height - 1.0)
    first, last = int(np.ceil(left)), int(np.floor(right))
    scale = 1 / area
    du1, dv1 = (v2 - v0) * scale, -(u2 - u0) * scale
    du2, dv2 = -(v1 - v0) * scale, (u1 - u0) * scale
    for row in range(int(np.ceil(top)), int(np.floor(bottom)) + 1):
        b1 = (first - u0) * du1 + (row - v0) * dv1
        b2 = (first - u0) * du2 + (row - v0) * dv2
        for column in range(first, last + 1):
            if b1 >= 0 and b2 >= 0 and b1 + b2 <= 1:
                w = w0 + b1 * (w1 - w0) + b2 * (w2 - w0)
                if w > inverse_m[row, column]:
                    inverse_m[row, column], body_of[row, column], face_of[row, column] = w, body, face
            b1 += du1
            b2 += du2


@njit(cache=True, nogil=True, error_model="numpy")
def _shade(rgb, labels, inverse_m, body_of, face_of, window, body, number, pinhole, m, turn, vertices, faces, normals,
           colours, closed, light, key):  # fmt: skip
    """Colours and labels of one body's pixels; m is body_from_camera."""
    b, n = np.empty(3), np.empty(3)
    for row in range(window[0], window[1]):
        for column in range(window[2], window[3]):
            if body_of[row, column] != body:
                continue
            labels[row, column] = number
            face, z = face_of[row, column], 1.0 / inverse_m[row, column]
            x, y = (column - pinhole[2]) / pinhole[0] * z, (row - pinhole[3]) / pinhole[1] * z
            _weights(m, x, y, z, vertices, faces[face], b)
            away = 0.0
            for i in range(3):
                n[i] = b[0] * normals[face, 0, i] + b[1] * normals[face, 1, i] + b[2] * normals[face, 2, i]
                away += n[i] * (m[i, 0] * x + m[i, 1] * y + m[i, 2] * z)
            nx = turn[0, 0] * n[0] + turn[0, 1] * n[1] + turn[0, 2] * n[2]
            ny = turn[1, 0] * n[0] + turn[1, 1] * n[1] + turn[1, 2] * n[2]
            nz = turn[2, 0] * n[0] + turn[2, 1] * n[1] + turn[2, 2] * n[2]
            size = np.sqrt(nx * nx + ny * ny + nz * nz)
            if away > 0 and not closed:  # a sheet's back is lit from where it is seen
                size = -size
            nx, ny, nz = nx / size, ny / size, nz / size
            shine = 0.95 + 0.25 * (nx * key[0] + ny * key[1] + nz * key[2])
            for i in range(3):
                lit = nx * nx * light[int(nx > 0), i] + ny * ny * light[2 + int(ny > 0), i] + nz * nz * light[4 + int(nz > 0), i]
                rgb[row, column, i] = np.uint8(min(255.0, colours[face, i] * GAIN * shine * lit))


@njit(cache=True, nogil=True, error_model="numpy")
def _weights(m, x, y, z, vertices, face, into):
    """How much each corner of a face counts at a point of it, given in the camera's axes."""
    p, a, b, c = np.empty(3), vertices[face[0]], vertices[face[1]], vertices[face[2]]
    for i in range(3):
        p[i] = m[i, 0] * x + m[i, 1] * y + m[i, 2] * z + m[i, 3]
    bb = bc = cc = pb = pc = 0.0
    for i in range(3):
        e, f, g = float(b[i]) - a[i], float(c[i]) - a[i], p[i] - a[i]
        bb += e * e
        bc += e * f
        cc += f * f
        pb += g * e
        pc += g * f
    whole = bb * cc - bc * bc
    into[1] = min(max((cc * pb - bc * pc) / whole, 0.0), 1.0) if whole > 0 else 0.0
    into[2] = min(max((bb * pc - bc * pb) / whole, 0.0), 1.0) if whole > 0 else 0.0
    into[0] = max(1.0 - into[1] - into[2], 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _darken(rgb, world, body_of, window, pinhole, m, bounds, reach):
    """Pixels of the world by how close they are to a body's box."""
    for row in range(window[0], window[1]):
        for column in range(window[2], window[3]):
            if world[row, column] <= 0 or body_of[row, column] >= 0:
                continue
            z = 1.0 / world[row, column]
            x, y = (column - pinhole[2]) / pinhole[0] * z, (row - pinhole[3]) / pinhole[1] * z
            far = 0.0
            for i in range(3):
                p = m[i, 0] * x + m[i, 1] * y + m[i, 2] * z + m[i, 3]
                out = max(bounds[0, i] - p, p - bounds[1, i], 0.0)
                far += out * out
            if far < reach * reach:
                left = 1.0 - SHADOW * (1.0 - np.sqrt(far) / reach) ** 2
                for i in range(3):
                    rgb[row, column, i] = np.uint8(rgb[row, column, i] * left)

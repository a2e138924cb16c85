"""What one camera sees of tokens: where they project to, which cells they cover, whether from
their back, and how far a surface reaches. Loops and tests of zbuffer_cpu.py."""

from __future__ import annotations

import numpy as np
from numba import njit

from mirage_ros.core.blocks import BLOCK_ROWS
from mirage_ros.core.culling import ROUNDING
from mirage_ros.core.surfels import (
    footprint,
    is_real,
    is_sure,
    normal,
    position,
    position_block,
    view_of,
)

SLANT_REACH = 8.0
"""How many tolerances a slanted surface may reach along z within one cell."""

IMAGINED = 1024.0
"""By how many cells (squared) worse than a real token an imagined one is: more than any other rule
tells two candidates of one cell apart, and little enough to keep the bits that tell those apart."""

BACK_COSINE_SQUARED = 0.0009
"""Square of the cosine (-0.03) beyond which a normal points away: normals are kept to 0.02."""


@njit(cache=True, nogil=True, error_model="numpy")
def room():
    """What the rows of a block are projected into: position, footprint, u, v, z; their cells."""
    f, i = np.empty((7, BLOCK_ROWS)), np.empty((4, BLOCK_ROWS), np.int32)
    return (f[0], f[1], f[2], f[3], f[4], f[5], f[6]), (i[0], i[1], i[2], i[3])


@njit(cache=True, nogil=True, error_model="numpy")
def project_block(surfels, start, count, m, pinhole, rule, size, into):
    """Fills what `room` made for consecutive rows; a row that shows nowhere has c1 < c0."""
    (x, y, z, width, u, v, depth), (c0, c1, r0, r1) = into
    position_block(surfels, start, count, x, y, z, width)
    near = rule[3]
    m00, m01, m02, m03 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    m10, m11, m12, m13 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    m20, m21, m22, m23 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    fx, fy, cx, cy = pinhole[0], pinhole[1], pinhole[2], pinhole[3]
    for j in range(count):
        px, py, pz = x[j], y[j], z[j]
        d = m20 * px + m21 * py + m22 * pz + m23
        safe = d if d >= near else 1.0
        u[j] = (m00 * px + m01 * py + m02 * pz + m03) / safe * fx + cx
        v[j] = (m10 * px + m11 * py + m12 * pz + m13) / safe * fy + cy
        depth[j] = d
    _spans(u, depth, width, count, rule, fx, float(size[1]), c0, c1)
    _spans(v, depth, width, count, rule, fy, float(size[0]), r0, r1)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _spans(centre, z, width, count, rule, focal, size, first, last):
    """First and last cell along one axis that each row of a block covers."""
    splat, near = rule[0], rule[3]
    for j in range(count):
        half = 0.5 * splat * width[j] / (z[j] if z[j] >= near else 1.0) * focal
        first[j] = np.int32(_first(centre[j], half, size))
        last[j] = np.int32(_last(centre[j], half, size) if z[j] >= near else -1.0)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _first(centre, half, size):
    """First cell that a splat covers, as a float, at most `size`; 0 for NaN."""
    # What comes first in min and max stays when the other is NaN.
    return min(max(0.0, min(np.ceil(centre - half), np.floor(centre + 0.5))), size)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _last(centre, half, size):
    """Last cell that a splat covers, as a float, at least -1; before the first, or NaN: none."""
    return min(max(-1.0, max(np.floor(centre + half), np.floor(centre + 0.5))), size - 1)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def project(surfels, i, m, pinhole, near):
    """(u, v, z) of a token; u and v mean nothing where z < near."""
    x, y, z = position(surfels, i)
    depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    safe = depth if depth >= near else 1.0
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / safe * pinhole[0] + pinhole[2]
    v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / safe * pinhole[1] + pinhole[3]
    return u, v, depth


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def from_back(surfels, i, x, y, z, eye):
    """Is token i, which lies at (x, y, z), seen from its back by a camera at `eye`?"""
    a, b, c = normal(surfels[1][i])
    dx, dy, dz = eye[0] - x, eye[1] - y, eye[2] - z
    facing = a * dx + b * dy + c * dz
    if facing >= 0:
        return False
    length = (a * a + b * b + c * c) * (dx * dx + dy * dy + dz * dz)
    if facing * facing <= BACK_COSINE_SQUARED * length:
        return False
    place = surfels[0][i]
    if is_sure(place):
        return True
    birth = surfels[2][view_of(place), 3]
    return (birth[0] - x) * dx + (birth[1] - y) * dy + (birth[2] - z) * dz < 0


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def penalties(surfels, start, width, count, z, focal, weight, penalty):
    """How ill the scale of each row of a block fits its cells, and whether it was imagined."""
    for j in range(count):
        ratio = width[j] * focal / (z[j] if z[j] > 0 else 1.0)
        misfit = (ratio if ratio >= 1 else 1 / ratio) - 1
        imagined = 0.0 if is_real(surfels, start + j) else IMAGINED
        penalty[j] = weight * (misfit * misfit) + imagined


@njit(cache=True, nogil=True, error_model="numpy")
def surfaces(surfels, view, nearest, nearest_z, limit, planes):
    """What belongs to the surface of each cell's nearest token: fills in the z behind which
    nothing does, and the token's position, its normal, how far the surface reaches along z,
    and at a slant from its plane (squared, times the normal's square)."""
    pinhole, rule = view[5], view[6]
    for r in range(nearest.shape[0]):
        for c in range(nearest.shape[1]):
            i, z, plane = nearest[r, c], nearest_z[r, c], planes[r, c]
            limit[r, c] = -1.0
            if i < 0:
                continue
            plane[0], plane[1], plane[2] = position(surfels, i)
            plane[3], plane[4], plane[5] = normal(surfels[1][i])
            length = plane[3] * plane[3] + plane[4] * plane[4] + plane[5] * plane[5]
            focal = 0.5 * (pinhole[0] + pinhole[1])
            reach = rule[1] * max(footprint(surfels, i), z / focal)
            plane[6], plane[7] = reach, reach * reach * length
            limit[r, c] = (z + SLANT_REACH * reach) * (1 + ROUNDING)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def on_surface(plane, x, y, z, gap):
    """Does a token at (x, y, z), so far behind a cell's nearest along z, lie on its surface?"""
    if gap <= plane[6]:
        return True
    if gap > SLANT_REACH * plane[6]:
        return False
    away = plane[3] * (x - plane[0]) + plane[4] * (y - plane[1]) + plane[5] * (z - plane[2])
    return away * away <= plane[7]

"""The z-buffer against brute force in numpy, bit by bit."""

import numpy as np
import pytest
from analytic import cameras, look

from mirage_ros.core.zbuffer import SplatRule, Surfels, zbuffer

RULE = SplatRule()


def random_cloud(rng, n, ties):
    positions = rng.uniform(-3, 3, (n, 3))
    if ties:
        positions = np.round(positions * 2) / 2
    normals = rng.normal(size=(n, 3))
    fronts = normals + rng.normal(size=(n, 3))
    normals, fronts = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (normals, fronts))
    footprints = 2.0 ** rng.integers(-5, 0, n) if ties else rng.uniform(0.01, 0.8, n)
    as_bytes = [np.rint(x * 127).astype(np.int8) for x in (normals, fronts)]
    return Surfels(positions.astype(np.float32), footprints.astype(np.float32), *as_bytes)


def dot(a, b):
    """Row by row, in the order that the kernel sums."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def covers(centre, half, cell):
    return ((centre - half <= cell) & (cell <= centre + half)) | (np.floor(centre + 0.5) == cell)


def brute_force(surfels, camera, rule):
    """The module's docstring, step by step, all tokens against every cell."""
    p, fp = surfels.positions_world.astype(np.float64), surfels.footprints_m.astype(np.float64)
    n, front = (x.astype(np.int64) for x in (surfels.normals, surfels.fronts))
    m, (height, width), k = camera.camera_from_world, camera.size, camera.intrinsics
    x, y, z = (dot(m[i : i + 1, :3], p) + m[i, 3] for i in range(3))
    to_eye = camera.position_world - p
    facing, same_side = (dot(d, to_eye) for d in (n, front))
    squares = (n * n).sum(-1) * dot(to_eye, to_eye)
    back = (facing < 0) & (facing**2 > 0.01 * squares) & (same_side < 0)
    alive = (z >= rule.near_m) & ~back
    safe = np.where(z > 0, z, 1)
    u, v = x / safe * k[0, 0] + k[0, 2], y / safe * k[1, 1] + k[1, 2]
    half = 0.5 * rule.splat * fp / safe
    focal = 0.5 * (k[0, 0] + k[1, 1])
    ratio = fp * focal / safe
    misfit = np.where(ratio >= 1, ratio, 1 / ratio) - 1
    penalty = rule.scale_weight * (misfit * misfit)
    index, depth = np.full((height, width), -1), np.zeros((height, width))
    for r in range(height):
        for c in range(width):
            covered = covers(u, half * k[0, 0], c) & covers(v, half * k[1, 1], r)
            rows = np.nonzero(alive & covered)[0]
            if not len(rows):
                continue
            first = rows[np.argmin(z[rows])]
            reach = rule.tolerance * max(fp[first], z[first] / focal)
            gap, step = z[rows] - z[first], p[rows] - p[first]
            plane = dot(n[first : first + 1], step)
            near = (gap <= reach) | ((gap <= 8 * reach) & (np.abs(plane) <= 127 * reach))
            rows = rows[near]
            badness = (u[rows] - c) * (u[rows] - c) + (v[rows] - r) * (v[rows] - r) + penalty[rows]
            index[r, c] = rows[np.argmin(badness)]
            depth[r, c] = z[index[r, c]]
    return index, depth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("size", "n"), [((1, 1), 50), ((3, 5), 7), ((16, 20), 3000), ((44, 80), 4000)]
)
def test_the_z_buffer_equals_brute_force(size, n, ties):
    rng = np.random.default_rng(n + ties)
    surfels = random_cloud(rng, n, ties)
    poses = [look((0.5, -4, 1), (0, 0, 0)), look(rng.uniform(-1, 1, 3), (2, 2, 0), roll_deg=30)]
    if ties:
        poses = [look((0, -4, 0), (0, 0, 0)), look((0, 0, 0), (0, 2, 0))]
    batch = cameras(poses, size)
    winners = zbuffer(surfels, batch, RULE)
    for i, camera in enumerate(batch):
        index, depth = brute_force(surfels, camera, RULE)
        np.testing.assert_array_equal(winners.index[i], index)
        np.testing.assert_array_equal(winners.depth_m[i], depth)
    assert (winners.index >= 0).any()


def test_many_cameras_in_threads_give_the_same_bits_every_time():
    rng = np.random.default_rng(0)
    surfels = random_cloud(rng, 30_000, ties=False)
    batch = cameras([look(rng.uniform(-1, 1, 3), (2, 2, 0)) for _ in range(8)], (16, 20))
    together = zbuffer(surfels, batch, RULE)
    for _ in range(3):
        for one, other in zip(together, zbuffer(surfels, batch, RULE), strict=True):
            np.testing.assert_array_equal(one, other)
    for i in range(len(batch)):
        for one, other in zip(together, zbuffer(surfels, batch[i : i + 1], RULE), strict=True):
            np.testing.assert_array_equal(one[i], other[0])


def plain(positions, footprints):
    """Surfels that face every camera."""
    none = np.zeros((len(positions), 3), np.int8)
    return Surfels(np.float32(positions), np.float32(footprints), none, none)


def test_ties_go_to_the_lower_index():
    surfels = plain([[0, 2, 0]] * 5, [0.1] * 5)
    winners = zbuffer(surfels, cameras([look((0, 0, 0), (0, 1, 0))], (3, 3)), RULE)
    assert set(winners.index[winners.index >= 0].tolist()) == {0}


def test_an_empty_memory_shows_nothing():
    winners = zbuffer(plain(np.zeros((0, 3)), []), cameras([np.eye(4)], (4, 5)), RULE)
    assert (winners.index == -1).all()


def test_what_lies_behind_or_at_the_camera_does_not_show():
    surfels = plain([[0, -1, 0], [0, 0, 0], [0, 0.01, 0]], [1, 1, 1])
    winners = zbuffer(surfels, cameras([look((0, 0, 0), (0, 1, 0))], (4, 5)), RULE)
    assert (winners.index == -1).all()


def test_the_surface_a_few_footprints_behind_never_leaks():
    front, back = [[0.011, 2, 0.011]], [[0, 2 + 2.5 * 0.1, 0]]
    winners = zbuffer(
        plain(front + back, [0.1, 0.1]), cameras([look((0, 0, 0), (0, 1, 0))], (1, 1)), RULE
    )
    assert winners.index.item() == 0

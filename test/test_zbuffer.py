"""The z-buffer against brute force in numpy, bit by bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import cameras, look

from mirage_ros.memory.blocks import Blocks, SplatRule
from mirage_ros.memory.free_space import _before_views
from mirage_ros.memory.rows import views_of
from mirage_ros.memory.surfels import Surfels, footprints_of, positions_of
from mirage_ros.memory.voxel_index import by_place
from mirage_ros.memory.zbuffer import find_winners, winners_torch
from mirage_ros.memory.zbuffer_cpu import winners_cpu

RULE = SplatRule()


def random_cloud(rng, n, ties):
    """Tokens anywhere, facing anywhere, a few of each view."""
    views = rng.integers(0, n // 4 + 1, n)
    rays = rng.normal(size=(n // 4 + 1, 4, 3)) / [[[200], [200], [1], [1]]]
    rays[:, 3] = rng.uniform(-3, 3, rays[:, 3].shape)
    focals, depths = rng.uniform(2, 60, len(rays)), rng.uniform(0.1, 1.5, n)
    cells = rng.integers(0, 256, (n, 2))
    if ties:  # places half a metre apart
        rays[:] = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0], [-3, -3, 0]])
        rays[:, 3, 2] = rng.integers(-6, 7, len(rays)) / 2
        cells, depths, focals = cells % 13, np.ones(n), 2.0 ** rng.integers(0, 6, len(rays))
    normals = rng.integers(-127, 128, (n, 2)).astype(np.int8)
    places = pack(views, cells, depths, rng.random(n) < 0.5)
    real = rng.random(len(rays)) < 0.3
    return Surfels(places, normals, rays.astype(np.float32), focals.astype(np.float32), real)


def pack(views, cells, depths, sure):
    """As the docstring of surfels.py has it."""
    bits = np.float32(depths).view(np.int32).astype(np.int64) + 8 >> 4
    cells = np.asarray(cells, np.int64)
    place = np.asarray(views, np.int64) << 42 | cells[:, 0] << 34 | cells[:, 1] << 26
    return place | (~np.asarray(sure)).astype(np.int64) << 25 | bits - (95 << 19)


def plain(positions, footprints):
    """Surfels that face every camera: each seen from where it is, and not sure of its normal."""
    count, positions = len(positions), np.float32(positions).reshape(-1, 3)
    rays = np.zeros((count, 4, 3))
    rays[:, 3] = positions
    places = pack(np.arange(count), np.zeros((count, 2)), footprints, np.zeros(count, bool))
    normals = np.tile(np.int8([0, -127]), (count, 1))
    real, ones = np.arange(count) % 3 == 0, np.ones(count, np.float32)
    return Surfels(places, normals, rays.astype(np.float32), ones, real)


def dot(a, b):
    """Row by row, in the order that the kernel sums."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def covers(centre, half, cell):
    return ((centre - half <= cell) & (cell <= centre + half)) | (np.floor(centre + 0.5) == cell)


def unfolded(codes):
    """Vectors of octahedral codes, as the textbook has them."""
    a, b = codes.astype(np.int64).T
    c = 127 - np.abs(a) - np.abs(b)
    lower = c < 0
    signs = np.where(a >= 0, 1, -1), np.where(b >= 0, 1, -1)
    folded = (127 - np.abs(b)) * signs[0], (127 - np.abs(a)) * signs[1]
    return np.stack([np.where(lower, folded[0], a), np.where(lower, folded[1], b), c], -1)


def brute_force(surfels, camera, rule):
    """The module's docstring, step by step, all tokens against every cell."""
    view, row, column = surfels.places >> 42, surfels.places >> 34 & 255, surfels.places >> 26 & 255
    ray, row, column = surfels.rays[view].astype(np.float64), row[:, None], column[:, None]
    depth = ((surfels.places & 0x1FFFFFF) + (95 << 19) << 4).astype(np.int32).view(np.float32)
    depth = depth.astype(np.float64)
    p = ray[:, 3] + depth[:, None] * (ray[:, 0] * column + ray[:, 1] * row + ray[:, 2])
    p = p.astype(np.float32).astype(np.float64)
    fp = (depth / surfels.focals[view].astype(np.float64)).astype(np.float32).astype(np.float64)
    n, front = unfolded(surfels.normals), ray[:, 3] - p
    m, (height, width), k = camera.camera_from_world, camera.size, camera.intrinsics
    x, y, z = (dot(m[i : i + 1, :3], p) + m[i, 3] for i in range(3))
    to_eye = camera.position_world - p
    facing, same_side = (dot(d, to_eye) for d in (n, front))
    squares = (n * n).sum(-1) * dot(to_eye, to_eye)
    back = (facing < 0) & (facing * facing > 0.0009 * squares)
    back &= ((surfels.places & 0x2000000) == 0) | (same_side < 0)
    alive = (z >= rule.near_m) & ~back
    safe = np.where(z > 0, z, 1)
    u, v = x / safe * k[0, 0] + k[0, 2], y / safe * k[1, 1] + k[1, 2]
    half = 0.5 * rule.splat * fp / safe
    focal = 0.5 * (k[0, 0] + k[1, 1])
    ratio = fp * focal / safe
    misfit = np.where(ratio >= 1, ratio, 1 / ratio) - 1
    penalty = rule.scale_weight * (misfit * misfit) + np.where(surfels.real[view], 0, 1024)
    index, depth = np.full((height, width), -1), np.zeros((height, width))
    columns = np.arange(width)[:, None]
    for r in range(height):
        covered = alive & covers(u, half * k[0, 0], columns) & covers(v, half * k[1, 1], r)
        first = np.where(covered, z, np.inf).argmin(1)
        reach = rule.tolerance * np.maximum(fp[first], z[first] / focal)[:, None]
        gap = z - z[first][:, None]
        step, facing = p - p[first][:, None], n[first][..., None]
        plane = facing[:, 0] * step[..., 0] + facing[:, 1] * step[..., 1]
        plane = plane + facing[:, 2] * step[..., 2]
        on_plane = plane * plane <= reach * reach * (n * n).sum(-1)[first][:, None]
        near = (gap <= reach) | ((gap <= 8 * reach) & on_plane)
        badness = (u - columns) * (u - columns) + (v - r) * (v - r) + penalty
        best = np.where(covered & near, badness, np.inf).argmin(1)
        index[r] = np.where(covered.any(1), best, -1)
        depth[r] = np.where(covered.any(1), z[best], 0)
    return index, depth


def random_pose(rng, ties):
    at, towards = rng.uniform(-4, 4, 3), rng.uniform(-1, 1, 3)
    if ties:  # square to the grid that the tokens lie on
        return [look((0, -4, 0), (0, 0, 0)), look((0, 0, 0), (0, 2, 0))][rng.integers(2)]
    return look(at, towards, roll_deg=float(rng.choice([0, 30])))


def random_case(seed):
    """Surfels and two cameras; some clouds in rows sorted by place, so that blocks are tight."""
    rng = np.random.default_rng(seed)
    ties, place = bool(seed % 2), bool(seed % 4 < 2)
    surfels = random_cloud(rng, int(10 ** rng.uniform(0, 3)), ties)
    if seed % 3 == 0:  # all facing, so that much hides much
        normals = surfels.normals
        surfels = plain(positions_of(surfels), footprints_of(surfels))._replace(normals=normals)
    if place:
        surfels = sorted_by(np.floor(positions_of(surfels)), surfels)
    size = (int(rng.integers(1, 7)), int(rng.integers(1, 9)))
    return surfels, cameras([random_pose(rng, ties) for _ in range(2)], size)


def sorted_by(place, surfels):
    order = np.lexsort(place.T)
    return surfels._replace(places=surfels.places[order], normals=surfels.normals[order])


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_thousand_clouds_equal_brute_force_bit_by_bit():
    seen = 0
    for seed in range(1000):
        surfels, batch = random_case(seed)
        winners = find_winners(surfels, batch, RULE, threads=1 + seed % 3)
        for i, camera in enumerate(batch):
            index, depth = brute_force(surfels, camera, RULE)
            np.testing.assert_array_equal(winners.index[i], index)
            np.testing.assert_array_equal(winners.depth_m[i], depth)
        seen += (winners.index >= 0).any()
    assert seen > 800


@pytest.mark.parametrize("ties", [False, True])
def test_a_full_view_equals_brute_force(ties):
    rng = np.random.default_rng(ties)
    surfels = random_cloud(rng, 4000, ties)
    batch = cameras([random_pose(rng, ties) for _ in range(2)])
    winners = find_winners(surfels, batch, RULE)
    for i, camera in enumerate(batch):
        index, depth = brute_force(surfels, camera, RULE)
        np.testing.assert_array_equal(winners.index[i], index)
        np.testing.assert_array_equal(winners.depth_m[i], depth)


def dense_cloud(n):
    """Tokens in front of a camera at the origin that looks along y, sorted by place: random depth
    in the cells of cameras nearby, of footprints of 0.3 to 1.5 cells."""
    rng, size = np.random.default_rng(n), (44, 80)
    at = rng.uniform(-0.3, 0.3, (200, 3))
    numbers = np.arange(len(at))
    seen = views_of(cameras([look(x, x + (0, 1, 0)) for x in at], size), numbers, numbers)
    focals = (seen["focals"] / rng.uniform(0.3, 1.5, len(at))).astype(np.float32)
    views, cells = rng.integers(0, len(at), n), rng.integers(0, size, (n, 2))
    places = pack(views, cells, rng.uniform(1, 9, n), np.ones(n, bool))
    normals = np.tile(np.int8([0, -127]), (n, 1))
    surfels = Surfels(places, normals, seen["rays"], focals, seen["real"])
    return sorted_by(np.floor(2 * positions_of(surfels)), surfels)


@pytest.mark.parametrize("kind", ["random", "dense"])
def test_no_count_of_threads_and_no_bounds_change_a_bit(kind):
    rng = np.random.default_rng(0)
    surfels = dense_cloud(80_000) if kind == "dense" else random_cloud(rng, 30_000, ties=False)
    batch = cameras([look(rng.uniform(-1, 1, 3), (0, 5, 0)) for _ in range(4)], (22, 40))
    everywhere = Blocks.of(surfels)
    for bounds in (everywhere.bounds, everywhere.groups):
        bounds[:, :3], bounds[:, 3:6], bounds[:, 6] = -1e3, 1e3, 1e3
    together = find_winners(surfels, batch, RULE, everywhere, threads=1)
    assert (together.index >= 0).mean() > 0.5
    for threads in (1, 2, 5, None, None):
        assert_same(together, find_winners(surfels, batch, RULE, threads=threads))
    for i in range(len(batch)):
        alone = find_winners(surfels, batch[i : i + 1], RULE)
        assert_same([field[i] for field in together], [field[0] for field in alone])


def test_torch_gives_the_same_bits(monkeypatch):
    for seed in range(30):
        surfels, batch = random_case(seed)
        one = find_winners(surfels, batch, RULE)
        assert_same(one, find_winners(surfels.to("cpu"), batch, RULE))
    surfels = dense_cloud(60_000)
    batch = cameras([look((0.2, 0.1, 0.3), (0, 5, 0), roll_deg=5)])
    one = find_winners(surfels, batch, RULE)
    assert_same(one, find_winners(surfels.to("cpu"), batch, RULE))
    monkeypatch.setattr("mirage_ros.memory.zbuffer.PAIRS_AT_ONCE", 20_000)
    assert_same(one, find_winners(surfels.to("cpu"), batch, RULE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none")
def test_a_gpu_and_the_cpu_agree():
    surfels = dense_cloud(1_000_000)
    batch = cameras([look((0.1 * i, 0.1, 0.3), (0, 5, 0)) for i in range(9)])
    one = find_winners(surfels, batch, RULE)
    other = find_winners(surfels.to("cuda"), batch, RULE)
    assert (one.index != other.index).mean() <= 1e-6


def feed_wild_numbers() -> None:
    """Every compiled loop that makes indices of numbers, given such as no check lets through."""
    rng, n = np.random.default_rng(0), 500
    wild = [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e39, -1e39, 3e38, 1e20, -1e20, 0, 1, -1, 1e-40]
    for case in range(60):
        rays, focals = rng.choice(wild, (4, 4, 3)), rng.choice(wild, 4)
        if case % 3 == 0:
            rays[:, :3] = rng.normal(size=(4, 3, 3))
        views, cells = rng.integers(0, 4, n), rng.integers(0, 256, (n, 2))
        places = pack(views, cells, rng.uniform(0.1, 9, n), rng.random(n) < 0.5)
        normals = rng.integers(-127, 128, (n, 2)).astype(np.int8)
        rays, focals = rays.astype(np.float32), focals.astype(np.float32)
        surfels = Surfels(places, normals, rays, focals, np.array([True, False, False, True]))
        maps, pinholes = rng.choice(wild, (2, 4, 4)), rng.choice(wild, (2, 4))
        if case % 5 == 0:
            maps[:] = np.eye(4)
        by_place(surfels, 0)
        views = maps, rng.choice(wild, (2, 3)), pinholes
        args = Blocks.of(surfels), views, RULE.numbers(), (16, 20)
        winners_cpu(tuple(surfels), *args)
        winners_torch(surfels.to("cpu"), *args)
        reach = rng.choice(wild, (2, 16, 20)).astype(np.float32)
        points, seen = rng.choice(wild, (50, 3)), rng.choice(wild, (2, 50))
        _before_views(points, *seen, maps, pinholes, reach, 0.05)


def test_no_number_makes_a_compiled_loop_leave_its_arrays():
    code = "import test_zbuffer; test_zbuffer.feed_wild_numbers(); print('alive')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parent,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_ties_go_to_the_lower_index():
    surfels = plain([[0, 2, 0]] * 5, [0.1] * 5)
    winners = find_winners(surfels, cameras([look((0, 0, 0), (0, 1, 0))], (3, 3)), RULE)
    assert set(winners.index[winners.index >= 0].tolist()) == {0}


def test_an_empty_memory_shows_nothing():
    winners = find_winners(plain(np.zeros((0, 3)), []), cameras([np.eye(4)], (4, 5)), RULE)
    assert (winners.index == -1).all()


def test_what_lies_behind_or_at_the_camera_does_not_show():
    surfels = plain([[0, -1, 0], [0, 0, 0], [0, 0.01, 0]], [1, 1, 1])
    winners = find_winners(surfels, cameras([look((0, 0, 0), (0, 1, 0))], (4, 5)), RULE)
    assert (winners.index == -1).all()


def test_the_surface_a_few_footprints_behind_never_leaks():
    front, back = [[0.011, 2, 0.011]], [[0, 2 + 2.5 * 0.1, 0]]
    winners = find_winners(
        plain(front + back, [0.1, 0.1]), cameras([look((0, 0, 0), (0, 1, 0))], (1, 1)), RULE
    )
    assert winners.index.item() == 0

"""Tokens packed as cells of views, and the table that finds them: laws before examples."""

import numpy as np
import pytest
import torch
from analytic import cameras, look, offsets, remember, room
from numba import njit

from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.lifting import lift_surfels
from mirage_ros.memory.rows import views_of
from mirage_ros.memory.surfels import (
    Surfels,
    cosines_of,
    footprints_of,
    normal,
    octahedral,
    of_views,
    positions_of,
)
from mirage_ros.memory.voxel_index import (
    BYTES_PER_ROW,
    EMPTY,
    following,
    is_full,
    mixed,
    new_table,
    row_in,
    slot_of,
    tagged,
    unlike,
)


def random_cameras(rng, count, size):
    poses = [look(*rng.uniform(-5, 5, (2, 3)), roll_deg=rng.uniform(0, 360)) for _ in range(count)]
    return cameras(poses, size, hfov_deg=rng.uniform(40, 110))


def lifted(batch, depth, chosen):
    ids = np.arange(len(batch))
    views = views_of(batch, ids, ids)
    rows = lift_surfels(batch, depth, chosen)
    return Surfels(*rows.values(), views["rays"], views["focals"], views["real"]), views


@pytest.mark.parametrize("size", [(1, 1), (44, 80), (256, 256), (257, 300), (30, 600)])
def test_a_packed_token_lies_where_the_camera_lifts_its_cell_to(size):
    rng = np.random.default_rng(size[1])
    batch = random_cameras(rng, 3, size)
    depth = rng.uniform(0.05, 50, (3, *size)).astype(np.float32)
    chosen = rng.random(depth.shape) < 0.3
    chosen[0, 0, 0] = chosen[2, -1, -1] = True
    surfels, views = lifted(batch, depth, chosen)
    places = batch.lift(depth)[chosen]
    away = np.linalg.norm(positions_of(surfels) - places, axis=-1)
    assert (away <= 1e-5 * np.linalg.norm(batch.rays(), axis=-1)[chosen] * depth[chosen]).all()
    k = batch.intrinsics
    widths = depth / (0.5 * (k[:, 0, 0] + k[:, 1, 1]))[:, None, None]
    np.testing.assert_allclose(footprints_of(surfels), widths[chosen], rtol=5e-6)
    frames = of_views(surfels.places, views["frame_ids"])
    np.testing.assert_array_equal(frames, np.nonzero(chosen)[0])


def test_a_direction_comes_back_within_a_degree():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20_000, 3))
    vectors[:2000, 2] = vectors[2000:4000, 1] = 0
    vectors[4000:4006] = [*np.eye(3), *-np.eye(3)]
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    codes = np.array([octahedral(tuple(v)) for v in vectors], np.int8)
    assert np.abs(codes.astype(int)).max() <= 127
    back = np.array([normal(code) for code in codes])
    assert (np.abs(back).sum(-1) == 127).all()
    cosine = (back * vectors).sum(-1) / np.linalg.norm(back, axis=-1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1.0
    np.testing.assert_array_equal(back[4000:4006], 127 * np.concatenate([np.eye(3), -np.eye(3)]))


def test_the_cosine_of_seeing_follows_from_normal_and_view():
    wall = np.full((1, 44, 80), 3.0, np.float32)
    batch = cameras([look((0, 0, 0), (0, 1, 0))])
    surfels, _ = lifted(batch, wall, wall > 0)
    rays = batch.rays()[0].reshape(-1, 3)
    np.testing.assert_allclose(cosines_of(surfels), 1 / np.linalg.norm(rays, axis=-1), atol=0.01)


def test_a_picture_of_many_cells_is_remembered_in_tiles():
    """Above 256 cells a side, a frame is kept as several views that none can tell apart."""
    batch = cameras([look((0, 0, 1.2), (0, 4, 1))], (300, 520))
    memory = LatentMemory(MemoryConfig(4, dtype="float16"))
    assert remember(memory, batch, room(), first_id=7) == memory.tokens == 300 * 520
    readout = memory.read(batch)
    assert readout.visible.all() and np.abs(offsets(memory, batch)).max() < 0.1
    assert memory.references(readout, 9) == [7]
    assert memory.erase_frame(7) == 300 * 520


def test_many_tiles_come_in_parts_that_fit():
    """More views than a small memory takes in at once, their rows in raster order."""
    batch = random_cameras(np.random.default_rng(0), 120, (257, 257))
    depth = np.random.default_rng(1).uniform(1, 9, (120, 257, 257)).astype(np.float32)
    static = np.zeros(depth.shape, bool)
    static[:, 255:, 255:] = True
    ids, rgb = np.arange(120), np.zeros((*depth.shape, 3), np.uint8)
    memory = LatentMemory(MemoryConfig(1, 2**20))
    assert memory._store.views.most // 4 < 4 * 120
    memory.write(torch.zeros(1, 1).expand(120, 1, 257, 257), batch, depth, static, ids, rgb, ids)
    points, places = memory.to_points(), batch.lift(depth)[:, 255:, 255:].reshape(120, 4, 3)
    assert memory.tokens == 480
    for frame in ids:
        born = points.xyz[points.written_ns == frame]
        gaps = np.linalg.norm(born[:, None] - places[frame], axis=-1).min(0)
        assert len(born) == 4 and gaps.max() < 1e-4


def test_views_without_tokens_make_room():
    """Ten thousand frames of which each replaces the one before take the room of few."""
    memory = LatentMemory(MemoryConfig(4, 2**20))
    batch = cameras([look((0, 0, 0), (0, 1, 0))], (6, 8))
    depth, static = np.full((1, 6, 8), 2.0), np.ones((1, 6, 8), bool)
    rgb = np.zeros((1, 6, 8, 3), np.uint8)
    for i in range(2_000):
        number = np.array([i])
        memory.write(torch.zeros(1, 4, 6, 8), batch, depth, static, number, rgb, number)
    assert memory.tokens == 48 and memory.nbytes < 20_000
    readout = memory.read(batch)
    assert memory.references(readout, 9) == [1_999]


def test_ticks_go_on_when_their_bits_are_used_up():
    memory = LatentMemory(MemoryConfig(4))
    batch = cameras([look((0, 0, 0), (0, 5, 0)), look((0, 0, 0), (0, -5, 0))], (6, 8))
    remember(memory, batch, room(), stamp_ns=0)
    memory.read(batch[:1])
    memory._tick = 65_534
    memory.read(batch[1:])
    fork = memory.fork()
    memory.read(batch[1:])
    seen = memory._store["used"].astype(int)
    assert memory._tick == 32_768 and set(seen.tolist()) == {1, 32_768}
    assert set(fork._store["used"].tolist()) == {2, 65_535} and fork._tick == 65_535


@njit
def enter(table, keys, kept, rows):
    """Enters keys until the table is full; tells the row of each. Returns how many rows and how
    many keys there are."""
    count = 0
    for i in range(len(keys)):
        hashed = mixed(keys[i, 0], keys[i, 1])
        slot = slot_of(hashed, table)
        while table[slot] != EMPTY:
            if not unlike(table[slot], hashed, table):
                held = kept[row_in(table[slot], table)]
                if held[0] == keys[i, 0] and held[1] == keys[i, 1]:
                    break
            slot = following(slot, table)
        if table[slot] == EMPTY:
            if is_full(table, count):
                return count, i
            table[slot] = tagged(hashed, count, table)
            kept[count] = keys[i]
            count += 1
        rows[i] = row_in(table[slot], table)
    return count, len(keys)


@pytest.mark.parametrize("rows", [0, 1, 13, 14, 15, 1000, 100_000])
def test_a_full_table_finds_every_row_and_no_other(rows):
    """Against a dict; keys are close together, as voxels are, and many come twice."""
    rng = np.random.default_rng(rows)
    table = new_table(rows)
    keys = rng.integers(-2 - rows // 50, 2 + rows // 50, (10 * len(table), 2))
    kept, found = np.empty_like(keys), np.empty(len(keys), np.int64)
    count, done = enter(table, keys, kept, found)
    numbers: dict[tuple[int, int], int] = {}
    wanted = [numbers.setdefault(tuple(key), len(numbers)) for key in keys[:done].tolist()]
    assert found[:done].tolist() == wanted and len(numbers) == count
    assert count >= rows and (table != EMPTY).sum() == count
    assert count >= 0.87 * len(table) or rows < 1000
    assert table.nbytes <= BYTES_PER_ROW * max(rows, 75)

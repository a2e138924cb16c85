"""What the latent memory gives up and what it keeps: its cap, erasing, and forks."""

import tracemalloc

import numpy as np
import pytest
from analytic import WALL, Quad, cameras, look, loop, remember, room, written
from test_zbuffer import pack

from mirage_ros.errors import MirageError
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.memory.rows import views_of
from mirage_ros.memory.store import TokenStore
from mirage_ros.memory.surfels import view_numbers

SHAPES = {"normals": 2, "rgb": 3, "features": 16}


def some_rows(number, views, rows=500):
    """Tokens anywhere, as one write of so many views brings them."""
    rng = np.random.default_rng(number)
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3, 3] = rng.uniform(-50, 50, (views, 3))
    ids = np.full(views, number)
    batch = {name: np.zeros((rows, width)) for name, width in SHAPES.items()}
    of = np.sort(rng.integers(0, views, rows))
    cells, depth = rng.integers(0, 60, (rows, 2)), rng.uniform(1, 9, rows)
    batch["places"] = pack(of, cells, depth, np.ones(rows, bool))
    batch["used"] = np.full(rows, number)
    return batch, views_of(cameras(poses, (60, 60)), ids, ids)


def allocated(store):
    own = sum(array.nbytes for array in store.arrays.values())
    views = sum(field.nbytes for field in store.views.fields.values())
    return own + views + store.table.nbytes + store.blocks.nbytes


@pytest.mark.parametrize("views", [1, 50])
@pytest.mark.parametrize("restored_after", [None, 20, 100])
def test_the_cap_holds_at_every_moment_of_a_write(restored_after, views):
    """Also of a store that was restored from a file, nearly full; of one whose views are many."""
    cap, batches = 4 * 2**20, [some_rows(i, views) for i in range(150)]
    store = TokenStore(16, cap // 16, "float16")
    for batch in batches[:10]:
        store.insert(*batch)  # so that nothing is left to compile
    store = TokenStore(16, cap, "float16")
    tracemalloc.start()
    peaks = []
    for i, batch in enumerate(batches):
        if i == restored_after:
            rows = {name: store[name].copy() for name in store.arrays}
            seen = {name: store.views[name].copy() for name in store.views.fields}
            store = TokenStore(16, cap, "float16")
            store.restore(rows, seen)
            del rows, seen
        before = tracemalloc.get_traced_memory()[0] - allocated(store)
        tracemalloc.reset_peak()
        store.insert(*batch)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert store.nbytes <= allocated(store) <= cap
        views_held = len(np.unique(view_numbers(store["places"])))
        assert views_held <= store.views.count <= store.views.most
    tracemalloc.stop()
    incoming = 500 * 300
    assert max(peaks) <= cap + incoming
    assert store["used"].max() == 149
    if views == 1:
        assert 40_000 < store.count <= store.max_rows < 60_000
    else:  # of 7,500 views it has room for half
        assert 0.9 < store.views.count / store.views.most <= 1 and store["used"].min() > 70


def test_a_full_memory_forgets_what_was_seen_least_recently():
    memory = LatentMemory(MemoryConfig(4, 256 * 2**10))
    kept = cameras([look((0, 0, 0), (0, 1, 0))], (16, 20))
    remember(memory, kept, WALL)
    for i in range(1, 40):
        elsewhere = cameras([look((100.0 * i, 0, 0), (100.0 * i, 1, 0))], (16, 20))
        quad = [Quad((100 * i - 6, 4, -6), (12, 0, 0), (0, 0, 12))]
        assert remember(memory, elsewhere, quad, first_id=i) == 320
        assert memory.read(kept).visible.all()
        assert memory.nbytes <= 256 * 2**10
    assert memory.tokens < 40 * 320
    ids = set(memory.source_frames(memory.read(kept)).ravel().tolist())
    assert ids == {0}


def test_erasing_a_box_forgets_what_is_in_it_and_nothing_else():
    memory = written(loop(), room())
    points = memory.to_points()
    inside = ((points.xyz >= (0.9, 0.9, 0.1)) & (points.xyz <= (2.1, 2.1, 1.1))).all(-1)
    assert memory.erase(np.array([0.9, 0.9, 0.1]), np.array([2.1, 2.1, 1.1])) == inside.sum() > 0
    after = memory.to_points()
    for one, other in zip(after, points, strict=True):
        np.testing.assert_array_equal(one, other[~inside])
    before = memory.tokens
    remember(memory, loop(), room(), first_id=100)
    assert memory.tokens - before == inside.sum()
    with pytest.raises(MirageError, match="min <= max"):
        memory.erase(np.array([1.0, 0, 0]), np.array([0.0, 1, 1]))
    memory.clear()
    assert memory.tokens == 0


def test_a_fork_goes_its_own_way():
    memory = written(loop(4), room())
    fork, points = memory.fork(), memory.to_points()
    fork.erase_frame(0)
    remember(memory, loop(), room(), first_id=50)
    grown = memory.tokens
    assert fork.tokens < len(points.xyz) < grown
    second = memory.fork()
    memory.clear()
    assert (second.tokens, memory.tokens) == (grown, 0)
    assert set(fork.to_points().written_ns.tolist()) <= set(points.written_ns.tolist()) - {0}


def test_a_fork_copies_nothing_until_one_of_two_living_memories_changes():
    memory = written(loop(4), room())
    arrays = memory._store.arrays
    fork = memory.fork()
    assert all(fork._store.arrays[name] is arrays[name] for name in arrays)
    before, batch = memory._store["used"].copy(), loop(4)
    fork.read(batch)
    np.testing.assert_array_equal(memory._store["used"], before)
    assert fork._store.arrays["features"] is arrays["features"]
    del fork
    memory.read(batch)
    memory.erase_frame(0)
    assert all(memory._store.arrays[name] is arrays[name] for name in arrays)

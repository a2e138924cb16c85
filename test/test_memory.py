"""What the latent memory promises, on ray-cast rooms and walls."""

import numpy as np
import pytest
import torch
from analytic import CONFIG, WALL, Quad, cameras, look, loop, offsets, raycast, remember, room, written

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, MemoryConfig


def read(memory, *poses, size=(44, 80)):
    batch = cameras(poses, size)
    return memory.read(batch)


def random_poses(rng, count):
    at, towards = rng.uniform(-0.8, 0.8, (count, 3)) + (0, 0, 1.2), rng.uniform(-3, 3, (count, 3))
    return [look(*pair) for pair in zip(at, towards, strict=True)]


def test_reading_from_the_pose_of_writing_gives_the_same_tokens():
    rng = np.random.default_rng(0)
    for pose in random_poses(rng, 12):
        batch = cameras([pose])
        memory = written(batch, room())
        readout = memory.read(batch)
        assert readout.visible.all()
        assert len(np.unique(readout.index)) == readout.index.size == memory.tokens
        depth, number, place = raycast(batch, room())
        np.testing.assert_allclose(readout.depth_m, depth, rtol=1e-5)
        np.testing.assert_allclose(readout.latents[:, 0], number)
        np.testing.assert_allclose(readout.latents[:, 1], place[..., 0], atol=1e-3)
        assert np.abs(offsets(memory, batch)).max() <= 0.1
        assert np.abs(readout.log_scale).max() < 1e-5


@pytest.mark.parametrize("stride", [8, 16])
def test_a_token_projects_within_a_tenth_of_a_cell_of_its_patch(stride):
    rng = np.random.default_rng(stride)
    for pose in random_poses(rng, 6):
        full = Camera.from_hfov(70.0, (8 * stride, 10 * stride), pose)
        batch = Camera.stack([full.resized((8, 10))])
        points = written(batch, room()).to_points().xyz.astype(np.float64)
        pixels, _ = full.project(points)
        column, row = np.meshgrid(np.arange(10), np.arange(8))
        centres = np.stack([column, row], -1).reshape(-1, 2) * stride + (stride - 1) / 2
        pixels = pixels[np.lexsort(np.rint((pixels - centres[0]) / stride).T)]
        assert np.abs(pixels - centres).max() <= 0.1 * stride


def test_the_same_loop_again_adds_next_to_nothing():
    memory = written(loop(), room())
    first = memory.tokens
    remember(memory, loop(), room(), first_id=100)
    assert memory.tokens <= 1.05 * first


@pytest.mark.parametrize("new", [False, True])
def test_ten_rounds_store_as_much_as_one_and_show_as_much(new):
    memory, batch = LatentMemory(CONFIG), loop()
    shown, tokens = [], []
    for lap in range(10):
        remember(memory, batch, room(), first_id=100 * lap, new=new)
        shown.append(memory.read(batch).visible.mean())
        tokens.append(memory.tokens)
    assert tokens[-1] <= 1.05 * tokens[0]
    assert min(shown) >= shown[0] == 1


def test_writing_only_what_is_new_keeps_a_shaken_loop_bounded():
    memory = LatentMemory(CONFIG)
    remember(memory, loop(), room(), new=True)
    first = memory.tokens
    rng = np.random.default_rng(0)
    for lap in range(3):
        shaken = loop()
        poses = shaken.world_from_camera.copy()
        poses[:, :3, 3] += rng.uniform(-0.02, 0.02, (len(poses), 3))
        batch = Camera(shaken.intrinsics, poses, shaken.size)
        remember(memory, batch, room(), first_id=100 * (lap + 1), new=True)
    assert memory.tokens <= 1.1 * first


@pytest.mark.parametrize("zoom", [1.1, 1.25, 1.5, 2.0, 3.0])
def test_zooming_in_on_a_wall_leaves_no_holes(zoom):
    memory = written(cameras([look((0, 0, 0), (0, 1, 0))]), WALL)
    closer = 4 - 4 / zoom
    readout = read(
        memory,
        look((0, closer, 0), (0, 5, 0)),
        look((0.03, closer, 0.02), (0.01, 5, 0.02)),
        look((0, closer, 0), (0.2, 4, 0.1), roll_deg=2),
    )
    assert (1 - readout.visible.mean((1, 2)) <= 0.02).all()
    assert np.median(readout.log_scale[readout.visible]) == pytest.approx(np.log(zoom), abs=0.05)


def fence():
    slats = [Quad((x, 2, -1.5), (0.15, 0, 0), (0, 0, 3)) for x in np.arange(-2.5, 2.5, 0.35)]
    return slats + WALL


@pytest.mark.parametrize("views", [1, 9])
def test_a_wall_does_not_leak_through_the_fence_before_it(views):
    seen_from = np.linspace(-0.4, 0.4, views) if views > 1 else [0.0]
    memory = written(cameras([look((x, 0, 0), (x, 4, 0)) for x in seen_from]), fence())
    batch = cameras([look((x, y, 0), (x, 4, 0)) for x in (0.0, 0.07, 0.2) for y in (0, 0.1, 0.5)])
    readout = memory.read(batch)
    fine = raycast(batch.resized((132, 240)), fence())[0].reshape(9, 44, 3, 80, 3)
    slat = (fine < 3).all((2, 4)) & readout.visible
    if views == 1:
        slat[:, :, :12] = slat[:, :, -12:] = False  # slats there may never have been in view
        # One view knows a silhouette to half a cell of its own: leave out its cells.
        slat &= np.roll(slat, 1, 2) & np.roll(slat, -1, 2)
    assert slat.sum() > (4000 if views == 1 else 12000)
    assert (readout.depth_m[slat] > 3).mean() <= 0.01


def test_turning_round_behind_a_wall_shows_none_of_its_front():
    front = [look((x, 0, 0), (x, 4, 0)) for x in (-3, 0, 3)]
    memory = written(cameras(front), WALL)
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        for at in ((0, 4.3, 0), (1, 5, 0.5), (-2, 9, 0)):
            target = np.add(at, (np.sin(angle), np.cos(angle), 0.1))
            assert not read(memory, look(at, target)).visible.any()


def test_from_behind_a_wall_nothing_of_its_front_shows():
    memory = written(cameras([look((0, 0, 0), (0, 1, 0)), look((-2, 1, 0), (0, 4, 0))]), WALL)
    behind = read(memory, look((0, 8, 0), (0, 0, 0)), look((2, 6, 1), (0, 0, 0)))
    assert not behind.visible.any()
    assert read(memory, look((1, 0, 0), (1, 4, 0))).visible.any()


def test_a_floor_at_a_slant_keeps_its_far_rows():
    floor = [Quad((-30, 0, 0), (60, 0, 0), (0, 60, 0))]
    memory = written(cameras([look((0, 0, 1.2), (0, 8, 0))]), floor)
    for height in (1.2, 1.0, 0.7):
        batch = cameras([look((0.05, 0.1, height), (0, 8, 0))])
        readout = memory.read(batch)
        truth = raycast(batch, floor)[0]
        both = readout.visible & np.isfinite(truth) & (truth < 20)
        off = np.abs(offsets(memory, batch)).max(1)[both]
        assert (off <= 0.75).mean() >= 0.97
        error = np.abs(readout.depth_m[both] / truth[both] - 1)
        assert np.median(error) < 0.05 and (error < 0.3).mean() > 0.99


def test_the_view_of_the_right_scale_wins():
    far, near = look((0, 0, 0), (0, 1, 0)), look((0.013, 3, 0.017), (0.013, 4, 0.017))
    memory = written(cameras([far, near]), WALL)
    for pose in (far, near):
        readout = read(memory, pose)
        assert np.abs(readout.log_scale[readout.visible]).max() < 0.1


def test_in_one_voxel_the_finer_wins_then_the_newer():
    view = cameras([look((0, 0, 0), (0, 1, 0))], (3, 3))
    memory = LatentMemory(CONFIG)

    def put(value, depth, frame):
        latents = torch.full((1, 4, 3, 3), float(value))
        static, rgb = np.ones((1, 3, 3), bool), np.zeros((1, 3, 3, 3), np.uint8)
        ids = np.array([frame])
        return memory.write(latents, view, np.full((1, 3, 3), depth), static, ids, rgb, ids)

    def centre():
        return memory.read(view).latents[0, 0, 1, 1].item()

    assert put(1, 4.1, 0) == 9 and centre() == 1
    assert put(2, 4.1, 1) == 9 and centre() == 2
    assert put(3, 4.10001, 2) == 0 and centre() == 2
    assert put(4, 4.09999, 3) == 9 and centre() == 4
    assert memory.tokens == 9


def test_nothing_imagined_takes_the_place_of_what_a_real_picture_showed():
    """Not in its voxel, not over it on its surface, and not where a camera comes closer."""
    real, memory = cameras([look((0, 0, 0), (0, 1, 0))], (6, 8)), LatentMemory(CONFIG)

    def put(value, camera, depth, real=False, new=False):
        size = (1, *camera.size)
        depth_m, static, stamps = np.full(size, depth, np.float32), np.ones(size, bool), np.zeros(1, np.int64)
        rgb, ids = np.zeros((*size, 3), np.uint8), np.zeros(1, np.int64)
        latents = torch.full((1, 4, *camera.size), float(value))
        write = memory.write_new if new else memory.write
        return write(latents, camera, depth_m, static, stamps, rgb, ids, real=real)

    def values(camera):
        return set(memory.read(camera).latents[0, 0].unique().tolist())

    put(1, real, 4.1, real=True)
    assert put(2, real, 4.0999) == 0, "finer, in the same voxels"
    shifted = cameras([look((0.05, 0, 0), (0.05, 1, 0))], (6, 8))
    assert put(2, shifted, 4.4) > 0 and values(real) == {1}, "the same surface, behind it"
    assert put(2, shifted, 3.7) > 0
    assert values(real) == {1}, "the same surface, before it"
    close = cameras([look((0, 3, 0), (0, 4, 0))], (6, 8))
    assert put(3, close, 1.1, new=True) == 0 and values(close) == {1}, "four times as fine"
    assert put(4, close, 1.1, real=True, new=True) == 48 and values(close) == {4}
    assert put(5, real, 4.1, real=True) == 48 and values(real) == {5}, "real ones are corrected"


def test_only_static_finite_cells_are_written():
    batch = cameras([np.eye(4)], (2, 3))
    depth = np.array([[[1, np.nan, np.inf], [-1, 0, 2]]])
    static = np.array([[[True, True, True], [True, True, False]]])
    memory = LatentMemory(CONFIG)
    rgb, zero = np.zeros((1, 2, 3, 3), np.uint8), np.zeros(1, np.int64)
    assert memory.write(torch.zeros(1, 4, 2, 3), batch, depth, static, zero, rgb, zero) == 1
    assert memory.read(batch).visible.ravel().tolist() == [True] + 5 * [False]


def test_references_are_the_birth_frames_with_most_winners():
    batch = cameras([look((0, 0, 0), (0, 1, 0))], (16, 20))
    memory = LatentMemory(CONFIG)
    depth = np.full((1, 16, 20), 3.0)
    rgb = np.zeros((1, 16, 20, 3), np.uint8)
    for frame, columns in ((7, slice(0, 5)), (3, slice(5, 10)), (5, slice(10, 20))):
        static = np.zeros((1, 16, 20), bool)
        static[:, :, columns] = True
        ids = np.array([frame])
        memory.write(torch.zeros(1, 4, 16, 20), batch, depth, static, ids, rgb, ids)
    readout = memory.read(batch)
    assert memory.references(readout, 2) == [5, 3]
    assert memory.references(readout, 9) == [5, 3, 7]
    assert memory.erase_frame(5) == 160
    assert memory.references(memory.read(batch), 9) == [3, 7]


def test_references_count_winners_as_brute_force_does():
    memory = written(loop(8), room())
    readout = memory.read(loop(5))
    sources = memory.source_frames(readout)[readout.visible].tolist()
    ranked = sorted(set(sources), key=lambda frame: (-sources.count(frame), frame))
    assert memory.references(readout, 99) == ranked and len(ranked) == 8


def test_reading_by_torch_shows_the_same_before_and_after_a_write():
    one, other = (LatentMemory(MemoryConfig(4, device=device)) for device in (None, "cpu"))
    batch = loop(6)
    for part in (batch[:3], batch[3:]):
        for memory in (one, other):
            remember(memory, part, room())
        a, b = (memory.read(batch) for memory in (one, other))
        assert torch.equal(a.latents, b.latents)
        for name in ("index", "depth_m", "place", "log_scale"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_colours_and_confidence_of_the_cloud():
    memory = written(cameras([look((0, 0, 0), (0, 1, 0))]), WALL)
    points = memory.to_points()
    assert (points.rgb == 50).all() and (points.written_ns == 0).all()
    assert points.confidence.max() == pytest.approx(1, abs=0.01)
    corner = np.cos(np.arctan(np.hypot(0.7, 0.385)))
    assert points.confidence.min() == pytest.approx(corner, abs=0.02)


def test_latents_that_do_not_fit_are_refused_and_nothing_changes():
    batch = cameras([np.eye(4)], (2, 3))
    memory = LatentMemory(CONFIG)
    rest = (np.ones((1, 2, 3)), np.ones((1, 2, 3), bool), np.zeros(1, np.int64))
    last = (np.zeros((1, 2, 3, 3), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(MirageError, match="shape"):
        memory.write(torch.zeros(1, 5, 2, 3), batch, *rest, *last)
    with pytest.raises(MirageError, match="float16"):
        memory.write(torch.full((1, 4, 2, 3), 1e6), batch, *rest, *last)
    assert memory.tokens == 0
    with pytest.raises(MirageError, match="cap"):
        LatentMemory(MemoryConfig(4, 100))


def test_a_slanted_floor_is_as_deep_as_each_ray_says():
    """Each cell of a readout has the depth of the token's plane there, not that of its middle."""
    floor = [Quad((-6, -6, 0), (12, 0, 0), (0, 12, 0))]
    memory = written(cameras([look((0, -2, 1.2), (0, 2, 0))], (16, 20)), floor)
    batch = cameras([look((0.2, -1.7, 1.2), (0.1, 2, 0))], (64, 80))
    shown, (true, _, _) = memory.read(batch).depth_m, raycast(batch, floor)
    seen = np.isfinite(shown) & np.isfinite(true) & (true < 6)
    off = np.abs(shown / true - 1)[seen]
    assert seen.mean() > 0.5 and np.median(off) < 0.005 and np.percentile(off, 95) < 0.03

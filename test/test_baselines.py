"""The baseline that remembers pixels is competent: exact, merged, whole, and it runs the cycle."""

import numpy as np
import pytest
from analytic import cameras, look, raycast, room
from fakes import PixelModel

from mirage_ros.errors import MirageError
from mirage_ros.evaluation.point_cloud import BARE_POINT_BYTES, CloudConfig, PointCloud
from mirage_ros.evaluation.rgb_cache import (
    KeyframeMemory,
    KeyframeWorld,
    RgbMemory,
    RgbWorld,
    between_surfaces,
    fill_holes,
    keyframe_files,
    keyframe_of,
)
from mirage_ros.memory.lifting import lift_surfels
from mirage_ros.memory.rows import VIEW_BYTES, views_of
from mirage_ros.memory.surfels import Surfels, footprints_of, positions_of
from mirage_ros.world.world import World, WorldConfig

SIZE = (64, 80)
HERE = look((0, 0, 1.2), (0, 4, 1))
KEEP_ALL = CloudConfig(voxel_m=None)


def painted(batch, quads):
    """Smooth colours that tell place, and depth."""
    depth, number, place = raycast(batch, quads)
    rgb = np.stack([number * 20, 40 + 200 * place[..., 0], 40 + 200 * place[..., 1]], -1)
    return rgb.round().astype(np.uint8), depth


def cloud_of(batch, quads, config=KEEP_ALL):
    cloud = PointCloud(config)
    rgb, depth = painted(batch, quads)
    cloud.write(rgb, batch, depth, np.ones(depth.shape, bool), np.arange(len(batch)))
    return cloud, rgb, depth


def test_drawing_from_the_pose_of_writing_gives_the_same_pixels():
    batch = cameras([HERE], SIZE)
    cloud, rgb, depth = cloud_of(batch, room())
    drawing = cloud.draw(batch)
    assert drawing.covered.all()
    np.testing.assert_array_equal(drawing.rgb, rgb)
    np.testing.assert_allclose(drawing.depth_m, depth, rtol=1e-5)
    assert np.abs(drawing.log_scale).max() < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_drawing_is_an_exact_z_buffer(seed):
    """Against all points at once: each pixel shows the depth of its nearest splat."""
    rng = np.random.default_rng(seed)
    batch = cameras([HERE], (24, 30))
    cloud = PointCloud(CloudConfig(voxel_m=None, tolerance=0.0))
    spread = rng.uniform(1, 6, (1, 48, 60))
    source = cameras([look((0.2, -0.3, 1.1), (0.3, 4, 1))], (48, 60))
    cloud.write(np.zeros((1, 48, 60, 3), np.uint8), source, spread, spread > 0, np.zeros(1, int))
    drawing = cloud.draw(batch)
    pixels, z = (x[0] for x in batch.project(cloud["xyz"][None].astype(float)))
    k = batch.intrinsics[0]
    half = 0.625 * cloud["footprints"].astype(float)[:, None] / z[:, None] * (k[0, 0], k[1, 1])
    nearest = np.full((24, 30), np.inf)
    for r in range(24):
        for c in range(30):
            gap = np.abs(pixels - (c, r))
            home = (np.floor(pixels + 0.5) == (c, r)).all(-1)
            hit = ((gap <= half) | (np.floor(pixels + 0.5) == (c, r))).all(-1) | home
            nearest[r, c] = z[hit & (z > 0.02)].min(initial=np.inf)
    np.testing.assert_array_equal(drawing.covered[0], np.isfinite(nearest))
    seen = drawing.covered[0]
    np.testing.assert_allclose(drawing.depth_m[0][seen], nearest[seen], rtol=1e-5)


def test_points_of_one_voxel_merge_and_the_finer_stays():
    near, far = cameras([HERE], SIZE), cameras([look((0, -2, 1.2), (0, 4, 1))], SIZE)
    config = CloudConfig(voxel_m=0.05)
    cloud, rgb, depth = cloud_of(near, room(), config)
    count = cloud.count
    voxels = np.unique(np.floor(cloud["xyz"] / 0.05), axis=0)
    assert count == len(voxels) < depth.size
    cloud.write(rgb, near, depth, depth > 0, np.array([1]))
    assert cloud.count == count and (cloud["frames"] == 1).all()
    rgb, depth = painted(far, room())
    before = cloud["footprints"].copy()
    cloud.write(rgb, far, depth, depth > 0, np.array([2]))
    assert (cloud["footprints"][:count] <= before).all()
    assert cloud.count == len(np.unique(np.floor(cloud["xyz"] / 0.05), axis=0))


def test_runs_out_of_view_are_skipped_without_a_trace():
    batch = cameras([HERE, look((0, 0, 1.2), (4, 0, 1)), look((0, 0, 1.2), (0, -4, 1))], SIZE)
    cloud, _, _ = cloud_of(batch, room())
    whole = cloud.draw(batch[:1])
    alone, _, _ = cloud_of(batch[:1], room())
    np.testing.assert_array_equal(alone.draw(batch[:1]).covered, whole.covered)
    assert (whole.index < 64 * 80).mean() > 0.95


def test_bytes_are_counted():
    batch = cameras([HERE], SIZE)
    cloud, _, _ = cloud_of(batch, room())
    assert cloud.nbytes == 64 * 80 * (8 + 3) + VIEW_BYTES
    merged, _, _ = cloud_of(batch, room(), CloudConfig())
    assert 4.5 < merged.nbytes / merged.count - 11 < 5.2
    assert merged.copy().nbytes == merged.nbytes
    with pytest.raises(MirageError, match="not 65536 to 65536"):
        cloud.write(np.zeros((1, 64, 80, 3), np.uint8), batch, np.ones((1, 64, 80)),
                    np.ones((1, 64, 80), bool), np.array([65_536]))  # fmt: skip
    with pytest.raises(MirageError, match="more than 0"):
        PointCloud(CloudConfig(voxel_m=0.0))


def test_a_copy_takes_more_points():
    """Of a cloud that had made room for many more: all of them fell into few voxels."""
    cloud, camera = PointCloud(CloudConfig(voxel_m=5.0)), cameras([look((0, 0, 1), (0, 1, 1))], (64, 80))

    def more(of, depth_m, rows):
        depth, rgb = np.full((1, 64, 80), depth_m, np.float32), np.zeros((1, 64, 80, 3), np.uint8)
        static = np.broadcast_to((np.arange(64) < rows)[None, :, None], depth.shape)
        return of.write(rgb, camera, depth, static, np.array([0]))

    more(cloud, 2.0, 64)
    twin = cloud.copy()
    assert more(twin, 40.0, 2) > 0 and twin.count > cloud.count
    assert twin.draw(camera).covered.sum() >= cloud.draw(camera).covered.sum()


def test_a_point_takes_no_more_than_is_counted():
    """Stored as a token's place, a pixel gives its point and footprint again."""
    batch = cameras([HERE, look((0.4, 0, 1.2), (0, 4, 1))], (300, 400))
    cloud, _, depth = cloud_of(batch, room())
    places = lift_surfels(batch, depth, depth > 0)["places"]
    views = views_of(batch, np.zeros(2, np.int64), np.arange(2))
    normals = np.zeros((len(places), 2), np.int8)
    rays, focals = (views[name].astype(np.float32) for name in ("rays", "focals"))
    surfels = Surfels(places, normals, rays, focals, views["real"])
    assert places.itemsize + 3 == BARE_POINT_BYTES and cloud.views == len(focals) == 2 * 4
    np.testing.assert_allclose(positions_of(surfels), cloud["xyz"], atol=2e-5)
    np.testing.assert_allclose(footprints_of(surfels), cloud["footprints"], rtol=1e-3)


def test_memory_reads_cells_as_the_latent_memory_does():
    model, batch = PixelModel(SIZE), cameras([HERE], SIZE)
    memory = RgbMemory(model.encode, 8)
    rgb, depth = painted(batch, room())
    assert memory.write_new(rgb, batch, depth, depth > 0, np.array([5])) > 4000
    cells = batch.resized((8, 10))
    readout = memory.read(cells)
    assert readout.visible.mean() > 0.95
    shown = model.decode(readout.latents)[0]
    seen = readout.visible[0].repeat(8, 0).repeat(8, 1)
    assert np.median(np.abs(shown[seen].astype(int) - rgb[0][seen])) <= 4
    assert memory.references(readout, 3) == [5]
    assert memory.write_new(rgb, batch, depth, depth > 0, np.array([6])) < 200


def test_holes_take_the_nearest_colour():
    rgb = np.zeros((1, 8, 8, 3), np.uint8)
    rgb[0, :, :4], covered = (9, 8, 7), np.zeros((1, 8, 8), bool)
    covered[0, :, :4] = True
    assert (fill_holes(rgb, covered) == (9, 8, 7)).all()
    assert (fill_holes(rgb, np.zeros_like(covered)) == rgb).all()


def test_a_slanted_floor_is_no_edge_but_a_jump_is():
    _, depth = painted(cameras([look((0, 0, 1.2), (0, 4, 0.2))], SIZE), room())
    edges = between_surfaces(depth)
    assert 0 < edges.mean() < 0.15
    plane, _, _ = raycast(cameras([look((0, -6, 1.0), (0, 0, 0.5))], SIZE), room(60, 60, 40)[:1])
    floor = np.isfinite(plane) & np.roll(np.isfinite(plane), 1, 1)
    assert not between_surfaces(plane)[floor].any()


def test_keyframes_are_files_of_pictures_and_nothing_else():
    away = look((0, 0, 1.2), (4, 0, 1))
    batch = cameras([HERE, HERE, away, look((0, 0, 1.2), (0, -4, 1))], SIZE)
    rgb, depth = painted(batch, room())
    memory, static = KeyframeMemory(PixelModel(SIZE).encode, 8, 2), depth > 0
    static[:, :8, :8] = False
    memory.write_new(rgb, batch, depth, static, np.arange(4))
    files = [keyframe_files(rgb[i], np.where(static[i], depth[i], np.nan)) for i in (0, 2)]
    assert memory.sizes == tuple(len(a) + len(b) for a, b in files)  # the same view again adds none
    assert memory.nbytes == sum(memory.sizes) + 2 * 64 and memory.cloud.count < 2 * 64 * 80
    assert all(a[:2] == b"\xff\xd8" and b[1:4] == b"PNG" for a, b in files)
    colours, metres = keyframe_of(*files[0])
    assert np.isnan(metres[:8, :8]).all() and np.abs(metres - depth[0])[static[0]].max() <= 5.1e-4
    shown = memory.pictures(batch[:1])[0]
    drawn = memory.cloud.draw(batch[:1]).covered[0]
    np.testing.assert_array_equal(shown[drawn], colours[drawn])
    assert 0 < np.abs(shown[drawn].astype(int) - rgb[0][drawn]).mean() < 6  # as JPEG has it
    fork = memory.fork()
    fork.most = 3
    fork.write_new(rgb, batch, depth, static, np.arange(4))
    assert len(fork.sizes) == 3 and len(memory.sizes) == 2 and fork.nbytes > memory.nbytes


def test_what_lies_too_deep_for_a_keyframe_is_unknown():
    depth = np.array([[np.nan, np.inf, 0.5], [65.534, 65.54, 100.0]], np.float32)
    metres = keyframe_of(*keyframe_files(np.zeros((2, 3, 3), np.uint8), depth))[1]
    np.testing.assert_allclose(metres, [[np.nan, np.nan, 0.5], [65.534, np.nan, np.nan]], rtol=1e-6)


def test_a_memory_of_pixels_keeps_the_seed_itself():
    """What the codec loses of a seed is no fault of a memory that never saw its latents."""

    class Dim(PixelModel):
        def decode(self, latents):
            return super().decode(latents) // 2

    batch = cameras([HERE], SIZE)
    rgb, depth = painted(batch, room())
    world = RgbWorld(Dim(SIZE), WorldConfig())
    world.reset(rgb[0], batch[0], depth[0].astype(np.float32))
    shown, seen = world.memory.pictures(batch), world.memory.cloud.draw(batch).covered
    assert np.median(np.abs(shown.astype(int) - rgb)[seen]) <= 4


@pytest.mark.parametrize("kind", [World, RgbWorld, KeyframeWorld])
def test_a_world_shows_again_what_it_has_shown(kind):
    model = PixelModel(SIZE)
    away = [look((0, 0, 1.2), (np.sin(a) * 4, np.cos(a) * 4, 1)) for a in np.linspace(0, 1, 7)]
    path = cameras([*away[1:], HERE, HERE], SIZE)
    rgb, depth = painted(cameras([HERE], SIZE), room())
    world = kind(model, WorldConfig(seed=1))
    first = world.reset(rgb[0], path[-1], depth[0].astype(np.float32)).frames[0]
    chunks = list(world.rollout(path, np.arange(1, 9) * 1000))
    back = chunks[-1].frames[-1]
    error = np.abs(back.rgb.astype(int) - first.rgb)[back.observed]
    assert back.observed.mean() > 0.95 and np.median(error) <= 4
    assert chunks[-1].tokens > 0 and chunks[-1].memory_bytes > 0
    state = world.snapshot()
    more = world.step(path[:1], np.array([9000]))
    world.restore(state)
    again = world.step(path[:1], np.array([9000]))
    np.testing.assert_array_equal(more.frames[0].rgb, again.frames[0].rgb)

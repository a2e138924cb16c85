"""Free space: what may stand in it, which views are kept, and that a world's seed stays in view."""

import numpy as np
import pytest
from analytic import cameras, look
from fakes import PixelModel
from pixel_worlds import SIZE, camera, frames, picture

from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import free_space as carving
from mirage_ros.memory.free_space import FreeSpaceViews
from mirage_ros.protocol import Perception
from mirage_ros.world.world import Rig, World, WorldConfig

PX = (64, 80)
CELLS = (8, 10)
HERE, ASIDE = look((0, 0, 1), (0, 1, 1)), look((2, 2, 1), (0, 2, 1))


def wall(depth_m):
    return np.full(PX, depth_m, np.float32)


def seen(depth_m=4.0, pose=HERE, real=True):
    add = FreeSpaceViews.none().with_real if real else FreeSpaceViews.none().with_imagined
    return add(cameras([pose], PX)[0], wall(depth_m), 4)


def cells(depth_m):
    return np.full((1, *CELLS), depth_m, np.float32)


def test_before_a_surface_nothing_may_stand_and_at_it_or_behind_it_all_may():
    free_space, batch = seen(), cameras([HERE], CELLS)
    assert free_space.hidden_by(batch, cells(2.0)).all()
    for depth_m in (3.8, 4.0, 9.0, np.nan, np.inf):
        assert not free_space.hidden_by(batch, cells(depth_m)).any()
    assert not FreeSpaceViews.none().hidden_by(batch, cells(2.0)).any()


def test_space_is_free_from_any_side_and_only_where_it_was_in_view():
    # From the side the cells lie 2 m ahead in the plane x = 0, which the view is centred on.
    across = seen().hidden_by(cameras([ASIDE], CELLS), cells(2.0))[0]
    assert across[4, 5] and across[4].mean() > 0.5
    behind = look((0, 0, 1), (0, -1, 1))
    assert not seen().hidden_by(cameras([behind], CELLS), cells(2.0)).any()


def test_a_wide_token_beside_the_picture_counts_where_it_would_reach_in():
    beside = look((0, 0, 1), (np.sin(0.72), np.cos(0.72), 1))
    hidden = seen().hidden_by(cameras([beside], CELLS), cells(1.0))[0]
    pixels, _ = cameras([HERE], PX)[0].project(
        cameras([beside], CELLS).lift(cells(1.0)).reshape(-1, 3)
    )
    out = (pixels[:, 0] > PX[1] - 0.5).reshape(CELLS)
    assert (hidden & out).any() and not hidden[:, -1].any()


def test_the_sky_is_free_and_unknown_depth_says_nothing():
    depth_m = wall(np.inf)
    depth_m[:, :40] = np.nan
    free_space = FreeSpaceViews.none().with_real(cameras([HERE], PX)[0], depth_m, 4)
    hidden = free_space.hidden_by(cameras([HERE], CELLS), cells(50.0))[0]
    assert hidden[:, 6:].all() and not hidden[:, :5].any()


def test_a_body_hides_what_is_behind_it():
    depth_m = wall(4.0)
    depth_m[24:40, 32:48] = 1.0
    free_space = FreeSpaceViews.none().with_real(cameras([HERE], PX)[0], depth_m, 4)
    hidden = free_space.hidden_by(cameras([HERE], CELLS), cells(2.0))[0]
    assert hidden[:, 0].all() and not hidden[3:5, 4:6].any()


def test_real_pictures_correct_what_older_ones_saw():
    nearer = seen().with_real(cameras([look((1, 0, 1), (1, 1, 1))], PX)[0], wall(2.0), 4)
    assert len(nearer.real) == 2
    hidden = nearer.hidden_by(cameras([look((0.5, 0, 1), (0.5, 1, 1))], CELLS), cells(2.0))
    assert hidden.mean() < 0.5, "the new surface itself may stand, where it is known"
    again = seen().with_real(cameras([HERE], PX)[0], wall(2.0), 4)
    assert len(again.real) == 1 and not again.hidden_by(cameras([HERE], CELLS), cells(3.0)).any()


def test_imagined_views_are_kept_where_none_looked_alike_and_make_room_first(monkeypatch):
    monkeypatch.setattr(carving, "MOST", 3)
    free_space = seen()
    batch = cameras([look((x, 0, 1), (x, 1, 1)) for x in (0.1, 3, 6, 9)], PX)
    assert free_space.with_imagined(batch[0], wall(4.0), 4) is free_space
    for one in batch[1:]:
        free_space = free_space.with_imagined(one, wall(4.0), 4)
    assert free_space.real.tolist() == [True, False, False]
    np.testing.assert_allclose(free_space.cameras.position_world[:, 0], [0, 6, 9])
    for x in (20, 30, 40):
        free_space = free_space.with_real(cameras([look((x, 0, 1), (x, 1, 1))], PX)[0], wall(4.0), 4)
    assert free_space.real.all() and len(free_space.real) == 3


class Foggy(PixelModel):
    """Takes all that memory does not show for a wall right before the camera."""

    def perceive(self, rgb, cameras, anchor_depth_m):
        seen = super().perceive(rgb, cameras, anchor_depth_m)
        if anchor_depth_m is None:
            return seen
        known = np.isfinite(anchor_depth_m).repeat(self.stride, 1).repeat(self.stride, 2)
        return Perception(np.where(known, seen.depth_m, 0.5), seen.dynamic, seen.sky)


def turning(count=16):
    """Around the place ahead of the seed, and back to it."""
    angle = np.concatenate([np.linspace(0, 1.2, count // 2), np.linspace(1.2, 0, count // 2)])
    eyes = [(2 * np.sin(a), 2 - 2 * np.cos(a), 1) for a in angle]
    poses = np.stack([look(eye, (0, 2, 1)) for eye in eyes])
    return Camera(camera().intrinsics, poses, SIZE), np.arange(1, count + 1) * 100_000_000


def started():
    world = World(Foggy(), WorldConfig())
    world.reset(picture(), camera())
    return world


def test_what_is_imagined_never_hides_the_seed_from_its_own_camera():
    world = started()
    tokens = world.memory.tokens
    shown = frames(world.rollout(*turning()))
    assert world.memory.tokens > tokens, "elsewhere the world grows"
    assert np.abs(shown[-1].rgb.astype(int) - picture().astype(int)).max() <= 2
    np.testing.assert_allclose(shown[-1].depth_m, 3.0, rtol=carving.MARGIN)


def test_free_space_is_saved_and_forked_with_the_world(tmp_path):
    world = started()
    plan, stamps = turning()
    before = world.snapshot()
    list(world.rollout(plan[:8], stamps[:8]))
    world.save(tmp_path / "world")
    other = World(Foggy(), WorldConfig())
    other.load(tmp_path / "world")
    one, two = world.snapshot().free_space, other.snapshot().free_space
    assert len(one.real) > 1
    for name in ("reach_m", "real"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(one.cameras.world_from_camera, two.cameras.world_from_camera)
    assert one.cameras.size == two.cameras.size
    world.restore(before)
    assert len(world.snapshot().free_space.real) == 1


def test_observed_pictures_and_all_cameras_of_a_rig_tell_what_is_free():
    world = started()
    right, back = look((5, 0, 1), (5, 1, 1)), look((0, 0, 1), (0, -1, 1))
    place = Camera(camera().intrinsics, right, SIZE)
    world.observe(picture(), place, np.full(SIZE, 2.0, np.float32), 1)
    assert world.snapshot().free_space.real.tolist() == [True, True]
    plans = [Camera(camera().intrinsics, np.stack([pose] * 2), SIZE) for pose in (HERE, back)]
    Rig(world, 2).step(plans, np.array([2, 3]))
    free_space = world.snapshot().free_space
    assert free_space.real.tolist() == [True, True, False]
    assert free_space.cameras.world_from_camera[2, :3, 2] @ [0, -1, 0] == pytest.approx(1)

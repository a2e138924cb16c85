"""The cycle on a model without a network: what stays put, what is remembered, what is saved."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import look
from fakes import PixelModel
from pixel_worlds import HALF_A_STEP, SIZE, NoisyModel, camera, frames, out_and_back, picture, same, started

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth, completed
from mirage_ros.geometry.images import fit_seed, resize_rgb
from mirage_ros.memory.surfels import Surfels
from mirage_ros.world.world import World, WorldConfig


def test_the_seed_is_the_first_frame():
    world = World(PixelModel())
    chunk = world.reset(picture(), camera(), stamp_ns=5)
    (frame,) = chunk.frames
    np.testing.assert_array_equal(frame.rgb, picture())
    assert frame.stamp_ns == 5 and frame.observed.all() and frame.depth_m.shape == SIZE
    assert (world.frames_seen, chunk.tokens, world.memory.tokens) == (1, 80, 80)
    assert set(chunk.seconds) == {"read", "generate", "decode", "perceive", "write"}


def test_the_first_view_comes_back_when_the_camera_does():
    world = started()
    cameras, stamps = out_and_back()
    shown = frames(world.rollout(cameras, stamps))
    error = np.abs(shown[-1].rgb.astype(int) - picture().astype(int))
    assert shown[-1].observed.all() and error.max() <= HALF_A_STEP
    assert [frame.stamp_ns for frame in shown] == stamps.tolist()
    middle = shown[7]
    assert 0.2 < middle.observed.mean() < 0.95


def test_what_was_imagined_once_is_shown_again():
    world = started()
    cameras, stamps = out_and_back(8)
    first = frames(world.rollout(cameras, stamps))[1]
    again = frames(world.rollout(cameras, stamps + stamps[-1]))[1]
    tokens = world.memory.tokens
    assert np.abs(first.rgb.astype(int) - again.rgb.astype(int)).mean() < 1
    assert again.observed.all() and not first.observed.all()
    list(world.rollout(cameras, stamps + 2 * stamps[-1]))
    assert world.memory.tokens == tokens


def test_without_memory_nothing_is_remembered():
    world = started(use_memory=False)
    cameras, stamps = out_and_back()
    shown = frames(world.rollout(cameras, stamps))
    assert not any(frame.observed.any() for frame in shown) and world.memory.tokens == 0
    assert all(len(references) == 0 for _, references, _ in world.model.calls)
    assert np.abs(shown[-1].rgb.astype(int) - picture().astype(int)).mean() > 20


def test_the_same_seed_gives_the_same_frames_and_another_seed_others():
    runs = [frames(started(seed=seed).rollout(*out_and_back())) for seed in (3, 3, 4)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_the_model_gets_the_last_frames_and_the_frames_most_in_view():
    world = started()
    cameras, stamps = out_and_back(16)
    list(world.rollout(cameras, stamps))
    first, second = world.model.calls[0], world.model.calls[1]
    assert (len(first[0]), len(first[1])) == (1, 0)
    assert len(second[0]) == 2 and len(second[1]) >= 1
    assert max(len(references) for _, references, _ in world.model.calls) == 2
    seed = world.model.encode(picture()[None])
    assert torch.allclose(first[0], seed.half().float())
    assert torch.allclose(second[1][0], seed[0].half().float())


def test_a_snapshot_can_be_gone_back_to_many_times():
    world = started()
    cameras, stamps = out_and_back()
    list(world.rollout(cameras[:4], stamps[:4]))
    state = world.snapshot()
    runs = []
    for _ in range(3):
        runs.append(frames(world.rollout(cameras[4:], stamps[4:])))
        world.restore(state)
        assert world.frames_seen == 5
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_a_saved_world_goes_on_as_if_it_had_never_stopped(tmp_path):
    world = started()
    cameras, stamps = out_and_back()
    list(world.rollout(cameras[:8], stamps[:8]))
    world.save(tmp_path / "world")
    world.save(tmp_path / "world")
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    other = World(NoisyModel())
    other.load(tmp_path / "world")
    assert other.frames_seen == 9 and other.camera.size == SIZE
    assert same(*(frames(each.rollout(cameras[8:], stamps[8:])) for each in (world, other)))


def test_whoever_is_killed_while_saving_leaves_a_whole_world(tmp_path):
    """MIRAGE_KILLS says how many are killed (default 12)."""
    kills = os.environ.get("MIRAGE_KILLS", "12")
    script = Path(__file__).with_name("kill_world_saver.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path, kills],
        capture_output=True,
        text=True,
        timeout=60 + 2 * int(kills),
    )
    assert run.returncode == 0, run.stderr
    older, newer, left = map(int, run.stdout.split())
    print(f"{kills} kills: {older} older and {newer} newer worlds")
    assert older + newer == int(kills) and left == 0


def test_given_depth_stands_and_its_holes_are_completed_or_left_open():
    """A guess that is scaled as a whole would show another surface where the scale differs."""
    depth = np.full(SIZE, 6.0)
    depth[:8] = np.inf
    depth[20:30, 40:52] = np.nan  # in a wall
    depth[40:, :] = np.nan  # to the picture's border

    class Sloped(PixelModel):
        def perceive(self, rgb, cameras, anchor):
            return super().perceive(rgb, cameras, None)  # 3 m

    world = World(Sloped())
    (frame,) = world.reset(picture(), camera(), depth).frames
    assert (frame.depth_m[8:40] == 6).all() and np.isposinf(frame.depth_m[:8]).all()
    assert np.isnan(frame.depth_m[40:]).all()
    assert world.memory.tokens == 4 * 10
    (again,) = world.step(Camera.stack([camera()]), np.array([1])).frames
    assert again.observed[8:40].all() and not again.observed[40:].any()
    assert np.isfinite(again.depth_m[40:]).all() and world.memory.tokens > 40


def test_holes_are_completed_along_planes_and_not_across_edges():
    row, column = np.indices(SIZE)
    floor = (1 / (0.1 + 0.004 * row + 0.001 * column)).astype(np.float32)
    rng = np.random.default_rng(0)
    speckled = np.where(rng.random(SIZE) < 0.3, np.nan, floor)
    filled = completed(speckled)
    inner = slice(1, -1), slice(1, -1)
    assert np.isfinite(filled[inner]).mean() > 0.99
    known = np.isfinite(filled)
    np.testing.assert_allclose(filled[known], floor[known], rtol=0.01)
    stepped = np.where(column < 40, 2.0, 4.0).astype(np.float32)
    stepped[:, 36:44] = np.nan
    assert np.isnan(completed(stepped)[:, 36:44]).all()
    wide = np.full(SIZE, 2.0, np.float32)
    wide[10:50, 10:70] = np.nan
    assert np.isnan(completed(wide)[10:50, 10:70]).all(), "too far from what was measured"
    open_sky = np.full(SIZE, 2.0, np.float32)
    open_sky[:30], open_sky[30:34] = np.inf, np.nan
    assert np.isnan(completed(open_sky)[30:34]).all()


class Street(PixelModel):
    """Takes the upper quarter of every picture for moving."""

    def perceive(self, rgb, cameras, anchor):
        seen = super().perceive(rgb, cameras, anchor)
        moving = np.zeros_like(seen.dynamic)
        moving[:, :16] = True
        return replace(seen, dynamic=moving)


class Segmented(Street):
    """And was given a segmenter, which says that the left tenth moves."""

    def segmented(self, rgb):
        moving = np.zeros(rgb.shape[:3], bool)
        moving[:, :, :8] = True
        return moving


@pytest.mark.parametrize(
    ("model", "forget_moving", "seed", "imagined"),
    [
        (Street, "imagined", 80, 60),
        (Street, "all", 60, 60),
        (Street, "none", 80, 80),
        (Segmented, "imagined", 72, 60),
        (Segmented, "none", 80, 80),
    ],
)
@pytest.mark.parametrize("depth_m", [None, np.full(SIZE, 3.0)])
def test_one_picture_cannot_say_what_moves(model, forget_moving, seed, imagined, depth_m):
    """Of a seed, or an observation, it counts when it was asked for; of what is imagined else."""
    world = World(model(), WorldConfig(forget_moving=forget_moving))
    assert world.reset(picture(), camera(), depth_m).tokens == seed
    pose = look((0, 0, 1), (0, -1, 1))
    behind = Camera(camera().intrinsics, pose[None], SIZE)
    assert world.step(behind, np.array([1])).tokens == seed + imagined
    aside = Camera(camera().intrinsics, look((50, 0, 1), (50, 1, 1)), SIZE)
    _, stored = world.observe(picture(), aside, np.full(SIZE, 3.0), 2)
    assert stored == seed


def test_moving_things_sky_and_the_far_are_not_remembered():
    class Outdoors(Street):
        def perceive(self, rgb, cameras, anchor):
            perception = super().perceive(rgb, cameras, anchor)
            perception.sky[:, -16:] = True
            perception.depth_m[:, 16:24] = 1000
            return perception

    world = World(Outdoors(), WorldConfig(forget_moving="all"))
    (frame,) = world.reset(picture(), camera()).frames
    assert world.memory.tokens == 3 * 10
    assert np.isposinf(frame.depth_m[-16:]).all() and np.isposinf(frame.depth_m[16:24]).all()


def test_what_the_seed_showed_is_never_written_again():
    world = started(PixelModel())
    closer = Camera(camera().intrinsics, look((0, 1.5, 1), (0, 2, 1))[None], SIZE)
    (frame,) = world.step(closer, np.array([1])).frames
    assert frame.observed.all() and world.memory.tokens == 80
    back = Camera(camera().intrinsics, camera().world_from_camera[None], SIZE)
    (frame,) = world.step(back, np.array([2])).frames
    assert np.abs(frame.rgb.astype(int) - picture().astype(int)).max() <= HALF_A_STEP


def test_zooming_in_on_what_was_imagined_adds_finer_tokens_and_keeps_the_coarse():
    world = started(PixelModel())
    poses = [look((0, y, 1), (0, y - 1, 1)) for y in (0, -1.5, 0)]
    cameras = Camera(camera().intrinsics, np.stack(poses), SIZE)
    tokens = [world.step(cameras[i : i + 1], np.array([i + 1])).tokens for i in range(3)]
    assert tokens == [160, 240, 240]


def test_a_cell_takes_the_median_of_its_valid_depths():
    depth = np.full((1, 4, 16), 2.0, np.float32)
    depth[0, :, 0:4] = np.nan
    depth[0, 0, 4:8] = 9
    depth[0, 1, 4:7] = 0
    depth[0, :3, 8:12] = np.inf
    depth[0, :2, 12:16] = 5
    cells = cell_depth(depth, 4)
    np.testing.assert_array_equal(cells, np.float32([[[np.nan, 2, np.inf, 2]]]))
    depth[0, :2, 12:15] = 0
    assert cell_depth(depth, 4)[0, 0, 3] == 2
    depth[0, 2, 12:15] = -1
    assert np.isnan(cell_depth(depth, 4)[0, 0, 3])
    with pytest.raises(MirageError, match="multiples"):
        cell_depth(depth, 3)


@pytest.mark.parametrize("size", [(64, 80), (480, 640), (37, 200), (300, 90), (20, 30)])
def test_a_seed_of_any_size_keeps_its_rays(size):
    """Colours that tell where a ray points still tell so after crop and resize."""

    def painted(view):
        rays = view.rays()
        return np.clip(128 + 100 * rays[..., :2], 0, 255)

    view = camera(size)
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[..., :2] = np.rint(painted(view))
    depth = 1 + painted(view)[..., 0] / 100
    small, fitted, fitted_depth = fit_seed(rgb, view, depth, SIZE)
    assert small.shape == (*SIZE, 3) and fitted.size == SIZE
    inner = (slice(2, -2), slice(2, -2))
    error = np.abs(small[..., :2].astype(float) - painted(fitted))[inner]
    assert error.max() <= 0.5 * 200 / min(min(size), 64) + 1
    wanted = 1 + painted(fitted)[..., 0] / 100
    assert np.abs(fitted_depth - wanted).max() <= 2 / min(min(size), 64) + 0.02


def test_shrinking_keeps_the_mean_and_growing_adds_no_steps():
    rgb = picture(3, (90, 120))
    assert resize_rgb(rgb, (30, 40)).mean() == pytest.approx(rgb.mean(), abs=0.2)
    blocks = rgb[:90, :120].reshape(30, 3, 40, 3, 3).mean((1, 3))
    assert np.abs(resize_rgb(rgb, (30, 40)) - blocks).max() <= 0.51
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 3, 2).repeat(10, 0)
    steps = np.diff(resize_rgb(ramp, (20, 40))[0, :, 0].astype(int))
    assert steps.min() >= 0 and steps.max() <= 6


class OnDevice(PixelModel):
    """Says that it runs on a device, and works on the CPU all the same."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)


def shown_by(device):
    world = started(OnDevice(device))
    return frames(world.rollout(*out_and_back(8))), world


def test_memory_is_read_where_the_model_runs(monkeypatch):
    """Surfels that are sent to CUDA stay on the CPU here; torch reads them there all the same."""
    sent, move = [], Surfels.to
    monkeypatch.setattr(Surfels, "to", lambda self, device: sent.append(device) or move(self, "cpu"))
    here, world = shown_by("cpu")
    assert not sent and world.memory.config.device is None
    there, world = shown_by("cuda:0")
    assert set(sent) == {"cuda:0"} and world.memory.config.device == "cuda:0" and same(here, there)


def test_a_loaded_world_is_read_where_the_model_runs(tmp_path):
    shown_by("cpu")[1].save(tmp_path / "world")
    world = World(OnDevice("cuda"))
    world.load(tmp_path / "world")
    assert world.memory.config.device == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none")
def test_a_gpu_shows_the_same_world():
    assert same(shown_by("cpu")[0], shown_by("cuda")[0])

"""A world whose model imagines depth with what it shows: imagined once, remembered, read ever after."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imagined_worlds import FAR_M, SIZE, THERE_AND_BACK, ImaginingModel, begun, level, pictures, walked

from mirage_ros.errors import MirageError
from mirage_ros.models import load_model, save_model
from mirage_ros.models import mini
from mirage_ros.models.mini import MiniConfig, MiniModel
from mirage_ros.models.mini.dreamer import Dreamer
from mirage_ros.models.mini.imagining import Blocks, DreamConfig, picture_blocks
from mirage_ros.protocol import Imaginer, Views
from mirage_ros.world.imagining import behind_bodies
from mirage_ros.world.observing import only_seen
from mirage_ros.world.state import WorldConfig
from mirage_ros.world.world import Rig, World


def test_the_same_world_comes_of_chunks_of_any_length():
    frames = {chunk: walked(ImaginingModel(), chunk)[1] for chunk in (1, 3, 4)}
    for chunk in (3, 4):
        assert np.array_equal(pictures(frames[1]), pictures(frames[chunk]))
        assert all(np.array_equal(a.depth_m, b.depth_m) for a, b in zip(frames[1], frames[chunk], strict=True))
    other = walked(ImaginingModel(), 4, WorldConfig(seed=1))[1]
    assert not np.array_equal(pictures(frames[4]), pictures(other))


def test_what_was_imagined_is_there_at_the_return():
    _, frames = walked(ImaginingModel(), 4)
    for out, back in ((8, 10), (6, 12), (4, 14)):
        first, again = frames[out], frames[back]
        assert np.allclose(first.camera.world_from_camera, again.camera.world_from_camera)
        assert np.array_equal(first.rgb, again.rgb) and np.array_equal(first.depth_m, again.depth_m)


def test_one_view_serves_the_frames_of_a_turn():
    model = ImaginingModel()
    _, frames = walked(model, 4)
    assert model.asked < len(frames) / 2
    assert not frames[0].observed.all() and frames[-1].observed.all()


def test_depth_is_what_was_imagined_and_the_memory_holds_no_sky():
    world, frames = walked(ImaginingModel(sky_rows=3), 4, yaw_deg=np.array([90.0, 90.5]))
    assert np.isinf(frames[0].depth_m[:24]).all() and not frames[0].observed.any()
    assert np.abs(frames[0].depth_m[24:] - FAR_M).max() < 1e-3
    seed_alone = walked(ImaginingModel(), 4, yaw_deg=np.empty(0))[0]
    assert world.memory.tokens - seed_alone.memory.tokens == pytest.approx(5 * 10, abs=6)


def test_a_view_that_cannot_be_imagined_changes_nothing():
    model = ImaginingModel()
    world, _ = walked(model, 4, yaw_deg=np.array([5.0]))
    tokens, frames = world.memory.tokens, world.frames_seen

    def fail(*_):
        raise MirageError("no dream today")

    model.imagine = fail
    with pytest.raises(MirageError, match="no dream"):
        world.step(level(np.array([60.0])), np.array([10**9]))
    assert (world.memory.tokens, world.frames_seen) == (tokens, frames)


def test_a_rollout_with_overlap_is_the_same_walk():
    world = World(ImaginingModel(), WorldConfig(overlap_decode=True))
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    world.reset(picture, level(np.zeros(1))[0], np.full(SIZE, FAR_M, np.float32))
    stamps = (1 + np.arange(len(THERE_AND_BACK))) * 100_000_000
    frames = [frame for chunk in world.rollout(level(THERE_AND_BACK), stamps) for frame in chunk.frames]
    assert np.array_equal(pictures(frames), pictures(walked(ImaginingModel(), 4)[1]))


def test_cameras_turn_in_place():
    aside = level(np.array([30.0])).turned(-np.radians(30.0))
    assert np.allclose(aside.world_from_camera, level(np.zeros(1)).world_from_camera)


@pytest.fixture(scope="module")
def dreaming() -> MiniModel:
    """The shipped codec and aligner with a small dreamer that was taught nothing."""
    base, rng = load_model("mini", device="cpu"), np.random.default_rng(0)
    rgb = rng.integers(0, 255, (4, *base.size, 3), np.uint8)
    blocks = Blocks.fit(picture_blocks(rgb).permute(0, 2, 3, 1).flatten(0, 2), 8)
    torch.manual_seed(0)
    dreamer = Dreamer(
        latent_channels=8, widths=(8, 8, 8), task_width=16, head_width=8, code_width=16, book_sizes=(8, 4, 8),
        deviations=[1.0, *[0.1] * 7, 0.5, 0.5],
    )  # fmt: skip
    for stage in range(3):
        getattr(dreamer, f"book_{stage}").copy_(0.2 * torch.randn(len(getattr(dreamer, f"book_{stage}")), 8))
    parts = base.codec, base.aligner, base.perception
    return MiniModel(*parts, dreamer, blocks, MiniConfig(dream=DreamConfig(3)), name="dozing")


def test_a_dreamer_is_saved_as_it_was_given(dreaming, tmp_path, monkeypatch):
    """On a processor that draws in bfloat16 as well."""
    monkeypatch.setattr(mini, "has_fast_bfloat16", lambda: True)
    parts = dreaming.codec, dreaming.aligner, dreaming.perception
    given = {name: tensor.clone() for name, tensor in dreaming.dreamer.state_dict().items()}
    save_model(MiniModel(*parts, dreaming.dreamer, dreaming.blocks), tmp_path / "model")
    saved = load_model(tmp_path / "model", "cpu").dreamer.state_dict()
    for name, tensor in given.items():
        assert torch.equal(saved[name].float(), tensor.half().float()), name


def test_a_dreamer_keeps_what_is_shown_and_survives_its_folder(dreaming, tmp_path):
    assert isinstance(dreaming, Imaginer)
    _, frames = walked(dreaming, 4, yaw_deg=np.array([10.0, 20.0]))
    assert not frames[0].observed.all() and np.isfinite(frames[0].depth_m[frames[0].observed]).all()
    save_model(dreaming, tmp_path / "model")
    again = load_model(tmp_path / "model", "cpu")
    assert again.config == dreaming.config
    twice = load_model(tmp_path / "model", "cpu")
    walks = [pictures(walked(model, 4, yaw_deg=np.array([10.0, 20.0]))[1]) for model in (again, twice)]
    assert np.array_equal(*walks)


def test_a_checkpoint_without_its_dreamer_is_refused(dreaming, tmp_path):
    save_model(dreaming, tmp_path / "model")
    (tmp_path / "model" / "dreamer" / "blocks.safetensors").unlink()
    with pytest.raises(MirageError, match="blocks.safetensors is missing"):
        load_model(tmp_path / "model", "cpu")


def test_what_is_imagined_beyond_range_is_as_far_as_the_sky():
    model = ImaginingModel()
    model.imagine = lambda readout, camera, *_: Views(
        readout.latents.float(), np.full(readout.visible.shape, 150.0, np.float32), camera
    )
    world, frames = walked(model, 4, yaw_deg=np.array([90.0]))
    assert np.isinf(frames[0].depth_m).all()
    assert world.memory.tokens == walked(ImaginingModel(), 4, yaw_deg=np.empty(0))[0].memory.tokens


def test_a_rigs_world_is_the_same_for_chunks_of_any_length():
    """Two cameras that turn to where the other one was."""
    one, other, stamps = level(np.array([20.0, 40, 60, 80])), level(np.array([80.0, 60, 40, 20])), (1 + np.arange(4)) * 10**8
    seen = {}
    for chunk in (1, 4):
        rig, parts = Rig(begun(ImaginingModel()), 2), []
        for i in range(0, 4, chunk):
            part = slice(i, i + chunk)
            parts.append([pictures(made.frames) for made in rig.step([one[part], other[part]], stamps[part])])
        seen[chunk] = [np.concatenate(ones) for ones in zip(*parts, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(seen[1], seen[4], strict=True))


class StyledModel(ImaginingModel):
    """Notes which way the style views are said to look."""

    def imagine(self, readout, camera, style, seed):
        forward = style.cameras.world_from_camera[:, :3, 2]
        self.said = np.degrees(np.arctan2(forward[:, 1], forward[:, 0])).round(3).tolist()
        return super().imagine(readout, camera, style, seed)


def test_style_views_come_with_the_cameras_that_they_were_seen_by(tmp_path):
    model = StyledModel()
    world = begun(model)
    snapshot = world.snapshot()
    world.step(level(np.array([40.0])), np.array([10**8]))
    world.step(level(np.array([80.0])), np.array([2 * 10**8]))
    assert model.said == [40.0, 0.0]
    world.save(tmp_path / "world")
    again = World(model)
    again.load(tmp_path / "world")
    again.step(level(np.array([120.0])), np.array([3 * 10**8]))
    assert model.said == [80.0, 0.0]
    world.observe(np.full((*SIZE, 3), 99, np.uint8), level(np.array([5.0]))[0], np.full(SIZE, FAR_M, np.float32), 25 * 10**7)
    world.step(level(np.array([120.0])), np.array([3 * 10**8]))
    assert model.said == [80.0, 0.0]  # the real picture took the place of the seed's view
    anew, _ = only_seen(world.state)
    world.restore(anew)
    world.step(level(np.array([170.0])), np.array([4 * 10**8]))
    assert model.said == [0.0, 0.0]
    world.remember_as(snapshot)
    world.step(level(np.array([60.0])), np.array([5 * 10**8]))
    assert model.said == [0.0]


def test_each_camera_of_a_rig_has_the_style_of_its_own_last_view():
    model = StyledModel()
    rig = Rig(begun(model), 2)
    rig.step([level(np.array([30.0])), level(np.array([120.0]))], np.array([10**8]))
    assert model.said == [0.0, 0.0]
    rig.step([level(np.array([32.0])), level(np.array([180.0]))], np.array([2 * 10**8]))
    assert model.said == [120.0, 0.0]


class NearModel(ImaginingModel):
    """Imagines surfaces so near that they would hide what the seed showed to be free."""

    def imagine(self, readout, camera, style, seed):
        view = super().imagine(readout, camera, style, seed)
        return Views(view.latents, np.where(readout.visible, view.depth_m, np.float32(1.0)), camera)


def test_what_is_imagined_before_free_space_stands_behind_it_and_stays():
    """The seed has a hole, whose surroundings tell that the way there is free."""
    world, depth = World(NearModel()), np.full(SIZE, FAR_M, np.float32)
    world.reset(np.full((*SIZE, 3), 90, np.uint8), level(np.zeros(1))[0], depth)
    world.restore(only_hole(world.snapshot()))
    frames = [world.step(level(np.zeros(1)), np.array([(1 + i) * 10**8])).frames[0] for i in range(2)]
    assert not frames[0].observed.all() and world.model.asked == 1 and frames[1].observed.all()
    assert np.nanmin(frames[1].depth_m) > 0.9 * FAR_M
    assert np.array_equal(frames[0].rgb, frames[1].rgb)


@pytest.mark.parametrize("turn_deg", [0.0, 35.0])
def test_what_is_imagined_hides_no_body_that_stands_there(turn_deg):
    """A box of half a metre, 2 m ahead and turned: cells that it covers end behind it, others stay."""
    camera, pose = level(np.zeros(1)).resized((32, 40)), np.eye(4)
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    pose[:2, :2], pose[:3, 3] = [[c, -s], [s, c]], (2.0, 0.1, 1.2)
    bounds = np.array([[-0.25] * 3, [0.25] * 3])
    state = SimpleNamespace(pose_at=lambda stamp_ns: pose, bounds_m=bounds)
    depth = behind_bodies(camera, np.full((1, 32, 40), 1.0, np.float32), [SimpleNamespace(state=state)], 0)[0]
    corners = np.array([[x, y, z] for x in bounds[:, 0] for y in bounds[:, 1] for z in bounds[:, 2]]) @ pose[:3, :3].T + pose[:3, 3]
    pixels, far = camera[0].project(corners)
    (left, top), (right, bottom) = pixels.min(0), pixels.max(0)
    rows, columns = np.nonzero(depth > 1)
    assert len(rows) > 20 and rows.min() >= top - 1 and rows.max() <= bottom + 1
    assert columns.min() >= left - 1 and columns.max() <= right + 1
    assert 0.9 * far.min() < depth[depth > 1].min() and depth.max() < 1.1 * far.max()
    middle = camera[0].project(pose[:3, 3][None])[0][0].round().astype(int)
    assert depth[middle[1], middle[0]] > 2.2
    beyond = behind_bodies(camera, np.full((1, 32, 40), 9.0, np.float32), [SimpleNamespace(state=state)], 0)
    assert (beyond == 9).all()


def only_hole(state):
    """The state without the tokens near the middle of the wall; its space is free as before."""
    fork = state.forked()
    middle = np.abs(fork.memory.positions_m[:, 1:] - (0, 1.2)).max(1) < 1.0
    assert fork.memory.forget(middle) > 3
    return fork


def test_a_crack_is_filled_with_what_is_nearest_and_a_gap_at_the_border_is_dreamt():
    for cell, asked in (((4, 5), 0), ((4, 0), 1)):
        world = World(ImaginingModel())
        picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
        world.reset(picture, level(np.zeros(1))[0], np.full(SIZE, FAR_M, np.float32))
        fork = world.snapshot()
        readout = fork.memory.read(level(np.zeros(1)).resized((8, 10)))
        fork.memory.forget(np.arange(fork.memory.tokens) == readout.index[0][cell])
        world.restore(fork)
        frames = [world.step(level(np.zeros(1)), np.array([(1 + i) * 10**8])).frames[0] for i in range(2)]
        row, column = (8 * i + 4 for i in cell)
        assert world.model.asked == asked and not frames[0].observed[row, column] and frames[1].observed.all()
        assert frames[0].depth_m[row, column] == pytest.approx(FAR_M, rel=1e-3)
        assert np.array_equal(frames[0].rgb, frames[1].rgb)

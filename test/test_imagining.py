"""A world whose model imagines depth with what it shows: imagined once, remembered, read ever after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import PixelModel

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model, save_model
from mirage_ros.models.mini import imagining
from mirage_ros.models.mini.dreamer import Dreamer
from mirage_ros.models.mini.imagining import (
    Blocks,
    DreamConfig,
    DreamingModel,
    picture_blocks,
)
from mirage_ros.protocol import Readout, Views, WorldModel
from mirage_ros.world.imagining import Imaginer
from mirage_ros.world.observing import only_seen
from mirage_ros.world.state import WorldConfig
from mirage_ros.world.world import Rig, World

SIZE, FAR_M = (64, 80), 4.0


class ImaginingModel(PixelModel):
    """Imagines cells of random colours, `far_m` away; sky in the upper `sky_rows`."""

    def __init__(self, sky_rows: int = 0, **settings):
        super().__init__(SIZE, far_m=FAR_M, **settings)
        self.sky_rows, self.asked = sky_rows, 0

    def from_memory(self, readout: Readout):
        return readout.visible

    def aligned(self, readout: Readout):
        return readout.latents.float()

    def imagine(self, readout: Readout, camera: Camera, style: Views, seed: int) -> Views:
        self.asked += 1
        assert len(style.latents) == len(style.cameras) == len(style.depth_m)
        colours = torch.rand(readout.latents.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
        depth = np.where(readout.visible, readout.depth_m, np.float32(FAR_M))
        depth[:, : self.sky_rows] = np.inf
        seen = torch.from_numpy(readout.visible)[:, None]
        return Views(torch.where(seen, readout.latents.float(), colours), depth, camera)

    def generate(self, *_):
        raise AssertionError("an Imaginer is not asked to generate")


def level(yaw_deg: np.ndarray) -> Camera:
    """Cameras in one place, turned to the left."""
    yaw, zero = np.radians(yaw_deg), np.zeros(len(yaw_deg))
    pose = np.tile(np.eye(4), (len(yaw), 1, 1))
    pose[:, :3, 0] = np.stack([np.sin(yaw), -np.cos(yaw), zero], 1)
    pose[:, :3, 1], pose[:, 2, 3] = (0, 0, -1), 1.2
    pose[:, :3, 2] = np.stack([np.cos(yaw), np.sin(yaw), zero], 1)
    return Camera.from_hfov(70.0, SIZE, pose)


THERE_AND_BACK = np.concatenate([np.linspace(4, 40, 10), np.linspace(36, 0, 10)])


def walked(model: WorldModel, chunk: int, config: WorldConfig = WorldConfig(), yaw_deg=THERE_AND_BACK):
    """The frames of a turn there and back, in chunks; a world that has seen a wall 4 m away."""
    world = World(model, config)
    picture = np.random.default_rng(0).integers(0, 255, (*model.size, 3), np.uint8)
    world.reset(picture, level(np.zeros(1))[0].resized(model.size), np.full(model.size, FAR_M, np.float32))
    cameras, stamps = level(yaw_deg).resized(model.size), (1 + np.arange(len(yaw_deg))) * 100_000_000
    chunks = [world.step(cameras[i : i + chunk], stamps[i : i + chunk]) for i in range(0, len(stamps), chunk)]
    return world, [frame for chunk in chunks for frame in chunk.frames]


def pictures(frames) -> np.ndarray:
    return np.stack([frame.rgb for frame in frames])


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


def test_depth_is_what_was_imagined_and_sky_is_not_remembered():
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
def dreaming() -> DreamingModel:
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
    parts = base.codec, base.denoiser.transformer, base.denoiser.branch, base.perception, base.config
    return DreamingModel(*parts, name="dozing", dreamer=dreamer, blocks=blocks, dream=DreamConfig(3))


def test_a_dreamer_is_saved_as_it_was_given(dreaming, tmp_path, monkeypatch):
    """On a processor that draws in bfloat16 as well."""
    monkeypatch.setattr(imagining, "has_fast_bfloat16", lambda: True)
    parts = dreaming.codec, dreaming.denoiser.transformer, dreaming.denoiser.branch, dreaming.perception, dreaming.config
    given = {name: tensor.clone() for name, tensor in dreaming.dreamer.state_dict().items()}
    save_model(DreamingModel(*parts, dreamer=dreaming.dreamer, blocks=dreaming.blocks), tmp_path / "model")
    saved = load_model(tmp_path / "model", "cpu").dreamer.state_dict()
    for name, tensor in given.items():
        assert torch.equal(saved[name].float(), tensor.half().float()), name


def test_a_dreamer_keeps_what_is_shown_and_survives_its_folder(dreaming, tmp_path):
    assert isinstance(dreaming, Imaginer) and not isinstance(load_model("mini", "cpu"), Imaginer)
    _, frames = walked(dreaming, 4, yaw_deg=np.array([10.0, 20.0]))
    assert not frames[0].observed.all() and np.isfinite(frames[0].depth_m[frames[0].observed]).all()
    save_model(dreaming, tmp_path / "model")
    again = load_model(tmp_path / "model", "cpu")
    assert isinstance(again, DreamingModel) and again.dream == dreaming.dream
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


def begun(model: WorldModel) -> World:
    return walked(model, 1, yaw_deg=np.empty(0))[0]


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

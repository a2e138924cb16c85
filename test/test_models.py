"""The networks: their parts as promised, their checkpoint folder, the shipped weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from mirage_ros.data.seeds import load_seed, plan_tour
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import upsample
from mirage_ros.models import SHIPPED, load_model, save_model
from mirage_ros.models.mini.codec import condition_from_readout
from mirage_ros.models.mini.dreamer import Dreamer
from mirage_ros.models.wan.denoiser import GEOMETRY_CHANNELS, MemoryDenoiser, SideBranch
from mirage_ros.protocol import Readout
from mirage_ros.world.world import World, WorldConfig

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


@pytest.fixture(scope="module")
def model():
    return load_model("mini", device="cpu")


def tiny_denoiser():
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**TINY)
    return MemoryDenoiser(transformer, SideBranch.from_transformer(transformer)).eval()


def tiny_inputs():
    torch.manual_seed(1)
    latents = torch.randn(2, 4, 3, 4, 6)
    timestep = torch.tensor([[0.0, 500.0, 500.0], [0.0, 900.0, 900.0]])
    condition = torch.randn(2, 4 + GEOMETRY_CHANNELS, 3, 4, 6)
    return latents, timestep, condition, torch.randn(2, 5, 8)


def test_a_fresh_branch_leaves_the_backbone_as_it_was():
    denoiser = tiny_denoiser()
    latents, timestep, condition, text = tiny_inputs()
    with torch.no_grad():
        ours = denoiser(latents, timestep, condition, text)
        per_token = timestep.repeat_interleave(2 * 3, 1)
        theirs = denoiser.transformer(latents, per_token, text).sample
    assert (ours - theirs).abs().max() < 1e-5


def test_a_trained_branch_changes_the_output_and_copies_every_second_block():
    denoiser = tiny_denoiser()
    assert len(denoiser.branch.blocks) == 2
    latents, timestep, condition, text = tiny_inputs()
    with torch.no_grad():
        before = denoiser(latents, timestep, condition, text)
        torch.nn.init.normal_(denoiser.branch.zero[0].weight, std=0.1)
        after = denoiser(latents, timestep, condition, text)
        other = denoiser(latents, timestep, condition + 1, text)
    assert (after - before).abs().max() > 1e-3
    assert (after - other).abs().max() > 1e-4


def test_the_condition_says_nothing_where_memory_sees_nothing():
    visible = np.zeros((1, 2, 3), bool)
    visible[0, 0, 0] = True
    readout = Readout(
        latents=torch.ones(1, 4, 2, 3),
        visible=visible,
        depth_m=np.where(visible, 2.0, np.nan).astype(np.float32),
        index=np.where(visible, 0, -1),
        place=np.full((1, 2, 2, 3), -0.3 * np.exp(-0.1), np.float32),
        log_scale=np.full((1, 2, 3), 0.1, np.float32),
    )
    condition = condition_from_readout(readout)
    assert condition.shape == (4 + GEOMETRY_CHANNELS, 1, 2, 3)
    assert torch.isfinite(condition).all()
    assert condition[:, 0, 0, 0].tolist() == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.3, 0.3, 0.1])
    assert condition.flatten(1)[:, 1:].abs().max() == 0


def test_a_saved_model_loads_to_the_same_pictures(model, tmp_path):
    save_model(model, tmp_path / "copy")
    again = load_model(str(tmp_path / "copy"))
    rgb = np.random.default_rng(0).integers(0, 255, (1, *model.size, 3), np.uint8)
    latents = model.encode(rgb)
    assert torch.allclose(again.encode(rgb), latents, atol=2e-2)
    assert np.abs(again.decode(latents).astype(int) - model.decode(latents)).mean() < 1


def _break_nothing_there(folder):
    shutil.rmtree(folder)


def _break_truncated(folder):
    path = folder / "dreamer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _break_part_missing(folder):
    shutil.rmtree(folder / "codec")


def _break_version(folder):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 999}))


def _break_json(folder):
    (folder / "model_index.json").write_text("{")


def _break_other_shape(folder):
    path = folder / "dreamer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_width": 128}))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_break_nothing_there, "model_index.json"),
        (_break_truncated, "dreamer"),
        (_break_part_missing, "codec"),
        (_break_version, "999"),
        (_break_json, "model_index.json"),
        (_break_other_shape, "dreamer"),
    ],
)
def test_a_bad_checkpoint_folder_is_named_in_one_line(tmp_path, damage, word):
    folder = tmp_path / "mini"
    shutil.copytree(SHIPPED["mini"], folder)
    damage(folder)
    with pytest.raises(MirageError, match=word) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(MirageError, match=device):
        load_model("mini", device=device)


def _psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", ["room", "hall", "yard"])
def test_the_shipped_codec_carries_the_shipped_seeds(model, name):
    seed = load_seed(name)
    world = World(model)
    frame = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]
    from mirage_ros.geometry.images import fit_seed

    wanted, _, _ = fit_seed(seed.rgb, seed.camera, seed.depth_m, model.size)
    assert _psnr(frame.rgb, wanted) > 24


def test_the_world_stays_put_when_the_camera_does(model):
    seed = load_seed("room")
    world = World(model)
    first = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]
    camera = first.camera
    cameras = Camera.stack([camera] * model.chunk_frames)
    chunk = world.step(cameras, np.arange(1, model.chunk_frames + 1))
    assert _psnr(chunk.frames[-1].rgb, first.rgb) > 22
    assert chunk.observed_fraction > 0.9


@pytest.mark.parametrize("name", ["room", "hall", "yard"])
def test_observed_is_what_the_model_did_not_imagine(model, name):
    """Two worlds that differ in their noise alone differ where they imagined; beside that a little, where memory shows a part of
    a cell only."""
    seed, shown = load_seed(name), []
    for noise in (0, 1):
        world = World(model, WorldConfig(seed=noise))
        first = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]
        (frame,) = world.step(plan_tour(first.camera, 24, first.depth_m)[5:6], np.array([1])).frames
        shown.append(frame.rgb.astype(float))
    side = model.stride
    height, width = (pixels // side for pixels in model.size)
    apart = np.abs(shown[0] - shown[1]).reshape(height, side, width, side, 3).mean((1, 3, 4))
    seen = frame.observed[::side, ::side]
    assert 0.05 < seen.mean() < 0.95 and np.array_equal(upsample(seen[None], side)[0], frame.observed)
    assert np.median(apart[seen]) < 0.5
    assert np.percentile(apart[seen], 90) < 0.5 * np.percentile(apart[~seen], 10)


def test_where_memory_shows_all_the_network_is_not_run(model, monkeypatch):
    """So one frame costs as much as the codec does."""
    seed, runs = load_seed("room"), []
    forward = Dreamer.forward
    monkeypatch.setattr(Dreamer, "forward", lambda *given, **more: runs.append(1) or forward(*given, **more))
    world = World(model)
    camera = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0].camera
    for stamp_ns in (1, 2):  # what the first one imagined the second one remembers
        runs.clear()
        world.step(Camera(camera.intrinsics, camera.world_from_camera[None], camera.size), np.array([stamp_ns]))
    assert not runs


def test_depth_takes_its_scale_from_the_readout(model):
    seed = load_seed("room")
    world = World(model)
    frame = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]
    cameras = Camera.stack([frame.camera])
    cells = cameras.resized((model.size[0] // model.stride, model.size[1] // model.stride))
    anchor = world.memory.read(cells).depth_m
    once = model.perceive(frame.rgb[None], cameras, anchor).depth_m
    twice = model.perceive(frame.rgb[None], cameras, 2 * anchor).depth_m
    known = np.isfinite(once) & np.isfinite(twice)
    assert np.median(twice[known] / once[known]) == pytest.approx(2, rel=0.05)

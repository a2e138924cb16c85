"""Training on the large backbone, with a small random one in the published layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from wan_clips import write_re10k
from wan_tiny import CHANNELS

from mirage_ros.data.tracks import read_track
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.models.wan.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.wan.config import SCHEDULER, random_transformer, write_tiny_checkpoint
from mirage_ros.training import wan_recipe as latent_cache
from mirage_ros.training.chunks import Chunks, ChunksConfig, LatentClip
from mirage_ros.training.clips import LazyVideo, PosedVideo, read_re10k
from mirage_ros.training.wan_recipe import LatentCache, build_cache, pose_scale, scaled
from mirage_ros.training.wan_trainer import (
    FlowConfig,
    FlowLoss,
    Trainer,
    TrainerConfig,
    prepare_stage,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata" / "re10k_cameras"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata next to the checkout")
SIZE = (32, 64)


def wall_clip(latents=10, seed=0, metres=0.5):
    """A camera that slides along a wall 2 m away, smooth random latents."""
    rng = np.random.default_rng(seed)
    pose = np.tile(np.eye(4), (latents, 1, 1))
    pose[:, 0, 3] = np.linspace(0, metres, latents)
    cameras = Camera.from_hfov(70.0, SIZE, pose).resized((2, 4))
    shape = (latents, 2, 4)
    values = torch.from_numpy(rng.standard_normal((latents, CHANNELS, 2, 4)).astype(np.float32))
    return LatentClip(values.half(), np.full(shape, 2.0, np.float32), np.ones(shape, bool), cameras)


def network():
    torch.manual_seed(0)
    transformer = random_transformer()
    return MemoryDenoiser(transformer, SideBranch.from_transformer(transformer))


def flow_loss(**config):
    chunks = Chunks([wall_clip()], ChunksConfig(chunk_frames=2, blank_share=0.0))
    return FlowLoss(chunks, torch.randn(2, 3, 32), FlowConfig(**config))


@pytest.mark.parametrize("stage", ["branch", "lora"])
def test_a_step_changes_what_the_stage_trains_and_nothing_else(stage, tmp_path):
    net = network()
    with torch.no_grad():  # so that every layer of the branch has a gradient in the first step
        for layer in net.branch.zero:
            torch.nn.init.normal_(layer.weight, std=0.1)
    net = prepare_stage(net, stage, rank=4)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    Trainer(net, tmp_path, TrainerConfig(steps=1, warmup_steps=0)).run(flow_loss(batch=2))
    changed = {name for name, value in net.named_parameters() if not value.equal(before[name])}
    trained = {name for name in before if name.startswith("branch.") or ".lora_" in name}
    assert changed == trained
    assert any(".lora_" in name for name in trained) == (stage == "lora")


@pytest.mark.parametrize("stage", ["branch", "lora"])
def test_loss_falls_on_one_clip_and_a_killed_run_has_the_same_losses(stage, tmp_path):
    """Each step's sample is drawn by the step, so the whole run's losses can be compared."""
    loss = flow_loss()

    def fixed(net, generator):  # the same draw each time: what is left is learning
        return loss(net, torch.Generator().manual_seed(7))

    config = TrainerConfig(steps=12, learning_rate=2e-2, warmup_steps=2)
    whole = Trainer(prepare_stage(network(), stage, 4), tmp_path / "whole", config).run(fixed)
    assert whole[-1] < 0.85 * whole[0]

    drawn = TrainerConfig(steps=4, learning_rate=1e-3, warmup_steps=2, checkpoint_s=0.0)
    once = Trainer(prepare_stage(network(), stage, 4), tmp_path / "once", drawn).run(loss)
    calls = iter(range(3))

    def killed(net, generator):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return loss(net, generator)

    with pytest.raises(KeyboardInterrupt):
        Trainer(prepare_stage(network(), stage, 4), tmp_path / "cut", drawn).run(killed)
    again = Trainer(prepare_stage(network(), stage, 4), tmp_path / "cut", drawn)
    assert again.step == 2
    assert again.run(loss) == pytest.approx(once[2:], rel=1e-5)


def test_gradients_are_the_same_with_and_without_checkpointing():
    loss, grads = flow_loss(), []
    for checkpointed in (True, False):
        net = prepare_stage(network(), "branch", 4)
        for part in (net.transformer, net.branch):
            part.gradient_checkpointing = checkpointed
        loss(net, torch.Generator().manual_seed(0)).backward()
        grads.append(net.branch.zero[0].weight.grad)
    assert grads[0].abs().max() > 0 and torch.allclose(*grads, atol=1e-6)


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    config = TrainerConfig(steps=1)
    Trainer(prepare_stage(network(), "branch", 4), tmp_path, config).run(flow_loss())
    with pytest.raises(MirageError, match="no checkpoint of this stage"):
        Trainer(prepare_stage(network(), "lora", 4), tmp_path, config)


def counted_clip(latents=10):
    """A wall of which every latent shows some more, and holds its own number."""
    clip = wall_clip(latents, metres=6.0)
    number = torch.arange(latents, dtype=torch.float16).view(-1, 1, 1, 1)
    return replace(clip, latents=number.expand(clip.latents.shape).clone())


def test_references_are_what_memory_shows_most_and_come_first():
    exact = ChunksConfig(chunk_frames=2, blank_share=0.0, latent_noise=0.0, depth_noise=0.0)
    chunks, several = Chunks([counted_clip()], exact), 0
    for seed in range(40):
        clean, context, condition = chunks.draw(torch.Generator().manual_seed(seed), 2)
        frames = context.mean((0, 2, 3)).round().int().tolist()
        before = int(clean[0, 0, 0, 0]) - 1
        assert frames[-1] == before, "the preceding frame is the last of the context"
        visible = condition[CHANNELS, len(frames) :].bool()
        shown = condition[0, len(frames) :][visible].round().int().tolist()
        ranked = sorted(set(shown) - {before}, key=lambda i: (-shown.count(i), i))
        assert frames[:-1] == ranked[:2]
        assert torch.equal(condition[:CHANNELS, : len(frames)], context)
        several += len(ranked) > 1
    assert several > 5


def test_a_batch_has_one_number_of_references():
    chunks = Chunks([counted_clip()], ChunksConfig(chunk_frames=2, references=2, blank_share=0.2))
    counts = []
    for seed in range(40):
        clean, context, condition = chunks.draw_batch(2, torch.Generator().manual_seed(seed))
        counts.append(context.shape[2] - 1)
        assert condition.shape[2] == context.shape[2] + clean.shape[2]
        assert torch.equal(condition[:, :CHANNELS, : context.shape[2]], context)
        last = context[:, :, -1].mean((1, 2, 3)).round()
        assert torch.equal(last, clean[:, 0, 0, 0, 0] - 1)
    assert {0, 1, 2} == set(counts)
    alone = Chunks([counted_clip()], ChunksConfig(chunk_frames=2))
    for seed in range(5):
        assert alone.draw_batch(2, torch.Generator().manual_seed(seed))[1].shape[2] == 1


def test_a_share_of_samples_is_told_the_empty_prompt():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, latents, timestep, condition, text):
            seen.extend(text[:, 0, 0].tolist())
            return latents

    loss = flow_loss(batch=8, text_dropout=0.25)
    loss.text[0], loss.text[1] = 0.0, 1.0
    for step in range(25):
        loss(Net(), torch.Generator().manual_seed(step))
    assert 0.15 < np.mean(seen) < 0.35


def test_noise_levels_are_told_as_the_sampler_tells_them():
    """In whole numbers: sharded networks round what is not to bfloat16 before they see it."""
    timesteps = []

    class Net(torch.nn.Module):
        def forward(self, latents, timestep, condition, text):
            timesteps.append(timestep)
            return latents

    loss = flow_loss(batch=4)
    for step in range(25):
        loss(Net(), torch.Generator().manual_seed(step))
    timesteps = torch.cat(timesteps)
    assert not timesteps.is_floating_point() and (timesteps[:, :-2] == 0).all()
    assert timesteps.max() < 1000 and len(set(timesteps[:, -1].tolist())) > 80
    sampled = UniPCMultistepScheduler(**SCHEDULER)
    sampled.set_timesteps(4)
    assert sampled.timesteps.dtype == timesteps.dtype


def test_a_realestate10k_track_is_read_with_its_frames(tmp_path):
    write_re10k(tmp_path, 12)
    track = read_track(tmp_path / "cameras" / "abc.txt")
    camera = track.cameras((48, 96))
    assert camera.intrinsics[0, 0, 0] == pytest.approx(96) and len(camera) == 12
    assert camera.intrinsics[0, 0, 2] == pytest.approx(47.5)
    assert camera.position_world[11, 0] == pytest.approx(2.0 * 1.5 * 11 / 96 / 5, rel=1e-6)
    (tmp_path / "frames" / "abc" / "1000000.png").unlink()
    (tmp_path / "frames" / "abc" / "cover.png").write_text("of the whole")
    clips = list(read_re10k(tmp_path / "cameras", tmp_path / "frames", SIZE, 5))
    assert [clip.name for clip in clips] == ["abc_000", "abc_001"]
    clip = clips[0].read()
    assert clip.rgb.shape == (5, *SIZE, 3) and clip.cameras.size == SIZE
    assert clip.depth_m is None


@needs_real
def test_published_camera_files_are_read():
    for path in sorted(REAL.glob("*.txt")):
        track = read_track(path)
        camera = track.cameras((360, 640))
        assert len(camera) == len(path.read_text().splitlines()) - 1
        assert (np.diff(track.stamps_us) > 0).all()
        rows = np.array([line.split()[7:] for line in path.read_text().splitlines()[1:]], float)
        again = camera.camera_from_world[:, :3].reshape(-1, 12)
        assert np.abs(again - rows).max() < 1e-5


@pytest.mark.parametrize("line", ["1 2 3", "a b", ""])
def test_other_files_are_refused(tmp_path, line):
    (tmp_path / "x.txt").write_text(f"url\n{line}\n")
    with pytest.raises(MirageError, match="no RealEstate10K camera file"):
        read_track(tmp_path / "x.txt")


def test_a_tracks_scale_is_found_from_metric_depth(tmp_path):
    write_re10k(tmp_path, 13)
    (lazy,) = read_re10k(tmp_path / "cameras", tmp_path / "frames", (48, 96), 13)
    clip = lazy.read()
    depth = np.full(clip.rgb.shape[:3], 2.0, np.float32)
    assert pose_scale(clip.rgb, depth, clip.cameras) == pytest.approx(5, rel=0.05)
    still = scaled(clip.cameras, 0.0)
    assert pose_scale(clip.rgb, depth, still) == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


def test_the_cache_holds_what_the_cycle_would_write(folder, tmp_path, monkeypatch):
    """A true depth and a moving thing: latents of the video, median depth, static cells."""
    model = load_model(str(folder), "cpu", {"size": list(SIZE)})
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (10, *SIZE, 3), np.uint8)
    cameras = Camera.from_hfov(60.0, SIZE, np.tile(np.eye(4), (10, 1, 1)))
    dynamic = np.zeros((10, *SIZE), bool)
    dynamic[6, :16, :16] = True
    depth = np.broadcast_to(np.arange(1, 11, dtype=np.float32)[:, None, None], (10, *SIZE))
    video = PosedVideo(rgb, cameras, np.ascontiguousarray(depth), dynamic)
    calls = []

    def networks():
        calls.append("networks")
        return model.codec, model.perceiver

    def read():
        calls.append("read")
        return video

    assert build_cache([LazyVideo("one", read)], networks, tmp_path) == 1
    assert build_cache([LazyVideo("one", read)], networks, tmp_path) == 1
    assert calls == ["networks", "read"], "what is cached is neither read nor encoded again"
    cache = LatentCache(tmp_path)
    with monkeypatch.context() as patched:  # nothing is held: what is not asked for is not read
        patched.setattr(latent_cache, "load_file", lambda path: pytest.fail(f"{path} was read"))
        assert len(LatentCache(tmp_path)) == 1
    (clip,) = cache
    # 9 frames: the first latent is frame 0, then frames 1 to 4 and 5 to 8 by their third.
    assert clip.latents.shape == (3, CHANNELS, 2, 4)
    assert clip.depth_m[:, 0, 0].tolist() == [1, 4, 8]
    assert not clip.static[2, 0, 0] and clip.static.sum() == clip.static.size - 1
    whole = model.codec.encode(model.video_from_rgb(rgb[:9]))[0].transpose(0, 1)
    assert torch.allclose(clip.latents.float(), whole, atol=1e-2)

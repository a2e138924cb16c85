"""Training on the large backbone, with a small random one in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.pretrained import load_model
from mirage_ros.models.wan_layout import random_transformer, write_tiny_checkpoint
from mirage_ros.training.chunks import Chunks, ChunksConfig, LatentClip
from mirage_ros.training.latent_cache import build_cache, load_cache
from mirage_ros.training.pose_scale import pose_scale, scaled
from mirage_ros.training.posed_video import PosedVideo, read_re10k, read_track
from mirage_ros.training.wan_recipe import read_wan_recipe, train_wan
from mirage_ros.training.wan_stages import FlowConfig, FlowLoss, prepare_stage
from mirage_ros.training.wan_trainer import Trainer, TrainerConfig

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata" / "re10k_cameras"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata next to the checkout")
SIZE = (32, 64)


def wall_clip(latents=10, seed=0):
    """A camera that slides along a wall 2 m away, smooth random latents."""
    rng = np.random.default_rng(seed)
    pose = np.tile(np.eye(4), (latents, 1, 1))
    pose[:, 0, 3] = np.linspace(0, 0.5, latents)
    cameras = Camera.from_hfov(70.0, SIZE, pose).resized((2, 4))
    shape = (latents, 2, 4)
    told = torch.from_numpy(rng.standard_normal((latents, 8, 2, 4)).astype(np.float32))
    return LatentClip(told.half(), np.full(shape, 2.0, np.float32), np.ones(shape, bool), cameras)


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


def write_re10k(root: Path, frames: int, size=(48, 96)) -> np.ndarray:
    """A track of a camera that moves sideways past a textured wall 2 m away, in its own units."""
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (size[0], 3 * size[1], 3), np.uint8), (0, 0), 1.5)
    (root / "cameras").mkdir(parents=True)
    (root / "frames" / "abc").mkdir(parents=True)
    focal, rows, moved = 1.0, [], 1.5 * np.arange(frames)
    for i, pixels in enumerate(moved):
        stamp = 1_000_000 + 33_000 * i
        shift = np.float32([[1, 0, -pixels], [0, 1, 0]])
        picture = cv2.warpAffine(wall, shift, size[::-1], flags=cv2.INTER_LINEAR)
        cv2.imwrite(str(root / "frames" / "abc" / f"{stamp}.png"), picture)
        metres = 2.0 * pixels / (focal * size[1])
        numbers = [focal, focal * size[1] / size[0], 0.5, 0.5, 0, 0,
                   1, 0, 0, -metres / 5, 0, 1, 0, 0, 0, 0, 1, 0]  # fmt: skip
        rows.append(" ".join([str(stamp), *(f"{n:.9f}" for n in numbers)]))
    (root / "cameras" / "abc.txt").write_text("https://example.org/abc\n" + "\n".join(rows) + "\n")
    return moved


def test_a_realestate10k_track_is_read_with_its_frames(tmp_path):
    write_re10k(tmp_path, 12)
    track = read_track(tmp_path / "cameras" / "abc.txt")
    camera = track.cameras((48, 96))
    assert camera.intrinsics[0, 0, 0] == pytest.approx(96) and len(camera) == 12
    assert camera.intrinsics[0, 0, 2] == pytest.approx(47.5)
    assert camera.position_world[11, 0] == pytest.approx(2.0 * 1.5 * 11 / 96 / 5, rel=1e-6)
    (tmp_path / "frames" / "abc" / "1000000.png").unlink()
    clips = list(read_re10k(tmp_path / "cameras", tmp_path / "frames", SIZE, 5))
    assert [clip.name for clip in clips] == ["abc_000", "abc_001"]
    assert clips[0].rgb.shape == (5, *SIZE, 3) and clips[0].cameras.size == SIZE
    assert clips[0].depth_m is None


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
    (clip,) = read_re10k(tmp_path / "cameras", tmp_path / "frames", (48, 96), 13)
    depth = np.full(clip.rgb.shape[:3], 2.0, np.float32)
    assert pose_scale(clip.rgb, depth, clip.cameras) == pytest.approx(5, rel=0.05)
    still = scaled(clip.cameras, 0.0)
    assert pose_scale(clip.rgb, depth, still) == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


def test_the_cache_holds_what_the_cycle_would_write(folder, tmp_path):
    """A true depth and a moving thing: latents of the video, median depth, static cells."""
    model = load_model(str(folder), "cpu", {"size": list(SIZE)})
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (10, *SIZE, 3), np.uint8)
    cameras = Camera.from_hfov(60.0, SIZE, np.tile(np.eye(4), (10, 1, 1)))
    dynamic = np.zeros((10, *SIZE), bool)
    dynamic[6, :16, :16] = True
    depth = np.broadcast_to(np.arange(1, 11, dtype=np.float32)[:, None, None], (10, *SIZE))
    video = PosedVideo("one", rgb, cameras, np.ascontiguousarray(depth), dynamic)
    assert build_cache([video], model, tmp_path) == 1
    stamp = (tmp_path / "one.safetensors").stat().st_mtime_ns
    build_cache([video], model, tmp_path)
    assert (tmp_path / "one.safetensors").stat().st_mtime_ns == stamp
    (clip,) = load_cache(tmp_path)
    # 9 frames: the first latent is frame 0, then frames 1 to 4 and 5 to 8 by their third.
    assert clip.latents.shape == (3, 8, 2, 4)
    assert clip.depth_m[:, 0, 0].tolist() == [1, 4, 8]
    assert not clip.static[2, 0, 0] and clip.static.sum() == clip.static.size - 1
    whole = model.codec.encode(model.video_from_rgb(rgb[:9]))[0].transpose(0, 1)
    assert torch.allclose(clip.latents.float(), whole, atol=1e-2)


RECIPE = """
kind: wan
model: {model}
run: {root}/run
output: {root}/model
size: [32, 64]
length: 13
re10k: [{root}/cameras, {root}/frames]
depth: mini
prompt: a wall
lora_rank: 2
device: cpu
chunks: {{chunk_frames: 2}}
branch: {{steps: 2, learning_rate: 0.01}}
lora: {{steps: 2, learning_rate: 0.01}}
"""


def test_the_whole_recipe_makes_a_folder_that_runs(folder, tmp_path):
    write_re10k(tmp_path, 14)
    path = tmp_path / "wan.yaml"
    path.write_text(RECIPE.format(model=folder, root=tmp_path))
    train_wan(read_wan_recipe(path))
    log = [json.loads(line) for line in (tmp_path / "run/lora/log.jsonl").open()]
    assert [line["step"] for line in log] == [1, 2]
    model = load_model(str(tmp_path / "model"), "cpu", {"steps": 1})
    assert model.size == (32, 64) and model.config.prompt == "a wall"
    names = load_file(tmp_path / "model/lora/adapter_model.safetensors")
    assert len(names) == 4 * 4 * 2
    assert model.denoiser.branch.zero[0].weight.abs().max() > 0
    train_wan(read_wan_recipe(path))  # nothing is left to do
    assert len((tmp_path / "run/lora/log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("wrong", "word"),
    [("length: 12", "length"), ("nonsense: 1", "nonsense"), ("re10k: [a]", "re10k")],
)
def test_recipes_that_cannot_be_are_refused(tmp_path, wrong, word):
    path = tmp_path / "wan.yaml"
    name = wrong.split(":")[0]
    kept = [ln for ln in RECIPE.format(model="x", root="y").splitlines()
            if not ln.startswith(f"{name}:")]  # fmt: skip
    path.write_text("\n".join([*kept, wrong]) + "\n")
    with pytest.raises(MirageError, match=word):
        read_wan_recipe(path)

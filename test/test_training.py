"""The trainer: a killed run goes on to the same weights; samples are what the cycle will see."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mirage_ros.cli import main
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.training import Loop, LoopConfig, checkpoint_path
from mirage_ros.training.chunks import Chunks, ChunksConfig, LatentClip
from mirage_ros.training.recipe import read_recipe


def _loss(network, generator):
    x = torch.randn(8, 4, generator=generator)
    return {"loss": (network(x) - x.flip(1)).square().mean()}


def _network():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


class Killed(Exception):
    pass


def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path):
    config = LoopConfig(steps=20, warmup_steps=5, checkpoint_s=0.0)
    whole = Loop(_network(), tmp_path / "whole", config)
    whole.run(_loss)
    calls = iter(range(8))

    def killed_in_the_eighth_step(network, generator):
        if next(calls) == 7:
            raise Killed
        return _loss(network, generator)

    with pytest.raises(Killed):
        Loop(_network(), tmp_path / "cut", config).run(killed_in_the_eighth_step)
    resumed = Loop(_network(), tmp_path / "cut", config)
    assert resumed.step == 7
    resumed.run(_loss)
    assert torch.equal(whole.network.weight, resumed.network.weight)
    assert torch.equal(whole.average["weight"], resumed.average["weight"])


def test_a_damaged_checkpoint_is_named(tmp_path):
    loop = Loop(_network(), tmp_path, LoopConfig(steps=2))
    loop.run(_loss)
    path = checkpoint_path(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MirageError, match="checkpoint.safetensors is damaged"):
        Loop(_network(), tmp_path, LoopConfig(steps=2))


def test_recipes_refuse_unknown_keys_by_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("codec: {stepz: 3}\n")
    with pytest.raises(MirageError, match="stepz"):
        read_recipe(path)
    path.write_text("codec: {steps: 3}\nclips: {seeds: [4, 9]}\n")
    recipe = read_recipe(path)
    assert recipe.codec.steps == 3 and recipe.clips.seeds == (4, 9)


def _wall_clip(frames=10):
    """A camera sliding along a flat wall 2 m away; latents tell their frame."""
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 0, 3] = np.linspace(0, 1, frames)
    cameras = Camera.from_hfov(70.0, (128, 160), pose).resized((16, 20))
    latents = torch.arange(frames).view(-1, 1, 1, 1).expand(frames, 16, 16, 20).half() / 10
    shape = (frames, 16, 20)
    return LatentClip(latents, np.full(shape, 2.0, np.float32), np.ones(shape, bool), cameras)


def test_a_sample_shows_what_a_grown_memory_shows():
    config = ChunksConfig(blank_share=0.0, latent_noise=0.0, depth_noise=0.0)
    loss = Chunks([_wall_clip()], config)
    for seed in range(5):
        clean, context, condition = loss.draw(torch.Generator().manual_seed(seed))
        assert clean.shape == (16, 4, 16, 20)
        assert context.shape == (16, 1, 16, 20)
        assert condition.shape == (21, 5, 16, 20)
        visible = condition[16, 1:] > 0
        assert visible.float().mean() > 0.3
        assert torch.allclose(condition[17, 1:][visible], torch.tensor(0.5), atol=1e-3)
        target = clean[0, :, 0, 0]
        assert not any(torch.isclose(condition[0, 1:][visible], t).any() for t in target)


def test_blank_samples_see_nothing():
    config = dataclasses.replace(ChunksConfig(), blank_share=1.0)
    _, _, condition = Chunks([_wall_clip()], config).draw(torch.Generator().manual_seed(0))
    assert condition[:, 1:].abs().max() == 0
    assert (condition[16, :1] == 1).all()


RECIPE = """
data: {folder}/data
run: {folder}/{name}
output: {folder}/{name}/model
textures: 8
threads: 1
clips: {{seeds: [0, 2], frames: 8, size: [64, 80], period_s: 0.4, workers: 1}}
validation_seeds: [1000000, 1000001]
codec: {{steps: 12, validate_steps: 6, checkpoint_s: 0.0}}
codec_loss: {{crop: 32, batch: 2}}
perception: {{steps: 4, validate_steps: 4, checkpoint_s: 0.0}}
perception_loss: {{batch: 2}}
aligner: {{steps: 4, validate_steps: 4, checkpoint_s: 0.0}}
aligner_loss: {{batch: 1}}
views: {{clips: {{seeds: [0, 2], frames: 8, size: [64, 80], period_s: 0.4, workers: 1}}, fit_clips: 2, channels: 8,
         widths: [8, 8, 8], code_width: 16, book_sizes: [16, 8, 16, 8, 8]}}
dreamer: {{steps: 6, validate_steps: 3, checkpoint_s: 0.0, optimizer: muon}}
dreamer_loss: {{batch: 2}}
dream: {{steps: 2}}
"""


def _recipe(folder, name):
    """A recipe of its own run folder; the clips are shared."""
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(folder=folder, name=name))
    return path


def _training(folder, name):
    """A process that trains a recipe."""
    command = [sys.executable, "-m", "mirage_ros.cli", "train", "--config", str(_recipe(folder, name))]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.fixture
def one_thread():
    """As the recipe has it, and given back: sums depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _kill_when(process, path):
    """Kills the process as soon as the file exists; a process that ends before fails the test."""
    while not path.exists():
        assert process.poll() is None, f"{path} never came"
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_the_recipe_killed_twice_ends_in_the_same_model(tmp_path, one_thread):
    pytest.importorskip("mujoco")
    for stage in ("codec", "dreamer"):
        _kill_when(
            _training(tmp_path, "killed"), checkpoint_path(tmp_path / "killed" / stage)
        )
    # Whether a run is killed is what differs; those that end do so here, without another start of everything.
    for name in ("killed", "whole"):
        assert main(["train", "--config", str(_recipe(tmp_path, name))]) == 0
    for part in ("codec", "aligner", "perception", "dreamer"):
        files = [
            next((tmp_path / name / "model" / part).glob("diffusion*.safetensors"))
            for name in ("killed", "whole")
        ]
        assert files[0].read_bytes() == files[1].read_bytes(), part
    events = list((tmp_path / "whole" / "dreamer").glob("events.out.tfevents.*"))
    assert events and events[0].stat().st_size > 1000

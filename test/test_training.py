"""The trainer: a killed run goes on to the same weights; samples are what the cycle will see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.training.denoiser import Chunks, DenoiserLossConfig, LatentClip
from mirage_ros.training.loop import Loop, LoopConfig
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
    config = DenoiserLossConfig(blank_share=0.0, latent_noise=0.0, depth_noise=0.0)
    loss = Chunks([_wall_clip()], config)
    for seed in range(5):
        clean, context, condition = loss.draw(torch.Generator().manual_seed(seed))
        assert clean.shape == (16, 4, 16, 20)
        assert context.shape == (16, 2, 16, 20)
        assert condition.shape == (21, 6, 16, 20)
        visible = condition[16, 2:] > 0
        assert visible.float().mean() > 0.3
        assert torch.allclose(condition[17, 2:][visible], torch.tensor(0.5), atol=1e-3)
        target = clean[0, :, 0, 0]
        assert not any(torch.isclose(condition[0, 2:][visible], t).any() for t in target)


def test_blank_samples_see_nothing():
    config = dataclasses.replace(DenoiserLossConfig(), blank_share=1.0)
    _, _, condition = Chunks([_wall_clip()], config).draw(torch.Generator().manual_seed(0))
    assert condition[:, 2:].abs().max() == 0
    assert (condition[16, :2] == 1).all()

"""Readouts on a grid finer than the latents: the same units, more tokens, the same cycle."""

import numpy as np
import pytest
import torch
from analytic import cameras, features, look, raycast, room
from fakes import PixelModel
from test_baselines import HERE, painted

from mirage_ros.evaluation.rgb_cache import RgbMemory, RgbWorld
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory import LatentMemory, MemoryConfig
from mirage_ros.models.mini.codec import (
    Aligner,
    condition_from_context,
    condition_from_readout,
    condition_per_latent,
)
from mirage_ros.protocol import readout_side
from mirage_ros.training.codec import planar_readout
from mirage_ros.world.state import latent_size, readout_size
from mirage_ros.world.world import World

CELLS = (16, 20)


class Finer(PixelModel):
    """Asks for four tokens a latent and shows the one nearest to its centre."""

    readout_cells = 2

    def __init__(self):
        super().__init__(size=(64, 80))
        self.shapes = []

    def generate(self, readout, cameras, preceding, references, seed):
        self.shapes.append((readout.visible.shape[1:], cameras.size))
        per_latent = condition_per_latent(condition_from_readout(readout, 2)[None], 2)[0]
        return per_latent[: self.channels].transpose(0, 1)

    def perceive(self, rgb, cameras, anchor_depth_m):
        self.anchor = None if anchor_depth_m is None else anchor_depth_m.shape[1:]
        seen = super().perceive(rgb, cameras, None)
        return seen


def remembered(batch):
    depth, number, place = raycast(batch, room())
    memory = LatentMemory(MemoryConfig(channels=4))
    memory.write(
        features(number, place), batch, depth.astype(np.float32), depth < np.inf,
        np.zeros(len(batch), np.int64), np.zeros((*depth.shape, 3), np.uint8), np.arange(len(batch)),
    )  # fmt: skip
    return memory


def test_what_is_told_has_the_same_units_on_every_grid():
    memory = remembered(cameras([HERE], CELLS))
    moved = cameras([look((0.15, 0.1, 1.25), (0.2, 4, 1))], CELLS)
    coarse = condition_from_readout(memory.read(moved))
    fine = condition_from_readout(memory.read(moved.resized((32, 40))), 2)
    per_latent = condition_per_latent(fine[None], 2)[0]
    both = (coarse[4] == 1) & (per_latent[4] == 1)
    assert both.float().mean() > 0.9
    # The finer grid may find a token nearer to the centre, seldom another one.
    same = (coarse[:4] == per_latent[:4]).all(0) & both
    assert same.float().mean() > 0.85
    assert torch.allclose(coarse[8][same], per_latent[8][same], atol=1e-4)
    # Both tell where the token lies, in latent cells, each as its own centre shows it.
    for row in (6, 7):
        away = (coarse[row] - per_latent[row])[same].abs()
        assert away.median() < 0.01 and away.max() < 0.15


def test_the_finer_grid_keeps_more_tokens_of_what_is_seen_from_farther():
    memory = remembered(cameras([HERE], CELLS))
    back = cameras([look((0, -1.5, 1.2), (0, 4, 1))], CELLS)
    kept = [
        len(np.unique(memory.read(back.resized(size)).index)) for size in (CELLS, (32, 40))
    ]
    assert kept[1] > 1.2 * kept[0]


def test_context_sees_itself_on_every_grid():
    latents = torch.randn(3, 2, 4, 5)
    fine = condition_from_context(latents, 2)
    assert fine.shape == (8, 2, 8, 10)
    assert torch.equal(condition_per_latent(fine[None], 2)[0], condition_from_context(latents))


def test_a_drawn_cloud_is_told_as_lying_in_its_place():
    model, batch = PixelModel((64, 80)), cameras([HERE], (64, 80))
    memory = RgbMemory(model.encode, 8, cells=2)
    rgb, depth = painted(batch, room())
    memory.write_new(rgb, batch, depth, depth > 0, np.array([5]))
    condition = condition_from_readout(memory.read(batch.resized(CELLS)), 2)
    seen = condition[-5] == 1
    assert seen.float().mean() > 0.95
    for row in (-3, -2, -1):
        assert condition[row][seen].abs().max() < 1e-6
    shown = model.decode(condition_per_latent(condition[None], 2)[0, :-5].transpose(0, 1))[0]
    assert np.median(np.abs(shown.astype(int) - rgb[0])) <= 4


def test_warped_pictures_tell_the_same_on_every_grid():
    latents = torch.randn(3, 8, 8)
    warp = np.array([[1.02, 0.03, 1.7], [-0.02, 0.98, -2.4]])
    coarse = planar_readout(latents, warp, 8, 0.5)
    per_latent = condition_per_latent(planar_readout(latents, warp, 8, 0.5, 2)[None, :, None], 2)[0, :, 0]
    both = (coarse[3] == 1) & (per_latent[3] == 1)
    same = (coarse[:3] == per_latent[:3]).all(0) & both
    assert same.sum() > 0.75 * both.sum()
    assert torch.allclose(coarse[:, same], per_latent[:, same], atol=1e-5)


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_a_latent_is_moved_as_the_block_of_pixels_that_it_codes(cells):
    """With a code that loses nothing, a view shifted by whole readout cells comes out exactly."""
    align = Aligner(latent_channels=192, width=8, blocks=1, cells=cells)
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(192, 192, generator=rng) / 14
    pictures = torch.rand(30, 3, 64, 64, generator=rng) * 2 - 1

    def encode(x):
        code = torch.nn.functional.pixel_unshuffle(x, 8)
        return torch.einsum("ij,bjhw->bihw", mixing, code) + 0.3

    align.fit(encode(pictures), pictures)
    shift = 8 // cells
    warp = np.array([[1.0, 0, shift], [0, 1, -shift]])
    condition = planar_readout(encode(pictures[:1])[0], warp, 8, 0.5, cells)
    moved = torch.roll(pictures[:1], (shift, -shift), (2, 3))
    with torch.no_grad():
        aligned, wanted = align(condition[None]), encode(moved)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert (aligned - wanted)[inside].abs().max() < 1e-2 * wanted.abs().max()


def test_what_need_not_be_moved_is_not_changed():
    align = Aligner(latent_channels=4, width=8, blocks=1, cells=4)
    latents = torch.randn(4, 3, 6, 6)
    torch.nn.init.normal_(align.block_from_latent)
    torch.nn.init.normal_(align.latent_from_block)
    condition = condition_from_context(latents, 4).transpose(0, 1)
    with torch.no_grad():
        assert torch.allclose(align(condition), latents.transpose(0, 1), atol=1e-5)


def test_the_cycle_reads_as_finely_as_the_model_asks():
    for kind in (World, RgbWorld):
        model = Finer()
        assert latent_size(model) == (8, 10) and readout_size(model) == CELLS
        assert readout_side(model) == 4
        world = kind(model)
        camera = Camera.from_hfov(70.0, (64, 80), look((0, 0, 1), (0, 1, 1)))
        rgb = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        rgb = rgb.reshape(8, 8, 10, 8, 3)[:, :1, :, :1].repeat(8, 1).repeat(8, 3).reshape(64, 80, 3)
        world.reset(rgb, camera)
        chunk = world.step(Camera.stack([camera]), np.array([1]))
        assert model.shapes == [(CELLS, CELLS)] and model.anchor == CELLS
        # Memory keeps a number in six bits.
        assert np.abs(chunk.frames[0].rgb.astype(int) - rgb).max() <= 2
        assert chunk.frames[0].observed.all()

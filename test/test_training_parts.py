"""The codec's start, finer readouts, pasted bodies and collages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirage_ros.geometry.camera import Camera
from mirage_ros.models.mini.codec import MiniCodec, condition_per_latent
from mirage_ros.scenes.textures import collage
from mirage_ros.training.clips import StoredClip
from mirage_ros.training.codec import PerceptionLoss, PerceptionLossConfig


def test_the_codec_begins_as_principal_components():
    """A linear code: what 6 numbers a block can tell of blocks with 6 degrees of freedom, it tells."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 192, generator=generator) / 14
    blocks = (torch.randn(40, 8, 10, 6, generator=generator) @ mixed + 0.1).permute(0, 3, 1, 2)
    pictures = torch.nn.functional.pixel_shuffle(blocks, 8)
    codec = MiniCodec(latent_channels=6, widths=(8, 8, 8))
    codec.fit_blocks(pictures)
    latents = codec.encode(pictures)
    assert torch.allclose(codec.decode(latents), pictures, atol=1e-4)
    assert torch.allclose(latents.var((0, 2, 3)), torch.ones(6), atol=1e-2)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3


def test_of_four_tokens_a_latent_is_told_the_nearest():
    condition = torch.zeros(1, 2 + 5, 1, 2, 4)
    condition[0, 0, 0] = torch.arange(8.0).view(2, 4)
    condition[0, 2, 0] = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    condition[0, 4, 0] = torch.tensor([[0.4, -0.3, 0.4, 0], [0.1, 0.2, 0, 0]])
    per_latent = condition_per_latent(condition, 2)
    assert per_latent.shape == (1, 7, 1, 1, 2)
    assert per_latent[0, 0, 0, 0].tolist() == [4.0, 2.0]
    assert per_latent[0, 2, 0, 0].tolist() == [1.0, 0.25]
    assert torch.allclose(per_latent[0, 4, 0, 0], torch.tensor([0.1, 0.4]))


def _clip(depth_m, moving_columns=()):
    depth = np.full((2, 64, 96), depth_m, np.float16)
    moving = np.zeros(depth.shape, bool)
    moving[:, 20:40, list(moving_columns)] = True
    depth[moving] = 2.0
    rgb = np.full((*depth.shape, 3), 100, np.uint8)
    rgb[moving] = 255
    cameras = Camera.from_hfov(70.0, (64, 96), np.tile(np.eye(4), (2, 1, 1)))
    return StoredClip(rgb, depth, moving, np.zeros(depth.shape, bool), cameras)


def test_bodies_are_pasted_where_they_are_nearer_and_memory_does_not_hold_them():
    clips = [_clip(5.0), _clip(5.0, range(30, 50))]
    config = PerceptionLossConfig(
        paste_share=1.0, blind_share=0.0, scale_spread=0.0, moving_share=0.0, anchor_noise=0.0
    )
    loss, pasted = PerceptionLoss(clips, config), 0
    for seed in range(30):
        picture, _, anchor, depth, moving, _ = loss._draw(torch.Generator().manual_seed(seed))
        assert torch.equal(moving, depth == 2.0)
        known = torch.isfinite(anchor[0])
        assert torch.allclose(anchor[0][known].exp(), torch.tensor(5.0), atol=0.01)
        pasted += bool(moving.any())
    assert pasted > 20
    hidden = PerceptionLoss([_clip(1.0), clips[1]], config)
    near = [hidden._draw(torch.Generator().manual_seed(s)) for s in range(30)]
    # In front of a wall at 1 m no body at 2 m is seen; only the donor's own frames show one.
    assert all(row[4].any() == bool((row[3] > 1.5).any()) for row in near)


def test_collages_are_the_same_for_a_seed_and_full_of_edges():
    one, other = (collage(np.random.default_rng(3), (64, 80)) for _ in range(2))
    assert one.shape == (64, 80, 3) and one.dtype == np.uint8 and np.array_equal(one, other)
    steps = np.abs(np.diff(one.astype(int), axis=1)).max(-1)
    assert (steps > 20).mean() > 0.03 and (steps <= 20).mean() > 0.5


def test_decoys_stand_still_on_free_floor_and_the_same_for_a_seed():
    pytest.importorskip("mujoco")
    from mirage_ros.scenes import make_clip

    size = (32, 40)
    plain, one, other = (
        make_clip(603, 3, size, period_s=0.8, with_decoys=with_decoys)
        for with_decoys in (False, True, True)
    )
    assert np.array_equal(one.rgb, other.rgb)
    colour = one.rgb.astype(int)
    bright = colour.max(-1) - colour.min(-1) > 150
    assert bright.mean() > 0.005 and not (bright & one.moving).any()
    colour = plain.rgb.astype(int)
    assert (colour.max(-1) - colour.min(-1) > 150).mean() < bright.mean() / 2

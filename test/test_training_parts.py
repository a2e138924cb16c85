"""The codec's start, finer readouts, the score of what is imagined, pasted bodies and collages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from mirage_ros.core.camera import Camera
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.conditioning import told_per_latent
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.sampler import SamplerConfig
from mirage_ros.scenes.collage import collage
from mirage_ros.training.chunks import Chunks
from mirage_ros.training.denoiser import DenoiserLossConfig
from mirage_ros.training.imagination import ImaginationLoss, ImaginationLossConfig, fair_score
from mirage_ros.training.perception import PerceptionLoss, PerceptionLossConfig
from mirage_ros.training.recipe import MINI_TRANSFORMER
from mirage_ros.training.shards import StoredClip


def _denoiser(channels):
    torch.manual_seed(0)
    shape = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 32, "num_layers": 2}
    shape |= {"in_channels": channels, "out_channels": channels}
    transformer = WanTransformer3DModel(**(MINI_TRANSFORMER | shape))
    branch = SideBranch.from_transformer(transformer, shortcut=True, aligner_cells=1)
    denoiser = MemoryDenoiser(transformer, branch)
    with torch.no_grad():  # layers that start at zero would hide what does not fit
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser


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
    told = told_per_latent(condition, 2)
    assert told.shape == (1, 7, 1, 1, 2)
    assert told[0, 0, 0, 0].tolist() == [4.0, 2.0]
    assert told[0, 2, 0, 0].tolist() == [1.0, 0.25]
    assert torch.allclose(told[0, 4, 0, 0], torch.tensor([0.1, 0.4]))


class _Rows(Chunks):
    """Draws one chunk whose left half memory sees."""

    def __init__(self):
        pass

    def draw(self, generator):
        clean = torch.randn(4, 2, 4, 8, generator=generator)
        context = torch.randn(4, 2, 4, 8, generator=generator)
        condition = torch.zeros(9, 4, 4, 8)
        condition[:4, 2:, :, :4], condition[4, :, :, :4] = clean[..., :4], 1.0
        return clean, context, condition


class _Codec(torch.nn.Module):
    """Paints each cell by itself, linearly."""

    def __init__(self):
        super().__init__()
        self.paint = torch.nn.ConvTranspose2d(4, 3, 8, stride=8, bias=False).requires_grad_(False)

    def decode(self, latents):
        return 2 * self.paint(latents)


def _imagining(**settings):
    torch.manual_seed(1)
    loss = ImaginationLoss(
        _Rows(), _Codec(), torch.ones(4), DenoiserLossConfig(batch=2),
        sampler=SamplerConfig(steps=2), imagination=ImaginationLossConfig(scales=(1, 2), **settings),
    )  # fmt: skip
    return loss, _denoiser(4)


def test_the_fair_score_is_least_for_the_spread_of_the_truth():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(3, 200_000, generator=generator)
    scores = {
        (mean, spread): float(fair_score(*(mean + spread * draws[:2]), draws[2]).mean())
        for mean in (0.0, 0.5) for spread in (0.0, 0.5, 1.0, 2.0)
    }  # fmt: skip
    assert min(scores, key=scores.get) == (0.0, 1.0)


def test_the_score_is_about_what_memory_does_not_see():
    loss, network = _imagining()
    made = []

    def kept(*arguments):
        made.append(ImaginationLoss._samples(loss, *arguments))
        for part in made[-1]:
            part.retain_grad()
        return made[-1]

    loss._samples = kept
    loss.imagination = ImaginationLossConfig(scales=(1,), side=3)
    loss(network, torch.Generator().manual_seed(2))["loss"].backward()
    for part in made[-1]:
        # A filter reaches one pixel over the border, so into the seen cell beside it.
        assert part.grad[..., 4:].abs().max() > 0 and part.grad[..., :3].abs().max() == 0


def test_the_score_brings_edges_to_a_flat_guess():
    loss, network = _imagining()
    torch.nn.init.zeros_(network.transformer.proj_out.weight)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, betas=(0.9, 0.95))
    edges = []
    for step in range(40):
        values = loss(network, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        edges.append(float(values["gradients"]))
    assert edges[0] < 0.2 and 0.5 < edges[-1] < 1.5


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

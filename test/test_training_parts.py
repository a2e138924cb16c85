"""Widened weights, the contest for sharp imagination, pasted bodies and collages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.models.codec import MiniCodec
from mirage_ros.models.denoiser import MemoryDenoiser, SideBranch
from mirage_ros.models.sampler import SamplerConfig
from mirage_ros.scenes.collage import collage
from mirage_ros.training.adversary import Contest, SharpenLoss, SharpenLossConfig
from mirage_ros.training.chunks import Chunks
from mirage_ros.training.denoiser import DenoiserLossConfig
from mirage_ros.training.perception import PerceptionLoss, PerceptionLossConfig
from mirage_ros.training.recipe import MINI_TRANSFORMER
from mirage_ros.training.shards import StoredClip
from mirage_ros.training.widening import widened


def _denoiser(channels):
    torch.manual_seed(0)
    shape = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 32, "num_layers": 2}
    shape |= {"in_channels": channels, "out_channels": channels}
    transformer = WanTransformer3DModel(**(MINI_TRANSFORMER | shape))
    denoiser = MemoryDenoiser(transformer, SideBranch.from_transformer(transformer, shortcut=True))
    with torch.no_grad():  # layers that start at zero would hide what does not fit
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser


def test_widened_weights_do_what_they_did():
    narrow = MiniCodec(latent_channels=4, widths=(8, 8, 8)), _denoiser(4)
    codec, denoiser = widened(*narrow, 6, 3)
    picture = torch.rand(2, 3, 32, 40) * 2 - 1
    kept = codec.encode(picture)[:, :4]
    assert torch.allclose(kept, narrow[0].encode(picture), atol=1e-5)
    assert codec.encode(picture)[:, 4:].std() > 0
    assert torch.allclose(codec(picture), narrow[0](picture), atol=1e-5)
    latents, told = torch.randn(1, 6, 2, 4, 4), torch.randn(1, 6, 2, 4, 4)
    geometry = torch.rand(1, 5, 2, 4, 4)
    rest = torch.full((1, 2), 500.0), torch.zeros(1, 1, 32)
    old = narrow[1](
        latents[:, :4], rest[0], torch.cat([told[:, :4], geometry], 1), rest[1]
    )
    new = denoiser(latents, rest[0], torch.cat([told, geometry], 1), rest[1])
    assert torch.allclose(new[:, :4], old, atol=1e-5)


def test_weights_are_not_narrowed():
    with pytest.raises(MirageError, match="6 latent channels and an aligner of 2"):
        widened(MiniCodec(latent_channels=6, widths=(8, 8, 8)), _denoiser(6), 4, 2)


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


def _sharpen(**settings):
    torch.manual_seed(1)
    loss = SharpenLoss(
        _Rows(), _Codec(), torch.ones(4), DenoiserLossConfig(batch=2),
        sampler=SamplerConfig(steps=3), sharpen=SharpenLossConfig(**settings),
    )  # fmt: skip
    return loss, Contest(_denoiser(4))


def test_each_side_of_the_contest_learns_from_its_own_part_alone():
    """The discriminator's gradient does not depend on how the denoiser is rewarded."""
    gradients = []
    for weight in (0.0, 1.0):
        loss, contest = _sharpen(adversary_weight=weight)
        loss(contest, torch.Generator().manual_seed(2))["loss"].backward()
        sides = (contest.discriminator, contest.denoiser)
        gradients.append([[p.grad.clone() for p in side.parameters() if p.grad is not None]
                          for side in sides])  # fmt: skip
    (judge, maker), (judge_too, maker_too) = gradients
    assert judge and all(torch.equal(a, b) for a, b in zip(judge, judge_too, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(maker, maker_too, strict=True))


def test_the_verdict_is_about_what_memory_does_not_see():
    loss, contest = _sharpen()
    clean, context, condition = loss._draw(contest, torch.Generator().manual_seed(2))
    seen = condition[:, 4:5, 2:] > 0.5
    made = torch.zeros_like(clean).requires_grad_()
    mask = seen[:, 0].float()
    shown = loss._decoded(torch.where(seen, clean, made))
    (contest.frozen(shown, mask) * (1 - mask[:, :1])).sum().backward()
    assert made.grad[..., 4:].abs().min() > 0 and made.grad[..., :4].abs().max() == 0


def test_the_contest_brings_edges_to_a_flat_guess():
    loss, contest = _sharpen(adversary_weight=1.0, unseen_weight=0.0, first_share=0.0)
    torch.nn.init.zeros_(contest.denoiser.transformer.proj_out.weight)
    optimizer = torch.optim.AdamW(contest.parameters(), lr=5e-3, betas=(0.9, 0.95))
    edges = []
    for step in range(60):
        values = loss(contest, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        edges.append(float(values["gradients"]))
    assert edges[0] < 0.1 and edges[-1] > 3 * edges[0] + 0.1


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

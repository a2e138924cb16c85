"""Detail borrowed from what is seen: textures go on, and what memory shows stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.models.mini.borrowing import borrow_detail
from mirage_ros.models.mini.codec import pixels_in, spread_inverse_depth
from mirage_ros.models.parts import picture_from_rgb

SIZE, CELLS = (128, 160), (16, 20)


@pytest.fixture(scope="module")
def model():
    return load_model("mini", device="cpu")


@pytest.fixture(scope="module")
def align(model):
    return model.denoiser.branch.align


def striped(period=24):
    """A wall of soft upright stripes, 80 levels from the darkest to the brightest."""
    row = 120 + 40 * np.sin(2 * np.pi * np.arange(SIZE[1]) / period)
    return np.broadcast_to(row[None, :, None], (*SIZE, 3)).astype(np.uint8)


def fogged(model, rgb, unseen):
    """Latents of the picture, its mean colour where unseen."""
    picture = picture_from_rgb(torch.from_numpy(np.stack([rgb] * len(unseen))))
    gaps = torch.from_numpy(unseen.repeat(8, 1).repeat(8, 2))[:, None]
    with torch.no_grad():
        return model.codec.encode(torch.where(gaps, picture.mean(), picture))


def right_of(column, frames=1):
    unseen = np.zeros((frames, *CELLS), bool)
    unseen[:, :, column:] = True
    return unseen


def cameras(right_m, ahead_m=0.0):
    """Cameras 2 m before a wall, so far to the right."""
    poses = np.tile(np.eye(4), (len(right_m), 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = right_m, ahead_m
    return Camera.from_hfov(70.0, CELLS, poses)


def borrowed(model, align, latents, unseen, exemplar=None, right_m=None):
    exemplar = torch.zeros_like(latents[0]) if exemplar is None else exemplar
    views = cameras(np.zeros(len(unseen)) if right_m is None else right_m)
    depth = np.where(unseen, np.nan, 2.0).astype(np.float32)
    return borrow_detail(align, latents, unseen, exemplar, views, depth)


def across(rgb):
    return np.square(np.diff(rgb.astype(float), axis=1)).sum()


def test_a_striped_wall_goes_on_striped(model, align):
    rgb, unseen = striped(), right_of(14)
    latents = fogged(model, rgb, unseen)
    before, after = (
        model.decode(each)[0, :, 14 * 8 + 2 :]
        for each in (latents, borrowed(model, align, latents, unseen))
    )
    true = model.decode(fogged(model, rgb, np.zeros_like(unseen)))[0, :, 14 * 8 + 2 :]
    assert across(before) < 0.1 * across(true)
    assert 0.6 < across(after) / across(true) < 1.4
    error = np.abs(after.astype(float) - true)
    assert error.mean() < 0.3 * np.abs(before.astype(float) - true).mean()


def test_what_memory_shows_comes_back_bit_for_bit(model, align):
    unseen = np.random.default_rng(0).random((3, *CELLS)) < 0.3
    latents = fogged(model, striped(), unseen)
    after = borrowed(model, align, latents, unseen)
    gaps = torch.from_numpy(unseen)[:, None].expand_as(latents)
    assert torch.equal(after[~gaps], latents[~gaps])
    assert not torch.equal(after[gaps], latents[gaps])


def test_where_nothing_is_unseen_nothing_happens(model, align):
    unseen = np.zeros((2, *CELLS), bool)
    latents = fogged(model, striped(), unseen)
    assert borrowed(model, align, latents, unseen) is latents


def test_the_same_input_gives_the_same_detail(model, align):
    unseen = right_of(11, frames=2)
    latents = fogged(model, striped(), unseen)
    first, second = (borrowed(model, align, latents.clone(), unseen) for _ in range(2))
    assert torch.equal(first, second)


def test_where_all_is_unseen_the_exemplar_is_borrowed_from(model, align):
    unseen = right_of(0, frames=2)
    latents = fogged(model, striped(), unseen)
    exemplar = fogged(model, striped(), np.zeros((1, *CELLS), bool))[0]
    after = borrowed(model, align, latents, unseen, exemplar)
    assert torch.isfinite(after).all()
    assert across(model.decode(after)) > 0.5 * across(model.decode(exemplar[None]))


def test_a_smooth_sky_stays_smooth(model, align):
    rgb = striped().copy()
    rgb[:64] = (90, 140, 220)
    unseen = right_of(12)
    latents = fogged(model, rgb, unseen)
    latents[:, :, :8] = model.encode(rgb[None])[:, :, :8]
    after = model.decode(borrowed(model, align, latents, unseen))[0]
    assert np.abs(after[4:52, 100:].astype(float) - rgb[4:52, 100:]).max() < 25


def test_frames_of_a_chunk_show_the_same_fill(model, align):
    """The camera goes right by 8 pixels of the wall a frame; what is revealed moves left."""
    pixel_m = 2 / cameras([0.0]).resized(SIZE).intrinsics[0, 0, 0]
    noise = np.random.default_rng(1).integers(60, 200, (16, 40, 3)).astype(np.uint8)
    rgb = noise.repeat(8, 0).repeat(4, 1)
    unseen = np.concatenate([right_of(column) for column in (17, 16, 15)])
    latents = fogged(model, rgb, unseen)
    filled = borrowed(model, align, latents, unseen, right_m=pixel_m * np.array([0, 8, 16]))
    first, *_, last = align.pictures(filled).detach().numpy()[:, :, 48:80]
    same = np.abs(first[..., 140:150] - last[..., 124:134]).mean()
    apart = np.abs(first[..., 140:150] - last[..., 140:150]).mean()
    assert same < 0.3 * apart


def test_inverse_depth_spreads_from_what_is_known():
    depth = np.full((6, 9), np.nan, np.float32)
    assert (spread_inverse_depth(depth) == 0).all()
    depth[:, 0] = 4
    spread = spread_inverse_depth(depth)
    np.testing.assert_allclose(spread, 0.25, rtol=1e-5)
    depth[2, 5] = 2
    assert spread_inverse_depth(depth)[2, 5] == 0.5
    assert (spread_inverse_depth(depth) > 0.2).all()


def test_places_in_another_view_are_where_it_projects_them():
    here, there = cameras([0.0, 0.3])
    inverse = np.full(CELLS, 0.5, np.float32)
    places = pixels_in(there, here, inverse, SIZE)
    assert places.shape == (*SIZE, 2)
    moved_px = 0.3 / 2 * here.resized(SIZE).intrinsics[0, 0]
    np.testing.assert_allclose(places[60, 90], (90 - moved_px, 60), atol=0.01)
    behind_it = cameras([0.0], ahead_m=5.0)[0]
    assert (pixels_in(behind_it, here, inverse, SIZE) < -1000).all()

"""A store of a few small views, and networks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models.mini.dreamer import Dreamer
from mirage_ros.training.clips import StoredClip
from mirage_ros.training.dreamer import DreamerLoss, DreamerLossConfig, ViewSampler
from mirage_ros.training.views import ViewStore

SIZE, CELLS, VIEWS, BOOKS = (64, 80), (8, 10), 4, (24, 8, 24, 8)


def clip_of(seed: int) -> StoredClip:
    """A camera that turns before a textured wall 3 m away, with open sky above 1.5 m."""
    rng = np.random.default_rng(seed)
    yaw = np.linspace(0, 0.6, VIEWS)
    pose = np.tile(np.eye(4), (VIEWS, 1, 1))
    ahead = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(VIEWS)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(VIEWS)], 1)
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = right, (0, 0, -1), ahead
    pose[:, :3, 3] = 0, 0, 1.0
    cameras = Camera.from_hfov(70.0, SIZE, pose)
    rays = np.einsum("nij,nhwj->nhwi", pose[:, :3, :3], cameras.rays())
    depth = 3.0 / rays[..., 0]  # the plane x = 3; camera rays have z = 1, so this is z-depth
    wall = np.einsum("nhw,nhwk->nhwk", depth, rays) + pose[:, None, None, :3, 3]
    sky = wall[..., 2] > 1.5
    colour = 127 + 100 * np.sin(wall * rng.uniform(2, 5, 3))
    rgb = np.where(sky[..., None], (80, 120, 200), colour).astype(np.uint8)
    depth = np.where(sky, np.inf, depth).astype(np.float16)
    return StoredClip(rgb, depth, np.zeros(sky.shape, bool), sky, cameras)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ViewStore:
    store = ViewStore(tmp_path_factory.mktemp("views"), VIEWS, SIZE, 12)
    with pytest.raises(MirageError, match="holds no views"):
        store.open()
    store.fit([clip_of(0), clip_of(1)])
    store.add((seed, clip_of(seed)) for seed in range(3))
    return store


def sampler(store: ViewStore, **changes) -> ViewSampler:
    return ViewSampler(store, (0, 3), DreamerLossConfig(batch=4, **changes))


def small_network(store: ViewStore) -> Dreamer:
    torch.manual_seed(0)
    network = Dreamer(
        latent_channels=12, widths=(16, 16, 16), task_width=16, head_width=8, code_width=32, book_sizes=BOOKS,
        deviations=store.deviations(),
    )  # fmt: skip
    network.take(store.codebooks(BOOKS))
    return network


def loss_of(store: ViewStore) -> DreamerLoss:
    return DreamerLoss(sampler(store), store.codebooks(BOOKS), DreamerLossConfig(batch=4, part_weights=(1.0, 1.0, 0.5, 1.0, 0.5)))

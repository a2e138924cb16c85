"""What the dreamer learns from: views of clips as latents and surfaces, and what each shows of the others.

Clips are rendered once (clips.py) and turned into records of one fixed size, appended to one file
that every training process maps. A record holds, as bits, which cells of a view each other view shows
by true depth, so no memory is run while training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.geometry.rigid import inverse
from mirage_ros.models.mini.dreamer import SURFACE_CHANNELS
from mirage_ros.training.clips import StoredClip

STRIDE = 8
#: Of a view's log depth: metres that count as 0, and its spread.
DEPTH_UNIT_M, DEPTH_SPREAD = 3.0, 0.9
#: What the sky channel holds where there is sky; minus this elsewhere.
SKY = 0.5
#: Principal components times this are latents; the first one's spread is then about 1.
LATENT_SCALE = 0.25
#: Shown is what lies at most this far behind the other view's surface: share of the depth, metres.
AGREE_SHARE, AGREE_M = 0.08, 0.05
#: Where sky is taken to lie, metres, when it is looked for in another view.
FAR_M = 60.0
#: Cells with a larger share of moving pixels are not learnt from.
MOVING_SHARE = 0.1


def record_type(views: int, size: tuple[int, int], channels: int) -> np.dtype:
    """One clip: `size` is the views' (height, width) in pixels."""
    cells = size[0] // STRIDE, size[1] // STRIDE
    bits = -(-cells[0] * cells[1] // 8)
    return np.dtype([
        ("seed", "<i8"),
        ("view", "<f2", (views, channels + SURFACE_CHANNELS, *cells)),
        ("shown", "u1", (views, views, bits)),
        ("moving", "u1", (views, bits)),
        ("intrinsics", "<f4", (views, 3, 3)),
        ("world_from_camera", "<f4", (views, 4, 4)),
    ])  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """The linear code of 8x8 blocks: principal components, mirrored ones known by their sign.

    Attributes:
        mean: (192,) of the blocks.
        basis: (192, c) orthonormal.
        signs: (c,) +1 or -1: what a component becomes when the picture is mirrored.
    """

    mean: Float[Tensor, "p"]
    basis: Float[Tensor, "p c"]
    signs: Float[Tensor, "c"]

    @classmethod
    def fit(cls, blocks: Float[Tensor, "n p"], channels: int) -> Blocks:
        """From blocks and their mirror images, so that every component is even or odd."""
        mirrored = mirror_blocks(blocks)
        mean = (blocks.mean(0) + mirrored.mean(0)).double() / 2
        parts = []
        for sign in (1, -1):
            half = (blocks + sign * mirrored).double() / 2 - (mean if sign > 0 else 0)
            values, vectors = torch.linalg.eigh(half.T @ half / len(half))
            parts += [
                (value, sign, vector) for value, vector in zip(values, vectors.T, strict=True)
            ]
        parts.sort(key=lambda part: -float(part[0]))
        basis = torch.stack([vector for _, _, vector in parts[:channels]], 1)
        signs = torch.tensor([float(sign) for _, sign, _ in parts[:channels]])
        return cls(mean.float(), basis.float(), signs)

    @classmethod
    def load(cls, folder: Path) -> Blocks:
        """From a folder that `save` wrote to."""
        path = folder / "blocks.safetensors"
        if not path.exists():
            raise MirageError(f"{folder} holds no views yet; run the data stage first.")
        return cls(**load_file(path))

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        with atomic_path(folder / "blocks.safetensors") as new:
            save_file(tensors, new)

    def encode(self, rgb: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c lh lw"]:
        blocks = picture_blocks(rgb) - self.mean[None, :, None, None]
        return torch.einsum("nphw,pc->nchw", blocks, self.basis) * LATENT_SCALE

    def picture(self, latents: Float[Tensor, "n c lh lw"]) -> Float[Tensor, "n 3 h w"]:
        """In [-1, 1]; nothing but the linear code, so a little softer than a decoder's."""
        blocks = torch.einsum("nchw,pc->nphw", latents.float() / LATENT_SCALE, self.basis)
        return F.pixel_shuffle(blocks + self.mean[None, :, None, None], STRIDE).clamp(-1, 1)


def picture_blocks(rgb: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n p lh lw"]:
    picture = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(picture, STRIDE)


def mirror_blocks(blocks: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    return blocks.view(-1, 3, STRIDE, STRIDE).flip(-1).reshape(len(blocks), -1)


def surfaces(depth_m: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 2 lh lw"]:
    """Log depth (0 where there is sky or nothing) and sky of every cell."""
    depth = cell_depth(depth_m, STRIDE)
    known = np.isfinite(depth)
    log = np.log(np.where(known, depth, DEPTH_UNIT_M) / DEPTH_UNIT_M) / DEPTH_SPREAD
    return np.stack([np.where(known, log, 0), np.where(np.isinf(depth), SKY, -SKY)], 1)


def depth_of(view: Float[Tensor, "b v h w"]) -> Float[np.ndarray, "b h w"]:
    """Metres, +inf where there is sky."""
    depth = DEPTH_UNIT_M * (view[:, -2].float() * DEPTH_SPREAD).exp()
    return torch.where(view[:, -1] > 0, torch.inf, depth).numpy()


def shown_cells(depth_m, intrinsics, world_from_camera) -> Bool[np.ndarray, "n n h w"]:
    """(source, target): which cells of each view each other one shows, by true depth; sky shows sky."""
    count, height, width = depth_m.shape
    step = STRIDE // 2
    v, u = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    far = depth_m[:, v, u].astype(np.float32)
    sky = ~np.isfinite(far)
    far = np.where(sky, FAR_M, far)
    back = inverse(world_from_camera)
    shown = np.zeros((count, count, height // STRIDE, width // STRIDE), bool)
    for j in range(count):
        k = intrinsics[j]
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(u.shape)], -1)
        world = (rays * far[j][..., None]) @ world_from_camera[j][:3, :3].T
        world += world_from_camera[j][:3, 3]
        for i in range(count):
            k = intrinsics[i]
            p = world @ back[i][:3, :3].T + back[i][:3, 3]
            z = np.maximum(p[..., 2], 1e-3)
            x, y = p[..., 0] / z * k[0, 0] + k[0, 2], p[..., 1] / z * k[1, 1] + k[1, 2]
            inside = (
                (p[..., 2] > 0.1) & (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
            )
            at = np.clip(np.rint(y), 0, height - 1), np.clip(np.rint(x), 0, width - 1)
            there = depth_m[i].astype(np.float32)[at[0].astype(int), at[1].astype(int)]
            near = np.abs(np.where(np.isfinite(there), there, 1e9) - z) < AGREE_SHARE * z + AGREE_M
            seen = inside & np.where(sky[j], ~np.isfinite(there), near)
            shown[i, j] = seen.reshape(height // STRIDE, 2, -1, 2).mean((1, 3)) >= 0.5
    return shown


def shrunk(clip: StoredClip, size: tuple[int, int]) -> StoredClip:
    """Frames cropped to the size's aspect around their middle and resized; depths are never mixed."""
    height, width = clip.rgb.shape[1:3]
    if (height, width) == size:
        return clip
    scale = max(size[0] / height, size[1] / width)
    crop = round(size[0] / scale), round(size[1] / scale)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    rgb = clip.rgb[:, top : top + crop[0], left : left + crop[1]]
    rgb = np.stack([cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in rgb])
    y = top + ((np.arange(size[0]) + 0.5) * crop[0] / size[0]).astype(int)
    x = left + ((np.arange(size[1]) + 0.5) * crop[1] / size[1]).astype(int)
    maps = [a[:, y[:, None], x] for a in (clip.depth_m, clip.moving, clip.sky)]
    return StoredClip(rgb, *maps, clip.cameras.cropped(top, left, crop).resized(size))


def record(seed: int, clip: StoredClip, blocks: Blocks) -> np.ndarray:
    """The record of one clip, of `record_type`."""
    views, size = len(clip.rgb), clip.rgb.shape[1:3]
    row = np.zeros((), record_type(views, size, blocks.basis.shape[1]))
    depth, cameras = clip.depth_m.astype(np.float32), clip.cameras
    shown = shown_cells(depth, cameras.intrinsics, cameras.world_from_camera)
    cells = views, size[0] // STRIDE, STRIDE, size[1] // STRIDE, STRIDE
    moving = clip.moving.reshape(cells).mean((2, 4)) > MOVING_SHARE
    row["seed"] = seed
    row["view"] = np.concatenate([blocks.encode(clip.rgb).numpy(), surfaces(depth)], 1)
    row["shown"] = np.packbits(shown.reshape(views, views, -1), -1)
    row["moving"] = np.packbits(moving.reshape(views, -1), -1)
    row["intrinsics"], row["world_from_camera"] = cameras.intrinsics, cameras.world_from_camera
    return row


LEAST_DEVIATION = 1e-3


class ViewStore:
    """A folder with the records of one size and the linear code that they were made with."""

    def __init__(self, folder: Path, views: int, size: tuple[int, int], channels: int) -> None:
        self.folder, self.kind = folder, record_type(views, size, channels)
        self.size, self.channels = size, channels

    @property
    def path(self) -> Path:
        return self.folder / "records.bin"

    @property
    def blocks(self) -> Blocks:
        """The linear code; MirageError before it was fitted."""
        return Blocks.load(self.folder)

    def open(self) -> np.ndarray:
        """The whole records, mapped; a last one that was cut off is left out.

        Raises MirageError where there is none.
        """
        count = self._count()
        if not count:
            raise MirageError(f"{self.folder} holds no views; run the data stage first.")
        return np.memmap(self.path, self.kind, "r", shape=(count,))

    def fit(self, clips: Iterable[StoredClip]) -> None:
        """Fits the linear code to every fifth view of the clips, where there is none yet."""
        if (self.folder / "blocks.safetensors").exists():
            return
        pictures = [picture_blocks(shrunk(clip, self.size).rgb[::5]) for clip in clips]
        rows = torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in pictures])
        code = Blocks.fit(rows, self.channels)
        self.folder.mkdir(parents=True, exist_ok=True)
        code.save(self.folder)

    def deviations(self, views: int = 400) -> list[float]:
        """Of each channel, surface channels included, from 0; of so many views, the same ones each time."""
        records, rng = self.open(), np.random.default_rng(0)
        clips = rng.integers(len(records), size=views)
        drawn = records["view"][clips, rng.integers(records["view"].shape[1], size=views)].astype(np.float32)
        return np.sqrt((drawn**2).mean((0, 2, 3))).clip(min=LEAST_DEVIATION).tolist()

    def seeds(self) -> set[int]:
        """Of the clips that are there."""
        return set(self.open()["seed"].tolist()) if self._count() else set()

    def add(self, clips: Iterable[tuple[int, StoredClip]]) -> None:
        """Appends clips by seed; a record that was cut off goes first."""
        blocks = self.blocks
        with self.path.open("ab") as file:
            file.truncate(self._count() * self.kind.itemsize)
            for seed, clip in clips:
                file.write(record(seed, shrunk(clip, self.size), blocks).tobytes())

    def _count(self) -> int:
        return self.path.stat().st_size // self.kind.itemsize if self.path.exists() else 0


def unpacked(bits: UInt8[np.ndarray, "*n b"], cells: tuple[int, int]) -> Bool[np.ndarray, "*n h w"]:
    """Masks of (height, width) cells from the bits of a record."""
    flat = np.unpackbits(bits, axis=-1, count=cells[0] * cells[1])
    return flat.reshape(*bits.shape[:-1], *cells).astype(bool)


def heading_rays(
    camera: Camera, target: Camera, cells: tuple[int, int]
) -> tuple[Float[np.ndarray, "b 3 h w"], Float[np.ndarray, "b 3"]]:
    """Where cameras look and stand, in axes that turn with the target's heading and stay upright.

    Returns unit rays of every cell and the cameras' places seen from the target's, metres: x ahead
    on the floor, y left, z up. Both cameras are batches of b.
    """
    ahead = target.world_from_camera[:, :2, 2]
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    c, s, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    heading_from_world = np.stack([c, s, zero, -s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    rays = camera.resized(cells).rays()
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    turn = heading_from_world @ camera.world_from_camera[:, :3, :3]
    away = camera.position_world - target.position_world
    place = np.einsum("nij,nj->ni", heading_from_world, away)
    return np.einsum("nij,nhwj->nihw", turn, rays), place

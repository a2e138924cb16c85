"""What the dreamer learns from: views of a clip as latents and surfaces, what each shows of each other, and the codes of cells.

Clips are turned into records of one fixed size, appended to one file that every training process maps. A record holds,
as bits, which cells of a view each other view shows by true depth, so no memory is run while training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models.mini.dreamer import SURFACE_CHANNELS, Codebooks, nearest
from mirage_ros.models.mini.imagining import STRIDE, Blocks, picture_blocks, surfaces, tensor_of
from mirage_ros.training.clips import StoredClip, shown_cells, shrunk

#: Cells with a larger share of moving pixels are not learnt from.
MOVING_SHARE = 0.1
LEAST_DEVIATION = 1e-3
#: Cells that codebooks are fitted to, and how often.
CODED_CELLS, CODE_ROUNDS = 400_000, 12


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


def record(seed: int, clip: StoredClip, blocks: Blocks) -> np.ndarray:
    """The record of one clip, of `record_type`."""
    views, size = len(clip.rgb), clip.rgb.shape[1:3]
    row = np.zeros((), record_type(views, size, blocks.basis.shape[1]))
    depth, cameras = clip.depth_m.astype(np.float32), clip.cameras
    shown = shown_cells(depth, cameras.intrinsics, cameras.world_from_camera, STRIDE)
    cells = views, size[0] // STRIDE, STRIDE, size[1] // STRIDE, STRIDE
    moving = clip.moving.reshape(cells).mean((2, 4)) > MOVING_SHARE
    row["seed"] = seed
    row["view"] = np.concatenate([blocks.encode(clip.rgb).numpy(), surfaces(cell_depth(depth, STRIDE))], 1)
    row["shown"] = np.packbits(shown.reshape(views, views, -1), -1)
    row["moving"] = np.packbits(moving.reshape(views, -1), -1)
    row["intrinsics"], row["world_from_camera"] = cameras.intrinsics, cameras.world_from_camera
    return row


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
        """Of each channel, surface channels included, from 0; of so many views. Measured once: a network keeps to its own."""
        path = self.folder / "deviations.safetensors"
        if not path.exists():
            records, rng = self.open(), np.random.default_rng(0)
            clips = rng.integers(len(records), size=views)
            drawn = records["view"][clips, rng.integers(records["view"].shape[1], size=views)].astype(np.float32)
            found = np.sqrt((drawn**2).mean((0, 2, 3))).clip(min=LEAST_DEVIATION)
            with atomic_path(path) as new:
                save_file({"deviations": torch.from_numpy(found)}, new)
        return load_file(path)["deviations"].tolist()

    def codebooks(self, sizes: Sequence[int]) -> Codebooks:
        """Of so many codes in each stage; fitted to the views where there are none yet, the same ones each time."""
        path = self.folder / "codebooks.safetensors"
        if not path.exists():
            books = fit_codebooks(self.cells(CODED_CELLS), self.blocks, sizes)
            tensors = {"colour": books.colour.contiguous()} | {f"book_{i}": b.contiguous() for i, b in enumerate(books.books)}
            with atomic_path(path) as new:
                save_file(tensors, new)
        tensors = load_file(path)
        found = [len(tensors[f"book_{i}"]) for i in range(len(tensors) - 1)]
        if found != list(sizes):
            raise MirageError(f"{path} has books of {found} codes and {list(sizes)} are asked for; remove it, or ask for these.")
        return Codebooks(tensors["colour"], [tensors[f"book_{i}"] for i in range(len(found))])

    def cells(self, count: int) -> Float[Tensor, "n c"]:
        """Latents of so many cells of drawn views, half of them mirrored."""
        records, rng, parts = self.open(), np.random.default_rng(0), []
        area = records["view"].shape[-2] * records["view"].shape[-1]
        for number in range(min(-(-count * 4 // area), 8 * records["view"].shape[1] * len(records))):  # a quarter of a view's cells
            view = records["view"][rng.integers(len(records)), rng.integers(records["view"].shape[1])]
            rows = tensor_of(view[: self.channels].reshape(self.channels, -1).T)[rng.permutation(area)[: area // 4]]
            parts.append(rows * self.blocks.signs if number % 2 else rows)
        return torch.cat(parts)[:count]

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


def fit_codebooks(latents: Float[Tensor, "n c"], blocks: Blocks, sizes: Sequence[int]) -> Codebooks:
    """Stage after stage, of what the stages before leave. Weak details count as much as strong ones: weighted by strength
    alone, walls lose their grain."""
    colour, _ = torch.linalg.qr(blocks.basis.view(3, -1, blocks.basis.shape[1]).mean(1).T)
    colours = latents @ colour @ colour.T
    details, books = latents - colours, []
    weights = 1 / (details.norm(dim=1) + 0.05)
    left = colours
    for stage, size in enumerate(sizes):
        left = details if stage == Codebooks.COLOURS else left
        books.append(_centres(left, size, weights if stage >= Codebooks.COLOURS else torch.ones(len(left))))
        left = left - books[-1][nearest(left, books[-1])]
    return Codebooks(colour, books)


def _centres(values: Float[Tensor, "n c"], count: int, weights: Float[Tensor, "n"]) -> Float[Tensor, "k c"]:
    """Lloyd's k-means."""
    generator = torch.Generator().manual_seed(count)
    centres = values[torch.multinomial(weights, count, replacement=len(values) < count, generator=generator)]
    for _ in range(CODE_ROUNDS):
        code = nearest(values, centres)
        total = torch.zeros(count).index_add_(0, code, weights)
        centres = torch.zeros_like(centres).index_add_(0, code, values * weights[:, None]) / total.clamp(min=1e-9)[:, None]
        unused = total == 0
        centres[unused] = values[torch.randint(len(values), (int(unused.sum()),), generator=generator)]
    return centres


def unpacked(bits: UInt8[np.ndarray, "*n b"], cells: tuple[int, int]) -> Bool[np.ndarray, "*n h w"]:
    """Masks of (height, width) cells from the bits of a record."""
    flat = np.unpackbits(bits, axis=-1, count=cells[0] * cells[1])
    return flat.reshape(*bits.shape[:-1], *cells).astype(bool)

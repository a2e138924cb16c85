"""Teaches the dreamer to complete views: flow matching over all noise levels.

noisy = (1 - time) * noise + time * clean. The network predicts the clean view; its error counts in each channel by how far
the view could be from what the noisy one alone tells (`Dreamer.gains`). Only what memory would not show counts
fully. Style views are among those whose cells are shown: what is hidden stays hidden.

Clips are turned into records of one fixed size, appended to one file that every training process maps. A record holds,
as bits, which cells of a view each other view shows by true depth, so no memory is run while training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.depth import cell_depth
from mirage_ros.models import load_model, save_model
from mirage_ros.models.mini.dreamer import SURFACE_CHANNELS, Dreamer
from mirage_ros.models.mini.imagining import DEPTH_SPREAD, DEPTH_UNIT_M, STRIDE, Blocks, DreamConfig, DreamingModel
from mirage_ros.models.mini.imagining import Question, complete, picture_blocks, ray_channels, style_channels, surfaces, tensor_of
from mirage_ros.training import Loop, LoopConfig, coloured_depth, sheet
from mirage_ros.training.clips import ShardConfig, StoredClip, each_shard, make_shards, shown_cells, shrunk

#: Later times are drawn as this one: there is next to no noise left.
LATEST = 0.999
#: Of views that show this little or this much, most are drawn again: they teach little.
LITTLE, MUCH = 0.03, 0.85
#: Cells with a larger share of moving pixels are not learnt from.
MOVING_SHARE = 0.1
LEAST_DEVIATION = 1e-3


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


@dataclass(frozen=True)
class DreamerLossConfig:
    """Attributes:
    batch: views per step and process.
    seen_weight: of cells that memory shows; others have 1.
    depth_weight, sky_weight: of these channels; a latent's has 1.
    deviation_power: a channel counts by its deviation to this power besides. 0 would give most weight to details.
    seen_noise: largest standard deviation added to what memory shows, which is never exact.
    level_mean, level_spread: times are drawn as the sigmoid of a normal number (Esser et al. 2024).
    hide_style, hide_height: shares of views that are not given a style view, the camera's height.
    """

    batch: int = 48
    seen_weight: float = 0.1
    depth_weight: float = 2.0
    sky_weight: float = 1.0
    deviation_power: float = 0.75
    seen_noise: float = 0.04
    # Noise decides a component that is as strong as it: the first of a view has a deviation of 1,
    # the fortieth of .02, so details are taught by times of .9 and more.
    level_mean: float = 1.2
    level_spread: float = 1.8
    hide_style: float = 0.1
    hide_height: float = 0.1


@dataclass(frozen=True)
class ViewBatch:
    """b views to complete.

    Attributes:
        clean: latents and surface channels of the whole view.
        mask: 1 where memory shows the cell.
        counts: 1 where the cell may be learnt from; moving things may not.
        rays, style: as Dreamer.forward has them.
    """

    clean: Float[Tensor, "b v h w"]
    mask: Float[Tensor, "b 1 h w"]
    counts: Float[Tensor, "b 1 h w"]
    rays: Float[Tensor, "b r h w"]
    style: Float[Tensor, "b s t h w"]

    def mirrored(self, which: Tensor, signs: Float[Tensor, "c"]) -> ViewBatch:
        """Some of the views as in a mirror; `signs` are of the latents' components."""
        views = torch.cat([signs, torch.ones(SURFACE_CHANNELS)])
        left = torch.tensor([1.0, -1.0, 1.0])  # y points left
        rays = torch.cat([left, torch.ones(self.rays.shape[1] - 3)])
        style = torch.cat([views, left, left, torch.ones(1)])

        def mirror(x: Tensor, sign: Tensor) -> Tensor:
            turned = x.flip(-1) * sign[:, None, None]
            return torch.where(which.view(-1, *[1] * (x.dim() - 1)), turned, x)

        one = torch.ones(1)
        return ViewBatch(
            mirror(self.clean, views), mirror(self.mask, one), mirror(self.counts, one),
            mirror(self.rays, rays), mirror(self.style, style),
        )  # fmt: skip


class ViewSampler:
    """Draws views of a store's clips, and what memory would show of them."""

    def __init__(self, store: ViewStore, seeds: tuple[int, int], config: DreamerLossConfig) -> None:
        self.records, self.blocks, self.config = store.open(), store.blocks, config
        stored = self.records["seed"]
        self.clips = np.flatnonzero((stored >= seeds[0]) & (stored < seeds[1]))
        self.size = store.size
        self.cells = self.records.dtype["view"].shape[-2:]

    def draw(self, rng: np.random.Generator, count: int) -> ViewBatch:
        picks = [self._pick(rng) for _ in range(count)]
        clip, view, mask, sources = (np.array(part) for part in zip(*picks, strict=True))
        mask = torch.from_numpy(mask.astype(np.float32))[:, None]
        moving = unpacked(self.records["moving"][clip, view], self.cells)
        counts = torch.from_numpy((~moving).astype(np.float32))[:, None]
        target = self._cameras(clip, view)
        rays = ray_channels(target, self.cells, rng.random(count) >= self.config.hide_height)
        style = np.stack([self._style(rng, clip, s, view, target) for s in sources.T], 1)
        batch = ViewBatch(self._views(clip, view), mask, counts, tensor_of(rays), tensor_of(style))
        return batch.mirrored(torch.from_numpy(rng.random(count) < 0.5), self.blocks.signs)

    def _pick(self, rng: np.random.Generator) -> tuple:
        """Clip, view, what others show of it, and two of those others (-1: none)."""
        while True:
            clip = int(rng.choice(self.clips))
            shown = self.records["shown"][clip]
            view = int(rng.integers(len(shown)))
            sources = rng.integers(len(shown), size=int(rng.choice([1, 1, 1, 2, 2, 3])))
            mask = unpacked(shown[sources, view], self.cells).any(0)
            share, again = mask.mean(), rng.random()
            if (share > MUCH and again < 0.95) or (share < LITTLE and again < 0.8):
                continue
            return clip, view, mask, (sources[0], sources[-1] if len(sources) > 1 else -1)

    def _style(self, rng, clip, source, view, target: Camera) -> Float[np.ndarray, "b t h w"]:
        """Style views; zeros where there is none, or where it is the view itself."""
        given = (source >= 0) & (source != view) & (rng.random(len(clip)) >= self.config.hide_style)
        style = style_channels(self._views(clip, source).numpy(), self._cameras(clip, source), target)
        return style * given[:, None, None, None]

    def _views(self, clip: np.ndarray, view: np.ndarray) -> Float[Tensor, "b v h w"]:
        return tensor_of(self.records["view"][clip, view])

    def _cameras(self, clip: np.ndarray, view: np.ndarray) -> Camera:
        pose = self.records["world_from_camera"][clip, view].astype(np.float64)
        return Camera(self.records["intrinsics"][clip, view].astype(np.float64), pose, self.size)


class DreamerLoss:
    """Draws views and scores the network's completion of them."""

    def __init__(self, views: ViewSampler, config: DreamerLossConfig) -> None:
        self.views, self.config = views, config
        channels = views.records.dtype["view"].shape[1] - SURFACE_CHANNELS
        weights = [1.0] * channels + [config.depth_weight, config.sky_weight]
        self.channel_weights = torch.tensor(weights).view(1, -1, 1, 1)

    def __call__(self, network: Dreamer, generator: torch.Generator) -> dict[str, Tensor]:
        config, device = self.config, next(network.parameters()).device
        batch = self._draw(generator)
        clean = batch.clean
        level = config.level_mean + config.level_spread * torch.randn(
            len(clean), generator=generator
        )
        time = torch.sigmoid(level).clamp(max=LATEST)
        blend = time.view(-1, 1, 1, 1)
        noisy = blend * clean + (1 - blend) * torch.randn(clean.shape, generator=generator)
        spread = config.seen_noise * torch.rand(len(clean), 1, 1, 1, generator=generator)
        seen = (clean + spread * torch.randn(clean.shape, generator=generator)) * batch.mask
        given = noisy, time, seen, batch.mask, batch.rays, batch.style
        predicted = network(*(part.to(device) for part in given)).cpu()
        _, _, out = network.gains(time.to(device))
        return self._score((predicted - clean) / out.cpu(), network.deviation(), batch)

    def _draw(self, generator: torch.Generator) -> ViewBatch:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return self.views.draw(rng, self.config.batch)

    def _score(self, error: Tensor, deviation: Tensor, batch: ViewBatch) -> dict[str, Tensor]:
        """Args: error: of the view, in deviations of the network's answer."""
        config, clean = self.config, batch.clean
        cells = (1 - batch.mask + config.seen_weight * batch.mask) * batch.counts
        channel_weights = self.channel_weights * deviation**config.deviation_power
        weights = (cells * channel_weights).expand_as(clean).clone()
        weights[:, -2:-1] *= (clean[:, -1:] < 0).float()  # sky has no depth
        error = weights * error.square()
        channels = clean.shape[1] - SURFACE_CHANNELS
        whole = cells.sum() * channel_weights.sum()
        report = {
            "latents": error[:, :channels].sum() / whole,
            "depth": error[:, -2].sum() / whole,
            "sky": error[:, -1].sum() / whole,
        }
        return {"loss": error.sum() / whole} | {k: v.detach() for k, v in report.items()}

    @torch.no_grad()
    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: what is seen, the truth, two dreams of 24 steps, one of 4, depths of truth and dream."""
        batch = self._draw(generator)
        batch = ViewBatch(*(part[:6] for part in vars(batch).values()))
        dreams = [
            completed(network, batch, steps, seed) for steps, seed in ((24, 0), (24, 1), (4, 0))
        ]
        views = [batch.clean * batch.mask, batch.clean, *dreams]
        blocks = self.views.blocks
        pictures = [blocks.picture(view[:, :-SURFACE_CHANNELS]) for view in views]
        depths = [
            nn.functional.interpolate(
                coloured_depth(view[:, -2] * DEPTH_SPREAD + np.log(DEPTH_UNIT_M)), scale_factor=8
            )
            for view in (batch.clean, dreams[0])
        ]
        return sheet([*pictures, *depths])


def completed(network: Dreamer, batch: ViewBatch, steps: int, seed: int) -> Float[Tensor, "b v h w"]:
    """The batch's views as the network dreams them; what is seen is kept."""
    question = Question(batch.clean * batch.mask, batch.mask, batch.rays, batch.style)
    return complete(network, question, torch.Generator().manual_seed(seed), DreamConfig(steps))


@dataclass(frozen=True)
class DreamerRecipe:
    """Attributes:
    data: folder of the rendered clips, and of the views made from them.
    run: folder of checkpoints and logs; the finished model goes to its `model`.
    base: the model whose codec, aligner and perceiver the finished one has.
    size: (height, width) of the views, cut and shrunk from the clips.
    fit_clips: clips that the linear code of latents is fitted to.
    widths: of the network.
    """

    kind: str = "dreamer"
    data: str = "data/dreamer"
    run: str = "runs/dreamer"
    base: str = "mini"
    size: tuple[int, int] = (128, 160)
    latent_channels: int = 48
    fit_clips: int = 150
    widths: tuple[int, ...] = (128, 256, 256)
    threads: int = 1
    clips: ShardConfig = ShardConfig((10_000, 12_000), 16, (240, 320), 0.5)
    validation_seeds: tuple[int, int] = (1_000_000, 1_000_008)
    training: LoopConfig = field(default_factory=LoopConfig)
    loss: DreamerLossConfig = field(default_factory=DreamerLossConfig)


def train_dreamer(recipe: DreamerRecipe) -> None:
    """Renders, turns into views and trains, each as far as it is not done; writes RUN/model."""
    torch.set_num_threads(recipe.threads)
    store = make_views(recipe)
    torch.manual_seed(recipe.training.seed)
    network = Dreamer(
        latent_channels=recipe.latent_channels, widths=list(recipe.widths), deviations=store.deviations()
    )
    loop = Loop(network.to(memory_format=torch.channels_last), Path(recipe.run), recipe.training)
    ranges = recipe.clips.seeds, recipe.validation_seeds
    loop.run(
        *(DreamerLoss(ViewSampler(store, seeds, recipe.loss), recipe.loss) for seeds in ranges)
    )
    if Accelerator().is_main_process:
        base = load_model(recipe.base, "cpu")
        parts = base.codec, base.denoiser.transformer, base.denoiser.branch, base.perception, base.config
        model = DreamingModel(*parts, name=f"{base.name}-dreamer", dreamer=loop.averaged(), blocks=store.blocks)
        save_model(model, Path(recipe.run) / "model")


def make_views(recipe: DreamerRecipe) -> ViewStore:
    """The views of all clips; one process renders and encodes what is missing."""
    clips, store = (
        Path(recipe.data) / "clips",
        ViewStore(
            Path(recipe.data) / "views", recipe.clips.frames, recipe.size, recipe.latent_channels
        ),
    )
    with Accelerator().main_process_first():
        for seeds in (recipe.clips.seeds, recipe.validation_seeds):
            if store.seeds().issuperset(range(*seeds)):
                continue
            make_shards(clips, dataclasses.replace(recipe.clips, seeds=seeds))
            first = itertools.islice(each_shard(clips, recipe.clips.seeds), recipe.fit_clips)
            store.fit(clip for _, clip in first)
            there = store.seeds()
            store.add((s, clip) for s, clip in each_shard(clips, seeds) if s not in there)
    return store

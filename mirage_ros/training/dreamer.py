"""Stage four of the recipe: teaches the dreamer to complete views in codes.

Of the cells that memory would not show, some are given as if they were drawn already, and the codes of the others are
asked for; in some of the views all are given, and continuous latents and depth are asked for. Style views are among those
whose cells are shown: what is hidden stays hidden.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mirage_ros.geometry.camera import Camera
from mirage_ros.models.mini.dreamer import GROUND, SURFACE_CHANNELS, Codebooks, Dreamer
from mirage_ros.models.mini.imagining import DEPTH_SPREAD, DEPTH_UNIT_M, Blocks, DreamConfig, Question
from mirage_ros.models.mini.imagining import complete, drawn_codes, ray_channels, style_channels, tensor_of
from mirage_ros.training import Loop, coloured_depth, sheet
from mirage_ros.training.clips import ShardConfig, each_shard, make_shards
from mirage_ros.training.views import ViewStore, unpacked

#: Of views that show this little or this much, most are drawn again: they teach little.
LITTLE, MUCH = 0.03, 0.85


@dataclass(frozen=True)
class DreamerLossConfig:
    """Attributes:
    batch: views per step and process.
    part_weights: of the codes of a cell: depth, colour twice, detail three times.
    finish_share: of the views of a batch, that all cells are drawn of.
    redrawn_share: largest share of these cells that the network draws depth and colour of.
    finish_weight: of their error, as a share of what the codes leave.
    deviation_power: in that error a channel counts by its deviation to this power.
    depth_weight: in that error, of depth; a latent's is 1.
    blank_share: of the other views, that no cell is drawn of.
    seen_noise: largest standard deviation added to what memory shows, which is never exact.
    hide_style, hide_height: shares of views that are not given a style view, the camera's height.
    """

    batch: int = 40
    part_weights: tuple[float, ...] = (1.0, 1.0, 0.5, 1.0, 0.5, 0.5)
    finish_share: float = 0.125
    redrawn_share: float = 0.6
    finish_weight: float = 2.0
    deviation_power: float = 0.75
    depth_weight: float = 2.0
    blank_share: float = 0.1
    seen_noise: float = 0.04
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

    def __init__(self, views: ViewSampler, codebooks: Codebooks, config: DreamerLossConfig) -> None:
        self.views, self.codebooks, self.config = views, codebooks, config
        self.likenesses = codebooks.likenesses()

    def __call__(self, network: Dreamer, generator: torch.Generator) -> dict[str, Tensor]:
        config, batch = self.config, self._draw(generator)
        spread = config.seen_noise * torch.rand(len(batch.clean), 1, 1, 1, generator=generator)
        seen = (batch.clean + spread * torch.randn(batch.clean.shape, generator=generator)) * batch.mask
        finished = max(1, round(config.finish_share * len(seen)))
        codes = self._codes(batch, seen, slice(0, -finished), network, generator)
        finish = self._finish(batch, seen, slice(-finished, None), network, generator)
        total = sum(weight * code for weight, code in zip(config.part_weights, codes, strict=True))
        names = "depth", "colour", "colour_2", *(f"detail_{i}" for i in range(1, len(codes) - 2))
        report = dict(zip(names, codes, strict=True)) | {"finish": finish}
        return {"loss": total + config.finish_weight * finish} | {name: value.detach() for name, value in report.items()}

    def _draw(self, generator: torch.Generator) -> ViewBatch:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return self.views.draw(rng, self.config.batch)

    def _codes(self, batch: ViewBatch, seen: Tensor, part: slice, network: Dreamer, generator: torch.Generator) -> list[Tensor]:
        """Cross entropy of each code of a cell, over those that are to be drawn."""
        clean, mask = batch.clean[part], batch.mask[part]
        codes, drawn = self._coded(clean, mask)
        # As often as in a drawing, many cells are open early and few late (Chang et al. 2022).
        share = torch.rand(len(mask), 1, 1, 1, generator=generator)
        open_cells = mask == 0
        hidden = open_cells & (torch.rand(mask.shape, generator=generator) < torch.cos(share * np.pi / 2))
        hidden |= open_cells & (share < self.config.blank_share)
        given = (open_cells & ~hidden).float()
        x = self._asked(network, batch, seen, part, drawn * given, given, finish=False)
        asked = (hidden & (batch.counts[part] > 0))[:, 0]
        x, wanted = x.permute(0, 2, 3, 1)[asked.to(x.device)], codes[asked].to(x.device)
        scores = []

        def wanted_of(part: int, logits: Tensor) -> Tensor:
            scores.append(nn.functional.cross_entropy(logits, wanted[:, part]).cpu())
            return wanted[:, part]

        ground = batch.rays[part][:, GROUND][asked].to(x.device)
        network.choose_codes(x, ground, [likeness.to(x.device) for likeness in self.likenesses], wanted_of)
        return scores

    def _finish(self, batch: ViewBatch, seen: Tensor, part: slice, network: Dreamer, generator: torch.Generator) -> Tensor:
        """Squared error of views of which all cells are drawn, as a share of what their codes leave: alone it is so small beside
        the codes' entropies that Adam does not see its gradients."""
        clean, mask = batch.clean[part], batch.mask[part]
        drawn = self._redrawn(batch, seen, part, network, generator)
        change = self._asked(network, batch, seen, part, drawn, 1 - mask, finish=True).cpu()
        deviation = network.deviation()
        begun = torch.where(mask > 0, seen[part], drawn)
        weights = deviation**self.config.deviation_power * batch.counts[part]
        surface = self.config.depth_weight * (clean[:, -1:] < 0), torch.zeros_like(mask)
        weights = weights * torch.cat([torch.ones_like(clean[:, :-SURFACE_CHANNELS]), *surface], 1)
        left = [(weights * ((view - clean) / deviation).square()).sum() for view in (begun + change, begun)]
        return left[0] / left[1].clamp(min=1e-6)

    @torch.no_grad()
    def _redrawn(
        self, batch: ViewBatch, seen: Tensor, part: slice, network: Dreamer, generator: torch.Generator
    ) -> Float[Tensor, "b v h w"]:
        """What the codes of open cells stand for, where depth and colour of some are the network's own: beside each other
        those fit less well than true ones, which the finish has to mend."""
        codes, drawn = self._coded(batch.clean[part], batch.mask[part])
        open_cells = batch.mask[part] == 0
        share = self.config.redrawn_share * torch.rand(len(drawn), 1, 1, 1, generator=generator)
        again = open_cells & (torch.rand(open_cells.shape, generator=generator) < share)
        if not again.any():
            return drawn
        given, again = (open_cells & ~again).float(), again[:, 0]
        x = self._asked(network, batch, seen, part, drawn * given, given, finish=False)
        x = x.permute(0, 2, 3, 1)[again.to(x.device)]
        wanted, heats = codes[again].to(x.device), DreamConfig()

        def chosen(stage: int, logits: Tensor) -> Tensor:
            return drawn_codes(logits, heats.heat(stage), generator) if stage <= Codebooks.COLOURS else wanted[:, stage]

        ground = batch.rays[part][:, GROUND][again].to(x.device)
        new = network.choose_codes(x, ground, [likeness.to(x.device) for likeness in self.likenesses], chosen).cpu()
        drawn.permute(0, 2, 3, 1)[again] = self.codebooks.cells(new)
        return drawn

    def _asked(self, network, batch: ViewBatch, seen: Tensor, part: slice, drawn, given, finish: bool) -> Tensor:
        device = next(network.parameters()).device
        views = seen[part], batch.mask[part], batch.rays[part], batch.style[part], drawn, given
        *shown, style, drawn, given = (view.to(device) for view in views)
        return network(*shown, network.style_tokens(style, finish), drawn, given, finish=finish)

    def _coded(self, clean: Tensor, mask: Tensor) -> tuple[Int[Tensor, "b h w p"], Float[Tensor, "b v h w"]]:
        """The codes of open cells, and what they stand for; zeros elsewhere."""
        open_cells = mask[:, 0] == 0
        codes = torch.zeros(*open_cells.shape, len(self.codebooks.sizes), dtype=torch.long)
        codes[open_cells] = self.codebooks.codes(clean.permute(0, 2, 3, 1)[open_cells])
        stand = torch.zeros_like(clean)
        stand.permute(0, 2, 3, 1)[open_cells] = self.codebooks.cells(codes[open_cells])
        return codes, stand

    @torch.no_grad()
    def picture(self, network: nn.Module, generator: torch.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Columns: what is seen, the truth, two dreams, one in half of the steps, depths of truth and dream."""
        batch = self._draw(generator)
        batch = ViewBatch(*(part[:6] for part in vars(batch).values()))
        dreams = [completed(network, batch, DreamConfig(steps), seed) for steps, seed in ((10, 0), (10, 1), (5, 0))]
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


def completed(network: Dreamer, batch: ViewBatch, config: DreamConfig, seed: int) -> Float[Tensor, "b v h w"]:
    """The batch's views as the network dreams them; what is seen is kept."""
    question = Question(batch.clean * batch.mask, batch.mask, batch.rays, batch.style)
    return complete(network, question, torch.Generator().manual_seed(seed), config)


@dataclass(frozen=True)
class ViewsConfig:
    """What the dreamer learns from, and its sizes.

    Attributes:
        clips: what is rendered for it; views are cut and shrunk from their pictures.
        fit_clips: clips that the linear code of latents is fitted to.
        channels: of that code.
        widths, code_width: of the network.
        book_sizes: codes of each stage: two of colours, then those of details.
    """

    clips: ShardConfig = ShardConfig((10_000, 12_000), 16, (240, 320), 0.5)
    fit_clips: int = 150
    channels: int = 48
    widths: tuple[int, ...] = (128, 256, 256)
    code_width: int = 256
    book_sizes: tuple[int, ...] = (1024, 256, 1024, 512, 512)


def train_dreamer(recipe) -> tuple[Dreamer, Blocks]:
    """Renders, turns into views and trains, each as far as it is not done; the network with its averaged weights, and
    the linear code of its views."""
    config, store = recipe.views, make_views(recipe)
    codebooks = store.codebooks(config.book_sizes)
    torch.manual_seed(recipe.dreamer.seed)
    network = Dreamer(
        latent_channels=config.channels, widths=list(config.widths), code_width=config.code_width,
        book_sizes=list(config.book_sizes), deviations=store.deviations(),
    )  # fmt: skip
    network.take(codebooks)
    loop = Loop(network.to(memory_format=torch.channels_last), Path(recipe.run) / "dreamer", recipe.dreamer)
    ranges = config.clips.seeds, recipe.validation_seeds
    loop.run(
        *(DreamerLoss(ViewSampler(store, seeds, recipe.dreamer_loss), codebooks, recipe.dreamer_loss) for seeds in ranges)
    )
    return loop.averaged().eval(), store.blocks


def make_views(recipe) -> ViewStore:
    """The views of all clips, and what is fitted to them; one process makes what is missing."""
    config, folder = recipe.views, Path(recipe.data) / "views"
    clips, store = folder / "clips", ViewStore(folder, config.clips.frames, recipe.clips.size, config.channels)
    with Accelerator().main_process_first():
        for seeds in (config.clips.seeds, recipe.validation_seeds):
            if store.seeds().issuperset(range(*seeds)):
                continue
            make_shards(clips, dataclasses.replace(config.clips, seeds=seeds))
            first = itertools.islice(each_shard(clips, config.clips.seeds), config.fit_clips)
            store.fit(clip for _, clip in first)
            there = store.seeds()
            store.add((s, clip) for s, clip in each_shard(clips, seeds) if s not in there)
        store.codebooks(config.book_sizes)
        store.deviations()
    return store

"""The dreamer: laws of its data, and that it learns, resumes and dreams the same dream again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from small_dreamers import BOOKS, CELLS, SIZE, VIEWS, clip_of, loss_of, sampler, small_network, store  # noqa: F401, a fixture too

from mirage_ros import cli
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.models import load_model
from mirage_ros.models.mini import imagining
from mirage_ros.models.mini.dreamer import DEPTHS, FARTHEST, GROUND, Codebooks, depth_codes
from mirage_ros.models.mini.imagining import (
    Blocks,
    DreamConfig,
    Drawing,
    Question,
    complete,
    heading_rays,
    picture_blocks,
    ray_channels,
    scattered,
    surfaces,
)
from mirage_ros.training import Loop, LoopConfig, pick_dtype
from mirage_ros.training.clips import shown_cells, shrunk
from mirage_ros.training.dreamer import DreamerLoss, DreamerLossConfig, ViewBatch, completed, make_views
from mirage_ros.training.recipe import Recipe, fill
from mirage_ros.training.views import ViewStore, unpacked


def test_a_mirrored_picture_has_latents_of_known_signs(store):
    rgb = clip_of(5).rgb
    latents, mirrored = store.blocks.encode(rgb), store.blocks.encode(rgb[:, :, ::-1])
    assert torch.allclose(mirrored, latents.flip(-1) * store.blocks.signs[:, None, None], atol=1e-4)


def test_enough_components_give_the_picture_back():
    rgb = np.random.default_rng(0).integers(0, 255, (2, 80, 160, 3), np.uint8)
    blocks = Blocks.fit(picture_blocks(rgb).permute(0, 2, 3, 1).flatten(0, 2), 192)
    again = (blocks.picture(blocks.encode(rgb)) + 1) * 127.5
    assert np.abs(again.permute(0, 2, 3, 1).numpy() - rgb).max() < 0.6


def test_a_view_shows_itself_and_what_both_look_at():
    clip = clip_of(0)
    args = clip.depth_m.astype(np.float32), clip.cameras.intrinsics, clip.cameras.world_from_camera
    shown = shown_cells(*args, 8)
    assert shown.shape == (VIEWS, VIEWS, *CELLS)
    assert all(shown[i, i].all() for i in range(VIEWS))
    # The later view looks to the left of the first: the first shows the right of it, not the left.
    columns = shown[0, VIEWS - 1].mean(0)
    assert columns[-1] > 0.9 and columns[0] < 0.1


def test_surfaces_tell_depth_and_sky():
    depth = np.array([[[np.inf, 3.0], [3.0, 6.0]]], np.float32)
    log, sky = surfaces(depth)[0]
    assert (sky > 0).tolist() == [[True, False], [False, False]]
    assert log[0, 1] == 0 and log[1, 1] == pytest.approx(np.log(2) / 0.9, abs=1e-5)


def test_records_hold_the_clips_and_survive_a_cut(store, tmp_path):
    records = store.open()
    assert records["seed"].tolist() == [0, 1, 2]
    seen = unpacked(records["shown"][1], CELLS)
    assert seen[2, 2].all() and not unpacked(records["moving"][1], CELLS).any()
    again = ViewStore(tmp_path, VIEWS, SIZE, 12)
    store.blocks.save(tmp_path)
    again.path.write_bytes(store.path.read_bytes()[:-100])
    assert again.seeds() == {0, 1}
    again.add([(2, clip_of(2))])
    assert again.path.read_bytes() == store.path.read_bytes()


def test_shrinking_keeps_the_rays():
    clip = clip_of(0)
    small = shrunk(clip, (32, 32))
    assert small.rgb.shape[1:3] == small.depth_m.shape[1:3] == small.cameras.size == (32, 32)
    known = np.isfinite(small.depth_m)
    points = small.cameras.lift(small.depth_m.astype(np.float64))[known]
    assert (
        np.abs(points[:, 0] - 3.0).max() < 0.06
    )  # still on the wall: half a pixel, half precision


def test_rays_know_up_and_not_where_north_is():
    clip, turn = clip_of(0), np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turned = Camera(clip.cameras.intrinsics, turn @ clip.cameras.world_from_camera, SIZE)
    first, second = clip.cameras[:1], clip.cameras[2:3]
    rays, place = heading_rays(second, first, CELLS)
    again = heading_rays(turned[2:3], turned[:1], CELLS)
    assert np.allclose(rays, again[0]) and np.allclose(place, again[1])
    own, _ = heading_rays(first, first, CELLS)
    assert own[0, 2, 0].mean() > 0 > own[0, 2, -1].mean()  # the picture's top looks up
    assert own[0, 1, :, 0].mean() > 0 > own[0, 1, :, -1].mean()  # y points left


def test_the_ground_is_as_far_as_its_channel_says():
    """In cells that a level camera sees it in; those above the horizon have the farthest depth."""
    clip = clip_of(0)
    channel = ray_channels(clip.cameras[:2], CELLS, np.array([True, False]))[:, GROUND]
    depth = imagining.ground_depth_m(clip.cameras[:1])
    points = clip.cameras[0].unproject(clip.cameras[0].pixels().reshape(-1, 2), depth.ravel()).reshape(*SIZE, 3)
    below = clip.cameras[0].rays_world()[..., 2] < -0.1
    assert np.abs(points[below][:, 2]).max() < 1e-4
    assert (depth[0][clip.cameras[0].rays_world()[..., 2] >= 0] > 55).all() and np.isfinite(depth).all()
    assert np.allclose(channel[0, :3], FARTHEST) and (channel[0, -1] < 1).all() and not channel[1].any()


def test_a_cell_of_the_ground_can_have_its_very_code(store):
    network, books = small_network(store), store.codebooks(BOOKS)
    network.at_ground.bias.data[:] = torch.tensor([0.0, 50.0, 0.0])
    ground = torch.linspace(-2.5, 3.2, 40)
    codes = network.choose_codes(torch.zeros(40, 32), ground, books.likenesses(), lambda _, logits: logits.argmax(1))
    assert torch.equal(codes[:, 0], depth_codes(ground))


def test_nothing_hidden_comes_in_by_the_style(store):
    """A style view is one of those whose cells are shown, or none."""
    views = sampler(store)
    for seed in range(20):
        clip, view, mask, sources = views._pick(np.random.default_rng(seed))
        shown = unpacked(views.records["shown"][clip], CELLS)
        for source in sources:
            assert source == -1 or (mask >= shown[source, view]).all()


def test_a_mirrored_batch_is_the_batch_of_the_mirrored_world(store):
    batch = sampler(store).draw(np.random.default_rng(3), 4)
    signs = store.blocks.signs
    twice = batch.mirrored(torch.ones(4, dtype=torch.bool), signs)
    twice = twice.mirrored(torch.ones(4, dtype=torch.bool), signs)
    for name, part in vars(batch).items():
        assert torch.equal(part, getattr(twice, name)), name


def rows_of(store: ViewStore) -> torch.Tensor:
    """Cells of the records' first views."""
    views = torch.from_numpy(store.open()["view"][:, 0].astype(np.float32))
    return views.permute(0, 2, 3, 1).flatten(0, 2)


def test_codes_stand_for_nearly_the_cell(store):
    """Each stage leaves less; depth is within half a step; sky stays sky; what codes stand for has the same codes."""
    books, rows = store.codebooks(BOOKS), rows_of(store)
    codes = books.codes(rows)
    again = books.cells(codes)
    assert codes.min() >= 0 and (codes.amax(0) < torch.tensor(books.sizes)).all()
    sky = rows[:, -1] > 0
    assert torch.equal(again[:, -1] > 0, sky) and sky.any() and not sky.all() and (codes[sky, 0] == DEPTHS).all()
    assert (again - rows)[~sky, -2].abs().max() < 0.6 * 6.0 / DEPTHS
    assert torch.equal(books.codes(again)[:, 0], codes[:, 0])
    left = [(Codebooks(books.colour, books.books[:n]).cells(codes) - rows)[:, :-2].square().sum() for n in range(1, 5)]
    assert all(later < earlier for earlier, later in zip(left[:-1], left[1:], strict=True))


def test_deviations_are_measured_once(store, tmp_path):
    mine = ViewStore(tmp_path, VIEWS, SIZE, 12)
    mine.fit([clip_of(0), clip_of(1)])
    mine.add([(0, clip_of(0))])
    found = mine.deviations()
    views = mine.open()["view"].astype(np.float32)
    assert np.allclose(found, np.sqrt((views**2).mean((0, 1, 3, 4))), rtol=0.2)
    mine.add([(1, clip_of(7))])
    assert mine.deviations() == found


def test_codebooks_are_fitted_once_and_of_what_was_asked(store):
    first, again = store.codebooks(BOOKS), store.codebooks(BOOKS)
    assert all(torch.equal(a, b) for a, b in zip(first.books, again.books, strict=True))
    with pytest.raises(MirageError, match="remove it, or ask"):
        store.codebooks((8, 8, 8, 8))


def test_cells_drawn_together_lie_far_apart():
    rank = scattered((2, *CELLS), torch.Generator().manual_seed(0))
    assert sorted(rank[0].flatten().tolist()) == list(range(80)) and not torch.equal(rank[0], rank[1])
    first = torch.nonzero(rank[0] < 8).float()
    assert torch.pdist(first).min() >= 1.9  # eight of 80 cells on a grid would be three apart


@pytest.mark.parametrize("steps", [1, 4])
def test_every_cell_that_is_not_shown_is_drawn(store, steps):
    batch = sampler(store).draw(np.random.default_rng(0), 8)
    for view, mask in zip(batch.clean, batch.mask, strict=True):  # a batch's views are not drawn alike with one alone
        one = ViewBatch(view[None], mask[None], *(part[:1] for part in (batch.counts, batch.rays, batch.style)))
        sky = completed(small_network(store), one, DreamConfig(steps), 0)[:, -1]
        assert (sky[mask == 0].abs() > 0.4).all()  # of what was not drawn it is 0


def test_cells_are_drawn_again_given_all_others(store):
    """Each open cell as often as the others, none that is shown, and those of one part do not look at each other."""
    batch, network = sampler(store).draw(np.random.default_rng(0), 3), small_network(store)
    question = Question(batch.clean * batch.mask, batch.mask, batch.rays, batch.style)
    parts, open_cells = [], batch.mask[:, 0] == 0

    class Noted(Drawing):
        def redraw(self, cells):
            assert self.drawn.equal(open_cells)
            super().redraw(cells)
            assert self.drawn.equal(open_cells)
            parts.append(cells)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagining, "Drawing", Noted)
        again = complete(network, question, torch.Generator().manual_seed(0), DreamConfig(2, redraws=80))
    share = float(open_cells.float().mean((1, 2)).max()) ** 0.5
    assert len(parts) == round(80 * share)
    for first in range(0, len(parts) - 1, 2):
        assert torch.stack(parts[first : first + 2]).sum(0).equal(open_cells.long())
    once = complete(network, question, torch.Generator().manual_seed(0), DreamConfig(2, redraws=0))
    assert torch.equal(again[(batch.mask > 0).expand_as(again)], once[(batch.mask > 0).expand_as(once)])
    assert not torch.equal(again, once)


def test_the_finish_learns_from_cells_that_do_not_fit(store):
    """Depth and colours of some are the network's own, details are the true ones."""
    generator = torch.Generator().manual_seed(0)
    loss, network = loss_of(store), small_network(store)
    batch = sampler(store).draw(np.random.default_rng(0), 4)
    seen, part = batch.clean * batch.mask, slice(0, 4)
    codes, true = loss._coded(batch.clean, batch.mask)
    drawn = loss._redrawn(batch, seen, part, network, generator)
    changed = (drawn != true).any(1)
    assert 0 < changed.float().mean() < 0.6 and not changed[batch.mask[:, 0] > 0].any()
    details = network.codebooks.books[2:]
    for cell in changed.nonzero()[:20]:
        b, row, column = cell.tolist()
        left = drawn[b, :-2, row, column] - sum(book[code] for book, code in zip(details, codes[b, row, column, 3:], strict=True))
        colour = network.codebooks.colour
        assert (left - colour @ colour.T @ left).abs().max() < 1e-4, "only the colour is another one"
    still = DreamerLoss(sampler(store, redrawn_share=0.0), loss.codebooks, DreamerLossConfig(batch=4, redrawn_share=0.0))
    assert torch.equal(still._redrawn(batch, seen, part, network, generator), true)


def test_an_untaught_network_draws_all_codes_alike(store):
    network, books = small_network(store), store.codebooks(BOOKS)
    given = [torch.zeros(1, channels, *CELLS) for channels in (14, 1, 6)]
    x = network(*given, network.style_tokens(torch.zeros(1, 2, 21, *CELLS)), *(torch.zeros(1, channels, *CELLS) for channels in (14, 1)))
    seen = []
    codes = network.choose_codes(x.permute(0, 2, 3, 1).flatten(0, 2), torch.zeros(80), books.likenesses(), lambda _, logits: seen.append(logits) or logits.argmax(1))
    assert codes.shape == (80, 5) and [logits.shape[1] for logits in seen] == books.sizes
    assert not any(logits.any() for logits in seen)


def test_it_learns_and_dreams_the_same_again(store, tmp_path):
    loss = loss_of(store)
    with torch.no_grad():
        before = loss(small_network(store), torch.Generator().manual_seed(7))
    loop = Loop(small_network(store), tmp_path, LoopConfig(steps=30, warmup_steps=5, learning_rate=2e-3))
    loop.run(loss)
    with torch.no_grad():
        after = loss(loop.network, torch.Generator().manual_seed(7))
    assert after["loss"] < 0.8 * before["loss"] and after["finish"] < before["finish"]
    batch = sampler(store).draw(np.random.default_rng(1), 2)
    dreams = [completed(loop.averaged(), batch, DreamConfig(3), seed) for seed in (0, 0, 1)]
    hidden = (batch.mask == 0).expand_as(batch.clean)
    assert torch.equal(dreams[0], dreams[1]) and hidden.any()
    assert not torch.allclose(dreams[0][hidden], dreams[2][hidden])
    assert torch.equal(dreams[0][~hidden], batch.clean[~hidden])


def test_a_killed_run_goes_on_to_the_same_weights(store, tmp_path):
    loss = loss_of(store)
    config = LoopConfig(steps=8, warmup_steps=2, checkpoint_s=0.0, precision="bfloat16")
    whole = Loop(small_network(store), tmp_path / "whole", config)
    whole.run(loss)

    def cut(network, generator):
        if cut_loop.step == 5:
            raise KeyboardInterrupt
        return loss(network, generator)

    cut_loop = Loop(small_network(store), tmp_path / "cut", config)
    with pytest.raises(KeyboardInterrupt):
        cut_loop.run(cut)
    resumed = Loop(small_network(store), tmp_path / "cut", config)
    assert resumed.step == 5
    resumed.run(loss)
    for ours, theirs in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bfloat16_trains_float32_weights(store, tmp_path):
    config = LoopConfig(steps=3, warmup_steps=1, precision="bfloat16")
    loop = Loop(small_network(store), tmp_path, config)
    loop.run(loss_of(store))
    again = Loop(small_network(store), tmp_path, config)
    assert again.step == 3
    assert all(p.dtype == torch.float32 for p in again.network.parameters())
    assert all(p.dtype == torch.bfloat16 for p in again.worker.parameters())
    with pytest.raises(MirageError, match="float16x"):
        pick_dtype("float16x", torch.device("cpu"))


def test_the_command_trains_a_dreamer_for_the_parts_of_a_base(tmp_path):
    pytest.importorskip("mirage_ros.scenes.gl", reason="MuJoCo cannot draw here")
    recipe = {
        "base": "mini", "data": str(tmp_path / "data"), "run": str(tmp_path / "run"), "output": str(tmp_path / "model"),
        "threads": 1, "clips": {"size": [128, 160]},
        "views": {"channels": 8, "widths": [8, 8, 8], "fit_clips": 2, "code_width": 16, "book_sizes": [16, 8, 16, 8, 8],
                  "clips": {"seeds": [0, 2], "frames": 4, "size": [128, 160], "period_s": 0.5, "workers": 1}},
        "validation_seeds": [1_000_000, 1_000_001], "dream": {"steps": 3},
        "dreamer": {"steps": 2, "validate_steps": 2, "validate_batches": 1}, "dreamer_loss": {"batch": 2},
    }  # fmt: skip
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump(recipe))
    threads = torch.get_num_threads()
    make_views(fill(Recipe, recipe, "recipe"))  # one process does, the others wait
    made = [tmp_path / "data/views" / name for name in ("records.bin", "blocks.safetensors", "codebooks.safetensors", "deviations.safetensors")]
    assert all(file.exists() for file in made)
    assert cli.main(["train", "--config", str(path)]) == 0
    model, base = load_model(tmp_path / "model", "cpu"), load_model("mini", "cpu")
    assert model.dreamer.config.latent_channels == 8 and model.config.dream.steps == 3
    assert torch.equal(model.codec.blocks_in.weight, base.codec.blocks_in.weight)
    assert cli.main(["train", "--config", str(path)]) == 0  # nothing is left to do
    path.write_text(yaml.safe_dump(recipe | {"wdths": [8]}))
    assert cli.main(["train", "--config", str(path)]) == 2
    path.write_text(yaml.safe_dump(recipe | {"clips": {"size": [64, 80]}}))
    assert cli.main(["train", "--config", str(path)]) == 2
    torch.set_num_threads(threads)

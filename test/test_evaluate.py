"""Closed loops are judged against truth: the judge itself is what is tested here."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from analytic import cameras, look, raycast, room
from fakes import PixelModel
from judged_worlds import MODEL, SIZE, truth  # noqa: F401, a fixture too

from mirage_ros import evaluation as metrics
from mirage_ros.cli import main
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import evaluate as evaluating
from mirage_ros.evaluation import lpips_of, psnr_db, psnr_where, ssim, ssim_where
from mirage_ros.evaluation.evaluate import (
    ABLATIONS,
    Variant,
    ablated,
    blinded,
    make_world,
    parse_variants,
)
from mirage_ros.evaluation.rgb_cache import RgbWorld
from mirage_ros.evaluation.scoring import (
    check_model,
    frechet_distance,
    gradient_energy,
    latent_patches,
    score,
    shrunk,
    summarise,
)
from mirage_ros.evaluation.worlds import (
    PACKAGE,
    PROGRAM,
    TRUTH,
    Rolled,
    TrueWorld,
    cached,
    name_of,
    plan_excursions,
    roll,
    seed_lost,
    seed_remembered,
    shown_by_seed,
)
from mirage_ros.models import load_model
from mirage_ros.protocol import imagines
from mirage_ros.world.world import World


def perfect(truth: TrueWorld) -> Rolled:
    count = len(truth)
    return Rolled(
        truth.rgb, truth.depth_m, truth.grounded, truth.rgb, np.ones((2, 5)),
        np.ones(count, int), np.ones(count, int), np.ones((8, 10), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("frames", [3, 9, 10, 33, 101, 350])
def test_excursions_come_back_the_way_they_went(frames):
    half = min(frames, 100) // 2
    place, yaw, first = plan_excursions(frames, half)
    again = np.nonzero(first >= 0)[0]
    assert place[0] == yaw[0] == 0 and first[0] == -1 and (first < np.arange(frames)).all()
    np.testing.assert_allclose(place[again], place[first[again]], atol=1e-12)
    np.testing.assert_allclose(yaw[again], yaw[first[again]], atol=1e-9)
    assert place.max() == pytest.approx(1) and place.min() >= 0
    home = np.arange(2 * half, frames, 2 * half)
    assert (first[home] == 0).all() and (np.abs(place[home]) < 1e-12).all()
    if frames > 300:
        assert np.abs(yaw[:101]).max() == 0 < np.abs(yaw[101:201]).max() < np.abs(yaw[301:]).max()


def test_a_scene_is_walked_there_and_back(truth):
    poses = truth.cameras.world_from_camera
    for i in np.nonzero(truth.returns)[0]:
        np.testing.assert_array_equal(poses[i], poses[truth.first_shown[i]])
    assert truth.returns.tolist() == [False] * 5 + [True] * 4
    assert np.linalg.norm(np.diff(truth.cameras.position_world, axis=0), axis=1).max() > 0
    assert (truth.grounded[0] == (np.isfinite(truth.depth_m[0]) & ~truth.moving[0])).all()
    assert 0.05 < truth.grounded[4].mean() < truth.grounded[8].mean()


def test_what_the_seed_shows_is_told_by_geometry():
    """From beside the box its hidden faces, and what it hides, are not grounded."""
    poses = [look((0, -2, 2.2), (1.5, 1.5, 0.6)), look((2.8, 0, 2.2), (1.5, 1.5, 0.6))]
    batch = cameras(poses, SIZE)
    depth, number, _ = raycast(batch, room())
    shown = shown_by_seed(batch, depth, np.zeros(depth.shape, bool))
    assert shown[0].all()
    hidden = number[1] == 9  # the side of the box that faces +x; its edges touch what is seen
    assert hidden.sum() > 50 and shown[1][hidden].mean() < 0.35
    top = number[1] == 10
    assert top.sum() > 50 and shown[1][top].mean() > 0.8
    moving = np.zeros(depth.shape, bool)
    moving[0] = number[0] == 10
    assert shown_by_seed(batch, depth, moving)[1][top].mean() < 0.1


def test_between_a_surface_and_a_hole_nothing_is_grounded():
    """Interpolated with a hole's zeros, a near surface would pass for any farther one."""
    poses = [look((0, 0, 1), (0, 1, 1)), look((0, -0.3, 1), (0.1, 1, 1.1))]
    depth = np.full((2, *SIZE), 2.0, np.float32)
    depth[0, :, ::7], depth[1] = np.nan, 3.0
    still = np.zeros(depth.shape, bool)
    assert not shown_by_seed(cameras(poses, SIZE), depth, still)[1].any()


def test_masked_scores_agree_with_whole_ones():
    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3)).astype(np.uint8), (0, 0), 2)
    b = np.clip(a + rng.normal(0, 9, a.shape), 0, 255).astype(np.uint8)
    whole, left = np.ones((60, 80), bool), np.zeros((60, 80), bool)
    left[:, :40] = True
    assert psnr_where(a, b, whole) == pytest.approx(psnr_db(a, b), abs=1e-3)
    assert psnr_where(a, a, whole) == 60 and np.isnan(psnr_where(a, b, np.zeros_like(whole)))
    mixed = np.where(left[..., None], a, b)
    assert psnr_where(a, mixed, left) == 60 > psnr_where(a, mixed, ~left)
    assert ssim_where(a, a, whole) == pytest.approx(1, abs=1e-5)
    assert ssim_where(a, b, whole) == pytest.approx(ssim(a, b), abs=0.1)
    assert ssim_where(a, mixed, shrunk(left[None], 9)[0]) > 0.99 > ssim_where(a, mixed, ~left)


def test_every_source_that_names_a_rollout_is_there():
    for pattern in (*PROGRAM, *TRUTH):
        assert list(PACKAGE.glob(pattern)), pattern


def test_perceptual_distance_is_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metrics.lpips.cache_clear()
    picture = np.zeros((64, 64, 3), np.uint8)
    assert np.isnan(lpips_of(picture, picture))


def test_gradient_energy_counts_pairs_inside_the_mask():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:, 2:] = 10
    whole = np.ones((4, 4), bool)
    total, count = gradient_energy(picture, whole)
    assert total == pytest.approx(4 * 100) and count == 24
    whole[:, 2:] = False
    assert gradient_energy(picture, whole) == (0.0, 2 * 3 + 4)


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (20_000, 4)), rng.normal(0, 2, (20_000, 4)) + (3, 0, 0, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(9 + 4 * 1, rel=0.05)
    assert np.isnan(frechet_distance(a[:7], b))


def test_patches_lie_wholly_in_the_mask():
    latents = torch.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4).float()
    mask = np.zeros((2, 5, 4), bool)
    mask[1, :2], mask[0, 0] = True, True
    patches = latent_patches(latents, mask, 9, 0)
    assert patches.shape == (2, 12)
    expected = latents[1, :, :2, :2].numpy().ravel()
    assert (patches == expected).all(1).any()
    assert latent_patches(latents, np.zeros_like(mask), 9, 0).shape == (0, 12)


def test_the_truth_itself_scores_full_marks(truth):
    scored = score(truth, perfect(truth), perfect(truth), MODEL)
    mean = summarise([truth], [scored])
    for name in ("psnr_new", "psnr_return", "bare_new", "whole_new"):
        assert mean[name] == 60
    assert mean["depth_error"] == 0 and mean["scale_drift"] == 0
    assert mean["zncc_new"] > 0.999 and mean["gradient_ratio"] == pytest.approx(1)
    assert mean["frames_per_s"] == pytest.approx(8 / 10) and mean["lost"] == mean["no_depth"] == 0


def test_what_is_worse_scores_worse(truth):
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), 2) for picture in truth.rgb])
    worse = replace(perfect(truth), rgb=blurred, depth_m=truth.depth_m * np.float32(1.1))
    mean = summarise([truth], [score(truth, worse, perfect(truth), MODEL)])
    assert mean["psnr_new"] < 35 and mean["gradient_ratio"] < 0.7
    assert mean["depth_error"] == pytest.approx(0.1, abs=1e-3)
    assert mean["scale_drift"] == pytest.approx(0.1, abs=1e-3)
    assert mean["psnr_shown"] > mean["psnr_return"]


def test_worlds_are_apart_by_what_the_seed_cannot_know(truth):
    """As a share of how far the first is from the truth; with too few windows nothing else is said."""
    grey = replace(perfect(truth), rgb=np.full_like(truth.rgb, 90))
    halfway = replace(perfect(truth), rgb=((truth.rgb.astype(int) + 90) // 2).astype(np.uint8))
    open_ = replace(truth, grounded=np.zeros_like(truth.grounded))
    same, half = (summarise([open_], [score(open_, one, grey, MODEL)]) for one in (grey, halfway))
    assert same["apart"] == 0 and half["apart"] == pytest.approx(0.5, abs=0.02)
    assert same["windows"] < 20 and np.isnan(same["like_last"])


def test_moving_bodies_are_no_evidence(truth):
    moving = np.ones_like(truth.moving)
    grounded = shown_by_seed(truth.cameras, truth.depth_m, moving)
    assert not grounded.any()
    body = np.zeros_like(truth.moving)
    body[:, :16, :16] = True
    check = check_model(MODEL, replace(truth, moving=body))
    assert check["ghosts"] == 1 and check["body_cells"] == 9 * 4  # this model finds nothing moving
    assert check["lost"] == 0 and check["codec_psnr"] > 50


def test_where_bodies_stood_is_judged_when_they_have_left(truth):
    moving = np.zeros_like(truth.moving)
    moving[0, 4:20, 4:20] = True
    assert np.array_equal(replace(truth, moving=moving).vacated[-1], moving[0])
    moving[-1, 4:12, 4:20] = True
    left = replace(truth, moving=moving)
    assert np.array_equal(left.vacated[-1], moving[0] & ~moving[-1])
    ghost = perfect(left).rgb.copy()
    ghost[:, 4:20, 4:20] = 255 - ghost[:, 4:20, 4:20]
    shown, haunted = (
        score(left, replace(perfect(left), rgb=rgb), perfect(left), MODEL).frames["psnr_vacated"][-1]
        for rgb in (truth.rgb, ghost)
    )
    assert shown == 60 and haunted < 25


def test_readouts_are_blinded_in_one_thing(truth):
    world = World(MODEL)
    world.reset(truth.rgb[0], truth.cameras[0], truth.depth_m[0])
    readout = world.memory.read(truth.cameras[3:5].resized((8, 10)))
    assert not readout.visible.all() and np.abs(readout.place).max() > 0
    flat = blinded(readout, "sub_cell")
    assert not flat.place.any() and not flat.log_scale.any()
    np.testing.assert_array_equal(flat.visible, readout.visible)
    open_eyed = blinded(readout, "visibility")
    assert open_eyed.visible.all() and np.isposinf(open_eyed.depth_m[~readout.visible]).all()
    assert blinded(readout, "references") is readout


def test_ablated_models_are_models():
    class Witness(PixelModel):
        def generate(self, readout, cameras, preceding, references, seed):
            self.references = references
            return super().generate(readout, cameras, preceding, references, seed)

    model = Witness(SIZE)
    without = ablated(model, "references")
    assert hasattr(without, "generate") and not imagines(without) and without.stride == 8
    batch = cameras([look((0, 0, 1), (0, 1, 1))], (8, 10))
    world = World(model)
    world.reset(np.zeros((*SIZE, 3), np.uint8), cameras([look((0, 0, 1), (0, 1, 1))], SIZE)[0])
    readout = world.memory.read(batch)
    without.generate(readout, batch, torch.zeros(1, 192, 8, 10), torch.ones(1, 192, 8, 10), 0)
    assert len(model.references) == 0


def test_other_seeds_are_other_noise():
    world = make_world(Variant("a", ablation="other_seed"), MODEL, 3)
    assert world.config.seed == 4


def test_without_its_network_an_imaginer_goes_on_with_the_nearest_cell(truth):
    class Imagining(PixelModel):
        def aligned(self, readout):
            return readout.latents.float()

        def imagine(self, *_):
            raise AssertionError("the network is left out")

    model = Imagining(SIZE)
    world = make_world(Variant("a", ablation="network"), model, 0)
    world.reset(truth.rgb[0], truth.cameras[0], truth.depth_m[0])
    camera = truth.cameras[3:4].resized((8, 10))
    readout = world.memory.read(camera)
    view, seen = world.model.imagine(readout, camera, None, 0), readout.visible[0]
    assert 0 < seen.mean() < 1 and np.isfinite(view.depth_m).all()
    latents = view.latents[0].permute(1, 2, 0).numpy()
    assert np.array_equal(latents[seen], readout.latents[0].permute(1, 2, 0).float().numpy()[seen])
    for row, column in np.argwhere(~seen):
        away = np.hypot(*(np.argwhere(seen) - (row, column)).T)
        nearest = np.argwhere(seen)[away == away.min()]
        assert any(np.array_equal(latents[row, column], latents[r, c]) for r, c in nearest)
    world = make_world(Variant("a", ablation="network"), model, 0)
    assert np.isinf(world.model.imagine(world.cycle.backend.new().read(camera), camera, None, 0).depth_m).all()


def test_an_ablation_that_means_nothing_is_refused():
    with pytest.raises(MirageError, match="leave it out"):
        make_world(Variant("a", ablation="network"), MODEL, 0)
    with pytest.raises(MirageError, match="leave it out"):
        make_world(Variant("a", ablation="visibility"), load_model("mini", "cpu"), 0)


def test_variants_are_named_once():
    variants = parse_variants(["latent", "none"], list(ABLATIONS), ["single=a/b"])
    assert [v.name for v in variants][:3] == ["latent", "none", "no sub_cell"]
    assert variants[-1] == Variant("single", model="a/b")
    for bad in (([], [], []), (["disk"], [], []), (["latent"], ["colour"], []),
                (["keyframesN"], [], []), (["keyframes0"], [], []),
                (["latent"], [], ["single"]), (["latent"], [], ["latent=a"])):  # fmt: skip
        with pytest.raises(MirageError):
            parse_variants(*bad)
    assert isinstance(make_world(Variant("rgb", "rgb"), MODEL, 0), RgbWorld)
    assert make_world(Variant("a", "keyframes12"), MODEL, 0).cycle.backend.keyframes == 12
    assert not make_world(Variant("none", "none"), MODEL, 0).config.use_memory
    still = make_world(Variant("x", ablation="dynamic_filter"), MODEL, 0)
    assert still.config.forget_moving == "none" and still.model is MODEL


@pytest.mark.parametrize("memory", ["latent", "rgb", "keyframes2", "none"])
def test_a_rollout_is_judged_from_end_to_end(truth, memory):
    """Lossless pixels come back at the right place; without memory nothing does."""
    world, ticks = make_world(Variant(memory, memory), MODEL, 0), []
    rolled = roll(world, truth, seed_depth=True, bare=memory != "none", tick=ticks.append)
    assert sum(ticks) == len(truth) and rolled.seconds.shape == (2, 5)
    # A fake perceiver invents the depth of what it has not seen; only the seed is in place.
    seen = replace(rolled, observed=truth.grounded)
    mean = summarise([truth], [score(truth, rolled, seen, MODEL)])
    if memory == "none":
        assert mean["psnr_return"] < 20 and mean["observed"] == 0
    else:
        assert mean["psnr_return"] > 20 and mean["observed"] > 0.5
        assert mean["depth_error"] < 0.1
        assert mean["bare_new"] > (18 if memory == "latent" else 20)  # its holes are grey
        assert mean["kilobytes"] == pytest.approx(world.memory.nbytes / 1e3)


def test_rollouts_are_made_once(tmp_path, truth):
    made = []

    def make():
        made.append(1)
        return perfect(truth)

    path = tmp_path / "a" / "one.npz"
    first, second = (cached(path, Rolled, make) for _ in range(2))
    assert len(made) == 1
    np.testing.assert_array_equal(first.depth_m, second.depth_m)
    path.write_bytes(path.read_bytes()[:1000])
    cached(path, Rolled, make)
    assert len(made) == 2
    assert name_of(1, "a") != name_of(1, "b") and name_of(1, "a") == name_of(1, "a")


def test_what_of_the_seed_was_not_remembered_is_told(truth):
    world = World(MODEL)
    first = world.reset(truth.rgb[0], truth.cameras[0], truth.depth_m[0]).frames[0]
    assert seed_lost(seed_remembered(world), first.depth_m) == (0, 0)
    points = world.memory.to_points().xyz
    pixels, _ = truth.cameras[0].project(points.astype(np.float64))
    world.memory.forget(pixels[:, 0] < 39.5)
    lost, no_depth = seed_lost(seed_remembered(world), first.depth_m)
    assert lost == pytest.approx(0.5, abs=0.02) and no_depth == 0
    body = np.zeros(SIZE, bool)
    body[:, :40] = True
    assert seed_lost(seed_remembered(world), first.depth_m, body) == (0, 0)
    holes = first.depth_m.copy()
    holes[:, 40:] = np.nan
    assert seed_lost(seed_remembered(world), holes) == (1, 0.5)
    blind = make_world(Variant("none", "none"), MODEL, 0)
    rolled = roll(blind, truth, seed_depth=True, bare=False, tick=lambda count: None)
    assert summarise([truth], [score(truth, rolled, rolled, MODEL)])["lost"] == 1


def test_the_command_judges_and_does_nothing_twice(tmp_path, capsys, monkeypatch):
    words = ["evaluate", "--seeds", "2000101", "--frames", "5", "--memories", "latent,none",
             "--ablate", "references", "--out", str(tmp_path)]  # fmt: skip
    figures = tmp_path / "a.json"
    assert main([*words, "--json", str(figures)]) == 0
    table = capsys.readouterr().out
    report = json.loads(figures.read_text())
    assert list(report["variants"]) == ["latent", "none", "no references"]
    latent, none = (report["variants"][name]["mean"] for name in ("latent", "none"))
    assert latent["psnr_return"] > none["psnr_return"] and latent["observed"] > 0.5
    assert "as shown" in table and "Codec alone" in table and "no references" in table
    assert "lost" in table and 0 <= latent["lost"] < none["lost"] == 1
    for name in ("frames.png", "sheet.png"):
        assert cv2.imread(str(tmp_path / name)) is not None
    monkeypatch.setattr(evaluating, "roll", None)
    monkeypatch.setattr(evaluating, "scene_world", None)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --seeds"),
        (["--seeds", "1", "--folder", "x"], "one of --seeds"),
        (["--seeds", "1", "--hold-out", "2"], "give one"),
        (["--re10k", "."], "no RealEstate10K track"),
        (["--seeds", "one"], "give a range"),
        (["--seeds", "9-3"], "smaller number first"),
        (["--seeds", "2000101", "--ablate", "colour"], "There is no variant colour"),
        (["--seeds", "2000101", "--frames", "2"], "at least 3"),
        (["--seeds", "2000101", "--model", "nowhere"], "No model at nowhere"),
    ],
)
def test_the_command_refuses_nonsense(words, message, tmp_path, capsys):
    assert main(["evaluate", *words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

"""Recorded walks, tracks and WorldScore are judged as they were taken, real ones among them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import walk_writers as writers
from analytic import cameras
from judged_worlds import MODEL, SIZE, truth  # noqa: F401, a fixture too
from test_evaluation import REAL, needs_real

from mirage_ros.cli import main
from mirage_ros.data.seeds import PosedRgbd, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.evaluation import evaluate as evaluating
from mirage_ros.evaluation import psnr_db, worldscore
from mirage_ros.evaluation.readback import folder_world, read_back
from mirage_ros.evaluation.report import describe
from mirage_ros.evaluation.scoring import score, summarise
from mirage_ros.evaluation.worlds import roll, seed_lost, seed_remembered
from mirage_ros.geometry.depth import completed
from mirage_ros.models import load_model
from mirage_ros.world.world import World


def write_folder(folder, truth):
    """The world as a posed RGB-D folder."""
    for name in ("color", "depth"):
        (folder / name).mkdir()
    for i in range(len(truth)):
        cv2.imwrite(str(folder / f"color/{i:03d}.png"), truth.rgb[i][..., ::-1])
        millimetres = np.nan_to_num(truth.depth_m[i] * 1000, posinf=65535)
        cv2.imwrite(str(folder / f"depth/{i:03d}.png"), millimetres.round().astype(np.uint16))
    np.savetxt(folder / "K.txt", truth.cameras.intrinsics[0])
    np.savetxt(folder / "world_from_camera.txt", truth.cameras.world_from_camera.reshape(-1, 16))


@pytest.fixture(scope="module")
def walk(tmp_path_factory, truth):
    """The way out as a recording, with holes in its depth."""
    folder = tmp_path_factory.mktemp("walk")
    depth = truth.depth_m.copy()
    depth[:, 16:40, 8:30] = np.nan
    write_folder(folder, replace(truth, depth_m=depth))
    for picture in sorted((folder / "color").iterdir())[4:]:
        picture.unlink()
    np.savetxt(folder / "world_from_camera.txt", truth.cameras.world_from_camera[:4].reshape(-1, 16))
    return folder


def test_a_folder_is_walked_as_recorded(tmp_path, truth):
    write_folder(tmp_path, truth)
    walk = folder_world(tmp_path, 0, None, SIZE)
    np.testing.assert_array_equal(walk.rgb, truth.rgb)
    assert (walk.grounded == truth.grounded).mean() > 0.99 and len(walk) == 9
    part = folder_world(tmp_path, 2, 3, SIZE)
    np.testing.assert_array_equal(part.rgb, truth.rgb[2:5])
    with pytest.raises(MirageError, match="frames 0 to 8"):
        folder_world(tmp_path, 5, 9, SIZE)


def test_a_report_on_a_recording_keeps_nothing_to_itself(walk, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "load_model", lambda path: MODEL)
    config = evaluating.EvaluationConfig(folder=str(walk), store=tmp_path)
    evaluation = evaluating.evaluate(config)
    table = describe(evaluation)
    variants = evaluation.report["variants"]
    assert variants["none"]["mean"]["lost"] == 1 > 0.05 > variants["latent"]["mean"]["lost"]
    head = next(line for line in table.splitlines() if "new views" in line)
    assert "lost" in head and "return" not in head
    assert "has no return to judge: every view shows the seed's surfaces" in table
    assert "Columns left out" in table and evaluation.report["no_return"]


def test_a_walk_that_never_comes_back_says_so(truth):
    grounded = np.zeros_like(truth.grounded)
    for shown, columns in zip(grounded, (80, 40, 3, 10, 8, 8, 2, 2, 2), strict=True):
        shown[:, :columns] = True
    gone = replace(truth, grounded=grounded, returns=np.zeros(9, bool))
    assert "after frame 2 had left" in gone.no_return and "12% of the picture" in gone.no_return
    assert replace(gone, returns=np.ones(9, bool)).no_return == ""


def test_readback_remembers_as_a_world_does(walk):
    seed = PosedRgbd(walk)[0]
    world = World(MODEL)
    first = world.reset(seed.rgb, seed.camera, seed.depth_m).frames[0]
    found = read_back(walk, 0, MODEL, [1])
    camera = cameras([PosedRgbd(walk)[1].camera.world_from_camera], SIZE)
    camera = replace(camera, intrinsics=seed.camera.intrinsics[None])
    readout = world.memory.read(camera.resized((8, 10)))
    np.testing.assert_array_equal(found.frames[0].memory, MODEL.decode(readout.latents)[0])
    assert (found.lost, found.no_depth) == seed_lost(seed_remembered(world), first.depth_m)


def exposed(frames):
    """Every second picture is taken darker."""
    return [replace(one, rgb=(one.rgb * (0.7 if i % 2 else 1.0)).astype(np.uint8)) for i, one in enumerate(frames)]


def test_tracks_are_judged_there_and_back(filmed, tmp_path, capsys, monkeypatch):
    """RealEstate10K's layout by an independent writer, without depth: first and returned views, beside what exposure leaves."""
    monkeypatch.setattr(evaluating, "load_model", lambda path: MODEL)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    writers.re10k(tmp_path / "re10k", exposed(filmed))
    writers.re10k(tmp_path / "re10k", filmed[:5], "fedcba9876543210")
    words = ["evaluate", "--re10k", str(tmp_path / "re10k"), "--memories", "latent,none", "--out", str(tmp_path / "out")]
    assert main([*words, "--json", str(tmp_path / "a.json")]) == 0
    said, report = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert "2 worlds of 9 to 17 frames" in said and "LPIPS is not measured" in said and "whole pictures" in said
    one = report["variants"]["latent"]["worlds"]["0123456789abcdef"]
    print({name: one[name] for name in sorted(one) if name.endswith(("_new", "_return"))})
    for when in ("new", "return"):
        assert one[f"gain_{when}"] > one[f"psnr_{when}"] + 1 and one[f"warp_gain_{when}"] > one[f"warp_{when}"] + 1
        assert one[f"warp_{when}"] > 12 and one[f"warp_gain_{when}"] > 22
        assert np.isfinite([one[f"whole_{when}"], one[f"whole_gain_{when}"], one[f"whole_ssim_{when}"]]).all()
    assert one["psnr_shown"] > 25, "what was shown first is shown again"


def test_a_recording_of_another_layout_is_judged(walked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluating, "load_model", lambda path: MODEL)
    writers.tum(tmp_path / "walk", walked)
    k = [f"{walked[0].camera.intrinsics[at]:.9g}" for at in ((0, 0), (1, 1), (0, 2), (1, 2))]
    words = ["evaluate", "--folder", str(tmp_path / "walk"), "--intrinsics", *k, "--out", str(tmp_path / "out")]
    assert main([*words, "--memories", "latent", "--frames", "4", "--json", str(tmp_path / "a.json")]) == 0
    mean = json.loads((tmp_path / "a.json").read_text())["variants"]["latent"]["mean"]
    assert mean["warp_new"] > 25 and 15 < mean["psnr_new"] < mean["warp_new"]
    assert main([*words, "--hold-out", "3", "--json", str(tmp_path / "b.json")]) == 0
    assert "its pixels, warped" in capsys.readouterr().out
    held = json.loads((tmp_path / "b.json").read_text())
    assert held["frames"] == 2 and held["built_gain"] >= held["built"] > 15 and held["warp"] > 15
    assert cv2.imread(str(tmp_path / "out" / "held_out.png")) is not None


def suite_path(names: list[str]) -> np.ndarray:
    """Key cameras by WorldScore's own definition: camera_from_world, x left and y up, each move on the last camera's axes;
    then world_from_camera with Blender's camera axes, seen from the first camera."""
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    left, right = np.eye(4), np.eye(4)
    left[:3, :3], right[:3, :3] = [[c, 0, -s], [0, 1, 0], [s, 0, c]], [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    shift = lambda x, z: np.array([[1, 0, 0, x], [0, 1, 0, 0], [0, 0, 1, z], [0, 0, 0, 1.0]])  # noqa: E731
    moves = {"push_in": shift(0, -1), "pull_out": shift(0, 1), "move_left": shift(-0.5, 0), "move_right": shift(0.5, 0),
             "pan_left": left, "pan_right": right, "orbit_left": shift(0, 1) @ right @ shift(0, -1),
             "orbit_right": shift(0, 1) @ left @ shift(0, -1)}  # fmt: skip
    there = [np.eye(4)]
    for name in names:
        there.append(moves[name] @ there[-1])
    return np.stack([np.linalg.inv(np.diag([-1.0, 1, -1, 1]) @ one) for one in there])


def test_worldscores_paths_are_the_suites_own():
    for names in (["push_in"], ["pan_left", "move_left", "pull_out"], ["orbit_left", "move_right"], ["orbit_right", "pan_right"]):
        keys, poses = worldscore.path_of(names)
        np.testing.assert_allclose(worldscore._suite_poses(keys), suite_path(names), atol=1e-12)
        np.testing.assert_allclose(poses[:: worldscore.FRAMES - 1], keys, atol=1e-12)
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        assert len(poses) == 49 * len(names) + 1 and steps.max() < 0.05


def test_what_worldscore_judges_is_written(filmed, tmp_path, capsys, monkeypatch):
    """In the layout that the suite's evaluator checks for; a second run makes nothing."""
    monkeypatch.setattr("mirage_ros.models.load_model", lambda path: MODEL)
    entry = {"visual_movement": "static", "visual_style": "photorealistic", "scene_type": "indoor", "prompt_list": ["a", "b"],
             "image": "static/images/photorealistic/indoor/dining_spaces/000.png", "camera_path": ["push_in"],
             "content_list": [["a"], ["b"]], "style": "real"}  # fmt: skip
    data, bad = tmp_path / "WorldScore-Dataset", entry | {"image": "static/images/photorealistic/indoor/dining_spaces/001.png"}
    writers.png(data / entry["image"], filmed[0].rgb[..., ::-1])
    (data / "static" / "static.json").write_text(json.dumps([entry, bad]))
    words = ["evaluate", "--worldscore", str(data), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said, place = capsys.readouterr().out, tmp_path / "out/worldscore_output/static/photorealistic/indoor/dining_spaces/000"
    assert "1 scenes made" in said and "001.png" in said and "DROID-SLAM" in said and "dynamic" in said
    assert {path.name for path in place.iterdir()} == {"frames", "videos", "input_image.png", "image_data.json", "camera_data.json"}
    frames = sorted((place / "frames").iterdir())
    assert [path.name for path in frames] == [f"{i:03d}.png" for i in range(50)]
    first, last, given = (cv2.imread(str(path)) for path in (frames[0], frames[-1], place / "input_image.png"))
    assert first.shape == last.shape == given.shape == (512, 512, 3)
    nearer = cv2.resize(given[85:427, 85:427], (512, 512))
    print("first frame", psnr_db(first, given), "last", psnr_db(last, given), psnr_db(last, nearer))
    assert psnr_db(first, given) > 18 and psnr_db(last, given) < psnr_db(first, given)
    values = json.loads((place / "image_data.json").read_text())
    assert values["total_frames"] == 50 and values["anchor_frame_idx"] == [0, 49] and values["num_scenes"] == 1
    cameras = json.loads((place / "camera_data.json").read_text())
    assert np.shape(cameras["cameras"]) == (2, 4, 4) and np.shape(cameras["cameras_interp"]) == (50, 4, 4)
    assert cv2.VideoCapture(str(place / "videos" / "output.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 50
    assert main(words) == 0 and "0 scenes made, 1 were there" in capsys.readouterr().out
    assert main(["evaluate", "--worldscore", str(tmp_path / "out")]) == 2


@needs_real
def test_a_real_walk_has_grounded_views_and_returns():
    walk = folder_world(REAL, 8, None, (128, 192))
    assert walk.returns.any() and not walk.returns[:5].any()
    assert walk.grounded[1].mean() > 0.3 > walk.grounded[6].mean()
    back = np.nonzero(walk.returns)[0]
    assert walk.grounded[back].mean((1, 2)).max() > 0.1


@needs_real
def test_a_real_walk_is_shown_as_well_as_the_docs_say():
    """What its first picture showed is remembered, not covered, and not where nobody measured."""
    model = load_model("mini")
    walk = folder_world(REAL, 8, None, model.size)
    rolled = roll(World(model), walk, seed_depth=True, bare=False, tick=lambda frames: None)
    figures = summarise([walk], [score(walk, rolled, rolled, model)])
    print({name: round(figures[name], 3) for name in ("psnr_new", "psnr_return", "lost", "no_depth")})
    assert figures["psnr_new"] >= 17.3 and figures["psnr_return"] >= 15.85
    assert figures["lost"] <= 0.02 and figures["no_depth"] <= 0.2


@needs_real
@pytest.mark.parametrize("name", ["street", "barn"])
def test_a_photograph_is_remembered_whole(name):
    world, seed = World(load_model("mini")), load_seed(REAL.parent / "photos" / f"{name}.png")
    frame = world.reset(seed.rgb, seed.camera).frames[0]
    lost, no_depth = seed_lost(seed_remembered(world), frame.depth_m)
    print(f"{lost:.1%} lost, {no_depth:.1%} without depth")
    assert lost <= 0.01 and no_depth == 0


@needs_real
def test_holes_of_a_real_depth_picture_are_completed_as_other_frames_measured():
    walk = folder_world(REAL, 8, 12, (128, 160))
    filled, hole = completed(walk.depth_m[0]), np.isnan(walk.depth_m[0])
    known, off = 0, 0
    for i in range(1, len(walk)):
        seen = np.isfinite(walk.depth_m[i])
        points = walk.cameras[i].lift(np.where(seen, walk.depth_m[i], 1))[seen]
        pixels, z = walk.cameras[0].project(points)
        column, row = np.rint(pixels).astype(int).T
        inside = (z > 0) & (row >= 0) & (row < 128) & (column >= 0) & (column < 160)
        row, column, z = row[inside], column[inside], z[inside]
        judged = hole[row, column] & np.isfinite(filled[row, column])
        known += judged.sum()
        off += (np.abs(filled[row, column] / z - 1)[judged] > 0.08).sum()
    share = np.isfinite(filled[hole]).mean()
    print(f"{share:.0%} of the holes completed, {off / known:.1%} of them off by more than 8 %")
    assert share > 0.3 and off < 0.12 * known

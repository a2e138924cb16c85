"""Worlds from recordings: the same from every layout, gone on with after a kill, and nothing half written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import walk_writers as writers

from mirage_ros.cli import main
from mirage_ros.data import Walk, WalkConfig, building
from mirage_ros.data.building import BLURRED, USED, BuildConfig, build, planned, upright
from mirage_ros.data.layouts import open_walk
from mirage_ros.data.seeds import PosedFrame
from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import exp_rotation, log_rotation
from mirage_ros.models import load_model
from mirage_ros.world.world import World

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata" / "office_loop"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no shared/realdata next to the checkout")


@pytest.fixture(scope="module")
def model():
    return load_model("mini", device="cpu")


def walk_of(frames: list[PosedFrame]) -> Walk:
    return Walk(Path("frames"), "list", tuple(map(str, range(len(frames)))), frames.__getitem__)


def files_of(world: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(world.iterdir())}


def recordings(folder: Path, frames: list[PosedFrame]) -> list[Path]:
    """One walk as a folder, an MCAP and a ROS 1 bag."""
    writers.ours(folder / "ours", frames)
    return [folder / "ours", next(writers.bag(folder / "mcap", frames).glob("*.mcap")),
            writers.bag(folder / "one.bag", frames, 1)]  # fmt: skip


def check_same_world(sources: list[Path], model, out: Path, config: WalkConfig = WalkConfig()) -> None:
    for i, source in enumerate(sources):
        build(open_walk(source, config), model, out / str(i), BuildConfig())
    worlds = [files_of(out / str(i)) for i in range(len(sources))]
    assert {"memory.safetensors", "world.json"} <= set(worlds[0])
    assert worlds[0] == worlds[1] == worlds[2]


def test_folders_and_bags_give_the_same_world(walked, model, tmp_path):
    check_same_world(recordings(tmp_path, walked[:4]), model, tmp_path / "worlds")


@needs_real
def test_a_real_walk_gives_the_same_world_from_bags(model, tmp_path):
    walk = open_walk(REAL, WalkConfig(every=9))
    check_same_world(recordings(tmp_path, [walk.read(i) for i in range(len(walk))]), model, tmp_path / "worlds")


def test_a_build_that_was_killed_goes_on(walked, model, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SAVED_EVERY", 1)
    config = BuildConfig(least_added=0.0)
    build(walk_of(walked), model, tmp_path / "whole", config)

    def killed(stage: str, frames: int) -> None:
        if (stage, frames) == ("build", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(walk_of(walked), model, tmp_path / "killed", config, killed)
    assert not (tmp_path / "killed").exists()
    ticks = []
    build(walk_of(walked), model, tmp_path / "killed", config, lambda *tick: ticks.append(tick))
    assert ticks == [("build", 5), ("build", 6), ("build", 7)], "neither looked at nor built again"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"killed", "whole"}


@pytest.mark.parametrize(("fails", "left"), [("save", [7]), ("read", [5, 6, 7])])
def test_a_build_that_fails_late_goes_on(fails, left, walked, model, tmp_path, monkeypatch):
    """What its world was to take is in use by then, or a frame cannot be read again."""
    monkeypatch.setattr(building, "SAVED_EVERY", 1)
    config, out, reads, ticks = BuildConfig(least_added=0.0), tmp_path / "out", [], []
    build(walk_of(walked), model, tmp_path / "whole", config)

    def read(i: int) -> PosedFrame:
        reads.append(i)
        if fails == "read" and reads.count(i) == 2 and i == 4:
            raise MirageError("The drive is gone.")
        return walked[i]

    def used(stage: str, frames: int) -> None:
        if fails == "save" and (stage, frames) == ("build", len(walked)):
            writers.ours(out, walked[:1])

    walk = replace(walk_of(walked), read=read)
    with pytest.raises(MirageError, match="the same command goes on") as caught:
        build(walk, model, out, config, used)
    assert str(tmp_path / ".out.building") in str(caught.value)
    shutil.rmtree(out, ignore_errors=True)
    build(walk, model, out, config, lambda *tick: ticks.append(tick))
    assert ticks == [("build", frames) for frames in left], "neither looked at nor built again"
    assert files_of(out) == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_a_build_goes_on_after_a_kill_in_its_first_save(walked, model, tmp_path):
    def killed(stage: str, frames: int) -> None:
        if stage == "build":
            (tmp_path / ".out.building" / "world").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(walk_of(walked), model, tmp_path / "out", BuildConfig(), killed)
    assert build(walk_of(walked), model, tmp_path / "out", BuildConfig()).world.memory.tokens


def test_gain_noise_is_found(walked, model):
    """Exposures that are 10 % off to either side: half of it is left at most."""
    gains = np.random.default_rng(0).choice([0.9, 1.1], len(walked))
    noisy = [replace(one, rgb=np.clip(np.rint(one.rgb * gain), 0, 255).astype(np.uint8))
             for one, gain in zip(walked, gains, strict=True)]  # fmt: skip
    ticks = []
    plan = planned(walk_of(noisy), model, BuildConfig(), lambda *tick: ticks.append(tick))
    assert ("compare", 1) in ticks and ticks[-1] == ("compare", len(noisy)), "told while it compares"
    levels = [np.mean(one.rgb) for one in walked]
    shown = [np.mean(one.rgb * plan.gain[i] + plan.offset[i]) for i, one in enumerate(noisy)]
    before = np.log(gains / np.exp(np.log(gains).mean()))
    after = np.log(np.array(shown) / levels)
    after -= after.mean()
    print("gain noise", before.std(), "->", after.std())
    assert after.std() < 0.5 * before.std()


def test_blurred_frames_are_left_out(walked, model):
    import cv2

    frames = list(walked)
    frames[3] = replace(frames[3], rgb=cv2.GaussianBlur(frames[3].rgb, (0, 0), 3))
    assert planned(walk_of(frames), model, BuildConfig(), lambda *_: None).verdicts[3] == BLURRED


def test_a_bad_frame_is_named_and_skipped(walked, model, tmp_path):
    writers.ours(tmp_path / "walk", walked)
    (tmp_path / "walk" / "color" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    built = build(open_walk(tmp_path / "walk"), model, tmp_path / "out", BuildConfig())
    report = building.report_of(built, open_walk(tmp_path / "walk"))
    assert report["left_out"]["not read"] == ["color/002.png"] and "002.png" in report["reasons"][0]
    assert built.verdicts.count(USED) >= 2
    again = World(model)
    again.load(tmp_path / "out")
    assert again.memory.tokens == report["tokens"]


def test_a_track_without_depth_becomes_a_world(filmed, tmp_path, capsys):
    """RealEstate10K: what was triangulated is remembered, and held-out frames are shown."""
    path = writers.re10k(tmp_path, filmed)
    assert main(["build", str(path), "--out", str(tmp_path / "world"), "--hold-out", "4"]) == 0
    report = json.loads((tmp_path / "world" / "build.json").read_text())
    print(capsys.readouterr().out)
    assert report["kind"] == "RealEstate10K track" and report["tokens"] > 50
    held = report["held_out"]
    assert held["built_gain"] > held["seed_gain"] + 2 and held["seed_seen_gain"] > held["warp_gain"] - 4


def posed(one: PosedFrame, pose: np.ndarray) -> PosedFrame:
    return replace(one, camera=replace(one.camera, world_from_camera=pose))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda one: replace(one, depth_m=one.depth_m * 1000), "--depth-units"),
        (lambda one: replace(one, depth_m=one.depth_m / 1000), "--depth-units"),
        (lambda one: replace(one, depth_m=one.depth_m * 2.5), "0.4 times as large"),
        (lambda one: posed(one, one.camera.world_from_camera @ np.diag([1.0, -1, -1, 1])), "OpenGL"),
        (lambda one: posed(one, np.linalg.inv(one.camera.world_from_camera)), "camera_from_world"),
        (lambda one: replace(one, depth_m=None), "no depth"),
    ],
    ids=["millimetres", "kilometres", "another unit", "axes of OpenGL", "poses inverted", "no depth"],
)
def test_recordings_that_cannot_be_are_refused(broken, words: str, walked, model, tmp_path):
    with pytest.raises(MirageError) as caught:
        build(walk_of([broken(one) for one in walked]), model, tmp_path / "out", BuildConfig())
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "nothing half written"


def test_other_folders_are_not_written_over(walked, model, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(MirageError, match="holds other things"):
        build(walk_of(walked), model, tmp_path, BuildConfig())
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_up_is_found(walked):
    cameras = [one.camera for one in walked]
    for up, axis in building.UPS.items():
        turn = upright(cameras, up)
        np.testing.assert_allclose(turn[:3, :3] @ axis, [0, 0, 1])
        assert np.linalg.det(turn) == pytest.approx(1)
        back = [replace(one, world_from_camera=np.linalg.inv(turn) @ one.world_from_camera) for one in cameras]
        np.testing.assert_allclose(upright(back, "auto")[:3, :3] @ axis, [0, 0, 1])
    with pytest.raises(MirageError, match="give one of auto"):
        upright(cameras, "north")


def test_the_command_writes_a_world_with_its_report(walked, tmp_path, capsys):
    writers.seven_scenes(tmp_path / "scan", walked)
    k = walked[0].camera.intrinsics
    lens = [f"{value:.9g}" for value in (k[0, 0], k[1, 1], k[0, 2], k[1, 2])]
    out = tmp_path / "out"
    words = ["build", str(tmp_path / "scan"), "--out", str(out), "--hold-out", "2", "--intrinsics", *lens]
    assert main(words) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "build.json").read_text())
    assert report["frames"] == 4 and len(report["used"]) >= 1 and f"{report['tokens']:,} tokens" in said and "3 frames were held out" in said
    assert report["held_out"]["built"] > 15
    assert (out / "build.png").stat().st_size > 1000 and (out / "held_out.png").stat().st_size > 1000
    assert main(["export", str(out), "--out", str(tmp_path / "cloud.ply")]) == 0
    assert main(["build", str(tmp_path / "none"), "--out", str(tmp_path / "world")]) == 2
    assert not (tmp_path / "world").exists()


@needs_real
def test_a_real_walk_shows_frames_that_it_was_not_built_from(model, tmp_path):
    """At least 2 dB above one frame alone, gain-compensated, on all of what the other frames show."""
    from mirage_ros.evaluation.readback import judge_held_out

    walk, rest = open_walk(REAL).split(2)
    built = build(walk, model, tmp_path / "world", BuildConfig())
    figures = judge_held_out(built, walk, rest, seed=walk.names.index("color/008.png")).figures
    print(figures)
    assert figures["built_gain"] >= figures["seed_gain"] + 2
    assert figures["seed_seen_gain"] >= figures["warp_gain"] - 0.3, "of the seed itself nothing is lost"


def shaken(frames: list[PosedFrame], shift_m: float, turn_deg: float) -> list[PosedFrame]:
    """Poses with noise: so far to any side, and turned so far about any axis."""
    rng, out = np.random.default_rng(0), []
    for one in frames:
        axis, move, pose = *rng.standard_normal((2, 3)), one.camera.world_from_camera.copy()
        turn = np.radians(turn_deg) * axis / np.linalg.norm(axis)
        pose[:3, :3] = exp_rotation(turn) @ pose[:3, :3]
        pose[:3, 3] += shift_m * move / np.linalg.norm(move)
        out.append(posed(one, pose))
    return out


def drift(poses: list[np.ndarray], true: list[np.ndarray]) -> tuple[float, float]:
    """How far the motion from frame to frame is off: root mean square, metres and degrees."""
    off = [np.linalg.inv(a) @ b @ np.linalg.inv(np.linalg.inv(c) @ d)
           for a, b, c, d in zip(poses, poses[1:], true, true[1:], strict=False)]  # fmt: skip
    shifts, turns = [np.linalg.norm(one[:3, 3]) for one in off], [np.linalg.norm(log_rotation(one[:3, :3])) for one in off]
    return float(np.sqrt(np.mean(np.square(shifts)))), float(np.degrees(np.sqrt(np.mean(np.square(turns)))))


def test_pose_noise_is_found_and_taken_away(walked, model):
    """1 cm and half a degree: pictures are said to lie apart, and after refinement half of it is left at most."""
    true, noisy = [one.camera.world_from_camera for one in walked], shaken(walked, 0.01, 0.5)
    recorded = [one.camera.world_from_camera for one in noisy]
    clean, before, after = (planned(walk_of(frames), model, BuildConfig(refine=refine), lambda *_: None)
                            for frames, refine in ((walked, False), (noisy, False), (noisy, True)))  # fmt: skip
    assert before.shift > 5 * clean.shift and after.shift < 0.5 * before.shift
    found = drift(list(after.moves @ np.stack(recorded)), true)
    print("motion off by", drift(recorded, true), "->", found, "m, deg")
    assert np.all(np.array(found) < 0.5 * np.array(drift(recorded, true)))

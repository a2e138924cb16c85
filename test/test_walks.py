"""Recordings in other people's layouts, written from walks in MuJoCo by independent writers, read back within float precision."""

import json
import shutil

import numpy as np
import pytest
import walk_writers as writers

from mirage_ros.data import WalkConfig
from mirage_ros.data.layouts import open_walk
from mirage_ros.errors import MirageError

WRITERS = {"ours": 1000, "tum": 5000, "seven_scenes": 1000, "scannet": 1000, "redwood": 1000, "nerfstudio": 1000}


def config(frames, layout: str) -> WalkConfig:
    k = frames[0].camera.intrinsics
    given = layout in ("tum", "seven_scenes")
    return WalkConfig(intrinsics=(k[0, 0], k[1, 1], k[0, 2], k[1, 2]) if given else None)


def check_same(walk, frames, half_m: float = 0.5e-3) -> None:
    assert len(walk) == len(frames)
    for i, true in enumerate(frames):
        got = walk.read(i)
        np.testing.assert_array_equal(got.rgb, true.rgb)
        np.testing.assert_allclose(got.camera.world_from_camera, true.camera.world_from_camera, atol=1e-7)
        np.testing.assert_allclose(got.camera.intrinsics, true.camera.intrinsics, atol=1e-6)
        np.testing.assert_array_equal(np.isnan(got.depth_m), ~(true.depth_m > 0))
        assert np.nanmax(np.abs(got.depth_m - true.depth_m)) <= half_m + 1e-5


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_are_read_back(layout: str, walked, tmp_path):
    getattr(writers, layout)(tmp_path, walked)
    walk = open_walk(tmp_path, config(walked, layout))
    check_same(walk, walked, 0.5 / WRITERS[layout])
    assert len(open_walk(tmp_path, WalkConfig(every=3))) == 3


def test_colmap_models_give_depth_between_their_points(walked, tmp_path):
    pytest.importorskip("pycolmap")
    writers.colmap(tmp_path, walked, step=4)
    walk = open_walk(tmp_path)
    for i, true in enumerate(walked):
        got = walk.read(i)
        np.testing.assert_allclose(got.camera.world_from_camera, true.camera.world_from_camera, atol=1e-7)
        np.testing.assert_allclose(got.camera.intrinsics, true.camera.intrinsics, atol=1e-9)
        known = np.isfinite(got.depth_m) & np.isfinite(true.depth_m)
        off = np.abs(got.depth_m / true.depth_m - 1)
        assert known.mean() > 0.6 * np.isfinite(true.depth_m).mean() and np.median(off[known]) < 2e-3
        # Triangulated points themselves come back exactly.
        grid = known[::4, ::4]
        np.testing.assert_allclose(got.depth_m[::4, ::4][grid], true.depth_m[::4, ::4][grid], rtol=0.15)


def test_tracks_get_depth_from_triangulated_points(filmed, tmp_path):
    """RealEstate10K's layout: cameras as written, depth that no file holds; its unit is the track's own."""
    path = writers.re10k(tmp_path / "test", filmed)
    for source in (path, tmp_path / "test", tmp_path):
        walk = open_walk(source)
        assert walk.kind == "RealEstate10K track" and len(walk) == len(filmed)
    for i, true in enumerate(filmed):
        got = walk.read(i)
        np.testing.assert_array_equal(got.rgb, true.rgb)
        np.testing.assert_allclose(got.camera.world_from_camera, true.camera.world_from_camera, atol=1e-7)
        np.testing.assert_allclose(got.camera.intrinsics, true.camera.intrinsics, atol=1e-6)
        known = np.isfinite(got.depth_m) & np.isfinite(true.depth_m)
        off = np.abs(got.depth_m / true.depth_m - 1)[known]
        print(f"depth in {known.mean():.0%} of the picture, {np.median(off):.2%} off (median)")
        assert known.mean() > 0.1 and np.median(off) < 0.03


def test_a_depth_model_that_is_asked_for_says_what_is_not_known(filmed, tmp_path):
    """It is told what is known there, by which it finds its scale."""
    path, given = writers.re10k(tmp_path, filmed), []

    def depth_of(rgb, camera, known_m):
        given.append(known_m)
        return np.full(camera.size, 2.0, np.float32)

    plain, asked = open_walk(path), open_walk(path, WalkConfig(depth_of=depth_of))
    known, whole = plain.read(2).depth_m, asked.read(2).depth_m
    np.testing.assert_array_equal(given[0], known)
    np.testing.assert_array_equal(whole, np.where(np.isnan(known), 2.0, known))


def test_tracks_without_pictures_are_named(walked, tmp_path):
    path = writers.re10k(tmp_path, walked)
    writers.re10k(tmp_path, walked[:2], "another")
    assert "2 RealEstate10K tracks" in sentence(tmp_path)
    shutil.move(tmp_path / path.stem, tmp_path / "elsewhere")
    assert "pictures of the track" in sentence(path)
    (tmp_path / path.stem).mkdir()
    assert "no picture of the track's times" in sentence(path)
    path.write_text("url\n1 2 3\n")
    assert "no RealEstate10K camera file" in sentence(path)


@pytest.mark.parametrize(("ros", "poses", "depth"), [(2, "tf", "16UC1"), (1, "tf", "16UC1"), (2, "pose", "32FC1"),
                                                      (1, "pose", "32FC1")])  # fmt: skip
def test_bags_are_read_back(ros: int, poses: str, depth: str, walked, tmp_path):
    path = writers.bag(tmp_path / ("walk" if ros == 2 else "walk.bag"), walked, ros, poses, depth)
    check_same(open_walk(path), walked)
    if ros == 2:
        check_same(open_walk(next(path.glob("*.mcap"))), walked)


def test_depth_of_another_camera_is_registered(walked, tmp_path):
    """Depth seen from 5 cm beside, by another lens."""
    from mirage_ros.data import joined, registered
    from mirage_ros.geometry.camera import Camera

    one = walked[0]
    same = registered(one.depth_m, one.camera, one.camera)
    known = np.isfinite(one.depth_m)
    assert np.isfinite(same[known]).all() and np.median(np.abs(same - one.depth_m)[known]) < 1e-5
    beside = one.camera.world_from_camera.copy()
    beside[:3, 3] += 0.05 * beside[:3, 0]
    k = one.camera.intrinsics.copy()
    k[0, 0] *= 1.2
    k[1, 1] *= 1.2
    other = Camera(k, beside, one.camera.size)
    there = registered(one.depth_m, one.camera, other)
    back = joined(one.rgb, one.camera, there, other).depth_m
    both = np.isfinite(back) & known
    assert both.mean() > 0.5 and np.median(np.abs(back / one.depth_m - 1)[both]) < 5e-3


def sentence(path, **options) -> str:
    with pytest.raises(MirageError) as caught:
        walk = open_walk(path, WalkConfig(**options))
        for i in range(len(walk)):
            walk.read(i)
    text = str(caught.value)
    assert text and "\n" not in text.strip()
    return text


@pytest.fixture(scope="module")
def good(walked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    writers.ours(folder / "ours", walked)
    writers.bag(folder / "bag", walked)
    return folder


def test_broken_folders_are_named(good, tmp_path):
    assert "no recording" in sentence(tmp_path / "none")
    assert "known layout" in sentence(tmp_path)
    folder = tmp_path / "walk"
    shutil.copytree(good / "ours", folder)
    poses = np.loadtxt(folder / "world_from_camera.txt")
    k = np.loadtxt(folder / "K.txt")
    np.savetxt(folder / "world_from_camera.txt", np.where(np.arange(16) == 3, np.nan, poses))
    assert "NaN" in sentence(folder)
    np.savetxt(folder / "world_from_camera.txt", poses * np.where(np.arange(16) % 4 == 0, -1, 1))
    assert "mirrored" in sentence(folder)
    np.savetxt(folder / "world_from_camera.txt", poses[:3])
    assert "3 poses" in sentence(folder)
    np.savetxt(folder / "world_from_camera.txt", poses)
    np.savetxt(folder / "K.txt", k * 0)
    assert "above 0" in sentence(folder)
    np.savetxt(folder / "K.txt", k)
    (folder / "color" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    assert "002.png" in sentence(folder)


def test_a_hundred_thousand_frames_are_refused(walked, tmp_path):
    pose = np.eye(4).tolist()
    frames = [{"file_path": f"{i}.png", "transform_matrix": pose} for i in range(100_000)]
    lens = {"fl_x": 100, "fl_y": 100, "cx": 64, "cy": 48}
    (tmp_path / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    assert "--every 20" in sentence(tmp_path)
    assert len(open_walk(tmp_path, WalkConfig(every=20))) == 5000


def test_broken_bags_are_named(good, walked, tmp_path):
    missing = writers.bag(tmp_path / "missing", walked, skip="/camera/depth/image")
    assert "no topic with depth" in sentence(missing)
    assert "/camera/color/image_raw" in sentence(missing)
    assert "no depth topic '/deep'" in sentence(good / "bag", depth="/deep")
    assert "camera info" in sentence(writers.bag(tmp_path / "info", walked, skip="/camera/color/camera_info"))
    assert "--poses" in sentence(writers.bag(tmp_path / "tf", walked, skip="/tf"))
    late = writers.bag(tmp_path / "late", walked, late_ns=10**10)
    assert "synchronised" in sentence(late)
    for path in (writers.bag(tmp_path / "one.bag", walked, 1), next((good / "bag").glob("*.mcap"))):
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "cut" in sentence(cut)
    (tmp_path / "noise.bag").write_bytes(bytes(range(256)) * 8)
    assert "bag" in sentence(tmp_path / "noise.bag")

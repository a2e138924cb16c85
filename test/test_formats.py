"""Recording formats: what they share, and the pictures and videos for people."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import OpenEXR
import pytest
from recorded_frames import config, frame, record, values

from mirage_ros.data.seeds import PosedRgbd
from mirage_ros.errors import MirageError
from mirage_ros.recording import Background, Feature, RecordingConfig
from mirage_ros.recording.formats import (
    FORMATS,
    begin_episode,
    guess_format,
    open_dataset,
    open_recorder,
)
from mirage_ros.recording.mcap import McapRecorder


@pytest.mark.parametrize("depth", ["png", "exr"])
def test_picture_folders_are_posed_rgbd(tmp_path, depth):
    with open_recorder(tmp_path / "walk", depth, config(), single=True) as recorder:
        for number in range(3):
            recorder.add(frame(number), values(number))
    root = tmp_path / "walk"
    for number in range(3):
        told = frame(number)
        if depth == "png":
            found = PosedRgbd(root)[number]
            assert np.array_equal(found.rgb, told.rgb)
            np.testing.assert_allclose(found.depth_m, told.depth_m, atol=5.1e-4)
            assert np.array_equal(found.camera.world_from_camera, told.camera.world_from_camera)
            np.testing.assert_allclose(found.camera.intrinsics, told.camera.intrinsics)
        else:
            file = OpenEXR.File(str(root / f"depth/{number:06d}.exr"))
            assert np.array_equal(file.channels()["Z"].pixels, told.depth_m, equal_nan=True)
        mask = cv2.imread(str(root / f"observed/{number:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask > 127, told.observed)
    stamps = [int(line) for line in (root / "stamps_ns.txt").read_text().split()]
    assert stamps == [frame(number).stamp_ns for number in range(3)]


def test_video_shows_every_frame(tmp_path):
    with open_recorder(tmp_path / "walk.mp4", "video", config(), single=True) as recorder:
        for number in range(5):
            recorder.add(frame(number), values(number))
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4"))
    assert frames == 5 and seconds == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finished_is_not_there(tmp_path, format):
    path = tmp_path / "data"
    with open_recorder(path, format, config()) as recorder:
        record(recorder, 2, 0)
        recorder.start_episode("forgotten")
        recorder.add(frame(0), values(0))
        recorder.discard_episode()
    with pytest.raises(ZeroDivisionError), open_recorder(path, format, config()) as recorder:
        recorder.add(frame(0), values(0))
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), begin_episode(path, format, config(), 1) as episode:
        episode.add(frame(0), values(0))
        raise ZeroDivisionError
    dataset = open_dataset(path, format, config())
    assert dataset.episodes == 1 and dataset.finished() == {0}
    dataset.close()
    assert not [p for p in path.rglob("*") if ".tmp" in p.name]


@pytest.mark.parametrize("format", FORMATS)
def test_an_episode_that_is_begun_anew_replaces_the_half_one(tmp_path, format):
    # As a worker leaves it that is killed: nobody lets go of the files.
    begin_episode(tmp_path, format, config(), 0).add(frame(0), values(0))
    (half,) = tmp_path.rglob(f"*.{os.getpid()}.tmp*")
    half.rename(half.with_name(half.name.replace(str(os.getpid()), "1")))
    with begin_episode(tmp_path, format, config(), 0) as episode:
        episode.add(frame(0), values(0))
    assert not list(tmp_path.rglob("*.tmp*"))
    dataset = open_dataset(tmp_path, format, config())
    assert dataset.finished() == {0}
    dataset.close()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_a_dataset_takes_no_episode_of_another_format(tmp_path, format):
    with open_recorder(tmp_path, format, config()) as recorder:
        record(recorder, 2)
    before = files_of(tmp_path)
    for other in set(FORMATS) - {format}:
        with pytest.raises(MirageError, match=f"holds {format} .*or that format"):
            open_dataset(tmp_path, other, config())
    assert files_of(tmp_path) == before
    dataset = open_dataset(tmp_path, format, config())
    assert dataset.episodes == 1
    dataset.close()


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_dataset_is_left_alone(tmp_path, format):
    mine = tmp_path / "project"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / ".keep").write_text("mine")
    with open_recorder(tmp_path / "walk", "mcap", config(), single=True) as recorder:
        recorder.add(frame(0), values(0))
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    for name, told in (("project", "another kind"), ("walk", "single"), ("file", "is a file")):
        with pytest.raises(MirageError, match=told):
            open_dataset(tmp_path / name, format, config())
    assert files_of(tmp_path) == before


def test_a_slow_disk_slows_the_caller_and_drops_nothing():
    done, background = [], Background(waiting=3)

    def slow(number):
        time.sleep(0.03)
        done.append(number)

    start_s, longest = time.monotonic(), 0
    for number in range(20):
        background.put(lambda number=number: slow(number))
        longest = max(longest, number + 1 - len(done))
    assert time.monotonic() - start_s > 0.4 and longest <= 5
    background.wait()
    assert done == list(range(20))
    background.put(lambda: 1 / 0)
    background.put(lambda: done.append("after an error"))
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.stop()
    assert done == list(range(20))


def test_formats_are_told_by_ending():
    names = ("a.mcap", "a", "a.mp4", "a.lerobot", "a.png", "a.exr", "a/b.c")
    found = [guess_format(name) for name in names]
    assert found == ["mcap", "mcap", "video", "lerobot", "png", "exr", "mcap"]


def test_wrong_configs_are_refused(tmp_path):
    for wrong, told in (
        (lambda: RecordingConfig(0.0), "above 0"),
        (lambda: RecordingConfig(10.0, video_codec="vp9"), "h264, av1"),
        (lambda: Feature((2, 3)), "give"),
        (lambda: Feature((2,), "float16"), "one of"),
        (lambda: Feature((2,), names=("a",)), "one each"),
        (lambda: open_recorder(tmp_path / "a", "gif", config()), "lerobot, mcap"),
    ):
        with pytest.raises(MirageError, match=told):
            wrong()
    (tmp_path / "folder").mkdir()
    with pytest.raises(MirageError, match="there already"):
        McapRecorder(tmp_path / "folder")


def test_the_cost_of_recording_is_told(tmp_path):
    from fakes import PixelModel
    from make_seed import write_seed

    from mirage_ros.data.seeds import load_seed
    from mirage_ros.evaluation.bench_record import RecordBenchConfig, describe, run_bench

    seed = load_seed(write_seed(tmp_path / "seed"))
    report = run_bench(PixelModel(), seed, RecordBenchConfig(("mcap", "lerobot", "video"), 2, 8))
    assert set(report["formats"]) == {"mcap", "lerobot h264", "lerobot av1", "video"}
    for entry in report["formats"].values():
        assert len(entry["plain"]) == len(entry["recorded"]) == 2
        assert min(entry["plain"] + entry["recorded"]) > 0 and entry["end_s"] > 0
        assert entry["ratio"] > 0 and 0 < entry["cpu_share"] < entry["cpu_share_with_end"]
        assert min(entry["cpu_plain"] + entry["cpu_adding"]) > 0
    assert "lerobot av1" in describe(report)

"""Nothing that was recorded is written over, and what is being recorded is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from recorded_frames import config, frame, record, values

from mirage_ros.errors import MirageError
from mirage_ros.recording.formats import FORMATS, begin_episode, open_recorder, recover
from mirage_ros.recording.mcap import McapRecorder, clear


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin_mcap(path: Path) -> McapRecorder:
    recorder = McapRecorder(path)
    recorder.channel("/n", "std_msgs/msg/String", "string data")
    recorder.write("/n", b"1234", 1)
    return recorder


@pytest.mark.parametrize("name", ["walk.mcap", "walk"])
def test_no_recording_is_written_over(tmp_path, name):
    path = tmp_path / name
    first = begin_mcap(path)
    first.flush()
    with pytest.raises(MirageError, match="being recorded"):
        McapRecorder(path)
    first.abandon()  # as a killed process leaves it
    before = files_of(tmp_path)
    with pytest.raises(MirageError, match="cut off.*`mirage recover"):
        McapRecorder(path)
    assert files_of(tmp_path) == before
    assert "1 messages" in recover(path)[0]
    before = files_of(tmp_path)
    with pytest.raises(MirageError, match="there already"):
        McapRecorder(path)
    assert files_of(tmp_path) == before


def test_what_appears_while_it_is_recorded_is_kept(tmp_path):
    path = tmp_path / "walk.mcap"
    recorder = begin_mcap(path)
    path.write_text("mine")
    with pytest.raises(MirageError, match="appeared"):
        recorder.close()
    assert path.read_text() == "mine"
    assert "walk.recovered.mcap: 1 messages" in recover(path)[0]


def test_a_cut_off_mending_is_done_again(tmp_path):
    begin_mcap(tmp_path / "walk.mcap").abandon()
    whole = tmp_path / "other.mcap"
    begin_mcap(whole).close()
    (tmp_path / "walk.mcap.tmp").write_bytes(whole.read_bytes())
    (tmp_path / "walk.mcap.mending").write_text("half")
    assert "1 messages" in recover(tmp_path / "walk.mcap")[0]
    assert not list(tmp_path.glob("*.mending"))


@pytest.mark.parametrize("format", ["video", "png"])
def test_an_older_process_of_the_same_number_loses_nothing(tmp_path, format):
    path = tmp_path / ("walk.mp4" if format == "video" else "walk")
    half = path.with_name(f".walk.{os.getpid()}.tmp{path.suffix}")
    half.write_text("half")
    with open_recorder(path, format, config(), single=True) as recorder:
        recorder.add(frame(0), values(0))
    assert path.exists() and half.read_text() == "half"


def test_a_demo_clears_its_own_recording_alone(tmp_path):
    path = tmp_path / "demo.mcap"
    begin_mcap(path).close()
    live = McapRecorder(path.with_name("other.mcap"))
    with pytest.raises(MirageError, match="being recorded"):
        clear(tmp_path / "other.mcap")
    live.close()
    path.with_name("demo.mcap.tmp").write_text("half")
    clear(path)
    clear(path)
    assert [p.name for p in tmp_path.iterdir()] == ["other.mcap"]


def names_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_recording_in_progress_is_not_recovered(tmp_path, format):
    path = tmp_path / {"mcap": "walk.mcap", "video": "walk.mp4"}.get(format, "walk")
    with open_recorder(path, format, config(), single=True) as recorder:
        for number in range(3):
            recorder.add(frame(number), values(number))
        recorder._background.wait()
        before = names_of(tmp_path)
        for _ in range(2):
            with pytest.raises(MirageError, match="being recorded"):
                recover(path)
        assert names_of(tmp_path) == before
    assert path.exists()
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("finished", [0, 1])
def test_a_dataset_in_progress_is_not_recovered(tmp_path, format, finished):
    path = tmp_path / "data"
    with open_recorder(path, format, config()) as recorder:
        for number in range(finished):
            record(recorder, 3, number)
        recorder.start_episode("going on")
        recorder.add(frame(0), values(0))
        recorder._background.wait()
        before = names_of(path)
        with pytest.raises(MirageError, match="being recorded"):
            recover(path)
        assert names_of(path) == before
        recorder.end_episode()
    assert recorder.episodes == finished + 1


@pytest.mark.parametrize("format", FORMATS)
def test_an_episode_of_another_process_is_not_recovered(tmp_path, format):
    # Nobody holds the dataset open: the episode's own lock tells.
    path = tmp_path / "data"
    with open_recorder(path, format, config()) as recorder:
        record(recorder, 3, 0)
    with begin_episode(path, format, config(), 1) as episode:
        episode.add(frame(0), values(0))
        before = names_of(path)
        with pytest.raises(MirageError, match="being recorded"):
            recover(path)
        assert names_of(path) == before
    recover(path)
    with open_recorder(path, format, config()) as recorder:
        assert recorder.episodes == 2

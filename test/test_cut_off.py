"""What is left of recordings that a kill, an error or a full disk cut off, and their mending."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from mcap.reader import make_reader
from recorded_frames import config, frame, record, values
from rosbags.rosbag2 import Reader

from mirage_ros.data.seeds import PosedRgbd
from mirage_ros.errors import MirageError
from mirage_ros.recording.formats import FORMATS, open_dataset, open_recorder, recover
from mirage_ros.recording.mcap import McapRecorder
from mirage_ros.recording.messages import frame_messages

TESTS = Path(__file__).parent
# Writes episodes, or one long recording, until it is killed; told is what is on the disk.
WRITER = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
from recorded_frames import *
from mirage_ros.recording.formats import open_recorder
path, format, single = sys.argv[2], sys.argv[3], sys.argv[4] == "single"
with open_recorder(path, format, config(), single=single) as recorder:
    for number in itertools.count():
        if single:
            recorder.add(frame(number), values(number))
            print(number, flush=True)
        else:
            record(recorder, 4, number)
            print(number, flush=True)
"""
# Writes until a limit on the size of files is reached.
FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from recorded_frames import *
from mirage_ros.errors import MirageError
from mirage_ros.recording.formats import open_recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, format, single = sys.argv[2], sys.argv[3], sys.argv[4] == "single"
try:
    with open_recorder(path, format, config(), single=single) as recorder:
        if not single:
            record(recorder, 4, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
        recorder.start_episode()
        for number in range(400):
            recorder.add(frame(number), values(number))
except MirageError as error:
    print(error)
"""


def kill_while_writing(path: Path, format: str, kind: str, lines: int) -> int:
    """Starts a writer, kills it after so many lines; returns how many it had told."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, TESTS, path, format, kind], stdout=subprocess.PIPE, text=True
    )
    told = [writer.stdout.readline() for _ in range(lines)]
    assert told[-1], "the writer ended"
    time.sleep(0.02)
    writer.kill()
    told += writer.stdout.readlines()
    writer.wait()
    return len([line for line in told if line.endswith("\n")])


@pytest.mark.parametrize("format", FORMATS)
def test_killed_writer_loses_no_finished_episode(tmp_path, format):
    # MIRAGE_KILLS=20 kills each format's writer that often.
    for attempt in range(int(os.environ.get("MIRAGE_KILLS", "1"))):
        path = tmp_path / f"data{attempt}"
        told = kill_while_writing(path, format, "many", 2 + attempt % 3)
        sentence = recover(path)[0]
        dataset = open_dataset(path, format, config())
        # One more may have been finished before it could be told.
        assert told <= dataset.episodes <= told + 1, (told, sentence)
        dataset.close()
        with open_recorder(path, format, config()) as recorder:
            before = recorder.episodes
            record(recorder, 4, before)
        assert recorder.episodes == before + 1


@pytest.mark.parametrize("name", ["walk.mcap", "walk"])
def test_killed_recording_is_mended(tmp_path, name):
    path = tmp_path / name
    told = kill_while_writing(path, "mcap", "single", 120)
    (sentence,) = recover(path)
    with Reader(path) as bag:
        kept = [d for c, _, d in bag.messages() if c.topic == "/color/image_raw"]
    assert 1 <= len(kept) <= told + 64 and str(path) in sentence
    expected = [
        {n: d for n, _, d in frame_messages(frame(k), config())} for k in (0, len(kept) - 1)
    ]
    assert [kept[0], kept[-1]] == [messages["color/image_raw"] for messages in expected]
    assert list(tmp_path.iterdir()) == [path]
    again = recover(path)
    assert "whole" in again[0]


def test_killed_pictures_and_video_are_mended(tmp_path):
    told = kill_while_writing(tmp_path / "walk", "png", "single", 120)
    assert recover(tmp_path / "walk")
    assert 1 <= len(PosedRgbd(tmp_path / "walk")) <= told + 64
    kill_while_writing(tmp_path / "walk.mp4", "video", "single", 80)
    assert "frames" in recover(tmp_path / "walk.mp4")[0]
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4"))[0] > 0


@pytest.mark.parametrize("cut", [1, 7, 100, 5000, 60_000])
def test_cut_file_keeps_all_whole_chunks(tmp_path, cut):
    path = tmp_path / "a.mcap"
    with McapRecorder(path) as recorder:
        recorder.channel("/n", "std_msgs/msg/String", "string data")
        rng = np.random.default_rng(0)
        for number in range(40):
            recorder.write("/n", rng.bytes(2000), number)
            if number % 10 == 9:
                recorder.flush()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    (sentence,) = recover(path)
    with path.open("rb") as stream:
        kept = [m.data for _, _, m in make_reader(stream).iter_messages()]
    rng = np.random.default_rng(0)
    assert kept == [rng.bytes(2000) for _ in range(len(kept))]
    assert len(kept) == {1: 40, 7: 40, 100: 40, 5000: 30, 60_000: 10}[cut], sentence


def test_recording_in_progress_is_not_mended(tmp_path):
    with McapRecorder(tmp_path / "a.mcap") as recorder:
        recorder.channel("/n", "std_msgs/msg/String", "string data")
        recorder.write("/n", b"1234", 1)
        with pytest.raises(MirageError, match="being recorded"):
            recover(tmp_path / "a.mcap")
    with pytest.raises(MirageError, match="no recording"):
        recover(tmp_path / "nothing")
    (tmp_path / "b.mcap.tmp").write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(MirageError, match="first message"):
        recover(tmp_path / "b.mcap")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mcap", "b.mcap.tmp"]


@pytest.mark.parametrize("format", ["mcap", "video", "png"])
def test_a_recording_that_is_cut_off_by_an_error_is_kept(tmp_path, format):
    path = tmp_path / {"mcap": "walk.mcap", "video": "walk.mp4", "png": "walk"}[format]
    with (
        pytest.raises(ZeroDivisionError),
        open_recorder(path, format, config(), single=True) as recorder,
    ):
        for number in range(3):
            recorder.add(frame(number), values(number))
        raise ZeroDivisionError
    assert path.exists() and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("format", ["lerobot", "mcap", "png"])
def test_full_disk_is_one_clear_error_and_loses_nothing_finished(tmp_path, format):
    path, limit = tmp_path / "data", {"lerobot": 20_000, "mcap": 200_000, "png": 2_000}[format]
    words = [sys.executable, "-c", FULL, TESTS, path, format, "many", str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("The disk is full") and done.stdout.count("\n") == 1, done.stderr
    assert done.returncode == 0 and "`mirage recover`" in done.stdout
    dataset = open_dataset(path, format, config())
    assert dataset.episodes == 1
    dataset.close()


def full_disk(path: Path, format: str, limit: int) -> None:
    """Records one stream until a file reaches the limit."""
    words = [sys.executable, "-c", FULL, TESTS, path, format, "single", str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("The disk is full"), done.stderr


def test_full_disk_keeps_what_was_recorded_until_then(tmp_path):
    path = tmp_path / "walk.mcap"
    full_disk(path, "mcap", 2_500_000)
    assert "messages" in recover(path)[0]
    with Reader(path) as bag:
        assert bag.message_count > 10


def test_full_disk_keeps_the_whole_seconds_of_a_lerobot_stream(tmp_path):
    full_disk(tmp_path / "walk", "lerobot", 100_000)
    assert "0 frames of a half one kept" in recover(tmp_path / "walk")[0]
    dataset = open_dataset(tmp_path / "walk", "lerobot", config())
    assert dataset.episodes == 1
    dataset.close()

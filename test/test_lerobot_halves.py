"""What a killed LeRobot recording keeps of the episode that it was in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lerobot_reading import COLOR, DEPTH, digest, expect_whole
from recorded_frames import RATE_HZ, config, frame, record, values

from mirage_ros.recording.formats import begin_episode, open_dataset, open_recorder, recover
from mirage_ros.recording.lerobot import episode as lerobot_halves
from mirage_ros.recording.lerobot.episode import mend_half

LONGEST = 40
# A stream as a node records it, which is written to its last frame and then killed.
WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_lerobot_halves import add
recorder = add(sys.argv[2], int(sys.argv[4]), sys.argv[3])
recorder.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def add(root: Path, frames: int, codec: str = "h264"):
    """Opens a live recording and adds frames to it."""
    settings = config(episode_frames=LONGEST, video_codec=codec)
    recorder = open_recorder(root, "lerobot", settings, single=True)
    for number in range(frames):
        episode, number = divmod(number, LONGEST)
        recorder.add(frame(number, episode), values(number, episode))
    return recorder


def killed_recording(root: Path, frames: int, codec: str = "h264") -> Path:
    words = [sys.executable, "-c", WRITER, Path(__file__).parent, root, codec, str(frames)]
    assert subprocess.run(words, check=False).returncode == -9
    return root


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize(("frames", "kept"), [(35, 30), (61, 20)])
def test_a_kill_costs_less_than_a_second(tmp_path, codec, frames, kept):
    root = killed_recording(tmp_path / "walk", frames, codec)
    whole = frames // LONGEST
    assert recover(root) == [
        f"{root}: {whole + 1} episodes (1 of them adopted now), {kept} frames of a half one kept"
    ]
    assert frames - (whole * LONGEST + kept) <= RATE_HZ
    expect_whole(root, [LONGEST] * whole + [kept])
    add(tmp_path / "once", whole * LONGEST + kept, codec).close()
    assert digest(root) == digest(tmp_path / "once")
    assert recover(root) == [f"{root}: {whole + 1} episodes (0 of them adopted now)"]


def test_a_recording_goes_on_behind_what_a_kill_left(tmp_path):
    root = killed_recording(tmp_path / "walk", 25)
    settings = config(episode_frames=LONGEST)
    with open_recorder(root, "lerobot", settings, single=True) as recorder:
        assert recorder.episodes == 1
        record(recorder, 7, 1)
    expect_whole(root, [20, 7])


def test_a_whole_episode_that_nobody_adopted_is_taken_in(tmp_path):
    root = tmp_path / "data"
    with begin_episode(root, "lerobot", config(), 0) as episode:
        for number in range(3):
            episode.add(frame(number), values(number))
    with open_recorder(root, "lerobot", config()) as recorder:
        record(recorder, 4, 1)
    expect_whole(root, [3, 4])


@pytest.mark.parametrize("name", [f"{COLOR}.mp4", f"{DEPTH}.mp4", "rows.arrow"])
def test_any_file_may_end_anywhere(tmp_path, name):
    (half,) = (killed_recording(tmp_path / "walk", 35) / ".parts").iterdir()
    size, found = (half / name).stat().st_size, []
    for number, cut in enumerate([*range(0, size, size // 20), size - 1, size]):
        root = tmp_path / f"{number}"
        copy = shutil.copytree(half, root / ".parts" / half.name)
        os.truncate(copy / name, cut)
        found.append(mend_half(copy))
        dataset = open_dataset(root, "lerobot", config())
        dataset.adopt_waiting()
        dataset.close()
        if found[-1]:
            expect_whole(root, [found[-1]])
        assert bool(found[-1]) == bool(dataset.episodes) and not (root / ".parts").exists()
    assert found == sorted(found) and {*found} == {0, 10, 20, 30} and found[-1] == 30


def test_half_a_mending_is_done_again(tmp_path, monkeypatch):
    root = killed_recording(tmp_path / "walk", 35)

    def stumble(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lerobot_halves, "complete_part", stumble)
        recover(root)
    assert "30 frames" in recover(root)[0]
    expect_whole(root, [30])

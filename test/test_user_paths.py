"""What users name: paths in all their spellings, and what is no file to read."""

from __future__ import annotations

import os

import numpy as np
import pytest
from make_seed import write_seed

from mirage_ros.cli import main
from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.files import user_path
from mirage_ros.ros.cameras import read_rig
from mirage_ros.ros.diagnostics import Health
from mirage_ros.ros.worlds import UnknownWorld, UnsupportedWorld, available_worlds, find_world

DEEP = "[" * 100_000


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("~/walk.mcap", "{home}/walk.mcap"),
        ("~", "{home}"),
        ("walk:8", "walk:8"),
        ("out/walk", "out/walk"),
        ("./~x", "~x"),
        ("/tmp/a b", "/tmp/a b"),
        ("file:///tmp/a%20b#c", "/tmp/a b#c"),
        ("FILE://localhost/tmp/a", "/tmp/a"),
        ("file:/tmp/a", "/tmp/a"),
        ("file:a", "file:a"),
    ],
)
def test_a_path_in_every_spelling(home, words, meant):
    assert str(user_path(words)) == meant.format(home=home)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("~a\0b", "NUL"),
        ("file:///a%00b", "NUL"),
        ("~nobody-at-all/x", "no known user"),
        ("http://here/x", "scheme 'http'"),
        ("file://other/x", "names the machine 'other'"),
        ("file://~/x", "names the machine '~'"),
        ("file://", "names the machine"),
        ("é" * 128, "too long"),
        ("a/" * 2048, "too long"),
    ],
)
def test_what_is_no_path_is_refused_in_a_short_sentence(words, told):
    with pytest.raises(MirageError, match=told) as raised:
        user_path(words)
    assert len(str(raised.value)) < 400


def test_seeds_worlds_rigs_and_commands_take_the_same_paths(home, capsys):
    write_seed(home / "mine")
    (home / "rig.yaml").write_text("cameras: [{name: a, width: 80, height: 64, hfov_deg: 60}]")
    for words in ("~/mine", "mine", f"file://{home}/mine", str(home / "mine")):
        assert load_seed(words).name == "mine" and find_world(words).name == "mine"
    for words in ("~", ".", f"file://{home}"):
        found, failed = available_worlds(words, [])
        assert "mine" in [entry.name for entry in found] and not failed
    for words in ("~/rig.yaml", "rig.yaml", f"file://{home}/rig.yaml"):
        assert read_rig(words)[0].name == "a"
    assert available_worlds("~nobody-at-all", [])[1] == ["~nobody-at-all"]
    with pytest.raises(UnknownWorld, match="shipped name"):
        find_world("~/nothing")
    for words, told in (("~/none.mcap", f"{home}/none.mcap"), ("~nobody-at-all/x", "no known user"),
                        ("a" * 300, "too long"), ("file://else/x", "machine")):  # fmt: skip
        assert main(["recover", words]) == 2
        assert told in capsys.readouterr().err
    assert main(["node", "--params", "~/none.yaml"]) == 2
    assert f"{home}/none.yaml" in capsys.readouterr().err


def test_what_may_never_end_is_not_opened(home):
    os.mkfifo(home / "pipe")
    for words, told in (("/dev/null", "a device"), ("~/pipe", "a pipe")):
        for look in (load_seed, find_world):
            with pytest.raises(MirageError, match=f"is {told}; give a file or a folder"):
                look(words)
    for name in ("color.png", "depth.png", "camera.yaml"):
        folder = write_seed(home / f"of {name}")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(MirageError, match=name):
            load_seed(folder)
    with pytest.raises(MirageError, match="no regular file"):
        read_rig(str(home / "pipe"))


@pytest.mark.parametrize("text", [DEEP, "width: .inf", "height: .nan", "- 1", "width: [1]", ""])
def test_a_camera_file_that_tells_what_cannot_be_is_refused(home, text):
    folder = write_seed(home / "mine")
    good = (folder / "camera.yaml").read_text()
    (folder / "camera.yaml").write_text(text if text in (DEEP, "- 1", "") else f"{good}\n{text}\n")
    with pytest.raises(MirageError, match="cannot be used") as raised:
        load_seed(folder)
    assert len(str(raised.value)) < 1000


def test_a_folder_of_another_program_is_not_listed_as_a_world(home):
    (home / "game").mkdir()
    (home / "game/world.json").write_text('{"name": "x"}')
    assert "game" not in [entry.name for entry in available_worlds(str(home), [])[0]]


def test_a_problem_that_comes_again_with_other_numbers_is_one_line_in_the_log():
    lines: list[str] = []
    health = Health(lines.append, lines.append)
    for stamp in range(20):
        health.warn("plan", f"Waiting for a plan: rendered up to {stamp} ns; publish later stamps.")
        health.ok("plan")
    assert len(lines) == 1
    _, text, count = health.state("plan")
    assert count == 20 and "up to 19 ns" in text
    health.warn("plan", "Waiting for a plan: no Path on plan; publish one.")
    assert len(lines) == 2 and np.size(health.errors) == 1


def test_names_that_mean_no_world_are_told_apart_from_what_is_none(home):
    (home / "notes.txt").write_text("no picture")
    with pytest.raises(UnsupportedWorld, match="no picture"):
        find_world("~/notes.txt")
    with pytest.raises(UnknownWorld):
        find_world("nowhere")

"""Every command answers: help that teaches, one line for a mistake, an exit code."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import pytest
from make_seed import write_seed

from mirage_ros import cli
from mirage_ros.cli.node import node_ros_arguments
from mirage_ros.errors import MirageError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["demo", "node", "plan", "record", "readback", "train", "data preview", "data furniture", "doctor",
            "loop", "base", "wander", "drive", "teleop", "studio", "info"]  # fmt: skip


def mirage(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mirage_ros.cli", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: mirage")
    if not command:
        assert all(name.split()[0] in text for name in COMMANDS) and "example" in text


def test_help_loads_nothing_heavy():
    code = (
        "import sys, mirage_ros.cli as c; c.build_parser();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'rclpy', 'cv2', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_version():
    done = mirage("--version")
    assert done.returncode == 0 and done.stdout.startswith("mirage 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seed", "nowhere"], "no seed 'nowhere'"),
        (["node", "--params", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "--seed", "nowhere"], "no seed"),
        (["record", "/proc/nowhere/a.mcap"], "Cannot record"),
        (["readback", "nowhere", "--model", "nowhere"], "nowhere"),
        (["train", "--config", "nowhere.yaml"], "no training config"),
        (["data", "preview", "--seeds", "9-2"], "range"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(arguments, words, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mirage: ") and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["record", "a", "--format", "tape"], "`mirage record --help`"),
        (["generate", "--out", "a"], "--episodes"),
    ],
)
def test_what_the_parser_refuses_is_one_line_as_well(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error
    assert error.startswith("mirage: ") and error.count("\n") == 1


def test_ctrl_c_gives_130(monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mirage_ros.cli.node.info", interrupted)
    assert cli.main(["info"]) == 130


def test_node_options_become_ros_arguments(tmp_path):
    params = tmp_path / "a.yaml"
    params.write_text("")
    parse = cli.build_parser().parse_args
    words = node_ros_arguments(
        parse(["node", "--params", str(params), "--seed", "my 1", "--hfov", "70", "--no-memory",
               "--namespace", "/bot/", "--ros-args", "-p", "image_depth:=9"])
    )  # fmt: skip
    assert words[:3] == ["--ros-args", "--params-file", str(params)]
    assert words[3:5] == ["-r", "__ns:=/bot"]
    assert 'seed:="my 1"' in words and "seed_hfov_deg:=70.0" in words
    assert "use_memory:=false" in words and words[-2:] == ["-p", "image_depth:=9"]
    assert node_ros_arguments(parse(["node"])) == ["--ros-args"]
    with pytest.raises(MirageError, match="parameter file"):
        node_ros_arguments(parse(["node", "--params", str(tmp_path / "none.yaml")]))


def test_info_tells_versions_and_never_fails(capsys):
    assert cli.main(["info", "--model", "nowhere"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "cpu" in text and "nowhere" in text


def test_preview_draws_a_row_per_scene(tmp_path, capsys):
    if find_spec("mujoco") is None:  # importing it would fix its OpenGL before scenes choose one
        pytest.skip("the scenes extra is not installed")
    path = tmp_path / "sub" / "scenes.png"
    assert cli.main(["data", "preview", "--seeds", "3-4", "--out", str(path)]) == 0
    picture = cv2.imread(str(path))
    assert picture.shape[0] == 2 * 128 and picture.std() > 10


def test_plan_without_a_listener_ends_with_one_line(tmp_path, ros_domain):
    seed = write_seed(tmp_path / "room")
    done = mirage("plan", "--seed", str(seed), "--wait", "1")
    assert done.returncode == 2 and "subscriptions to /tf" in done.stderr
    assert "Traceback" not in done.stderr


def interrupted_recording(path) -> tuple[int, str]:
    """Exit code and words of `mirage record` that nobody gave a frame."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mirage_ros.cli", "record", str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ,
    )  # fmt: skip
    while "Waiting" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_record_without_a_node_ends_whole_on_ctrl_c(tmp_path, ros_domain):
    code, words = interrupted_recording(tmp_path / "a.mcap")
    assert code == 0 and "Recorded 0 frames" in words
    assert [path.name for path in tmp_path.iterdir()] == ["a.mcap"]


def test_a_video_of_no_frame_is_no_success(tmp_path, ros_domain):
    code, words = interrupted_recording(tmp_path / "a.mp4")
    assert code == 2 and "0 frames were recorded" in words
    assert not any(tmp_path.iterdir())


def test_progress_is_told_as_json():
    parsed = cli.build_parser().parse_args(["record", "a.mcap", "--json", "--frames", "3"])
    assert (parsed.frames, parsed.json, parsed.idle) == (3, True, None)
    assert json.loads('{"event": "ready", "count": 0}')["event"] == "ready"

"""`mirage doctor` finds each fault in real nodes, and none in sound ones."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ros_client import LOCAL, end, new_domain

from mirage_ros.cli import main
from mirage_ros.machine import (
    FAULT,
    OK,
    SHARED_MEMORY,
    WARN,
    Finding,
    check_gpu,
    check_shared_memory,
    dead_segments,
    describe,
    exit_code,
)
from mirage_ros.ros import doctor
from mirage_ros.ros.doctor import DoctorConfig, examine

SICK_NODE = str(Path(__file__).parent / "sick_node.py")


@pytest.fixture
def domain(monkeypatch):
    number = new_domain()
    for name, value in {**LOCAL, "ROS_DOMAIN_ID": str(number)}.items():
        monkeypatch.setenv(name, value)
    return number


@contextmanager
def nodes(*faults):
    """Runs sick nodes in one process until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, SICK_NODE, *faults], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        end(process)
        process.stdout.close()


def look(*faults, listen_s: float = 3.0, **config) -> list[Finding]:
    """What is found of the graph; the machine's own state is not these tests' matter."""
    with nodes(*faults):
        findings = examine(DoctorConfig(listen_s=listen_s, **config))
    assert {"shared memory", "gpu"} <= {item.check for item in findings}
    return [item for item in findings if item.check not in ("shared memory", "gpu")]


def test_sound_nodes_get_no_fault(domain):
    findings = look("camera", "clock", frames=("base",))
    assert exit_code(findings) == 0
    states = {item.check: item.state for item in findings}
    assert states == dict.fromkeys(("nodes", "qos", "clock", "tf", "diagnostics"), OK)
    text = {item.check: item.found for item in findings}
    assert "2 in ROS domain" in text["nodes"] and "/clock owns time" in text["clock"]
    assert "3 frames; 2 in use reach 'world'" in text["tf"]


FAULTS = {
    "lossy_camera": ("qos", "/image: /lossy_camera receives nothing", "RELIABLE"),
    "unlatched_map": ("qos", "/map: /unlatched_map receives nothing", "TRANSIENT_LOCAL"),
    "timeless": ("clock", "/timeless follow /clock, which nobody publishes", "use_sim_time"),
    "lost_camera": ("tf", "'lost_camera'", "hangs on 'world'"),
    "two_parents": ("tf", "'base' is published under 2 parents: odom, world", "one parent"),
    "bad_transform": ("tf", "quaternion with NaN", "Mend"),
    "unwell": ("diagnostics", "arm: too hot", "message"),
}


def test_each_fault_is_found_and_no_other(domain):
    faults = [item for item in look(*FAULTS) if item.state == FAULT]
    for check, found, advice in FAULTS.values():
        match = [item for item in faults if item.check == check and found in item.found]
        assert len(match) == 1 and advice in match[0].advice, faults
    assert len(faults) == len(FAULTS) and exit_code(faults) == 1


def test_two_clocks_twins_and_a_frame_that_is_absent(domain):
    findings = look("clock", "clock:other_clock", "camera", "camera", frames=("gripper",))
    text = {(item.check, item.state): item.found for item in findings}
    assert "/clock, /other_clock" in text["clock", FAULT]
    assert "2 nodes are called /camera" in text["nodes", WARN]
    assert "'gripper' is wanted, but TF has no frame" in text["tf", FAULT]


def test_a_clock_that_jumps_back_is_warned_of(domain):
    warnings = [item for item in look("looping_clock") if item.state == WARN]
    assert "jumped back from 1.400 s to 1.000 s" in warnings[0].found


def test_the_segment_of_a_killed_node_is_found(domain):
    before = set(SHARED_MEMORY.glob("fastdds_*"))
    with nodes("camera") as process:
        own = set(SHARED_MEMORY.glob("fastdds_*")) - before
        segments = {path for path in own if path.name + "_el" in {item.name for item in own}}
        assert segments and not segments & set(dead_segments())
        process.kill()
        process.wait()
        try:
            dead = set(dead_segments())
            left = {path for path in segments & dead if "port" not in path.name}
            assert left
            warning = [item for item in check_shared_memory(1.0) if item.state == WARN]
            assert len(warning) == 1 and "died" in warning[0].found
        finally:
            for path in own & set(SHARED_MEMORY.iterdir()):
                path.unlink(missing_ok=True)


def test_shared_memory_that_is_small_or_absent_is_a_fault(tmp_path):
    small = check_shared_memory(1e9, tmp_path)
    assert [item.state for item in small] == [FAULT] and "--shm-size" in small[0].advice
    assert check_shared_memory(1e-3, tmp_path)[0].state == OK
    absent = check_shared_memory(1.0, tmp_path / "nowhere")
    assert [item.state for item in absent] == [FAULT] and "does not exist" in absent[0].found


def test_a_locked_segment_is_alive(tmp_path):
    segment = tmp_path / "fastrtps_0123456789abcdef"
    lock = tmp_path / (segment.name + "_el")
    segment.write_bytes(b"\0" * 4096)
    lock.touch()
    assert dead_segments(tmp_path) == [segment]
    with lock.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert dead_segments(tmp_path) == []


@pytest.fixture
def graphics_card(tmp_path, monkeypatch):
    """Puts a driver's tool on the path that answers as nvidia-smi does."""

    def install(cards: str, users: str = "", code: int = 0) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\ncase "$1" in *gpu*) printf "{cards}";; *) printf "{users}";; esac\n'
            f"exit {code}\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_gpu_memory(graphics_card):
    graphics_card("0, NVIDIA H100, 81559, 900\\n1, NVIDIA H100, 81559, 81000\\n",
                  "4711, python, 80000\\n")  # fmt: skip
    full, free = check_gpu(1024.0)
    assert full.state == FAULT and "900 of 81,559 MiB" in full.found and "4711" in full.advice
    assert free.state == OK


def test_a_gpu_that_does_not_answer(graphics_card):
    graphics_card("", code=9)
    (finding,) = check_gpu(1024.0)
    assert finding.state == FAULT and "driver" in finding.advice
    graphics_card("0, Tegra, [N/A], [N/A]\\n")
    assert check_gpu(1024.0)[0].state == WARN


def test_the_table_has_every_word_and_its_width():
    findings = [Finding("qos", FAULT, "a " * 90, "do " * 50), Finding("tf", OK, "fine")]
    table = describe(findings, 100)
    assert max(map(len, table.splitlines())) <= 100
    assert table.split().count("a") == 90 and table.split().count("do") == 51
    assert "what to do" in table.splitlines()[0]


def test_the_command_prints_a_table_and_exits_1_on_a_fault(domain, capsys, monkeypatch):
    found = []
    monkeypatch.setattr(doctor, "examine", lambda config: found.append(examine(config)) or found[-1])
    with nodes("lossy_camera"):
        assert main(["doctor", "--listen", "2"]) == 1
        assert "FAULT" in capsys.readouterr().out
    with monkeypatch.context() as same:  # what was found, once more as JSON
        same.setattr(doctor, "examine", lambda config: found[-1])
        assert main(["doctor", "--json"]) == 1
        assert '"state": "FAULT"' in capsys.readouterr().out
    monkeypatch.setattr(doctor, "DISCOVERY_S", 2.0)  # that it waits longer than it listens is another test's matter
    assert main(["doctor", "--listen", "0.5"]) == 0
    assert "No other node" in capsys.readouterr().out


def test_a_node_that_is_seen_late_is_listened_to(domain):
    late = threading.Timer(2.5, lambda: started.enter_context(nodes("lost_camera")))
    with ExitStack() as started:
        late.start()
        findings = examine(DoctorConfig(listen_s=1.0))
        late.join()
    assert "'lost_camera'" in next(item for item in findings if item.check == "tf").found


@pytest.mark.parametrize("listen_s", ["0", "-1", "nan", "inf"])
def test_a_doctor_without_time_to_listen_is_refused(domain, capsys, listen_s):
    assert main(["doctor", "--listen", listen_s]) != 0
    told = capsys.readouterr()
    assert f"{float(listen_s)} s to listen" in told.err and "ok" not in told.out

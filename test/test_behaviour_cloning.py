"""The example runs from end to end: data, training and driving, as little of each as there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "behaviour_cloning" / "run.py"
DRIVERS = {"cloned", "untrained", "chance", "straight ahead"}


def run_example(out: Path, *words: str) -> subprocess.CompletedProcess:
    few = ["--episodes", "2", "--steps", "2", "--rooms", "1", "--workers", "1"]
    return subprocess.run(
        [sys.executable, EXAMPLE, "--out", out, *few, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_behaviour_cloning_example_runs(tmp_path):
    pytest.importorskip("mujoco")
    done = run_example(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["episodes"] == 2 and report["frames"] >= 2 and report["rooms"] == 1
    assert set(report["arrived"]) == DRIVERS
    for entry in report["arrived"].values():
        assert 0 <= entry["low"] < entry["high"] <= 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name.replace(' ', '_')}.png" for name in DRIVERS}
    assert names == {"dataset", "policy.safetensors", "report.json", *pictures}

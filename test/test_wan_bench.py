"""`mirage bench generate` from the command line, and how it measures memory."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mirage_ros.cli import main
from mirage_ros.evaluation.bench_generate import Meter

MIB = 2**20


@pytest.mark.alone
def test_the_bench_of_a_tiny_model_has_every_figure(tmp_path, capsys):
    """Conditioning from latents costs a tenth of the time and a 25th of the memory at most."""
    pytest.importorskip("mirage_ros.scenes", reason="MuJoCo cannot draw here")
    path = tmp_path / "figures" / "bench.json"
    words = ["bench", "generate", "--tiny", "--random-weights", "--device", "cpu",
             "--size", "64x96", "--chunks", "2", "--steps", "1", "--json", str(path)]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "frames/s" in printed.out and "Memory plan at 64x96" in printed.err
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "model", "conditioning", "cycle"}
    costs, clouds = report["conditioning"], {"merged 1 cm", "unmerged"}
    assert set(costs) == {"seconds_per_chunk", "seconds_drawing", "seconds_encoding", "time_ratio",
                         "bytes", "bare_bytes", "held", "bytes_ratio"}  # fmt: skip
    assert set(costs["time_ratio"]) == set(costs["bytes_ratio"]) == clouds
    assert costs["time_ratio"]["merged 1 cm"] >= 10
    assert costs["bytes_ratio"]["merged 1 cm"] >= 25
    assert all(costs[f"seconds_{what}"][name] > 0 for what in ("drawing", "encoding")
               for name in clouds)  # fmt: skip
    cycle = report["cycle"]["1 steps"]
    assert len(cycle["chunks"]) == 2 and cycle["frames_per_s"] > 0
    assert {"generate", "decode", "perceive"} <= set(cycle["seconds_by_stage"])
    assert set(cycle["peak_bytes_by_stage"]) == {"encode", "decode", "perceive", "generate"}
    assert cycle["peak_bytes"] >= max(cycle["peak_bytes_by_stage"].values()) > 0


def test_a_stage_is_not_charged_with_what_another_has_freed():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("this machine does not let peaks of memory begin anew")
    model = SimpleNamespace(
        device=torch.device("cpu"),
        encode=lambda: np.ones(300 * MIB, np.uint8).sum(),
        perceive=lambda: None,
    )
    meter = Meter(model)
    meter.encode()
    meter.perceive()
    assert meter.peaks["encode"] - meter.peaks["perceive"] > 250 * MIB
    meter.perceive()
    assert meter.whole >= meter.peaks["encode"]

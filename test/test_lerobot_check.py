"""The check with the real lerobot package complains where it should; no lerobot is needed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

CHECK = Path(__file__).parents[1] / "resource" / "lerobot_check" / "check.py"
COLOR, DEPTH = "observation.images.color", "observation.images.depth"
FRAMES = 6


@pytest.fixture
def check(monkeypatch) -> ModuleType:
    """check.py, with nothing behind what it imports of lerobot."""
    for name in ("lerobot", "lerobot.datasets", "lerobot.datasets.lerobot_dataset"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lerobot.datasets.lerobot_dataset"].LeRobotDataset = object
    spec = importlib.util.spec_from_file_location("lerobot_check", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    rng, numbers = np.random.default_rng(0), np.arange(FRAMES)
    return {
        "index": numbers,
        "frame_index": numbers,
        "episode_index": np.zeros(FRAMES, np.int64),
        "timestamp": (numbers / 10).astype(np.float32),
        "stamp_ns": 1_700_000_000_123_456_789 + numbers * 10**8,
        # As the loader hands a float64 out.
        "state": rng.normal(size=(FRAMES, 2)).astype(np.float32),
        COLOR: rng.uniform(size=(FRAMES, 3, 4, 6)).astype(np.float32),
        DEPTH: np.zeros((FRAMES, 1, 4, 6), np.float32),
    }


def dataset_of(check: ModuleType, columns: dict[str, np.ndarray]):
    """What lerobot tells of a dataset whose statistics are those of the columns."""
    dtypes = {COLOR: "video", DEPTH: "video", "state": "float64", "timestamp": "float32"}
    features, stats = {}, {}
    for name, values in columns.items():
        video = values.ndim == 4
        rows = np.moveaxis(values, 1, -1) if video else values
        rows = rows.reshape(-1, values.shape[1]) if values.ndim > 1 else rows.reshape(-1, 1)
        shape = (*values.shape[2:], values.shape[1]) if video else rows.shape[1:]
        features[name] = {"dtype": dtypes.get(name, "int64"), "shape": shape}
        stats[name] = check.statistics(rows.astype(np.float64)) | {"count": np.array([FRAMES])}
    meta = SimpleNamespace(
        features=features, stats=stats, video_keys=[COLOR, DEPTH], depth_keys=[DEPTH]
    )

    class Dataset:
        fps, num_episodes = 10, 1

        def __len__(self) -> int:
            return FRAMES

    Dataset.meta = meta
    return Dataset()


def test_a_good_dataset_passes(check, columns):
    dataset = dataset_of(check, columns)
    assert check.check_rows(dataset, columns)[1] == []
    assert check.check_statistics(dataset, columns)[1] == []


@pytest.mark.parametrize(
    ("name", "key", "error"),
    [
        ("stamp_ns", "mean", 10**6),
        ("stamp_ns", "q50", 10**8),
        ("stamp_ns", "std", 10**6),
        ("index", "max", 1e-6),
        ("state", "mean", 1e-4),
        (COLOR, "q10", 0.02),
    ],
)
def test_wrong_statistics_are_complained_of(check, columns, name, key, error):
    dataset = dataset_of(check, columns)
    dataset.meta.stats[name][key] = dataset.meta.stats[name][key] + error
    (complaint,) = check.check_statistics(dataset, columns)[1]
    assert f"{key} of {name}" in complaint


def test_what_rounding_explains_is_no_complaint(check, columns):
    dataset = dataset_of(check, columns)
    stats = dataset.meta.stats
    stats["state"]["mean"] = stats["state"]["mean"] * (1 + 6e-8)
    stats["stamp_ns"]["mean"] = np.nextafter(stats["stamp_ns"]["mean"], np.inf)
    stats[COLOR]["min"] = stats[COLOR]["min"] + 1 / 255
    assert check.check_statistics(dataset, columns)[1] == []


def test_a_blank_picture_is_complained_of(check, columns):
    columns[COLOR][3] = 0.5
    (complaint,) = check.check_rows(dataset_of(check, columns), columns)[1]
    assert complaint == f"{COLOR} is blank in frames [3]"

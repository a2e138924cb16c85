"""Opens a dataset with the real `lerobot` package and checks all that its readers rely on.

Run by check.sh in an environment of its own: lerobot wants other versions of Python and torch
than this project. Prints one line of JSON; the exit code is 0 only when everything holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

TOLERANCE_S = 1e-4
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# Another build of the decoder may round colours to the next of 256 levels.
VIDEO_ABSOLUTE, VIDEO_RELATIVE = 1.01 / 255, 1e-5
# The loader hands float64 out as float32; of all other numbers only sums may differ, which are
# small beside the range of the values, and beside the values themselves in a last bit or two.
FLOAT64_RELATIVE, RANGE_RELATIVE, SUM_RELATIVE = 1e-6, 1e-9, 1e-14


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the dataset")
    parser.add_argument("--backend", default="pyav", choices=["pyav", "torchcodec"])
    arguments = parser.parse_args()
    if arguments.backend == "torchcodec":
        need_torchcodec()
    dataset = open_dataset(arguments.folder, arguments.backend)
    columns, report = read_all(dataset, arguments.backend)
    for check in (check_rows, check_statistics):
        found, complaints = check(dataset, columns)
        report |= found
        report["complaints"] += complaints
    report["ok"] = not report["complaints"]
    print(json.dumps(report))
    return 0 if report["ok"] else 1


def need_torchcodec() -> None:
    """It brings no FFmpeg of its own. Ends with one line where there is none."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(
            f"torchcodec cannot be used ({str(error).partition('.')[0]}); install FFmpeg's shared "
            "libraries, such as Debian's package ffmpeg, or give --backend pyav."
        )


def open_dataset(folder: Path, backend: str) -> LeRobotDataset:
    return LeRobotDataset(
        "local/check",
        root=folder,
        tolerance_s=TOLERANCE_S,
        video_backend=backend,
        depth_output_unit="m",
    )


def read_all(dataset: LeRobotDataset, backend: str) -> tuple[dict[str, np.ndarray], dict]:
    """Every item through the loader: it raises when a frame is not where its time says."""
    columns: dict[str, list[np.ndarray]] = {}
    for index in range(len(dataset)):
        for name, value in dataset[index].items():
            columns.setdefault(name, []).append(np.asarray(value))
    report = {
        "lerobot": version("lerobot"),
        "backend": backend,
        "episodes": dataset.num_episodes,
        "frames": len(dataset),
        "video_keys": dataset.meta.video_keys,
        "depth_keys": dataset.meta.depth_keys,
        "complaints": [],
    }
    return {name: np.stack(values) for name, values in columns.items()}, report


def check_rows(dataset: LeRobotDataset, columns: dict[str, np.ndarray]) -> tuple[dict, list[str]]:
    """Indices run on, timestamps are the frame's number over the rate, no picture is blank."""
    complaints = []
    frame, episode = columns["frame_index"], columns["episode_index"]
    late_s = np.abs(columns["timestamp"].astype(np.float64) - frame / dataset.fps)
    if late_s.max() > TOLERANCE_S:
        complaints.append(f"timestamps are {late_s.max()} s off")
    if not np.array_equal(columns["index"], np.arange(len(dataset))):
        complaints.append("index does not count the frames")
    starts = np.flatnonzero(frame == 0)
    if not np.array_equal(episode[starts], np.arange(dataset.num_episodes)):
        complaints.append("episode_index does not count the episodes")
    for key in dataset.meta.video_keys:
        shape = tuple(dataset.meta.features[key]["shape"])
        if columns[key].shape[1:] != (shape[2], *shape[:2]):
            complaints.append(f"{key} decodes to {columns[key].shape[1:]}, announced was {shape}")
        if not np.isfinite(columns[key]).all():
            complaints.append(f"{key} decodes to numbers that are not finite")
        # Depth of one value is no fault: all of it may be invalid.
        pictures = columns[key].reshape(len(columns[key]), -1)
        blank = np.flatnonzero(pictures.max(1) == pictures.min(1))
        if len(blank) and key not in dataset.meta.depth_keys:
            complaints.append(f"{key} is blank in frames {blank.tolist()}")
    return {"largest_time_error_s": float(late_s.max())}, complaints


def check_statistics(
    dataset: LeRobotDataset, columns: dict[str, np.ndarray]
) -> tuple[dict, list[str]]:
    """stats.json against what numpy makes of the loaded frames."""
    complaints, worst = [], {}
    for name, feature in dataset.meta.features.items():
        video = feature["dtype"] == "video"
        values = columns[name].astype(np.float64)
        rows = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]) if video else values
        found = statistics(rows.reshape(len(rows), -1))
        told = dataset.meta.stats[name]
        errors = {
            key: float(np.abs(np.ravel(told[key]) - value).max()) for key, value in found.items()
        }
        allowed = allowed_error(feature["dtype"], rows)
        worst[name] = max(errors.values())
        complaints += [
            f"{key} of {name} is {error} off" for key, error in errors.items() if error > allowed
        ]
        if int(np.ravel(told["count"])[0]) != len(dataset):
            complaints.append(f"the count of {name} is {told['count']}")
    return {"largest_statistics_error": worst}, complaints


def allowed_error(dtype: str, rows: np.ndarray) -> float:
    """What rounding explains."""
    largest, extent = float(np.abs(rows).max()), float(np.ptp(rows))
    if dtype == "video":
        return VIDEO_ABSOLUTE + VIDEO_RELATIVE * max(1.0, largest)
    if dtype == "float64":
        return FLOAT64_RELATIVE * largest
    return RANGE_RELATIVE * extent + SUM_RELATIVE * largest


def statistics(rows: np.ndarray) -> dict[str, np.ndarray]:
    quantiles = {key: np.quantile(rows, share, axis=0) for key, share in QUANTILES.items()}
    moments = {"mean": rows.mean(0), "std": rows.std(0)}
    return {"min": rows.min(0), "max": rows.max(0), **moments, **quantiles}


if __name__ == "__main__":
    sys.exit(main())

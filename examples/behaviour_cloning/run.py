"""Generate, clone, evaluate: README.md beside this file tells what for."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from data import load
from evaluate import FIRST_TEST_ROOM, arrivals, interval
from policy import SIZE, DrivePolicy, clone
from safetensors.torch import save_file

from mirage_ros.apps.generate import generate
from mirage_ros.apps.generate_episode import Job
from mirage_ros.errors import MirageError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/cloning"))
    parser.add_argument("--dataset", type=Path, help="one that is there; it is not made then")
    parser.add_argument("--episodes", type=int, default=60, help="(default: 60)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    parser.add_argument("--rooms", type=int, default=100, help="test rooms (default: 100)")
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    begun_s = time.monotonic()
    dataset = arguments.dataset or arguments.out / "dataset"
    if arguments.dataset is None:
        job = Job(arguments.seed, 20, 2.0, ("expert",), "boxes")
        try:
            generate(job, arguments.episodes, dataset, arguments.workers)
        except MirageError as error:
            raise SystemExit(f"{error}") from error
    examples = load(dataset, SIZE)
    rooms = range(FIRST_TEST_ROOM, FIRST_TEST_ROOM + arguments.rooms)
    known = {f"boxes:{room}" for room in rooms} & set(examples.starts)
    if known:
        raise SystemExit(f"Rooms {sorted(known)} are in the data; generate with another --seed.")

    start_s = time.monotonic()
    cloned = clone(examples, arguments.steps, arguments.seed)
    training_s = time.monotonic() - start_s
    save_file(cloned.state_dict(), arguments.out / "policy.safetensors")

    rng = np.random.default_rng(arguments.seed)
    torch.manual_seed(arguments.seed + 1)
    drivers = {
        "cloned": cloned.act,
        "untrained": DrivePolicy().act,
        "chance": lambda rgb: rng.uniform(-1, 1, 2),
        "straight ahead": lambda rgb: np.array([1.0, 0.0]),
    }
    report = {
        "frames": len(examples.pictures),
        "episodes": len(examples.starts),
        "generating_s": round(start_s - begun_s, 1),
        "training_s": round(training_s, 1),
        "rooms": arguments.rooms,
        "arrived": {},
    }
    for name, arrived in arrivals(drivers, rooms, arguments.out).items():
        low, high = interval(arrived)
        report["arrived"][name] = {"rate": float(np.mean(arrived)), "low": low, "high": high}
        print(f"{name}: {sum(arrived)} of {len(arrived)} ({low:.0%} to {high:.0%})")
    report["seconds"] = round(time.monotonic() - begun_s, 1)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Times `mirage build` on a walk of 640x480 with depth: `python test/build_bench.py [FRAMES [OPTION ...]]`.

A camera goes once round a room of painted walls with a box in it. Options go to the command, as `--refine-poses`.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import walk_writers
from analytic import raycast, room
from export_bench import ring

PER_BATCH = 4


def painted(number: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Walls with waves and squares, so that pictures can be matched."""
    s, t = place[..., 0] * 40, place[..., 1] * 30
    waves = np.stack([np.sin(s + number) * 40, np.cos(t + 2 * number) * 40, np.sin(s + t) * 40], -1)
    squares = ((np.floor(s) + np.floor(t)) % 2)[..., None] * 40
    return (np.where(number[..., None] < 0, 0, waves + squares) + 108).clip(0, 255).astype(np.uint8)


def walk(folder: Path, frames: int) -> None:
    views = ring((480, 640), frames)
    seen = []
    for first in range(0, frames, PER_BATCH):
        some = views[first : first + PER_BATCH]
        # At half the size, for the time that it takes.
        depth_m, number, place = (part.repeat(2, 1).repeat(2, 2) for part in raycast(some.resized((240, 320)), room()))
        seen += [SimpleNamespace(rgb=rgb, depth_m=d, camera=some[i])
                 for i, (rgb, d) in enumerate(zip(painted(number, place), depth_m.astype(np.float32), strict=True))]  # fmt: skip
    walk_writers.ours(folder, seen)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        folder, frames = Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else 500
        walk(folder / "walk", frames)
        start, command = time.perf_counter(), [sys.executable, "-m", "mirage_ros.cli", "build", str(folder / "walk")]
        subprocess.run([*command, "--out", str(folder / "world"), *sys.argv[2:]], check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{frames} frames of 640x480: {time.perf_counter() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU; "
              f"at most {used.ru_maxrss / 1024:.0f} MiB")  # fmt: skip

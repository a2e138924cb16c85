"""Kills processes that save a memory, at random moments, and loads what is left each time.

    python test/kill_saver.py FOLDER KILLS CELLS

Prints how often the older, and how often the newer memory was found, and the files left over.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from analytic import cameras, look, remember, room

from mirage_ros.memory import LatentMemory, MemoryConfig


def memories(cells: int) -> tuple[LatentMemory, LatentMemory]:
    """Two that differ: one picture of so many rows of cells, and two."""
    batch = cameras([look((0, 0, 1), (0, 5, 1)), look((0, 0, 1), (5, 0, 1))], (cells, 2 * cells))
    small, large = LatentMemory(MemoryConfig(4)), LatentMemory(MemoryConfig(4))
    remember(small, batch[:1], room())
    remember(large, batch, room())
    return small, large


def save_for_ever(path: Path, pair: tuple[LatentMemory, LatentMemory]) -> None:
    while True:
        for memory in pair:
            memory.save(path)


def main() -> None:
    folder, kills, cells = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    path, pair, rng = folder / "memory.safetensors", memories(cells), np.random.default_rng()
    start = time.perf_counter()
    for memory in pair:
        memory.save(path)
    lasts_s = time.perf_counter() - start
    found = {memory.tokens: 0 for memory in pair}
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(path, pair)
        time.sleep(rng.uniform(0, 2 * lasts_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found[LatentMemory.load(path).tokens] += 1
    left = [name for name in os.listdir(folder) if name != path.name]
    print(*found.values(), len(left))


if __name__ == "__main__":
    main()

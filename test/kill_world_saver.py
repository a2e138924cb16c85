"""Kills processes that save a world, at random moments, and loads what is left each time.

    python test/kill_world_saver.py FOLDER KILLS

Prints how often the older, and how often the newer world was found, and the files left over by
the last one that was killed, once another save has cleaned up: the world's own and a user's note,
which is there from the first save on, do not count.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from fakes import PixelModel

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.geometry.camera import Camera
from mirage_ros.world.world import World

SIZE = (64, 80)


def world(stamp_ns: int) -> World:
    made = World(PixelModel())
    rgb = np.full((*SIZE, 3), stamp_ns, np.uint8)
    made.reset(rgb, Camera.from_hfov(60.0, SIZE, level_camera_pose()), None, stamp_ns)
    return made


def save_for_ever(folder: Path, pair: tuple[World, World]) -> None:
    """Renames are slow here, so that a kill between two of them is likely."""
    rename = os.rename

    def slow_rename(*names, **options) -> None:
        rename(*names, **options)
        time.sleep(0.05)

    os.rename = slow_rename
    while True:
        for each in pair:
            each.save(folder)


def main() -> None:
    parent, kills = Path(sys.argv[1]), int(sys.argv[2])
    folder, pair, rng = parent / "world", (world(1), world(2)), np.random.default_rng()
    start = time.perf_counter()
    for each in pair:
        each.save(folder)
    lasts_s = time.perf_counter() - start
    own = {*os.listdir(folder), "note.txt"}
    (folder / "note.txt").write_text("mine")
    found = {1: 0, 2: 0}
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(folder, pair)
        time.sleep(rng.uniform(0, 2 * lasts_s + 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pair[0].load(folder)
        found[pair[0].stamp_ns] += 1
        pair = world(1), pair[1]
    pair[0].save(folder)
    left = [name for name in os.listdir(parent) if name != folder.name]
    left += {*os.listdir(folder)} ^ own
    print(*found.values(), len(left))


if __name__ == "__main__":
    main()

"""How much of its speed generation keeps while a camera is observed at 10 Hz: `python test/live_bench.py [TOKENS [moving]]`.

A room as of export_bench.py, filmed by a camera on a circle that no earlier picture stood on; all in one thread, as in the node's worker. With `moving`
the walls stand elsewhere every two seconds, so that much is replaced all the time.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from analytic import raycast, room
from export_bench import ring, saved

from mirage_ros.models import load_model
from mirage_ros.world.world import Watch, World

RATE_HZ, SECONDS = 10, 10


def generated(world: World, seconds: float, observe) -> float:
    """Frames a second, of CPU time: what else runs on the machine does not count."""
    path, start, frames, next_s = ring(world.model.size, 400), time.process_time(), 0, 0.0
    while (now := time.process_time() - start) < seconds:
        some = path[np.arange(frames, frames + world.model.chunk_frames) % 400]
        world.step(some, world.stamp_ns + 1 + np.arange(len(some)))
        frames += len(some)
        while next_s <= (now := time.process_time() - start):
            observe(next_s)
            next_s = max(next_s + 1 / RATE_HZ, now - 1 / RATE_HZ)
    return frames / (time.process_time() - start)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 300_000)
        world = World(load_model("mini"))
        world.load(path)
        views, watch, took, written = ring((480, 640), 300, 0.5), Watch(), [], 0
        rooms = (room(), room(4.4, 6.0)) if "moving" in sys.argv else (room(),)
        depths = [raycast(views[:64].resized((120, 160)), one)[0].repeat(4, 1).repeat(4, 2).astype(np.float32) for one in rooms]
        picture = np.full((480, 640, 3), 128, np.uint8)

        def observe(seconds: float) -> None:
            global written
            start, i = time.process_time(), len(took) % 64
            depth_m = depths[int(max(seconds, 0) / 2) % len(depths)][i]
            counts = watch.observe(world, picture, views[i], depth_m, int(seconds * 1e9))
            took.append(time.process_time() - start)
            written += counts[1]

        observe(-1.0)
        generated(world, 3, lambda _: None)
        alone = generated(world, SECONDS / 2, lambda _: None)
        took.clear()
        both = generated(world, SECONDS, observe)
        ms = 1e3 * np.array(took)
        looks = ms[ms > 0.1]
        print(f"{world.memory.tokens:,} tokens: {alone:.1f} frames/s alone, {both:.1f} while observing ({both / alone:.0%}); {len(looks)} of "
              f"{len(ms)} pictures were looked at, {np.median(looks):.1f} ms (median), {looks.max():.0f} at most; {written:,} tokens were written")

"""Times `mirage export` on a world of a million tokens: `python test/export_bench.py [TOKENS [KIND ...]]`.

A room of flat walls and a box, seen finely from all around, whose world keeps as many views as a world may.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from analytic import cameras, look, raycast, room

from mirage_ros.cli import main
from mirage_ros.evaluation.bench_common import empty_memory
from mirage_ros.geometry.camera import Camera
from mirage_ros.memory.free_space import MOST, FreeSpaceViews
from mirage_ros.models import load_model
from mirage_ros.world.state import readout_size
from mirage_ros.world.world import World

KINDS = ("ply", "splat", "map", "collider", "mesh", "mjcf", "nerfstudio")


def ring(size: tuple[int, int], count: int, turn: float = 0.0) -> Camera:
    """Cameras on a circle in the room that look to its other side, up and down."""
    angles = 2 * np.pi * (np.arange(count) + turn) / count
    places = np.stack([1.2 * np.cos(angles), 1.2 * np.sin(angles), 1.3 + 0.3 * np.sin(5 * angles)], -1)
    return cameras([look(place, (-3 * place[0], -3 * place[1], 1.2 + np.sin(7 * a))) for place, a in zip(places, angles, strict=True)],
                   size, 75.0)  # fmt: skip


def saved(folder: Path, tokens: int) -> Path:
    model, number = load_model("mini"), 0
    memory, side = empty_memory(model.channels, tokens), int(np.sqrt(tokens / 40))
    while memory.tokens < tokens:
        batch = ring((side, side * 4 // 3), 4, 0.37 * number)
        depth_m, quad, _ = raycast(batch, room())
        colours = np.repeat((quad[..., None] * 20 + 40).astype(np.uint8), 3, -1)
        latents = torch.zeros(4, model.channels, *batch.size)
        ids = np.arange(4 * number, 4 * number + 4)
        memory.write(latents, batch, depth_m, np.isfinite(depth_m), ids * 1000, colours, ids, real=True)
        number += 1
    views = ring(readout_size(model), MOST)
    seed, depth_m = views[0].resized(model.size), raycast(views, room())[0]
    world = World(model)
    world.reset(np.full((*model.size, 3), 128, np.uint8), seed, raycast(Camera.stack([seed]), room())[0][0].astype(np.float32))
    kept = FreeSpaceViews(views, depth_m.astype(np.float16), np.ones(MOST, bool))
    world.change(lambda state: (replace(state, memory=memory, free_space=kept), None))
    world.save(folder / "world")
    return folder / "world"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        world = saved(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
        for kind in sys.argv[2:] or KINDS:
            start, cpu = time.perf_counter(), time.process_time()
            assert main(["export", str(world), "--to", kind]) == 0
            print(f"{kind}: {time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU", flush=True)

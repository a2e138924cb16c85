"""What a camera at 10 Hz costs a node that generates, over DDS: `python test/live_node_bench.py [TOKENS]`.

The world of live_bench.py is loaded in the node, `observe_live` on, and driven round in it for 20 s alone, 20 s while another process
publishes 640x480 colour and depth at 10 Hz of a room whose walls stand elsewhere every two seconds, and 20 s alone again. Written bytes
are those of the node's processes: snapshots that follow every picture would show there.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
from analytic import raycast, room
from export_bench import ring, saved
from ros_client import NodeProcess, make_path
from sim_client import SimClient
from simulation_interfaces.msg import SimulationState
from test_live import Camera10Hz

SECONDS, NODE = 20, ("-m", "mirage_ros.ros.node")
TOPICS = [f"observe/{ours}:=/cam/{theirs}" for ours, theirs in
          (("image", "color/image_raw"), ("depth", "depth/image"), ("camera_info", "color/camera_info"))]  # fmt: skip


def film(domain: int, end) -> None:
    """Publishes until the event is set."""
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    views, picture = ring((480, 640), 64, 0.5), np.full((480, 640, 3), 128, np.uint8)
    rooms = [raycast(views.resized((120, 160)), one)[0].repeat(4, 1).repeat(4, 2).astype(np.float32) for one in (room(), room(4.4, 6.0))]
    camera, turn = Camera10Hz("world"), 0
    while not end.is_set():
        camera.show(SimpleNamespace(rgb=picture, depth_m=rooms[turn // 20 % 2][turn % 64], camera=views[turn % 64]))
        turn += 1
    camera.close()


def written_mb(process: NodeProcess) -> float:
    whole = psutil.Process(process.process.pid)
    return sum(one.io_counters().write_bytes for one in [whole, *whole.children(recursive=True)]) / 1e6


def rate(client: SimClient, process: NodeProcess) -> tuple[float, float]:
    """Frames a second, and MB that are written a second."""
    client.spin_for(2)
    client.clear()
    before = written_mb(process)
    client.spin_for(SECONDS)
    return len(client.got["color/image_raw"]) / SECONDS, (written_mb(process) - before) / SECONDS


def main(tokens: int, folder: Path) -> None:
    world = saved(folder, tokens)
    parameters = (word for name in ("observe_live:=true", "seed_reliability:=best_effort") for word in ("-p", name))
    arguments = ["--ros-args", *parameters, *(word for topic in TOPICS for word in ("-r", topic))]
    process = NodeProcess(folder, *arguments, program=NODE)
    client = SimClient(process)
    try:
        client.connect()
        process.wait_for("New world")
        print(client.load(str(world)).result.error_message or "loaded", flush=True)
        client.set_state(SimulationState.STATE_PLAYING)
        poses = ring((128, 160), 400).world_from_camera
        stamps = time.time_ns() + 10**8 * np.arange(4000)
        client.send_path(make_path(stamps, poses[np.arange(4000) % 400]))
        client.spin(lambda: len(client.got["color/image_raw"]) > 20)
        alone = rate(client, process)
        context = multiprocessing.get_context("spawn")
        end = context.Event()
        camera = context.Process(target=film, args=(process.domain, end))
        camera.start()
        client.spin_for(8)  # the camera's process starts
        before = client.got["status"][-1].cache_tokens
        both = rate(client, process)
        changed = len({status.cache_tokens for status in client.got["status"]})
        after = client.got["status"][-1].cache_tokens
        end.set()
        camera.join()
        again = rate(client, process)
    finally:
        client.close()
        process.close()
    print(f"{tokens:,} tokens: {alone[0]:.1f} frames/s alone, {both[0]:.1f} while a camera is observed, {again[0]:.1f} alone again "
          f"({2 * both[0] / (alone[0] + again[0]):.0%}); {alone[1]:.1f}, {both[1]:.1f} and {again[1]:.1f} MB/s written; {before:,} tokens, "
          f"then {after:,}, {changed} counts between")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000, Path(temporary))

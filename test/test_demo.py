"""The demo for real: three processes over DDS, with a model that needs no weights."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from fakes import PixelModel
from make_seed import write_seed
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image

from mirage_ros.apps.demo import DemoConfig, describe, run_demo
from mirage_ros.errors import MirageError
from mirage_ros.machine import Children, free_domain, private_environment

FAKE_NODE = (sys.executable, str(Path(__file__).parent / "fake_node.py"))
FRAMES = 18  # not a multiple of the chunk
PICTURES = ["/color/image_raw", "/color/camera_info", "/depth/image_rect", "/depth/camera_info",
            "/observed/image"]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One finished demo: its folder and report."""
    folder = tmp_path_factory.mktemp("demo")
    seed = write_seed(folder / "room")
    config = DemoConfig(
        seed=str(seed), out=folder / "out", frames=FRAMES, rate_hz=12.5, node_command=FAKE_NODE
    )
    return config.out, run_demo(config, load=lambda name: PixelModel())


def test_every_planned_frame_arrived_with_its_stamp(demo):
    _, report = demo
    assert report["complete"]
    assert (report["frames"], report["frames_dropped"]) == (FRAMES, 0)
    assert report["stamps_max_difference_ns"] == 0


def test_returned_view_is_the_first_one_because_of_memory(demo):
    _, report = demo
    assert report["psnr_return_db"] > 20
    assert report["psnr_return_db"] > report["psnr_return_no_memory_db"] + 3


def test_report_holds_the_figures(demo):
    out, report = demo
    assert json.loads((out / "report.json").read_text()) == report
    assert report["cache_tokens"] > 80 and report["cache_bytes"] > 0
    assert report["node_peak_memory_bytes"] > 50e6
    assert set(report["chunk_latency_median_s"]) >= {"read", "generate", "decode", "write"}
    assert report["frames_per_s"] > 0.5 and report["machine"]["cores"] >= 1
    text = describe(report, out)
    assert "demo.mp4" in text and f"{FRAMES} of {FRAMES}" in text


def test_recording_decodes_without_the_project(demo):
    out, _ = demo
    counts, types = {}, {}
    with (out / "demo.mcap").open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        for schema, channel, _, message in reader.iter_decoded_messages():
            counts[channel.topic] = counts.get(channel.topic, 0) + 1
            types[channel.topic] = schema.name
            if channel.topic == "/color/image_raw":
                picture = np.frombuffer(message.data, np.uint8).reshape(64, 80, 3)
                assert message.encoding == "rgb8" and picture.std() > 5
            assert channel.metadata["topic_type_hash"].startswith("RIHS01_")
            assert "reliab" in channel.metadata["offered_qos_profiles"]
    assert [counts[name] for name in PICTURES] == [FRAMES] * 5
    assert types["/cache/points"] == "sensor_msgs/msg/PointCloud2"
    assert types["/status"] == "mirage_ros/msg/RolloutStatus" and counts["/tf"] > FRAMES


def test_recording_opens_as_a_rosbag2_bag(demo):
    from rosbags.rosbag2 import Reader

    with Reader(demo[0] / "demo.mcap") as reader:
        found = {connection.topic: connection for connection in reader.connections}
    assert found["/color/image_raw"].msgcount == FRAMES
    (qos,) = found["/cache/points"].ext.offered_qos_profiles
    assert qos.durability.name == "TRANSIENT_LOCAL"


def test_video_and_sheet_show_it(demo):
    out, _ = demo
    frames = imageio_ffmpeg.read_frames(str(out / "demo.mp4"))
    meta = next(frames)
    assert meta["fps"] == pytest.approx(12.5) and meta["size"][0] > 3 * 80
    assert sum(1 for _ in frames) == FRAMES
    sheet = np.asarray(Image.open(out / "demo.png"))
    assert sheet.shape[1] > 1000 and sheet.std() > 20


def test_nothing_is_left_behind(demo):
    out, _ = demo
    marker = f"{out}".encode()
    left = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker in (folder / "cmdline").read_bytes():
                    left.append(folder.name)
            except OSError:
                continue
    assert not left and not list(out.glob("*.tmp*"))


def test_a_node_that_dies_is_told_with_the_end_of_its_log(tmp_path):
    seed = write_seed(tmp_path / "room")
    command = (sys.executable, "-c", "import sys; sys.exit('no room for a world')")
    config = DemoConfig(seed=str(seed), out=tmp_path, frames=4, node_command=command, compare=False)
    with pytest.raises(MirageError, match="(?s)node ended with exit code 1.*no room for a world"):
        run_demo(config)


def test_children_end_with_their_block_whatever_happens(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGINT, lambda *_: None); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Children(tmp_path, dict(os.environ)) as children:
        quick = children.start("quick", [sys.executable, "-c", "import time; time.sleep(60)"])
        process = children.start("stubborn", [sys.executable, "-c", stubborn])
        time.sleep(0.5)
        children.gentle_s = 0.5
        raise KeyboardInterrupt
    assert process.poll() is not None and quick.poll() is not None
    assert time.monotonic() - start < 10


def test_each_demo_gets_a_ros_domain_of_its_own_on_this_machine():
    environment = private_environment()
    assert 1 <= int(environment["ROS_DOMAIN_ID"]) <= 100
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"


def test_a_domain_in_use_is_not_taken():
    import socket

    domain = free_domain()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 7400 + 250 * domain))
        assert free_domain() != domain


def test_a_domain_that_another_program_was_given_is_not_taken():
    """Its nodes have not started yet, so its port is still free."""
    ask = "import sys; from mirage_ros.machine import free_domain; print(free_domain(40), flush=True); sys.stdin.read()"
    with contextlib.ExitStack() as stack:
        given = set()
        for _ in range(3):
            program = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            given.add(int(program.stdout.readline()))
    assert len(given) == 3

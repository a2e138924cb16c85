"""The node records itself, and `mirage record` records the node: what went out is what is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from make_seed import write_seed
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from mirage_ros.srv import Record
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_client import PICTURES, STREAMED, Client, NodeProcess
from rosbags.rosbag2 import Reader

from mirage_ros.data.seeds import PosedRgbd, load_seed
from mirage_ros.recording.formats import recover
from mirage_ros.ros.image_messages import depth_from_ros, picture_from_ros
from mirage_ros.ros.messages import stamp_from_ros

LISTENED = {name: STREAMED[name] for name in (*PICTURES, "status", "/tf")}
FRAMES = 20
START_NS, PERIOD_NS = 4_000_000_000 * 10**9 // 2 + 987_654_321, 100_000_000


def stamps(count: int) -> list[int]:
    return [START_NS + index * PERIOD_NS for index in range(count)]


def sideways(seed_folder, count: int, step_m: float = 0.02) -> list[np.ndarray]:
    """Poses from the seed's on, to the camera's right."""
    start = load_seed(seed_folder).camera.world_from_camera
    poses = [start.copy() for _ in range(count)]
    for index, pose in enumerate(poses):
        pose[:3, 3] += start[:3, 0] * step_m * index
    return poses


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    return write_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def process(tmp_path_factory, seed_folder):
    arguments = ("--seed", str(seed_folder), "--ros-args", "-p", "plan_idle_s:=0.4")
    node = NodeProcess(tmp_path_factory.mktemp("log"), *arguments)
    yield node
    node.close()


@pytest.fixture(scope="module")
def connected(process):
    client = Client(process)
    client.connect()
    process.wait_for("New world")
    client.record = client.node.create_client(Record, "mirage_node/record")
    client.bytes = {name: [] for name in LISTENED}
    qos = QoSProfile(
        depth=500, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE
    )
    for name, taken in client.bytes.items():
        client.node.create_subscription(LISTENED[name], name, taken.append, qos, raw=True)
    client.spin_for(0.3)
    yield client
    client.close()


@pytest.fixture
def client(connected):
    connected.reset()
    for taken in connected.bytes.values():
        taken.clear()
    return connected


def start(client: Client, path) -> None:
    answer = client.call(client.record, Record.Request(start=True, path=str(path)))
    assert answer.success and answer.path == str(path), answer.message


def stop(client: Client):
    return client.call(client.record, Record.Request(start=False))


def roll_out(client: Client, seed_folder, first: int = 0, count: int = FRAMES) -> None:
    """More frames, in the order of the plan, and all that is told of them."""
    before = len(client.got["color/image_raw"])
    poses = sideways(seed_folder, first + count)[first:]
    planned = stamps(first + count)[first:]
    client.send_tf(planned, poses)
    client.wait_for_frames(before + count)
    client.spin(lambda: all(len(client.bytes[name]) >= before + count for name in PICTURES))
    # A chunk's status is the last that is published of it.
    client.spin(lambda: planned[-1] in {stamp_from_ros(s.header.stamp) for s in client.got["status"]})


def expect_equal(kept: list[bytes], received: list[bytes]) -> None:
    """Byte by byte. On its way to another process a message is filled up to whole words."""
    assert len(kept) == len(received)
    for one, other in zip(kept, received, strict=True):
        assert one == other[: len(one)] and len(other) - len(one) < 4


def read_mcap(path) -> dict[str, list[bytes]]:
    kept: dict[str, list[bytes]] = {}
    with path.open("rb") as stream:
        for _, channel, message in make_reader(stream).iter_messages(log_time_order=False):
            kept.setdefault(channel.topic, []).append(message.data)
    return kept


@pytest.mark.parametrize("name", ["walk.mcap", "walk"])
def test_service_keeps_every_message_to_the_byte(client, seed_folder, tmp_path, name):
    path = tmp_path / name
    start(client, path)
    assert not stop_is_refused_twice(client, path)
    roll_out(client, seed_folder)
    answer = stop(client)
    assert answer.success and f"Recorded {FRAMES} frames, " in answer.message, answer.message
    file = path if path.suffix else path / "walk_0.mcap"
    kept = read_mcap(file)
    client.spin(lambda: len(client.bytes["status"]) >= len(kept["/status"]))
    for topic in LISTENED:
        expect_equal(kept[f"/{topic.lstrip('/')}"], client.bytes[topic])
    with Reader(path) as bag:
        counts = {c.topic: c.msgcount for c in bag.connections}
        assert all(counts[f"/{topic}"] == FRAMES for topic in PICTURES)
        assert counts["/tf"] >= FRAMES and counts["/status"] >= FRAMES // 4
        found = {}
        for connection, _, data in bag.messages():
            found.setdefault(connection.topic, []).append(data)
        assert found == kept
        image = next(c for c in bag.connections if c.topic == "/color/image_raw")
        (qos,) = image.ext.offered_qos_profiles
        assert qos.reliability.name == "RELIABLE"
    with file.open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        hashes = {c.metadata["topic_type_hash"][:7] for c in reader.get_summary().channels.values()}
        assert hashes == {"RIHS01_"}
        decoded = [m.decoded_message for m in reader.iter_decoded_messages(["/depth/image_rect"])]
    assert [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in decoded] == stamps(FRAMES)
    if not path.suffix:
        text = (path / "metadata.yaml").read_text()
        assert "version: 9" in text and "walk_0.mcap" in text


def stop_is_refused_twice(client: Client, path) -> bool:
    """Whether a second start is taken while one runs."""
    answer = client.call(client.record, Record.Request(start=True, path=str(path)))
    assert "end it first" in answer.message
    return answer.success


def test_service_records_lerobot_and_tells_errors(client, seed_folder, tmp_path):
    (tmp_path / "file").write_text("")
    answer = client.call(client.record, Record.Request(start=True, path=f"{tmp_path}/file/a.mcap"))
    assert not answer.success and "writable folder" in answer.message
    assert "No recording runs" in stop(client).message
    root = tmp_path / "walk.lerobot"
    start(client, root)
    roll_out(client, seed_folder)
    answer = stop(client)
    assert answer.success, answer.message
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_frames"], info["fps"]) == (FRAMES, 10)
    rows = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert rows["stamp_ns"].to_pylist() == stamps(FRAMES)


@pytest.mark.parametrize("name", ["walk.mcap", "walk.mp4", "walk.lerobot", "walk.png", "walk.exr"])
def test_a_recording_that_cannot_be_is_refused_at_its_start(client, tmp_path, name):
    """Also for root, whom no permission stops."""
    (tmp_path / "file").write_text("")
    taken = tmp_path / name
    taken.write_text("precious")
    for path in (f"{tmp_path}/file/{name}", taken, f"/proc/{name}"):
        answer = client.call(client.record, Record.Request(start=True, path=str(path)))
        assert not answer.success and str(path) in answer.message, answer.message
        assert "No recording runs" in stop(client).message
    assert taken.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", taken])


@pytest.mark.parametrize("name", ["walk.mp4", "walk.lerobot"])
def test_a_recording_of_no_frame_says_so_and_leaves_nothing(client, tmp_path, name):
    start(client, tmp_path / name)
    answer = stop(client)
    assert not answer.success and "0 frames were recorded" in answer.message
    assert not any(tmp_path.iterdir())


def test_a_recording_of_bytes_without_a_frame_says_so(client, tmp_path):
    start(client, tmp_path / "walk.mcap")
    answer = stop(client)
    assert answer.success and "Recorded 0 frames (no whole frame" in answer.message
    assert f"{(tmp_path / 'walk.mcap').stat().st_size:,} bytes" in answer.message


def test_what_appears_meanwhile_is_not_written_over(client, seed_folder, tmp_path):
    path = tmp_path / "walk.mp4"
    start(client, path)
    roll_out(client, seed_folder)
    path.write_text("precious")
    answer = stop(client)
    assert not answer.success and "appeared while it was recorded" in answer.message
    assert path.read_text() == "precious"
    assert "20 frames" in recover(path)[0]


def test_every_name_is_resolved_as_the_node_does(tmp_path, seed_folder):
    """The usual way of several robots: a namespace, and /tf below it."""
    remaps = ("-r", "__ns:=/bot", "-r", "/tf:=/bot/tf", "-r", "color/image_raw:=eye")
    words = ("--seed", str(seed_folder), "--ros-args", *remaps, "-p", "plan_idle_s:=0.4")
    node = NodeProcess(tmp_path, *words)
    client = Client(node, *remaps)
    try:
        client.connect()
        node.wait_for("New world")
        client.record = client.node.create_client(Record, "mirage_node/record")
        client.bytes = {}
        own = tmp_path / "own.lerobot"
        start(client, own)
        other = [tmp_path / "other.mp4", "--frames", FRAMES, "--idle", 30, "--ros-args", *remaps]
        recorder = mirage_record(node, *other)
        client.spin_for(0.5)
        client.send_tf(stamps(FRAMES), sideways(seed_folder, FRAMES))
        client.wait_for_frames(FRAMES)
        answer = stop(client)
        size = sum(file.stat().st_size for file in own.rglob("*") if file.is_file())
        assert answer.success, answer.message
        assert f"Recorded {FRAMES} frames, {size:,} bytes" in answer.message
        rows = pq.read_table(own / "data/chunk-000/file-000.parquet")
        assert rows["stamp_ns"].to_pylist() == stamps(FRAMES)
        assert recorder.wait(60) == 0
        with av.open(str(tmp_path / "other.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == FRAMES
        assert f"Recorded {FRAMES} frames, " in recorder.stdout.read()
    finally:
        client.close()
        node.close()


def mirage_record(node: NodeProcess, *words) -> subprocess.Popen:
    """`mirage record`, connected."""
    recorder = subprocess.Popen(
        [sys.executable, "-m", "mirage_ros.cli", "record", *map(str, words)],
        stdout=subprocess.PIPE,
        env={**node.environment, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    while not ('"ready"' in (line := recorder.stdout.readline()) or "Connected" in line):
        assert recorder.poll() is None
    return recorder


@pytest.mark.parametrize("format", ["png", "lerobot"])
def test_mirage_record_puts_frames_together(client, process, seed_folder, tmp_path, format):
    path = tmp_path / "walk"
    words = [path, "--format", format, "--frames", FRAMES, "--idle", 30, "--json"]
    recorder = mirage_record(process, *words)
    client.spin_for(0.5)
    roll_out(client, seed_folder)
    assert recorder.wait(60) == 0
    if format == "lerobot":
        rows = pq.read_table(path / "data/chunk-000/file-000.parquet")
        assert rows["stamp_ns"].to_pylist() == stamps(FRAMES)
        return
    folder = PosedRgbd(path)
    assert len(folder) == FRAMES
    for index in (0, FRAMES - 1):
        assert np.array_equal(
            folder[index].rgb, picture_from_ros(client.got["color/image_raw"][index])
        )
        told = depth_from_ros(client.got["depth/image_rect"][index])
        np.testing.assert_allclose(folder[index].depth_m, told, atol=6e-4)
        np.testing.assert_allclose(
            folder[index].camera.world_from_camera, sideways(seed_folder, FRAMES)[index], atol=1e-6
        )


def test_killed_node_leaves_what_was_flushed(client, process, seed_folder, tmp_path):
    path = tmp_path / "walk.mcap"
    start(client, path)
    for part in range(3):
        roll_out(client, seed_folder, part * FRAMES)
        time.sleep(1.1)
    process.process.send_signal(signal.SIGKILL)
    process.process.wait()
    assert not path.exists()
    told = recover(path)[0]
    kept = read_mcap(path)
    assert f"{sum(map(len, kept.values()))} messages" in told
    for topic in PICTURES:
        found = kept[f"/{topic}"]
        # The last of the three parts may still have been waiting for its flush.
        assert 2 * FRAMES <= len(found) <= 3 * FRAMES, topic
        expect_equal(found, client.bytes[topic][: len(found)])


def test_parameter_records_until_the_node_ends(tmp_path, seed_folder):
    path = tmp_path / "walk.mcap"
    path.write_text("an older one, which stays")
    words = ("--seed", str(seed_folder), "--ros-args", "-p", f"record:={path}")
    node = NodeProcess(tmp_path, *words, "-p", "plan_idle_s:=0.4")
    client = Client(node)
    try:
        client.connect()
        node.wait_for("New world")
        client.send_tf(stamps(8), sideways(seed_folder, 8))
        client.wait_for_frames(8)
        client.spin_for(0.3)
        assert node.end(signal.SIGINT)[0] == 0, node.text()
        kept = read_mcap(tmp_path / "walk-1.mcap")
        assert [len(kept[f"/{topic}"]) for topic in PICTURES] == [8] * len(PICTURES)
        assert path.read_text() == "an older one, which stays"
    finally:
        client.close()
        node.close()

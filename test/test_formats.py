"""Recording formats other than LeRobot, what they share, and the mending of what was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import OpenEXR
import pytest
import yaml
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message, serialize_message
from recorded_frames import FEATURES, config, frame, record, values
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from tf2_msgs.msg import TFMessage

from mirage_ros.core.errors import MirageError
from mirage_ros.evaluation.posed_rgbd import PosedRgbd
from mirage_ros.recording.cdr import definition, frame_messages
from mirage_ros.recording.formats import (
    FORMATS,
    begin_episode,
    guess_format,
    open_dataset,
    open_recorder,
)
from mirage_ros.recording.mcap_writer import McapRecorder
from mirage_ros.recording.queued import Background
from mirage_ros.recording.recorder import Feature, RecordingConfig
from mirage_ros.recording.recovery import recover
from mirage_ros.ros.conversions import camera_info_to_ros, transform_to_ros
from mirage_ros.ros.image_conversions import depth_to_ros, mask_to_ros, picture_to_ros
from mirage_ros.ros.message_text import message_class

TESTS = Path(__file__).parent
# Writes episodes, or one long recording, until it is killed; told is what is on the disk.
WRITER = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
from recorded_frames import *
from mirage_ros.recording.formats import open_recorder
path, format, single = sys.argv[2], sys.argv[3], sys.argv[4] == "single"
with open_recorder(path, format, config(), single=single) as recorder:
    for number in itertools.count():
        if single:
            recorder.add(frame(number), values(number))
            print(number, flush=True)
        else:
            record(recorder, 4, number)
            print(number, flush=True)
"""


def ros_messages(f, world="world", camera="mirage_camera_optical_frame"):
    """What the node publishes of a frame."""
    info = camera_info_to_ros(f.camera, f.stamp_ns, camera)
    pose = transform_to_ros(f.camera.world_from_camera, world, camera, f.stamp_ns)
    return {
        "/tf": TFMessage(transforms=[pose]),
        "color/camera_info": info,
        "depth/camera_info": info,
        "color/image_raw": picture_to_ros(f.rgb, f.stamp_ns, camera),
        "depth/image_rect": depth_to_ros(f.depth_m, f.stamp_ns, camera),
        "observed/image": mask_to_ros(f.observed, f.stamp_ns, camera),
    }


def test_messages_without_ros_are_those_of_the_node():
    store, f = get_typestore(Stores.ROS2_KILTED), frame(3)
    expected = ros_messages(f)
    found = {name: (kind, data) for name, kind, data in frame_messages(f, config())}
    assert set(found) == set(expected)
    for name, (kind, data) in found.items():
        assert deserialize_message(data, message_class(kind)) == expected[name], name
        # The middleware does not clear the gaps between fields: read and written again, it does.
        bytes_ = serialize_message(expected[name])
        assert bytes(store.serialize_cdr(store.deserialize_cdr(bytes_, kind), kind)) == data, name


def test_type_hashes_are_those_of_ros(ros_domain):
    import rclpy
    from sensor_msgs.msg import CameraInfo, Image

    rclpy.init()
    try:
        node = rclpy.create_node("hashes")
        for kind, topic in ((Image, "a"), (CameraInfo, "b"), (TFMessage, "c")):
            node.create_publisher(kind, topic, 1)
            deadline = time.monotonic() + 10
            while not (infos := node.get_publishers_info_by_topic(topic)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            _, type_hash = definition(infos[0].topic_type)
            assert str(infos[0].topic_type_hash) == type_hash
    finally:
        rclpy.shutdown()


def test_bags_hold_frames_and_values(tmp_path):
    with open_recorder(tmp_path / "bags", "mcap", config(namespace="robot")) as recorder:
        record(recorder, 5, 0)
        record(recorder, 3, 1)
    path = tmp_path / "bags" / "episode-000001"
    store = get_typestore(Stores.ROS2_KILTED)
    with Reader(path) as bag:
        counts = {c.topic: c.msgcount for c in bag.connections}
        messages = {c.topic: [] for c in bag.connections}
        for connection, time_ns, data in bag.messages():
            messages[connection.topic].append((time_ns, data, connection))
    own = {f"/robot/{name.replace('.', '/')}" for name in FEATURES}
    assert own <= set(counts) and set(counts.values()) == {3}
    for number in range(3):
        f = frame(number, 1)
        for name, kind, data in frame_messages(f, config()):
            topic = name if name.startswith("/") else f"/robot/{name}"
            time_ns, kept, connection = messages[topic][number]
            assert (time_ns, kept, connection.msgtype) == (f.stamp_ns, data, kind)
        for name, told in values(number, 1).items():
            _, data, connection = messages[f"/robot/{name.replace('.', '/')}"][number]
            value = store.deserialize_cdr(data, connection.msgtype)
            assert np.array_equal(value.data, told) and value.layout.dim[0].size == len(told)
    text = (path / "metadata.yaml").read_text()
    about = yaml.safe_load(text)["rosbag2_bagfile_information"]
    assert about["version"] == 9 and about["relative_file_paths"] == ["episode-000001_0.mcap"]
    assert "*id" not in text  # not every YAML reader knows aliases
    topic = about["topics_with_message_count"][0]["topic_metadata"]
    assert topic["offered_qos_profiles"][0]["reliability"] == "reliable"
    with (path / "episode-000001_0.mcap").open("rb") as stream:
        summary = make_reader(stream).get_summary()
        assert {s.encoding for s in summary.schemas.values()} == {"ros2msg"}
        image = next(s for s in summary.schemas.values() if s.name == "sensor_msgs/msg/Image")
        assert (
            b"MSG: std_msgs/Header" in image.data and b"MSG: builtin_interfaces/Time" in image.data
        )
        notes = {m.name: m.metadata for m in make_reader(stream).iter_metadata()}
    assert notes["mirage_ros"] == {"task": "task 1", "info": '{"seed": 1}'}


@pytest.mark.parametrize("depth", ["png", "exr"])
def test_picture_folders_are_posed_rgbd(tmp_path, depth):
    with open_recorder(tmp_path / "walk", depth, config(), single=True) as recorder:
        for number in range(3):
            recorder.add(frame(number), values(number))
    root = tmp_path / "walk"
    for number in range(3):
        told = frame(number)
        if depth == "png":
            found = PosedRgbd(root)[number]
            assert np.array_equal(found.rgb, told.rgb)
            np.testing.assert_allclose(found.depth_m, told.depth_m, atol=5.1e-4)
            assert np.array_equal(found.camera.world_from_camera, told.camera.world_from_camera)
            np.testing.assert_allclose(found.camera.intrinsics, told.camera.intrinsics)
        else:
            file = OpenEXR.File(str(root / f"depth/{number:06d}.exr"))
            assert np.array_equal(file.channels()["Z"].pixels, told.depth_m, equal_nan=True)
        mask = cv2.imread(str(root / f"observed/{number:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask > 127, told.observed)
    stamps = [int(line) for line in (root / "stamps_ns.txt").read_text().split()]
    assert stamps == [frame(number).stamp_ns for number in range(3)]


def test_video_shows_every_frame(tmp_path):
    with open_recorder(tmp_path / "walk.mp4", "video", config(), single=True) as recorder:
        for number in range(5):
            recorder.add(frame(number), values(number))
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4"))
    assert frames == 5 and seconds == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finished_is_not_there(tmp_path, format):
    path = tmp_path / "data"
    with open_recorder(path, format, config()) as recorder:
        record(recorder, 2, 0)
        recorder.start_episode("forgotten")
        recorder.add(frame(0), values(0))
        recorder.discard_episode()
    with pytest.raises(ZeroDivisionError), open_recorder(path, format, config()) as recorder:
        recorder.add(frame(0), values(0))
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), begin_episode(path, format, config(), 1) as episode:
        episode.add(frame(0), values(0))
        raise ZeroDivisionError
    dataset = open_dataset(path, format, config())
    assert dataset.episodes == 1 and dataset.finished() == {0}
    dataset.close()
    assert not [p for p in path.rglob("*") if ".tmp" in p.name]


@pytest.mark.parametrize("format", FORMATS)
def test_an_episode_that_is_begun_anew_replaces_the_half_one(tmp_path, format):
    # As a worker leaves it that is killed: nobody lets go of the files.
    begin_episode(tmp_path, format, config(), 0).add(frame(0), values(0))
    (half,) = tmp_path.rglob(f"*.{os.getpid()}.tmp*")
    half.rename(half.with_name(half.name.replace(str(os.getpid()), "1")))
    with begin_episode(tmp_path, format, config(), 0) as episode:
        episode.add(frame(0), values(0))
    assert not list(tmp_path.rglob("*.tmp*"))
    dataset = open_dataset(tmp_path, format, config())
    assert dataset.finished() == {0}
    dataset.close()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_a_dataset_takes_no_episode_of_another_format(tmp_path, format):
    with open_recorder(tmp_path, format, config()) as recorder:
        record(recorder, 2)
    before = files_of(tmp_path)
    for other in set(FORMATS) - {format}:
        with pytest.raises(MirageError, match=f"holds {format} .*or that format"):
            open_dataset(tmp_path, other, config())
    assert files_of(tmp_path) == before
    dataset = open_dataset(tmp_path, format, config())
    assert dataset.episodes == 1
    dataset.close()


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_dataset_is_left_alone(tmp_path, format):
    mine = tmp_path / "project"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / ".keep").write_text("mine")
    with open_recorder(tmp_path / "walk", "mcap", config(), single=True) as recorder:
        recorder.add(frame(0), values(0))
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    for name, told in (("project", "another kind"), ("walk", "single"), ("file", "is a file")):
        with pytest.raises(MirageError, match=told):
            open_dataset(tmp_path / name, format, config())
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("format", ["mcap", "video", "png"])
def test_a_recording_that_is_cut_off_by_an_error_is_kept(tmp_path, format):
    path = tmp_path / {"mcap": "walk.mcap", "video": "walk.mp4", "png": "walk"}[format]
    with (
        pytest.raises(ZeroDivisionError),
        open_recorder(path, format, config(), single=True) as recorder,
    ):
        for number in range(3):
            recorder.add(frame(number), values(number))
        raise ZeroDivisionError
    assert path.exists() and list(tmp_path.iterdir()) == [path]


def test_a_slow_disk_slows_the_caller_and_drops_nothing():
    done, background = [], Background(waiting=3)

    def slow(number):
        time.sleep(0.03)
        done.append(number)

    start_s, longest = time.monotonic(), 0
    for number in range(20):
        background.put(lambda number=number: slow(number))
        longest = max(longest, number + 1 - len(done))
    assert time.monotonic() - start_s > 0.4 and longest <= 5
    background.wait()
    assert done == list(range(20))
    background.put(lambda: 1 / 0)
    background.put(lambda: done.append("after an error"))
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.stop()
    assert done == list(range(20))


def kill_while_writing(path: Path, format: str, kind: str, lines: int) -> int:
    """Starts a writer, kills it after so many lines; returns how many it had told."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, TESTS, path, format, kind], stdout=subprocess.PIPE, text=True
    )
    told = [writer.stdout.readline() for _ in range(lines)]
    assert told[-1], "the writer ended"
    time.sleep(0.02)
    writer.kill()
    told += writer.stdout.readlines()
    writer.wait()
    return len([line for line in told if line.endswith("\n")])


@pytest.mark.parametrize("format", FORMATS)
def test_killed_writer_loses_no_finished_episode(tmp_path, format):
    # MIRAGE_KILLS=20 kills each format's writer that often.
    for attempt in range(int(os.environ.get("MIRAGE_KILLS", "1"))):
        path = tmp_path / f"data{attempt}"
        told = kill_while_writing(path, format, "many", 2 + attempt % 3)
        sentence = recover(path)[0]
        dataset = open_dataset(path, format, config())
        # One more may have been finished before it could be told.
        assert told <= dataset.episodes <= told + 1, (told, sentence)
        dataset.close()
        with open_recorder(path, format, config()) as recorder:
            before = recorder.episodes
            record(recorder, 4, before)
        assert recorder.episodes == before + 1


@pytest.mark.parametrize("name", ["walk.mcap", "walk"])
def test_killed_recording_is_mended(tmp_path, name):
    path = tmp_path / name
    told = kill_while_writing(path, "mcap", "single", 120)
    (sentence,) = recover(path)
    with Reader(path) as bag:
        kept = [d for c, _, d in bag.messages() if c.topic == "/color/image_raw"]
    assert 1 <= len(kept) <= told + 64 and str(path) in sentence
    expected = [
        dict((n, d) for n, _, d in frame_messages(frame(k), config())) for k in (0, len(kept) - 1)
    ]
    assert [kept[0], kept[-1]] == [messages["color/image_raw"] for messages in expected]
    assert list(tmp_path.iterdir()) == [path]
    again = recover(path)
    assert "whole" in again[0]


def test_killed_pictures_and_video_are_mended(tmp_path):
    told = kill_while_writing(tmp_path / "walk", "png", "single", 120)
    assert recover(tmp_path / "walk")
    assert 1 <= len(PosedRgbd(tmp_path / "walk")) <= told + 64
    kill_while_writing(tmp_path / "walk.mp4", "video", "single", 80)
    assert "frames" in recover(tmp_path / "walk.mp4")[0]
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4"))[0] > 0


@pytest.mark.parametrize("cut", [1, 7, 100, 5000, 60_000])
def test_cut_file_keeps_all_whole_chunks(tmp_path, cut):
    path = tmp_path / "a.mcap"
    with McapRecorder(path) as recorder:
        recorder.channel("/n", "std_msgs/msg/String", "string data")
        rng = np.random.default_rng(0)
        for number in range(40):
            recorder.write("/n", rng.bytes(2000), number)
            if number % 10 == 9:
                recorder.flush()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    (sentence,) = recover(path)
    with path.open("rb") as stream:
        kept = [m.data for _, _, m in make_reader(stream).iter_messages()]
    rng = np.random.default_rng(0)
    assert kept == [rng.bytes(2000) for _ in range(len(kept))]
    assert len(kept) == {1: 40, 7: 40, 100: 40, 5000: 30, 60_000: 10}[cut], sentence


def test_recording_in_progress_is_not_mended(tmp_path):
    with McapRecorder(tmp_path / "a.mcap") as recorder:
        recorder.channel("/n", "std_msgs/msg/String", "string data")
        recorder.write("/n", b"1234", 1)
        with pytest.raises(MirageError, match="being recorded"):
            recover(tmp_path / "a.mcap")
    with pytest.raises(MirageError, match="no recording"):
        recover(tmp_path / "nothing")
    (tmp_path / "b.mcap.tmp").write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(MirageError, match="first message"):
        recover(tmp_path / "b.mcap")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mcap", "b.mcap.tmp"]


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from recorded_frames import *
from mirage_ros.core.errors import MirageError
from mirage_ros.recording.formats import open_recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, format, single = sys.argv[2], sys.argv[3], sys.argv[4] == "single"
try:
    with open_recorder(path, format, config(), single=single) as recorder:
        if not single:
            record(recorder, 4, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
        recorder.start_episode()
        for number in range(400):
            recorder.add(frame(number), values(number))
except MirageError as error:
    print(error)
"""


@pytest.mark.parametrize("format", ["lerobot", "mcap", "png"])
def test_full_disk_is_one_clear_error_and_loses_nothing_finished(tmp_path, format):
    path, limit = tmp_path / "data", {"lerobot": 20_000, "mcap": 200_000, "png": 2_000}[format]
    words = [sys.executable, "-c", FULL, TESTS, path, format, "many", str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("The disk is full") and done.stdout.count("\n") == 1, done.stderr
    assert done.returncode == 0 and "`mirage recover`" in done.stdout
    dataset = open_dataset(path, format, config())
    assert dataset.episodes == 1
    dataset.close()


def test_full_disk_keeps_what_was_recorded_until_then(tmp_path):
    path = tmp_path / "walk.mcap"
    words = [sys.executable, "-c", FULL, TESTS, path, "mcap", "single", "2500000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("The disk is full"), done.stderr
    assert "messages" in recover(path)[0]
    with Reader(path) as bag:
        assert bag.message_count > 10


def test_formats_are_told_by_ending():
    names = ("a.mcap", "a", "a.mp4", "a.lerobot", "a.png", "a.exr", "a/b.c")
    found = [guess_format(name) for name in names]
    assert found == ["mcap", "mcap", "video", "lerobot", "png", "exr", "mcap"]


def test_wrong_configs_are_refused(tmp_path):
    for wrong, told in (
        (lambda: RecordingConfig(0.0), "above 0"),
        (lambda: RecordingConfig(10.0, video_codec="vp9"), "h264, av1"),
        (lambda: Feature((2, 3)), "give"),
        (lambda: Feature((2,), "float16"), "one of"),
        (lambda: Feature((2,), names=("a",)), "one each"),
        (lambda: open_recorder(tmp_path / "a", "gif", config()), "lerobot, mcap"),
    ):
        with pytest.raises(MirageError, match=told):
            wrong()
    (tmp_path / "folder").mkdir()
    with pytest.raises(MirageError, match="there already"):
        McapRecorder(tmp_path / "folder")


def test_the_cost_of_recording_is_told(tmp_path):
    from fakes import PixelModel
    from make_seed import write_seed

    from mirage_ros.evaluation.bench_record import RecordBenchConfig, describe, run_bench
    from mirage_ros.seeds import load_seed

    seed = load_seed(write_seed(tmp_path / "seed"))
    report = run_bench(PixelModel(), seed, RecordBenchConfig(("mcap", "lerobot", "video"), 2, 8))
    assert set(report["formats"]) == {"mcap", "lerobot h264", "lerobot av1", "video"}
    for entry in report["formats"].values():
        assert len(entry["plain"]) == len(entry["recorded"]) == 2
        assert min(entry["plain"] + entry["recorded"]) > 0 and entry["end_s"] > 0
        assert entry["ratio"] > 0 and 0 < entry["cpu_share"] < entry["cpu_share_with_end"]
        assert min(entry["cpu_plain"] + entry["cpu_adding"]) > 0
    assert "lerobot av1" in describe(report)

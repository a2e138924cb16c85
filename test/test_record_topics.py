"""What `mirage record` and the node's own recording do with what arrives, without a model."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from mcap.reader import make_reader
from mirage_ros.srv import Record
from rclpy.qos import HistoryPolicy, QoSProfile
from rclpy.serialization import serialize_message
from tf2_msgs.msg import TFMessage

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.recording.formats import recover
from mirage_ros.recording.topics import BY_NAME, IMAGE, INFO
from mirage_ros.ros import CameraOutput
from mirage_ros.ros.callbacks import defer
from mirage_ros.ros.image_messages import depth_to_ros, mask_to_ros, picture_to_ros
from mirage_ros.ros.messages import camera_info_to_ros, message_class, transform_to_ros
from mirage_ros.ros.playback import FrameAssembler
from mirage_ros.ros.recorder import EPISODE_FRAMES, PICTURES, RecorderConfig, Tally, TopicRecorder
from mirage_ros.ros.services.recording import RecordService, recorded_by_node, unused

TESTS = Path(__file__).parent
# A recording of frames that come without a node, until it is killed.
LIVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from recorded_frames import frame
from mirage_ros.ros.recorder import FrameSink, RecorderConfig, Source
class Frames:
    def add(self, name, type_name, number):
        yield frame(number)
sink = FrameSink(RecorderConfig(Path(sys.argv[2]), format="lerobot"))
sink._assembler = Frames()
for number in range(int(sys.argv[3])):
    sink.take(None, Source("", "", ""), number, {})
sink._recorder._background.wait()
os.kill(os.getpid(), 9)
"""


def test_a_killed_lerobot_recording_loses_its_last_episode_alone(tmp_path):
    assert EPISODE_FRAMES <= 100
    path, count = tmp_path / "walk.lerobot", 2 * EPISODE_FRAMES + 7
    words = [sys.executable, "-c", LIVE, TESTS, path, str(count)]
    assert subprocess.run(words, check=False).returncode == -9
    assert "2 episodes" in recover(path)[0]
    rows = pq.read_table(path / "data/chunk-000/file-000.parquet")
    assert len(rows) == 2 * EPISODE_FRAMES


def test_a_tally_counts_frames_and_forgets_whole_ones():
    tally = Tally()
    for stamp_ns in range(1000):
        for name in PICTURES:
            tally.add(name, stamp_ns)
        assert (tally.complete, tally.incomplete) == (stamp_ns + 1, 0)
    tally.add(PICTURES[0], 1000)
    tally.add(PICTURES[0], 1000)
    tally.add(PICTURES[1], 1001)
    assert (tally.complete, tally.incomplete) == (1000, 2)
    assert tally.last_picture_s is not None and len(tally._partly) == 2


def test_what_others_put_on_tf_costs_no_frame():
    assembler, camera = FrameAssembler(), Camera.from_hfov(60.0, (4, 6))
    types = {"/tf": "tf2_msgs/msg/TFMessage", "color/camera_info": "sensor_msgs/msg/CameraInfo"}

    def add(name: str, message) -> list:
        return list(assembler.add(name, types.get(name, "sensor_msgs/msg/Image"), serialize_message(message)))

    def put(*transforms) -> list:
        return add("/tf", TFMessage(transforms=transforms))

    bad = transform_to_ros(np.eye(4), "world", "arm", 7)
    bad.header.stamp.sec = -1
    crooked = transform_to_ros(np.eye(4), "world", "rendered", 7)
    crooked.transform.rotation.w = float("nan")
    own = transform_to_ros(np.eye(4), "world", "rendered", 7)
    assert not add("color/image_raw", picture_to_ros(np.zeros((4, 6, 3), np.uint8), 7, "rendered"))
    assert not add("depth/image_rect", depth_to_ros(np.ones((4, 6)), 7, "rendered"))
    assert not add("observed/image", mask_to_ros(np.ones((4, 6), bool), 7, "rendered"))
    planned = [transform_to_ros(np.eye(4), "world", "camera", 10**9 + stamp) for stamp in range(5000)]
    assert not put(bad, own, crooked, *planned[:100])
    assert not put(*planned[100:]) and not put(bad, own)
    (frame,) = add("color/camera_info", camera_info_to_ros(camera, 7, "rendered"))
    assert frame.stamp_ns == 7


def test_a_rigs_node_records_every_camera_and_nothing_on_demand():
    cameras = [CameraOutput(name, f"{name}/", name) for name in ("left", "right")]
    found = recorded_by_node(lambda name: name if name[0] == "/" else f"/bot/{name}", cameras)
    assert {found[f"/bot/left/{name}"] for name in PICTURES} == set(PICTURES)
    assert all(found[f"/bot/right/{name}"] == f"/bot/right/{name}" for name in PICTURES)
    own = {"/bot/cache/points", "/bot/cache/deltas", "/bot/status", "/tf", "/tf_static", "/diagnostics", "/clock"}
    assert set(found) - own == {f"/bot/{camera}/{name}" for camera in ("left", "right") for name in PICTURES}


class Counting:
    """A sink."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def take(self, node, source, data, info) -> None:
        self.names.append(source.name)


def test_nothing_that_was_not_read_yet_is_written_over(ros_domain):
    count, sink = 800, Counting()
    rclpy.init()
    try:
        recorder = TopicRecorder(RecorderConfig(Path("unused")), sink, Tally())
        node = rclpy.create_node("talker")
        qos = QoSProfile(history=HistoryPolicy.KEEP_ALL)
        publisher = node.create_publisher(DiagnosticArray, "/diagnostics", qos)
        while not publisher.get_subscription_count():
            rclpy.spin_once(recorder, timeout_sec=0.05)
        for _ in range(count):
            publisher.publish(DiagnosticArray())
        deadline_s = time.monotonic() + 10
        while len(sink.names) < count and time.monotonic() < deadline_s:
            rclpy.spin_once(recorder, timeout_sec=0.2)
    finally:
        rclpy.shutdown()
    assert sink.names == ["/diagnostics"] * count


FLEET = """robots:
  - {namespace: ada, cameras: [{name: camera, width: 8, height: 8, hfov_deg: 60}]}
  - {namespace: bob, cameras: [{name: left, width: 8, height: 8, hfov_deg: 60}, {name: right, width: 8, height: 8, hfov_deg: 60}]}
"""
CAMERAS = ("ada/", "bob/left/", "bob/right/")


def test_several_robots_come_into_one_recording(tmp_path, ros_domain):
    """`mirage record --robots`: a frame counts once it came of all cameras."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    path, count = tmp_path / "fleet.mcap", 3
    words = [sys.executable, "-m", "mirage_ros.cli", "record", path, "--robots", tmp_path / "fleet.yaml", "--frames", str(count), "--json"]
    camera = Camera.from_hfov(60.0, (4, 6))
    makers = {INFO: lambda stamp_ns, frame: camera_info_to_ros(camera, stamp_ns, frame),
              IMAGE: lambda stamp_ns, frame: picture_to_ros(np.zeros((4, 6, 3), np.uint8), stamp_ns, frame)}  # fmt: skip
    rclpy.init()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        node = rclpy.create_node("fleet")
        kinds = {f"/{prefix}{name}": BY_NAME[name].type_name for prefix in CAMERAS for name in PICTURES}
        publishers = {topic: node.create_publisher(message_class(kind), topic, 16) for topic, kind in kinds.items()}
        deadline_s = time.monotonic() + 60
        while not all(publisher.get_subscription_count() for publisher in publishers.values()):
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.05)
        for stamp_ns in range(1, count + 2):
            for topic, publisher in publishers.items():
                if stamp_ns <= count or topic.startswith("/bob/left"):
                    publisher.publish(makers[kinds[topic]](stamp_ns, topic.split("/")[1]))
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        rclpy.shutdown()
    assert process.returncode == 0 and '"count": 3' in said
    with path.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    found = {channel.topic: summary.statistics.channel_message_counts[number] for number, channel in summary.channels.items()}
    assert found == {topic: count + topic.startswith("/bob/left") for topic in kinds}
    refused = subprocess.run([*words[:4], tmp_path / "fleet.mp4", *words[5:7]], capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "Of 3 cameras only MCAP makes one recording, not video" in refused.stderr
    assert not (tmp_path / "fleet.mp4").exists()


class SlowRecording:
    """Its end takes until `go` is set."""

    def __init__(self, go: threading.Event, error: str = "") -> None:
        self.path, self.left_s, self._go, self._error = Path("walk.mcap"), None, go, error

    def leave(self, drain_s: float = 2.0) -> None:
        self.left_s = drain_s

    def finish(self) -> str:
        assert self._go.wait(30)
        if self._error:
            raise MirageError(self._error)
        return "Recorded 3 frames."


class Asked:
    """Endpoints of one service: notes what is answered, and has a guard condition that a thread can trigger."""

    def __init__(self) -> None:
        self.answers, self.woken, self.logged = [], threading.Event(), []
        self.running = lambda: True

    def guard_condition(self, callback) -> SimpleNamespace:
        return SimpleNamespace(trigger=self.woken.set)

    def service(self, kind, name, callback) -> None:
        service = SimpleNamespace(send_response=lambda answer, header: self.answers.append(answer))
        defer(service)
        self.ask = lambda request: service.send_response(callback(request, Record.Response()), None)

    def recorder(self, *recordings: SlowRecording) -> RecordService:
        """The service, which makes these recordings one after the other."""
        log, left = SimpleNamespace(info=self.logged.append, error=self.logged.append), iter(recordings)
        return RecordService(self, lambda path: next(left), lambda: "", None, log)


@pytest.mark.parametrize("error", ["", "The disk is full."])
def test_the_end_of_a_recording_does_not_hold_up_the_node(error):
    node, go = Asked(), threading.Event()
    recording = SlowRecording(go, error)
    service = node.recorder(recording)
    service.start("walk.mcap")
    node.ask(Record.Request(start=False))
    # The executor is free again, and nobody was answered yet.
    assert recording.left_s < 0.1 and node.answers == []
    node.ask(Record.Request(start=False))
    assert "No recording runs" in node.answers.pop().message
    go.set()
    assert node.woken.wait(30)
    service._answer()
    (answer,) = node.answers
    assert answer.success == (not error) and answer.message == (error or "Recorded 3 frames.")
    assert answer.path == ("" if error else "walk.mcap")


def test_a_change_of_state_that_ends_a_recording_is_answered_when_it_is_whole():
    node, go, answers = Asked(), threading.Event(), []
    recording = SlowRecording(go)
    service = node.recorder(recording)
    assert service.when_ended("at once") == "at once"
    service.start("walk.mcap")
    service.leave_off()
    service.when_ended("later").bind(answers.append)
    # The executor is free again.
    assert recording.left_s < 0.1 and answers == []
    go.set()
    assert node.woken.wait(30)
    service._answer()
    assert answers == ["later"] and node.logged == ["Recorded 3 frames."]


def test_a_node_that_ends_waits_for_its_recordings():
    node, go = Asked(), threading.Event()
    other = SlowRecording(go)
    service = node.recorder(SlowRecording(go), other)
    service.start("walk.mcap")
    node.ask(Record.Request(start=False))
    service.start("other.mcap")
    threading.Timer(0.3, go.set).start()
    service.end()
    assert other.left_s == 2.0 and node.logged == ["Recorded 3 frames."]
    assert [answer.success for answer in node.answers] == [True]


@pytest.mark.parametrize("left", ["walk.mcap", "walk.mcap.tmp", ".walk.17.tmp.mcap"])
def test_what_a_killed_node_left_keeps_its_name(tmp_path, left):
    (tmp_path / left).write_text("half")
    assert unused(tmp_path / "walk.mcap") == tmp_path / "walk-1.mcap"
    assert unused(tmp_path / "other.mcap") == tmp_path / "other.mcap"

"""What `mirage record` and the node's own recording do with what arrives, without a model."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import HistoryPolicy, QoSProfile

from mirage_ros.recording.recovery import recover
from mirage_ros.ros.recorder import EPISODE_FRAMES, PICTURES, RecorderConfig, Tally, TopicRecorder
from mirage_ros.ros.services.recording import unused

TESTS = Path(__file__).parent
# A recording of frames that come without a node, until it is killed.
LIVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from recorded_frames import frame
from mirage_ros.ros.recorder import FrameSink, RecorderConfig
class Frames:
    def add(self, name, type_name, number):
        yield frame(number)
sink = FrameSink(RecorderConfig(Path(sys.argv[2]), format="lerobot"))
sink._assembler = Frames()
for number in range(int(sys.argv[3])):
    sink.take(None, "", "", number, {})
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


class Counting:
    """A sink."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def take(self, node, name, type_name, data, info) -> None:
        self.names.append(name)


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


@pytest.mark.parametrize("left", ["walk.mcap", "walk.mcap.tmp", ".walk.17.tmp.mcap"])
def test_what_a_killed_node_left_keeps_its_name(tmp_path, left):
    (tmp_path / left).write_text("half")
    assert unused(tmp_path / "walk.mcap") == tmp_path / "walk-1.mcap"
    assert unused(tmp_path / "other.mcap") == tmp_path / "other.mcap"

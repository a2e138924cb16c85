"""Pictures on demand, cloud deltas and their cap; and over DDS that nobody works for nobody."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from lazy_talker import PERIOD_NS, make_frame, make_points
from make_seed import write_seed
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from ros_client import LOCAL, Client, NodeProcess, new_domain
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from visualization_msgs.msg import MarkerArray

from mirage_ros.data.seeds import load_seed
from mirage_ros.geometry.camera import Camera
from mirage_ros.recording.topics import CONTACTS, MAP, OBSTACLES, TOPICS
from mirage_ros.ros.doctor import GraphWatch
from mirage_ros.ros.image_messages import (
    depth_from_compressed,
    depth_from_ros,
    picture_from_compressed,
    picture_from_ros,
)
from mirage_ros.ros.messages import POINT, cloud_from_ros, pose_from_ros, stamp_from_ros
from mirage_ros.ros.topics import Deltas, token_keys

TALKER = str(Path(__file__).parent / "lazy_talker.py")


def test_deltas_add_up_to_the_memory():
    deltas, had = Deltas(0.0), np.zeros(0, np.uint64)
    for count in (10, 10, 300, 301):
        points = make_points(count)
        new = deltas.take(points)
        had = np.concatenate([had, token_keys(points)[new]])
        assert sorted(had) == sorted(token_keys(points))
    assert len(np.unique(had)) == 301


def test_a_replaced_token_is_sent_again_and_a_dropped_one_is_forgotten():
    deltas, points = Deltas(0.0), make_points(20)
    assert deltas.take(points).all()
    written_ns = points.written_ns.copy()
    written_ns[5] += 10**12
    assert np.flatnonzero(deltas.take(points._replace(written_ns=written_ns))).tolist() == [5]
    fewer = type(points)(*(values[:4] for values in points))
    assert not deltas.take(fewer).any()
    assert np.flatnonzero(deltas.take(points)).tolist() == list(range(4, 20))


def test_a_follower_of_a_lost_world_is_stale():
    deltas, points = Deltas(0.0), make_points(20)
    assert not deltas.stale(points)
    deltas.take(points)
    fewer = type(points)(*(values[:12] for values in points))
    assert not deltas.stale(points) and not deltas.stale(fewer)
    deltas.take(fewer)
    assert deltas.stale(points._replace(written_ns=points.written_ns + 1))
    assert deltas.stale(type(points)(*(values[:8] for values in points)))


def test_the_cap_holds_and_the_oldest_go_first():
    now_s = [0.0]
    deltas = Deltas(10.0 * POINT.itemsize, lambda: now_s[0])
    points, sent = make_points(100), []
    shuffled = type(points)(*(values[::-1].copy() for values in points))
    for _ in range(100):
        new = deltas.take(shuffled)
        sent += sorted(shuffled.written_ns[new].tolist())
        assert len(sent) <= 10 * (now_s[0] + 1) + 1e-6
        assert deltas.backlog == 100 - len(sent)
        now_s[0] += 0.1
    assert sent == sorted(sent) and len(sent) == 100


class Talker:
    """The talker's process and a listener of its own."""

    def __init__(self, *arguments: str) -> None:
        self.domain = new_domain()
        environment = {**os.environ, **LOCAL, "ROS_DOMAIN_ID": str(self.domain)}
        self.process = subprocess.Popen(
            [sys.executable, TALKER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
        )
        self.made: queue.SimpleQueue[dict] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        os.environ.update(LOCAL)
        self.context = Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.last = self.made.get(timeout=60)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.made.put(json.loads(line))

    def listen(self, kind: type, topic: str) -> list:
        got: list = []
        self.node.create_subscription(kind, topic, got.append, 100)
        return got

    def spin(self, until, patience_s: float = 30.0) -> None:
        end = time.monotonic() + patience_s
        while not until():
            assert time.monotonic() < end and self.process.poll() is None, self.last
            self.executor.spin_once(timeout_sec=0.05)
            while not self.made.empty():
                self.last = self.made.get()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope="module")
def talker():
    """100 tokens of 24 bytes every 50 ms are 48 kB/s, twice the cap."""
    talker = Talker("24000", "100")
    yield talker
    talker.close()


def test_the_doctor_has_nothing_made_on_demand(talker):
    node = rclpy.create_node("looking", context=talker.context)
    executor = SingleThreadedExecutor(context=talker.context)
    executor.add_node(node)
    watch, deadline_s = GraphWatch(node), time.monotonic() + 20
    while not {"/color/camera_info", "/depth/camera_info"} <= set(watch.graph.frames):
        assert time.monotonic() < deadline_s
        watch.watch(0.5, executor.spin_once)
    executor.shutdown()
    node.destroy_node()
    talker.spin(lambda: talker.last["color/camera_info"])
    # The talker has no world, and so no map and nothing to touch.
    of_worlds = {MAP, CONTACTS, OBSTACLES}
    assert not any(talker.last[topic.name] for topic in TOPICS if topic.on_demand and topic.name not in of_worlds)
    start = talker.last["frames"]
    talker.spin(lambda: talker.last["frames"] > start + 2 and not gained(talker))


def gained(talker) -> dict[str, int]:
    """What was made since the last look, for subscribers that are not gone yet."""
    before = talker.last
    talker.spin(lambda: talker.last["frames"] > before["frames"])
    return {name: count for name, count in talker.last.items() if count > before[name] and name != "frames"}


def test_nothing_is_made_for_nobody_and_pictures_come_on_demand(talker):
    start = talker.last["frames"]
    talker.spin(lambda: talker.last["frames"] >= start + 10)
    assert not gained(talker)
    colour = talker.listen(CompressedImage, "color/image_raw/compressed")
    talker.spin(lambda: len(colour) >= 5)
    assert set(gained(talker)) == {"color/image_raw/compressed"}
    depth = talker.listen(CompressedImage, "depth/image_rect/compressedDepth")
    talker.spin(lambda: len(depth) >= 5)
    frame = make_frame(0)
    assert np.abs(picture_from_compressed(colour[-1]).astype(int) - frame.rgb).max() <= 20
    valid = np.isfinite(frame.depth_m)
    back = depth_from_compressed(depth[-1])
    assert (np.isfinite(back) == valid).all()
    np.testing.assert_allclose(back[valid], frame.depth_m[valid], atol=2e-3)
    assert stamp_from_ros(depth[-1].header.stamp) % PERIOD_NS == 0


def test_depth_comes_in_millimetres_as_openni_gives_it(talker):
    got = talker.listen(Image, "depth/image_raw")
    talker.spin(lambda: got)
    image, frame = got[-1], make_frame(0)
    assert (image.encoding, image.step, image.header.frame_id) == ("16UC1", 2 * image.width, "camera")
    assert stamp_from_ros(image.header.stamp) % PERIOD_NS == 0
    pixels = np.frombuffer(image.data, np.uint16).reshape(image.height, image.width)
    valid = np.isfinite(frame.depth_m)
    assert not pixels[~valid].any()
    assert (pixels[valid] == np.rint(frame.depth_m[valid] * 1000)).all()
    back = depth_from_ros(image)
    assert np.isnan(back[~valid]).all() and np.abs(back - frame.depth_m)[valid].max() <= 5.1e-4


def test_every_pixel_becomes_a_point_of_the_cameras_frame(talker):
    got = talker.listen(PointCloud2, "depth/color/points")
    talker.spin(lambda: got)
    cloud, frame = got[-1], make_frame(0)
    height, width = frame.depth_m.shape
    assert (cloud.height, cloud.width, cloud.row_step) == (height, width, width * cloud.point_step)
    assert not cloud.is_dense and not cloud.is_bigendian and cloud.header.frame_id == "camera"
    assert stamp_from_ros(cloud.header.stamp) % PERIOD_NS == 0
    assert [(field.name, field.offset) for field in cloud.fields] == [("x", 0), ("y", 4), ("z", 8), ("rgb", 12)]
    assert {(field.datatype, field.count) for field in cloud.fields} == {(PointField.FLOAT32, 1)}
    values = np.frombuffer(cloud.data, np.float32).reshape(height, width, -1)
    valid = np.isfinite(frame.depth_m)
    assert np.isnan(values[~valid, :3]).all() and (values[valid, 2] == frame.depth_m[valid]).all()
    camera = Camera(frame.camera.intrinsics, np.eye(4), frame.camera.size)
    pixels, _ = camera.project(values[valid, :3])
    rows, columns = np.nonzero(valid)
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-4)
    red_green_blue = np.frombuffer(cloud.data, np.uint8).reshape(height, width, -1)[..., [14, 13, 12]]
    assert (red_green_blue == frame.rgb).all()


def test_markers_follow_the_camera(talker):
    got = talker.listen(MarkerArray, "markers")
    talker.spin(lambda: len(got) >= 3)
    frustum, trail = got[-1].markers
    index = stamp_from_ros(frustum.header.stamp) // PERIOD_NS - 1
    assert frustum.pose.position.x == pytest.approx(0.05 * index)
    assert len(trail.points) == index + 1, "the trail remembers what nobody watched"
    assert frustum.header.frame_id == "world"


def test_deltas_reach_a_late_follower_within_the_cap(talker):
    assert talker.last["cache/deltas"] == 0
    got = talker.listen(PointCloud2, "cache/deltas")
    talker.spin(lambda: got)
    start_s = time.monotonic()
    talker.spin(lambda: time.monotonic() > start_s + 3)
    seconds = time.monotonic() - start_s
    assert got[0].width == 0, "a follower is told to forget first"
    sent = sum(len(message.data) for message in got)
    assert 24000 * seconds * 0.5 < sent < 24000 * (seconds + 1.5)
    assert talker.last["backlog"] > 0
    clouds = [cloud_from_ros(message) for message in got[1:]]
    xyz = np.concatenate([cloud["xyz"] for cloud in clouds])
    np.testing.assert_array_equal(xyz, make_points(len(xyz)).xyz)


OFFERED = {
    "color/image_raw/compressed": CompressedImage,
    "depth/image_rect/compressedDepth": CompressedImage,
    "depth/image_raw": Image,
    "depth/color/points": PointCloud2,
    "markers": MarkerArray,
    "cache/deltas": PointCloud2,
}


def test_the_node_offers_them_with_the_stamps_of_its_frames(tmp_path):
    seed = write_seed(tmp_path / "box")
    process = NodeProcess(tmp_path, "--seed", str(seed))
    client = Client(process)
    got = {topic: [] for topic in OFFERED}
    for topic, kind in OFFERED.items():
        client.node.create_subscription(kind, topic, got[topic].append, 100)
    try:
        client.connect()
        start = load_seed(str(seed)).camera.world_from_camera
        stamps = [10**9 + index * 10**8 for index in range(1, 9)]
        client.send_tf(stamps, [start] * 8)
        client.wait_for_frames(8)
        client.spin(lambda: all(len(got[topic]) >= 8 for topic in list(got)[:-1]))
        client.spin(lambda: any(message.width for message in got["cache/deltas"]))
        compressed, depth, millimetres, points, markers, deltas = got.values()
        for messages in (compressed, depth, millimetres, points):
            assert [stamp_from_ros(item.header.stamp) for item in messages] == stamps
        assert [stamp_from_ros(item.markers[0].header.stamp) for item in markers] == stamps
        raw = picture_from_ros(client.got["color/image_raw"][-1])
        assert np.abs(picture_from_compressed(compressed[-1]).astype(int) - raw).mean() < 6
        exact = depth_from_ros(client.got["depth/image_rect"][-1])
        sent = depth_from_compressed(depth[-1])
        whole = np.rint(np.nan_to_num(exact, posinf=0.0) * 1000)
        np.testing.assert_array_equal(np.frombuffer(millimetres[-1].data, np.uint16), whole.ravel())
        z = np.frombuffer(points[-1].data, np.float32).reshape(*exact.shape, -1)[..., 2]
        np.testing.assert_array_equal(z, np.where(np.isfinite(exact), exact, np.nan))
        both = np.isfinite(exact) & np.isfinite(sent)
        assert both.mean() > 0.9
        np.testing.assert_allclose(sent[both], exact[both], atol=5e-3)
        np.testing.assert_allclose(pose_from_ros(markers[-1].markers[0].pose), start, atol=1e-6)
        followed = np.concatenate([cloud_from_ros(item)["xyz"] for item in deltas if item.width])
        cloud = cloud_from_ros(client.got["cache/points"][-1])["xyz"]
        assert {tuple(point) for point in followed} == {tuple(point) for point in cloud}
    finally:
        client.close()
        process.close()

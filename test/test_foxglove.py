"""The bridge for Foxglove: a real client of its WebSocket protocol, and the layout that comes with it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from fakes import PixelModel
from studio_helpers import SIZE, Notes, moved

pytest.importorskip("foxglove", reason="needs the package foxglove-sdk: pip install 'mirage_ros[foxglove]'")

from mcap.records import Schema
from mcap_ros2.decoder import DecoderFactory
from websockets.sync.client import connect

from mirage_ros.apps.studio.foxglove import Bridge
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.data.seeds import load_seed
from mirage_ros.errors import MirageError
from mirage_ros.recording.topics import BY_NAME
from mirage_ros.world.world import World

LAYOUT = Path(__file__).parents[1] / "config/foxglove/mirage.json"
STATUS = Path(__file__).parents[1] / "msg/RolloutStatus.msg"
MESSAGE = 1


class Viewer:
    """Speaks Foxglove's WebSocket protocol."""

    def __init__(self, port):
        self.link = connect(f"ws://127.0.0.1:{port}", subprotocols=["foxglove.sdk.v1"], max_size=None)
        self.channels, self.found = {}, {}
        while not self.channels:
            self._hear()

    def _hear(self):
        data = self.link.recv(timeout=20)
        if isinstance(data, str):
            told = json.loads(data)
            if told["op"] == "advertise":
                self.channels |= {channel["topic"]: channel for channel in told["channels"]}
        elif data[0] == MESSAGE:
            subscription, stamp_ns = struct.unpack_from("<IQ", data, 1)
            topic = next(topic for topic, channel in self.channels.items() if channel["id"] == subscription)
            self.found.setdefault(topic, []).append((stamp_ns, self._decoded(self.channels[topic], data[13:])))

    def _decoded(self, channel, payload):
        if channel["encoding"] == "json":
            return json.loads(payload)
        assert (channel["encoding"], channel["schemaEncoding"]) == ("cdr", "ros2msg")
        schema = Schema(id=1, name=channel["schemaName"], encoding="ros2msg", data=channel["schema"].encode())
        return DecoderFactory().decoder_for("cdr", schema)(payload)

    def subscribe(self, *topics):
        ids = [self.channels[topic]["id"] for topic in topics]
        subscriptions = [{"id": number, "channelId": number} for number in ids]
        self.link.send(json.dumps({"op": "subscribe", "subscriptions": subscriptions}))

    def wait(self, *topics, stamp_ns=0):
        """The newest message of each, once all are of this time or a later one."""
        while not all(self.found.get(topic, [(-1, None)])[-1][0] >= stamp_ns for topic in topics):
            self._hear()
        return [self.found[topic][-1][1] for topic in topics]


@pytest.fixture
def live(folder):
    with Bridge(0) as bridge:
        notes = Notes()
        notes.saw = lambda view, jumped: (bridge.saw(view), notes._note(notes.views, view))
        walk = Walk(World(PixelModel(SIZE)), notes)
        walk.ask("begin", lambda: walk.begin(load_seed(folder)))
        notes.wait(lambda: notes.views)
        viewer = Viewer(bridge.port)
        yield viewer, walk, notes, bridge
        viewer.link.close()
        walk.close()


def test_a_viewer_sees_the_walk_as_the_node_would_publish_it(live):
    viewer, walk, notes, _ = live
    for topic, channel in viewer.channels.items():
        name = topic if topic in BY_NAME else topic.removeprefix("/")
        assert channel["encoding"] == "json" or BY_NAME[name].type_name == channel["schemaName"]
    viewer.subscribe("/color/image_raw")
    (color,) = viewer.wait("/color/image_raw")  # also while nobody walks
    first = notes.views[0].frame
    assert np.array_equal(np.frombuffer(color.data, np.uint8).reshape(*SIZE, 3), first.rgb)
    assert "/depth/image_rect" not in viewer.found  # not subscribed to, so not made
    walk.look(moved(first.camera.world_from_camera, 0.2))
    notes.wait(lambda: len(notes.views) > 1)
    view = notes.views[-1]
    topics = ("/color/image_raw", "/color/camera_info", "/depth/image_rect", "/observed/image", "/tf", "/cache/points", "/scan", "/map")
    viewer.subscribe(*topics[1:], "/status")
    color, info, depth, observed, tf, points, scan, grid = viewer.wait(*topics, stamp_ns=view.frame.stamp_ns)
    assert np.array_equal(np.frombuffer(color.data, np.uint8).reshape(*SIZE, 3), view.frame.rgb)
    assert np.array_equal(np.frombuffer(depth.data, np.float32).reshape(SIZE), view.frame.depth_m.astype(np.float32), equal_nan=True)
    assert info.k[0] == view.frame.camera.intrinsics[0, 0] and len(observed.data) == SIZE[0] * SIZE[1]
    places = {one.child_frame_id: one.transform.translation for one in tf.transforms}
    camera = places["mirage_camera_optical_frame"]
    assert np.allclose((camera.x, camera.y, camera.z), view.frame.camera.position_world)
    assert points.width == view.state.memory.tokens and scan.header.frame_id in places
    assert grid.info.width * grid.info.height == len(grid.data) > 1
    (status,) = viewer.wait("/status", stamp_ns=view.frame.stamp_ns)
    assert status["cache_tokens"] == view.state.memory.tokens and status["total_s"] > 0


def test_tf_places_the_scan_of_who_asks_for_it_late(live):
    viewer, _, notes, _ = live
    viewer.subscribe("/tf")
    viewer.wait("/tf")
    viewer.subscribe("/scan")
    (scan,) = viewer.wait("/scan", stamp_ns=notes.views[-1].frame.stamp_ns)
    places = [one.child_frame_id for _, message in viewer.found["/tf"] for one in message.transforms]
    assert scan.header.frame_id in places


def test_the_bridge_says_what_is_wrong_with_its_port(live):
    *_, bridge = live
    with pytest.raises(MirageError, match=f"cannot listen on port {bridge.port}.*--foxglove"):
        Bridge(bridge.port)


def paths_of(value):
    """Every topic and message path in a layout."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key.startswith("/"):
                yield key
            yield from paths_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from paths_of(inner)
    elif isinstance(value, str) and value.startswith("/"):
        yield value


def test_the_layout_names_what_there_is(live):
    """Topics of the bridge, which are the node's, and numbers of the status message; every panel is in its place."""
    viewer, *_ = live
    layout = json.loads(LAYOUT.read_text())
    fields = {line.split()[1] for line in STATUS.read_text().splitlines() if line and not line.startswith("#")}
    status = viewer.channels["/status"]
    paths = set(paths_of(layout))
    assert {"/color/image_raw", "/depth/image_rect", "/cache/points", "/color/camera_info", "/status.frames_per_s"} <= paths
    for path in paths:
        topic, _, field = path.partition(".")
        assert topic in viewer.channels
        assert not field or (field in fields and field in json.loads(status["schema"])["properties"])

    # Every panel gets what it can draw.
    schemas = {topic: channel["schemaName"] for topic, channel in viewer.channels.items()}
    drawn = {"Image", "CameraInfo", "PointCloud2", "LaserScan", "OccupancyGrid"}
    for panel, config in layout["configById"].items():
        kind = panel.partition("!")[0]
        if kind == "Image":
            assert schemas[config["imageMode"]["imageTopic"]] == "sensor_msgs/msg/Image"
            assert schemas[config["imageMode"]["calibrationTopic"]] == "sensor_msgs/msg/CameraInfo"
        elif kind == "3D":
            assert {schemas[topic].rpartition("/")[2] for topic in config["topics"]} <= drawn and "/tf" in schemas
            assert schemas[config["topics"]["/color/image_raw"]["cameraInfoTopic"]] == "sensor_msgs/msg/CameraInfo"
        else:
            assert kind == "Plot" and all(path["value"].startswith("/status.") for path in config["paths"])

    def panels(tree):
        return {tree} if isinstance(tree, str) else panels(tree["first"]) | panels(tree["second"])

    assert panels(layout["layout"]) == set(layout["configById"])

"""MCAP without ROS: the bytes, the types and the bags of a node."""

from __future__ import annotations

import time

import numpy as np
import yaml
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message, serialize_message
from recorded_frames import FEATURES, config, frame, record, values
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from tf2_msgs.msg import TFMessage

from mirage_ros.recording.formats import open_recorder
from mirage_ros.recording.messages import definition, frame_messages
from mirage_ros.ros.image_messages import depth_to_ros, mask_to_ros, picture_to_ros
from mirage_ros.ros.messages import camera_info_to_ros, message_class, transform_to_ros


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

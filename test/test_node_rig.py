"""Three cameras over DDS, and real pictures on observe/*."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import Vector3
from ros_client import CAMERA, Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image
from simulation_interfaces.msg import Bounds, EntityFilters
from simulation_interfaces.srv import GetEntitiesStates
from test_rig import SIZE, STRIDE, red_cell, spotted, turned

from mirage_ros.data.seeds import level_camera_pose
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.image_messages import depth_from_ros, image_to_ros, picture_from_ros
from mirage_ros.ros.messages import (
    camera_from_ros,
    camera_info_to_ros,
    pose_from_ros,
    stamp_from_ros,
    transform_from_ros,
)

SECOND = 1_000_000_000
START = 2_000_000_000 * SECOND
PERIOD = SECOND // 10
NAMES = ("front", "left", "right")
KINDS = {"color/image_raw": Image, "color/camera_info": CameraInfo, "depth/image_rect": Image}
RIG = """
cameras:
  - {name: front, frame: camera_color_optical_frame, width: 80, height: 64, hfov_deg: 60}
  - {name: left, frame: left_eye, width: 80, height: 64, hfov_deg: 60}
  - {name: right, frame: right_eye, width: 160, height: 128, hfov_deg: 60, xyz: [0.1, 0, 0],
     wxyz: [0.9974949866, 0, -0.0707372017, 0]}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rig")
    rig = folder / "rig.yaml"
    rig.write_text(RIG)
    arguments = ("--ros-args", "-p", "seed:=''", "-p", f"rig:={rig}", "-p", "plan_idle_s:=0.3")
    process = NodeProcess(folder, *arguments)
    client = Client(process)
    client.pictures = {}
    for name in NAMES:
        for kind, message_type in KINDS.items():
            topic = f"{name}/{kind}"
            client.pictures[topic] = []
            client.node.create_subscription(message_type, topic, client.pictures[topic].append, 100)
    kinds = {"image": Image, "camera_info": CameraInfo, "depth": Image}
    client.real = {
        kind: client.node.create_publisher(message_type, f"observe/{kind}", 5)
        for kind, message_type in kinds.items()
    }
    sides = [client._tf, client._static, *client.seed.values(), *client.real.values()]
    client.spin(lambda: all(publisher.get_subscription_count() for publisher in sides))
    client.spin(lambda: all(client.node.count_publishers(topic) for topic in client.pictures))
    yield client
    client.close()
    process.close()


def real_frame(rgb: np.ndarray, depth_m: float, stamp_ns: int, frame: str) -> dict:
    camera = Camera.from_hfov(60.0, SIZE)
    depth = np.full(SIZE, depth_m, np.float32)
    return {
        "image": image_to_ros(rgb, "rgb8", stamp_ns, frame),
        "camera_info": camera_info_to_ros(camera, stamp_ns, frame),
        "depth": image_to_ros(depth, "32FC1", stamp_ns, frame),
    }


def arrived(client: Client, count: int) -> bool:
    return all(len(messages) >= count for messages in client.pictures.values())


def rig_poses(client: Client) -> dict[str, list]:
    transforms = [t for message in client.got["/tf"] for t in message.transforms]
    return {
        name: [t for t in transforms if t.child_frame_id == f"mirage_{name}_optical_frame"]
        for name in NAMES
    }


def test_a_point_seen_by_one_is_seen_by_the_others_in_the_same_stamp(client):
    start = level_camera_pose()
    mount = turned(np.eye(4), 0.15)
    client.send_static(start, "studio")
    client.send_static(mount, "left_eye", CAMERA)
    client.spin_for(0.3)
    for kind, message in real_frame(spotted(), 2.0, START, "studio").items():
        client.seed[kind].publish(message)
    client.process.wait_for("New world")
    planned = [START + PERIOD * (1 + index) for index in range(8)]
    client.send_tf(planned, [turned(start, 0.0, 0.02 * index) for index in range(8)])
    client.spin(lambda: arrived(client, 8))
    middle = np.array([[5.5 * STRIDE - 0.5, 3.5 * STRIDE - 0.5]])
    point = Camera.from_hfov(60.0, SIZE, start).unproject(middle, np.array([2.0]))
    client.spin(lambda: all(len(found) >= 8 for found in rig_poses(client).values()))
    for name in NAMES:
        for kind in KINDS:
            messages = client.pictures[f"{name}/{kind}"]
            assert [stamp_from_ros(m.header.stamp) for m in messages] == planned, (name, kind)
            assert {m.header.frame_id for m in messages} == {f"mirage_{name}_optical_frame"}
        infos, colours = (
            client.pictures[f"{name}/color/{kind}"] for kind in ("camera_info", "image_raw")
        )
        for info, colour, transform in zip(infos, colours, rig_poses(client)[name], strict=True):
            assert transform.header.stamp == colour.header.stamp
            camera = camera_from_ros(info, transform_from_ros(transform))
            (expected,), _ = camera.project(point)
            scale = camera.size[0] / SIZE[0]
            rgb = picture_from_ros(colour)[:: int(scale), :: int(scale)]
            error = np.abs(red_cell(rgb) * scale - expected).max()
            assert error <= STRIDE * scale, (name, error)
    assert picture_from_ros(client.pictures["right/color/image_raw"][0]).shape == (128, 160, 3)


def test_the_rig_s_cameras_are_entities_that_stand_where_their_pictures_were_taken(client):
    service = client.node.create_client(GetEntitiesStates, "mirage_node/get_entities_states")
    answer = client.call(service, GetEntitiesStates.Request())
    assert tuple(answer.entities) == NAMES
    last = rig_poses(client)["front"][-1].header.stamp
    for name, state in zip(answer.entities, answer.states, strict=True):
        shown = rig_poses(client)[name][-1]
        assert state.header.stamp == shown.header.stamp == last
        np.testing.assert_allclose(pose_from_ros(state.pose), transform_from_ros(shown), atol=1e-6)
    right = answer.states[2].pose.position
    near = Bounds(type=Bounds.TYPE_SPHERE)
    near.points = [Vector3(x=right.x, y=right.y, z=right.z), Vector3(x=0.05)]
    found = client.call(service, GetEntitiesStates.Request(filters=EntityFilters(bounds=near)))
    assert list(found.entities) == ["right"]


def test_a_real_picture_is_what_the_cameras_show_from_then_on(client):
    start, stamp_ns = level_camera_pose(), START + 20 * PERIOD
    green = spotted(np.array([20, 220, 20], np.uint8), 40)
    for kind, message in real_frame(green, 1.0, stamp_ns, "studio").items():
        client.real[kind].publish(message)
    client.spin_for(1.0)
    for messages in client.pictures.values():
        messages.clear()
    planned = [START + PERIOD * (30 + index) for index in range(4)]
    client.send_tf(planned, [start] * 4)
    client.spin(lambda: arrived(client, 4))
    rgb = picture_from_ros(client.pictures["front/color/image_raw"][0])
    assert np.abs(rgb.astype(int) - green).max() < 8
    depth = depth_from_ros(client.pictures["front/depth/image_rect"][0])
    assert np.nanmedian(depth) == pytest.approx(1.0, abs=0.02)


def test_observations_that_cannot_be_placed_are_told_and_left_out(client):
    client.clear()
    for kind, message in real_frame(spotted(), 1.0, START + 50 * PERIOD, "nowhere").items():
        client.real[kind].publish(message)
    client.spin(lambda: "no frame 'nowhere'" in client.problems(), patience_s=20)
    client.clear()
    messages = real_frame(spotted(), 1.0, START + 51 * PERIOD, "studio")
    for kind in ("image", "camera_info"):
        client.real[kind].publish(messages[kind])
    client.spin(lambda: "observe/depth" in client.problems(), patience_s=20)

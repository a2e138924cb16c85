"""A camera on DDS keeps a world up to date: real topics between real processes."""

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rclpy
from fakes import PixelModel
from rclpy.context import Context
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from mirage_ros.cli import main
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.ros.image_messages import depth_to_ros, picture_to_ros
from mirage_ros.ros.messages import camera_info_to_ros, transform_to_ros
from mirage_ros.world.world import World

KEEPER = Path(__file__).parent / "live_keeper.py"
FRAME = "cam_optical"
BOX = np.s_[16:80, 24:104]


class Camera10Hz:
    """An RGB-D camera as drivers are: best effort, its pose on TF in `world_frame`."""

    def __init__(self, world_frame: str = "map") -> None:
        self.context, self._world = Context(), world_frame
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("cam", context=self.context)
        topics = (Image, "/cam/color/image_raw"), (Image, "/cam/depth/image"), (CameraInfo, "/cam/color/camera_info")
        self.publishers = [self.node.create_publisher(*topic, qos_profile_sensor_data) for topic in topics]
        self.tf = self.node.create_publisher(TFMessage, "/tf", 10)

    def show(self, frame) -> None:
        stamp_ns = self.node.get_clock().now().nanoseconds
        self.tf.publish(TFMessage(transforms=[transform_to_ros(frame.camera.world_from_camera, self._world, FRAME, stamp_ns)]))
        messages = (picture_to_ros(frame.rgb, stamp_ns, FRAME), depth_to_ros(frame.depth_m, stamp_ns, FRAME),
                    camera_info_to_ros(frame.camera, stamp_ns, FRAME))  # fmt: skip
        for publisher, message in zip(self.publishers, messages, strict=True):
            publisher.publish(message)
        time.sleep(0.1)

    def close(self) -> None:
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def loaded(out: Path) -> World | None:
    """The world as it was saved last; None while there is none, or it is being replaced."""
    world = World(PixelModel())
    with contextlib.suppress(MirageError):
        world.load(out)
        return world
    return None


def box_in(world: World, frame) -> tuple[float, np.ndarray]:
    """How far the depth of the box's place is from a frame's, median share, and its colour."""
    view = Camera.stack([frame.camera.resized((96, 128))])
    off = np.abs(world.memory.measure(view)[0][0] / frame.depth_m - 1)[BOX]
    picture = world.cycle.pictures(world.state, view.resized((64, 80)), np.array([world.stamp_ns + 1]))[0]
    return float(np.nanmedian(off)), np.median(picture[20:44, 25:55].reshape(-1, 3), 0)


def test_a_camera_keeps_a_world_up_to_date(walked, ros_domain, tmp_path):
    """The first picture begins it, another place is added, and a box that is put down is there when two pictures showed it."""
    first, second, out = walked[0], walked[2], tmp_path / "world"
    rgb, depth_m = first.rgb.copy(), first.depth_m.copy()
    rgb[BOX], depth_m[BOX] = (250, 10, 10), 0.6 * np.nanmin(depth_m[BOX])
    with_box, camera, tokens = replace(first, rgb=rgb, depth_m=depth_m), Camera10Hz(), []
    with (tmp_path / "log").open("w") as log:
        keeper = subprocess.Popen([sys.executable, str(KEEPER), str(out)], stdout=log, stderr=subprocess.STDOUT)
        try:
            shown = (first,)
            for i in itertools.count():
                camera.show(shown[i // 5 % len(shown)])
                assert keeper.poll() is None, (tmp_path / "log").read_text()
                if i % 10 or (world := loaded(out)) is None:
                    continue
                tokens.append(world.memory.tokens)
                if box_in(world, with_box)[0] < 0.05:
                    break
                shown = (with_box,) if max(tokens) > min(tokens) else (first, second)
            keeper.send_signal(signal.SIGINT)
            keeper.wait(60)
        finally:
            keeper.kill()
            camera.close()
    said = (tmp_path / "log").read_text()
    assert keeper.returncode == 0 and re.search(r"the world; [\d,]+ pictures were looked at", said), said
    world = loaded(out)
    off, colour = box_in(world, with_box)
    depth, real = world.memory.measure(Camera.stack([second.camera.resized((96, 128))]))
    print(f"the box: depth {off:.1%} off, colour {colour}; {tokens[0]} to {world.memory.tokens} tokens; {said.strip()[-80:]}")
    assert off < 0.05 and colour[0] > 200 and colour[1] < 60
    assert real.mean() > 0.5 and np.nanmedian(np.abs(depth[0] / second.depth_m - 1)) < 0.1


@pytest.mark.parametrize("words", [["--live"], ["x", "--live", "--color", "/a", "--depth", "/b"], []])
def test_a_live_camera_is_named_by_its_topics(words, tmp_path, capsys):
    assert main(["build", *words, "--out", str(tmp_path / "world")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "world").exists()

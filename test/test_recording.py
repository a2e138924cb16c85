"""Recordings open elsewhere and hold what was put in; pictures show what they should."""

import imageio_ffmpeg
import numpy as np
import pytest
from make_seed import write_seed
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from PIL import Image

from mirage_ros.data.seeds import level_camera_pose, load_seed
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.recording import drawing
from mirage_ros.recording.drawing import draw_cloud_from_above
from mirage_ros.recording.mcap import McapRecorder
from mirage_ros.recording.video import VideoWriter

POINT_TEXT = (
    "geometry_msgs/Point place\nstring name\n"
    + "=" * 80
    + ("\nMSG: geometry_msgs/Point\nfloat64 x\nfloat64 y\nfloat64 z\n")
)
SPAN = "{sec: 1, nsec: 2}"
QOS = (
    "- {history: keep_last, depth: 5, reliability: reliable, durability: transient_local, "
    f"deadline: {SPAN}, lifespan: {SPAN}, liveliness: automatic, "
    f"liveliness_lease_duration: {SPAN}, avoid_ros_namespace_conventions: false}}\n"
)


def cdr_named_point(x: float, name: str) -> bytes:
    text = name.encode() + b"\0"
    head = np.array([0, 1, 0, 0], np.uint8).tobytes()
    place = np.array([x, 0, 0], "<f8").tobytes()
    return head + place + np.array([len(text)], "<u4").tobytes() + text


def record(path, count=3):
    with McapRecorder(path) as recorder:
        recorder.channel("/thing", "my_msgs/msg/NamedPoint", POINT_TEXT, QOS, "RIHS01_ab")
        for index in range(count):
            recorder.write("/thing", cdr_named_point(index, f"p{index}"), 1000 + index, 7 + index)
    return path


def test_recording_decodes_elsewhere(tmp_path):
    path = record(tmp_path / "sub" / "a.mcap")
    with path.open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        messages = list(reader.iter_decoded_messages())
    assert [m.decoded_message.place.x for m in messages] == [0, 1, 2]
    assert [m.decoded_message.name for m in messages] == ["p0", "p1", "p2"]
    assert [(m.message.log_time, m.message.publish_time) for m in messages][1] == (1001, 8)
    assert messages[0].schema.name == "my_msgs/msg/NamedPoint"
    assert messages[0].channel.metadata["topic_type_hash"] == "RIHS01_ab"


def test_recording_opens_as_a_rosbag2_bag(tmp_path):
    from rosbags.rosbag2 import Reader

    with Reader(record(tmp_path / "a.mcap")) as reader:
        (connection,) = reader.connections
        assert (connection.topic, connection.msgtype) == ("/thing", "my_msgs/msg/NamedPoint")
        assert connection.msgcount == 3
        (qos,) = connection.ext.offered_qos_profiles
        assert qos.durability.name == "TRANSIENT_LOCAL" and qos.depth == 5


def test_recording_is_whole_after_an_exception_and_hidden_before(tmp_path):
    path = tmp_path / "a.mcap"
    with pytest.raises(RuntimeError), McapRecorder(path) as recorder:
        recorder.channel("/thing", "my_msgs/msg/NamedPoint", POINT_TEXT)
        recorder.write("/thing", cdr_named_point(4, "x"), 5)
        assert not path.exists()
        raise RuntimeError
    with path.open("rb") as stream:
        assert make_reader(stream).get_summary().statistics.message_count == 1
    assert list(tmp_path.iterdir()) == [path]


def test_recorder_refuses_what_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MirageError, match="writable folder"):
        McapRecorder(tmp_path / "file" / "a.mcap")
    with McapRecorder(tmp_path / "a.mcap") as recorder:
        with pytest.raises(MirageError, match="full name"):
            recorder.channel("/thing", "my_msgs/NamedPoint", POINT_TEXT)
        with pytest.raises(MirageError, match="never declared"):
            recorder.write("/thing", b"", 0)


def test_video_plays_back_the_frames(tmp_path):
    path = tmp_path / "a.mp4"
    levels = (40, 120, 200)
    with VideoWriter(path, 10.0) as video:
        for level in levels:
            video.add(np.full((51, 65, 3), level, np.uint8))
        with pytest.raises(MirageError, match="one size"):
            video.add(np.zeros((51, 64, 3), np.uint8))
    frames = imageio_ffmpeg.read_frames(str(path))
    meta = next(frames)
    assert meta["size"] == (66, 52) and meta["fps"] == 10 and meta["codec"] == "h264"
    means = [np.frombuffer(frame, np.uint8).mean() for frame in frames]
    assert np.allclose(means, levels, atol=4)
    assert list(tmp_path.iterdir()) == [path]


def test_depth_colours_tell_near_far_invalid_and_sky_apart():
    depth = np.array([[0.5, 5.0, np.nan, np.inf]], np.float32)
    near, far, invalid, sky = drawing.colour_depth(depth, (0.5, 5.0))[0].astype(int)
    assert near[0] > near[2] and far[2] > far[0]
    assert invalid.sum() == 0 and 0 < sky.sum() < far.sum()


def test_depth_range_survives_pictures_without_depth():
    low, high = drawing.depth_range_m([np.full((4, 5), np.nan, np.float32)])
    assert 0 < low < high


def test_observed_tints_differ():
    rgb = np.full((2, 2, 3), 200, np.uint8)
    tinted = drawing.colour_observed(rgb, np.array([[True, False]] * 2))
    assert tinted[0, 0, 2] > tinted[0, 0, 0] and tinted[0, 1, 0] > tinted[0, 1, 2]


def test_cloud_from_above_puts_ahead_up_and_left_left():
    camera = Camera.from_hfov(60.0, (12, 16), np.stack([level_camera_pose()] * 2))
    # The camera looks along +x, so world +y is on its left; the high point is a ceiling.
    xyz = np.array([[4, 1.5, 0], [1, -1.5, 0], [2, 0, 9.0]], np.float32)
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    drawn = draw_cloud_from_above(xyz, rgb, camera, (200, 220)).astype(int)
    red, green, blue = (np.argwhere(drawn[..., i] - drawn.sum(-1) / 3 > 100) for i in range(3))
    assert len(red) and len(green) and not len(blue)
    assert red[:, 0].mean() < green[:, 0].mean() and red[:, 1].mean() < green[:, 1].mean()


def test_the_way_from_above_is_as_wide_as_the_body_and_red_where_it_touched():
    poses = np.stack([level_camera_pose()] * 5)
    poses[:, 0, 3] = np.arange(5.0)
    ways = Camera.from_hfov(60.0, (12, 16), poses)
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    touching = np.array([False, False, True, False, False])
    bare = draw_cloud_from_above(*nothing, ways, (400, 200)).astype(int)
    wide = draw_cloud_from_above(*nothing, ways, (400, 200), body_m=1.0).astype(int)
    hit = draw_cloud_from_above(*nothing, ways, (400, 200), body_m=1.0, touching=touching)
    # 4 m and a margin of 6 % on either side are 400 px high.
    metre_px = 400 / (4 * 1.12)
    covered = np.flatnonzero(np.abs(wide[200] - bare[200]).sum(-1) > 20)
    assert covered[-1] - covered[0] == pytest.approx(metre_px, abs=3)
    red = np.argwhere(np.abs(hit.astype(int) - wide).sum(-1) > 60)
    assert red.mean(0) == pytest.approx((200, 100), abs=2)
    assert np.ptp(red, axis=0) == pytest.approx((metre_px, metre_px), abs=5)


def test_sheet_holds_every_picture(tmp_path):
    colours = [(index * 9 + 30, 50, 200) for index in range(12)]
    tiles = [
        drawing.Picture(np.full((48, 64, 3), c, np.uint8), str(i)) for i, c in enumerate(colours)
    ]
    cloud = drawing.Picture(np.full((*drawing.cloud_size(48 / 64), 3), (5, 250, 5), np.uint8), "cloud")
    page = drawing.compose_sheet("title", "subtitle", tiles, cloud, tiles[:3])
    seen = {tuple(colour) for colour in page[::4, ::4].reshape(-1, 3)}
    assert set(colours) | {(5, 250, 5)} <= seen
    drawing.save_picture(tmp_path / "a.png", page)
    assert Image.open(tmp_path / "a.png").size == page.shape[1::-1]


def test_moments_hold_first_and_last():
    assert drawing.pick_moments(72)[0] == 0 and drawing.pick_moments(72)[-1] == 71
    assert len(drawing.pick_moments(72)) == 12 and drawing.pick_moments(2) == [0, 1]


def test_recording_imports_no_ros():
    import subprocess
    import sys

    code = (
        "import sys, mirage_ros.recording.mcap, mirage_ros.recording.drawing, mirage_ros.recording.topics;"
        "import mirage_ros.recording.video;"
        "sys.exit('rclpy' in sys.modules or 'sensor_msgs' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seed_renders_into_one_row(tmp_path):
    seed = load_seed(write_seed(tmp_path / "room"))
    row = drawing.compose_frame(
        seed.rgb, seed.depth_m, np.isfinite(seed.depth_m), (0.5, 8.0), 1.0, factor=2.0
    )
    assert row.shape[1] > 6 * seed.rgb.shape[1] and row.shape[0] > 2 * seed.rgb.shape[0]

"""What goes to ROS and comes back is the same; what cannot be right is refused in one sentence."""

from __future__ import annotations

import array

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, Image
from transforms3d.euler import euler2mat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import SeedWarning
from mirage_ros.protocol import Chunk, Frame
from mirage_ros.ros.image_messages import (
    depth_from_ros,
    depth_to_ros,
    mask_from_ros,
    mask_to_ros,
    picture_from_ros,
    picture_to_ros,
)
from mirage_ros.ros.messages import cloud_from_ros, cloud_to_ros, status_to_ros
from mirage_ros.ros import messages as convert

STAMP_NS = 1_763_000_000_123_456_789


def random_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = euler2mat(*rng.uniform(-np.pi, np.pi, 3))
    pose[:3, 3] = rng.uniform(-100, 100, 3)
    return pose


@pytest.mark.parametrize("stamp_ns", [0, 1, 999_999_999, 1_000_000_000, STAMP_NS])
def test_stamps_are_exact_to_the_nanosecond(stamp_ns):
    assert convert.stamp_from_ros(convert.stamp_to_ros(stamp_ns)) == stamp_ns


@pytest.mark.parametrize("stamp_ns", [-1, 2**31 * 10**9])
def test_stamps_that_do_not_fit_are_refused(stamp_ns):
    with pytest.raises(MirageError, match="does not fit"):
        convert.stamp_to_ros(stamp_ns)


def test_poses_and_transforms_come_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        pose = random_pose(rng)
        np.testing.assert_allclose(
            convert.pose_from_ros(convert.pose_to_ros(pose)), pose, atol=1e-9
        )
        transform = convert.transform_to_ros(pose, "a", "b", STAMP_NS)
        np.testing.assert_allclose(convert.transform_from_ros(transform), pose, atol=1e-9)
        assert (transform.header.frame_id, transform.child_frame_id) == ("a", "b")
        assert convert.stamp_from_ros(transform.header.stamp) == STAMP_NS


def test_quaternions_are_xyzw_in_messages():
    quarter_turn_about_z = np.eye(4)
    quarter_turn_about_z[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    rotation = convert.pose_to_ros(quarter_turn_about_z).orientation
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        [rotation.x, rotation.y, rotation.z, rotation.w], [0, 0, half, half], atol=1e-12
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("w", np.nan, "NaN"), ("w", 2.0, "length 2"), ("w", 0.0, "length 0"), ("w", 1.02, "length")],
)
def test_bad_quaternions_are_refused(field, value, message):
    transform = TransformStamped(child_frame_id="eye")
    transform.header.frame_id = "map"
    setattr(transform.transform.rotation, field, value)
    with pytest.raises(MirageError, match=f"map -> eye.*{message}"):
        convert.transform_from_ros(transform)


def test_nearly_unit_quaternions_are_normalised():
    pose = convert.pose_to_ros(np.eye(4))
    pose.orientation.w = 1.005
    Camera(np.eye(3), convert.pose_from_ros(pose), (1, 1))
    np.testing.assert_allclose(convert.pose_from_ros(pose), np.eye(4), atol=1e-12)


def test_positions_with_nan_are_refused():
    pose = convert.pose_to_ros(np.eye(4))
    pose.position.y = float("nan")
    with pytest.raises(MirageError, match="position with NaN"):
        convert.pose_from_ros(pose)


@pytest.mark.parametrize("far", [1.1e7, -1e39, 1e308])
def test_positions_beyond_the_reach_of_a_world_are_refused(far):
    pose = convert.pose_to_ros(np.eye(4))
    pose.position.y = far
    with pytest.raises(MirageError, match="A pose is at .* up to 10,000,000 m"):
        convert.pose_from_ros(pose)
    with pytest.raises(MirageError, match="rollout is at .* up to 10,000,000 m"):
        convert.poses_from_flat(np.array([0, far, 0, 0, 0, 0, 1.0]))
    transform = convert.transform_to_ros(np.eye(4), "world", "camera", 0)
    transform.transform.translation.z = far
    with pytest.raises(MirageError, match="world -> camera is at"):
        convert.parts_from_ros(transform)


def test_camera_info_comes_back_and_is_ideal():
    pose = random_pose(np.random.default_rng(1))
    camera = Camera.from_hfov(70.0, (48, 64), pose)
    info = convert.camera_info_to_ros(camera, STAMP_NS, "eye")
    back = convert.camera_from_ros(info, pose)
    np.testing.assert_array_equal(back.intrinsics, camera.intrinsics)
    np.testing.assert_array_equal(back.world_from_camera, pose)
    assert back.size == (48, 64)
    assert (info.distortion_model, list(info.d)) == ("plumb_bob", [0.0] * 5)
    assert list(info.r) == np.eye(3).ravel().tolist()
    np.testing.assert_array_equal(
        np.reshape(info.p, (3, 4)), np.hstack([camera.intrinsics, np.zeros((3, 1))])
    )


def test_bad_camera_infos_are_refused():
    with pytest.raises(MirageError, match="uncalibrated"):
        convert.camera_from_ros(CameraInfo(height=4, width=4))
    info = convert.camera_info_to_ros(Camera.from_hfov(70.0, (48, 64)), 0, "eye")
    info.d[0] = -0.1
    with pytest.raises(MirageError, match="image_rect"):
        convert.camera_from_ros(info)
    assert convert.camera_from_ros(info, rectified=True).size == (48, 64)
    info = convert.camera_info_to_ros(Camera.from_hfov(70.0, (48, 64)), 0, "eye")
    info.roi.width = 10
    with pytest.raises(MirageError, match="region of interest"):
        convert.camera_from_ros(info)


def test_pictures_depth_and_masks_come_back():
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    depth = rng.uniform(0.1, 9, (5, 7)).astype(np.float32)
    depth[0, :2] = np.nan, np.inf
    mask = rng.random((5, 7)) > 0.5
    picture = picture_to_ros(rgb, STAMP_NS, "eye")
    assert (picture.encoding, picture.step, picture.header.frame_id) == ("rgb8", 21, "eye")
    assert isinstance(picture.data, array.array)
    np.testing.assert_array_equal(picture_from_ros(picture), rgb)
    np.testing.assert_array_equal(depth_from_ros(depth_to_ros(depth, STAMP_NS, "eye")), depth)
    np.testing.assert_array_equal(mask_from_ros(mask_to_ros(mask, STAMP_NS, "eye")), mask)


def image(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False) -> Image:
    """An Image as another driver may send it: padded rows, either byte order."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if bigendian else "<"))
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.step, message.is_bigendian = rows.shape[1], int(bigendian)
    message.data = array.array("B", rows.tobytes())
    return message


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 1]), ("bgra8", [2, 1, 0, 1])],
)
def test_colour_encodings_give_rgb(encoding, order, padding):
    rgb = np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8)
    message = image(np.ascontiguousarray(rgb[..., order]), encoding, padding)
    np.testing.assert_array_equal(picture_from_ros(message), rgb)


@pytest.mark.parametrize("bigendian", [False, True])
def test_twelve_bits_in_sixteen_are_not_black(bigendian):
    grey = np.linspace(0, 4095, 24).astype(np.uint16).reshape(4, 6)
    with pytest.warns(SeedWarning, match="12 bits"):
        rgb = picture_from_ros(image(grey, "mono16", 0, bigendian))
    np.testing.assert_array_equal(rgb, (grey >> 4)[..., None].repeat(3, -1))


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_grey_and_depth_in_both_byte_orders(bigendian, padding):
    rng = np.random.default_rng(4)
    grey = rng.integers(0, 2**16, (4, 6)).astype(np.uint16)
    as_rgb = (grey >> 8).astype(np.uint8)[..., None].repeat(3, -1)
    message = image(grey, "mono16", padding, bigendian)
    np.testing.assert_array_equal(picture_from_ros(message), as_rgb)
    millimetres = grey.copy()
    millimetres[0, 0] = 0
    depth = depth_from_ros(image(millimetres, "16UC1", padding, bigendian))
    assert np.isnan(depth[0, 0])
    np.testing.assert_allclose(depth.ravel()[1:], millimetres.ravel()[1:] / 1000, rtol=1e-6)
    metres = rng.uniform(0.1, 9, (4, 6)).astype(np.float32)
    depth = depth_from_ros(image(metres, "32FC1", padding, bigendian))
    np.testing.assert_array_equal(depth, metres)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Image(encoding="rgb8"), "0 x 0"),
        (image(np.zeros((4, 6, 3), np.uint8), "rgba8"), "cut off"),
        (image(np.zeros((4, 6), np.uint8), "bayer_rggb8"), "bayer_rggb8.*rgb8.*cv_bridge"),
    ],
)
def test_unreadable_pictures_are_refused(message, words):
    with pytest.raises(MirageError, match=words):
        picture_from_ros(message)


def test_pictures_cut_off_are_refused():
    message = image(np.zeros((4, 6, 3), np.uint8), "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(MirageError, match="71 bytes.*cut off"):
        picture_from_ros(message)


def test_depth_in_a_colour_encoding_is_refused():
    with pytest.raises(MirageError, match="'rgb8'.*32FC1"):
        depth_from_ros(image(np.zeros((4, 6, 3), np.uint8), "rgb8"))


def test_clouds_come_back_and_have_the_table_s_layout():
    rng = np.random.default_rng(5)
    xyz = rng.normal(size=(20, 3)).astype(np.float32)
    rgb = rng.integers(0, 256, (20, 3), np.uint8)
    confidence = rng.random(20).astype(np.float32)
    written_ns = STAMP_NS - rng.integers(0, 10**10, 20)
    message = cloud_to_ros(xyz, rgb, confidence, written_ns, STAMP_NS, "world")
    layout = {field.name: (field.offset, field.datatype) for field in message.fields}
    assert layout == {
        "x": (0, 7), "y": (4, 7), "z": (8, 7), "rgb": (12, 7), "confidence": (16, 7), "age": (20, 7)
    }  # fmt: skip
    assert (message.width, message.height, message.row_step) == (20, 1, 20 * message.point_step)
    back = cloud_from_ros(message)
    np.testing.assert_array_equal(back["xyz"], xyz)
    np.testing.assert_array_equal(back["rgb"], rgb)
    np.testing.assert_array_equal(back["confidence"], confidence)
    np.testing.assert_allclose(back["age"], (STAMP_NS - written_ns) / 1e9, rtol=1e-6)


def test_an_empty_cloud_is_a_cloud():
    xyz, rgb = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    message = cloud_to_ros(xyz, rgb, xyz[:, 0], np.zeros(0, np.int64), STAMP_NS, "world")
    assert cloud_from_ros(message)["xyz"].shape == (0, 3)


def test_status_carries_the_chunk_s_figures():
    camera = Camera.from_hfov(70.0, (4, 6))
    rgb, depth = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.float32)
    frames = tuple(Frame(STAMP_NS + i, camera, rgb, depth, depth > 0) for i in range(3))
    seconds = {"read": 0.5, "generate": 1.0, "decode": 0.25, "perceive": 0.125, "write": 0.0625}
    chunk = Chunk(frames, seconds, 0.75, 42, 4200)
    status = status_to_ros(chunk, 7, 11, "mini", 2.0, "world")
    assert convert.stamp_from_ros(status.header.stamp) == STAMP_NS + 2
    assert {name: getattr(status, f"{name}_s") for name in seconds} == seconds
    assert (status.frames, status.frames_per_s, status.total_s) == (3, 1.5, 2.0)
    assert (status.cache_tokens, status.cache_bytes, status.observed_fraction) == (42, 4200, 0.75)
    assert (status.chunk_index, status.frames_pending, status.model) == (7, 11, "mini")

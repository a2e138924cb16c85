"""Compressed pictures, depth and frustum markers as messages: their formats."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from lazy_talker import make_frame
from sensor_msgs.msg import CompressedImage
from visualization_msgs.msg import Marker

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import Frame
from mirage_ros.recording.topics import BY_NAME, FrameIds
from mirage_ros.ros.image_messages import (
    EDGES,
    compressed_depth_to_ros,
    compressed_picture_to_ros,
    depth_from_compressed,
    frustum_corners,
    frustum_to_ros,
    picture_from_compressed,
    trail_to_ros,
)
from mirage_ros.ros.messages import pose_from_ros, stamp_from_ros


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_picture_returns_from_its_compression(kind):
    rgb = make_frame(0).rgb
    message = compressed_picture_to_ros(rgb, 7, "camera", kind, 95)
    assert message.format == f"rgb8; {kind} compressed bgr8"
    assert stamp_from_ros(message.header.stamp) == 7 and message.header.frame_id == "camera"
    back = picture_from_compressed(message)
    worst = np.abs(back.astype(int) - rgb).max()
    assert worst == 0 if kind == "png" else worst <= 12
    assert len(message.data) < rgb.nbytes


def test_an_unknown_compression_is_refused():
    with pytest.raises(MirageError, match="'webp'"):
        compressed_picture_to_ros(make_frame(0).rgb, 0, "camera", "webp")
    with pytest.raises(MirageError, match="'8UC1'"):
        compressed_depth_to_ros(make_frame(0).depth_m, 0, "camera", "8UC1")


def test_inverse_depth_is_as_exact_as_its_steps():
    depth = np.geomspace(0.17, 99, 4000).reshape(50, 80).astype(np.float32)
    back = depth_from_compressed(compressed_depth_to_ros(depth, 0, "camera"))
    # Half a step of inverse depth, 1 / (2 A), and float32.
    assert (np.abs(back - depth) <= depth**2 / (2 * 100 * 101) * 1.03 + 1e-5).all()


def test_millimetres_are_exact_to_half_a_millimetre():
    depth = np.linspace(0.001, 65.0, 4000).reshape(50, 80).astype(np.float32)
    message = compressed_depth_to_ros(depth, 0, "camera", "16UC1")
    assert message.format == "16UC1; compressedDepth png"
    np.testing.assert_allclose(depth_from_compressed(message), depth, atol=5.1e-4)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_what_cannot_be_sent_comes_out_invalid(encoding):
    depth = np.array([[np.nan, np.inf, -1.0, 0.0], [101.0, 2.0, 3.0, 0.05]], np.float32)
    back = depth_from_compressed(compressed_depth_to_ros(depth, 0, "camera", encoding))
    near = encoding == "16UC1"  # 0.05 m overflows 16 bits of inverse depth only
    assert np.isnan(back).tolist() == [[True] * 4, [True, False, False, not near]]


def test_depth_that_millimetres_cannot_hold_is_invalid():
    depth_m = np.array([[65.535, 65.536, 1e30, np.inf, np.nan, 4e-4, -1.0, 1.0]], np.float32)
    camera = Camera.from_hfov(70.0, depth_m.shape)
    rgb, observed = np.zeros((*depth_m.shape, 3), np.uint8), np.ones(depth_m.shape, bool)
    fields = BY_NAME["depth/image_raw"].fields(Frame(7, camera, rgb, depth_m, observed), FrameIds())
    assert fields["data"].view(np.uint16).tolist() == [65535, 0, 0, 0, 0, 0, 0, 1000]


def test_the_bytes_are_those_of_the_ros_plugin():
    """Decoded by the plugin's own rule, written out here from its documentation."""
    depth = make_frame(0).depth_m
    data = bytes(compressed_depth_to_ros(depth, 0, "camera", max_depth_m=10.0).data)
    kind, slope, offset = struct.unpack("<iff", data[:12])
    assert kind == 0 and slope == 100 * 101 and offset == 1 - slope / 10
    assert data[12:20] == b"\x89PNG\r\n\x1a\n"
    levels = cv2.imdecode(np.frombuffer(data[12:], np.uint8), cv2.IMREAD_UNCHANGED)
    assert levels.dtype == np.uint16 and levels.ndim == 2
    valid = np.isfinite(depth)
    assert (levels[~valid] == 0).all()
    np.testing.assert_allclose(slope / (levels[valid] - offset), depth[valid], atol=1e-3)


@pytest.mark.parametrize(
    ("format_text", "cut"),
    [
        ("32FC1; compressedDepth rvl", 0),
        ("32FC1", 0),
        ("32FC1; compressedDepth png", 12),
        ("32FC1; compressedDepth png", 60),
    ],
)
def test_depth_that_cannot_be_read_is_refused(format_text, cut):
    message = compressed_depth_to_ros(make_frame(0).depth_m, 0, "camera")
    message.format = format_text
    if cut:
        message.data = message.data[:cut]
    with pytest.raises(MirageError):
        depth_from_compressed(message)


def test_a_picture_that_cannot_be_read_is_refused():
    with pytest.raises(MirageError, match="cannot be decoded"):
        picture_from_compressed(CompressedImage(format="jpeg", data=[1, 2, 3]))


def test_the_frustum_meets_the_picture_s_corners():
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    camera = Camera.from_hfov(80.0, (30, 40), pose)
    marker = frustum_to_ros(camera, 9, "world")
    np.testing.assert_allclose(pose_from_ros(marker.pose), pose, atol=1e-12)
    assert marker.type == Marker.LINE_LIST and len(marker.points) == 2 * len(EDGES)
    corners = frustum_corners(camera, 0.4)
    pixels, depth = camera.project(corners[1:] + pose[:3, 3])
    np.testing.assert_allclose(
        pixels, [[-0.5, -0.5], [39.5, -0.5], [39.5, 29.5], [-0.5, 29.5]], atol=1e-9
    )
    np.testing.assert_allclose(depth, 0.4)


def test_the_trail_goes_through_the_positions():
    positions = [np.array([index, 2.0 * index, 1.0]) for index in range(3)]
    marker = trail_to_ros(positions, 9, "world")
    assert marker.type == Marker.LINE_STRIP
    assert [(p.x, p.y, p.z) for p in marker.points] == [tuple(p) for p in positions]

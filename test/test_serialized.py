"""Plans as DDS brings them: read without rclpy, and the same as rclpy reads them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TransformStamped
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message
from tf2_msgs.msg import TFMessage
from transforms3d.quaternions import mat2quat

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import from_rows
from mirage_ros.ros import tf
from mirage_ros.ros.messages import (
    parts_from_ros,
    pose_from_ros,
    pose_to_ros,
    stamp_from_ros,
    stamp_to_ros,
    transform_to_ros,
)
from mirage_ros.ros.tf import Untimed, path_from_bytes, transforms_from_bytes

SECOND = 1_000_000_000


def random_poses(count: int) -> list[np.ndarray]:
    rng, poses = np.random.default_rng(count), []
    for _ in range(count):
        pose = np.eye(4)
        pose[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        pose[:3, :3] *= np.linalg.det(pose[:3, :3])
        pose[:3, 3] = rng.normal(size=3)
        poses.append(pose)
    return poses


def path(stamps_ns, frame: str = "world", own: str = "") -> Path:
    """Poses of random positions; `own` says for each whether it names the frame: y or n."""
    message = Path()
    message.header.frame_id = frame
    for index, (stamp_ns, pose) in enumerate(zip(stamps_ns, random_poses(len(stamps_ns)))):
        stamped = PoseStamped(pose=pose_to_ros(pose))
        stamped.header.stamp = stamp_to_ros(stamp_ns)
        if own and own[index % len(own)] == "y":
            stamped.header.frame_id = frame
        message.poses.append(stamped)
    return message


@pytest.mark.parametrize("own", ["", "y", "yn", "nny"])
@pytest.mark.parametrize("frame", ["", "w", "map", "base", "world", "a_longer_one", "ö"])
def test_a_path_is_read_as_rclpy_reads_it(frame, own):
    stamps = [3, 5 * SECOND + 7, 5 * SECOND + 8, 6 * SECOND, 7 * SECOND]
    message = path(stamps, frame, own)
    found = path_from_bytes(serialize_message(message))
    assert found.frame == frame
    assert found.stamps_ns.tolist() == stamps
    expected = [pose_from_ros(stamped.pose) for stamped in message.poses]
    np.testing.assert_allclose(from_rows(found.poses), expected, atol=1e-12)


def test_transforms_are_read_as_rclpy_reads_them():
    names = ["", "a", "base_link", "ö", "map", "odom" * 20]
    message = TFMessage()
    for index, pose in enumerate(random_poses(30)):
        frames = names[index % len(names)], names[index // len(names)]
        message.transforms.append(transform_to_ros(pose, *frames, index * SECOND + index))
    found = list(transforms_from_bytes(serialize_message(message)))
    assert len(found) == 30
    for pose, transform in zip(found, message.transforms, strict=True):
        assert (pose.parent, pose.child) == (transform.header.frame_id, transform.child_frame_id)
        assert pose.stamp_ns == stamp_from_ros(transform.header.stamp)
        position, quaternion = parts_from_ros(transform)
        np.testing.assert_array_equal(pose.position, position)
        np.testing.assert_allclose(pose.quaternion, quaternion)


def test_the_other_byte_order_is_read_too():
    turn = mat2quat(np.eye(3))
    data = b"\0\0\0\0" + struct.pack(">IiII5s", 1, 7, 9, 5, b"odom\0") + b"\0\0\0"
    data += struct.pack(">I2s", 2, b"b\0") + b"\0" * 2
    data += struct.pack(">7d", 1, 2, 3, *turn[1:], turn[0])
    (pose,) = transforms_from_bytes(data)
    assert (pose.parent, pose.child, pose.stamp_ns) == ("odom", "b", 7 * SECOND + 9)
    assert pose.position.tolist() == [1, 2, 3] and pose.quaternion.tolist() == turn.tolist()


@pytest.mark.parametrize("read", [path_from_bytes, lambda data: list(transforms_from_bytes(data))])
def test_bytes_that_end_early_are_refused_wherever_they_end(read):
    transforms = [transform_to_ros(pose, "world", "base", SECOND) for pose in random_poses(3)]
    message = path([1, 2, 3]) if read is path_from_bytes else TFMessage(transforms=transforms)
    data = bytes(serialize_message(message))
    for length in range(len(data)):
        with pytest.raises(MirageError):
            read(data[:length])
    with pytest.raises(MirageError, match="make no sense"):
        read(data[:4] + b"\xff" * 60)


def test_a_bad_transform_does_not_take_the_others_with_it():
    good = transform_to_ros(np.eye(4), "world", "base", SECOND)
    long, early, endless = TransformStamped(), TransformStamped(), TransformStamped()
    long.transform.rotation.w = 3.0
    early.header.stamp.sec = -5
    endless.transform.translation.y = float("nan")
    found = list(transforms_from_bytes(serialize_message(
        TFMessage(transforms=[long, good, early, endless, good])
    )))  # fmt: skip
    assert [isinstance(item, MirageError) for item in found] == [True, False, True, True, False]
    words = "length 3", "stamped -5 s", "NaN"
    errors = [str(item) for item in found if isinstance(item, MirageError)]
    assert all(word in error for word, error in zip(words, errors, strict=True))


@pytest.mark.parametrize(
    ("stamps_ns", "kind", "message"),
    [
        ([], MirageError, "no poses"),
        ([0, 0], Untimed, "same stamp or none"),
        ([5, 5, 5], Untimed, "same stamp or none"),
        ([0], Untimed, "same stamp or none"),
        ([5, 9, 8], MirageError, "Pose 2.*back in time"),
        ([5, 9, 9], MirageError, "Pose 2.*the stamp of the one before"),
    ],
)
def test_bad_paths_are_refused(stamps_ns, kind, message):
    with pytest.raises(MirageError, match=message) as caught:
        path_from_bytes(serialize_message(path(stamps_ns)))
    assert type(caught.value) is kind


def test_paths_of_two_frames_or_with_bad_poses_are_refused():
    message = path([1, 2])
    message.poses[1].header.frame_id = "odom"
    with pytest.raises(MirageError, match="Pose 1.*'odom'.*'world'"):
        path_from_bytes(serialize_message(message))
    message = path([1, 2, 3])
    message.poses[2].pose.orientation.w += 3.0
    with pytest.raises(MirageError, match="Pose 2.*quaternion of length"):
        path_from_bytes(serialize_message(message))
    message.poses[1].pose.position.x = float("inf")
    with pytest.raises(MirageError, match="Pose 1.*NaN or infinity"):
        path_from_bytes(serialize_message(message))


def test_a_path_is_bounded(monkeypatch):
    monkeypatch.setattr(tf, "MOST_POSES", 3)
    monkeypatch.setattr(tf, "MOST_LAYOUTS", 2)
    with pytest.raises(MirageError, match="holds 4 poses; send at most 3"):
        path_from_bytes(serialize_message(path([1, 2, 3, 4])))
    with pytest.raises(MirageError, match="name it in all or in none"):
        path_from_bytes(serialize_message(path([1, 2, 3], own="yn")))

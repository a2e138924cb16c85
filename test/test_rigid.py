"""Rigid maps obey the laws of SE(3)."""

import numpy as np
import pytest
from transforms3d.quaternions import axangle2quat, quat2mat

from mirage_ros.geometry import rigid

SCALES = (0.0, 1e-300, 1e-9, 1e-5, 1e-3, 0.3, 1.2)


def twists(count=20, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, 6) * scale for scale in SCALES for _ in range(count)]


def half_turns():
    """Rotations by, and by a little less than, 180 degrees."""
    axes = np.random.default_rng(1).normal(size=(20, 3))
    for axis in (*np.eye(3), *(axes / np.linalg.norm(axes, axis=1, keepdims=True))):
        yield from (axis * angle for angle in (np.pi, np.pi - 1e-7, np.pi - 1e-3))


def test_log_undoes_exp():
    for twist in twists():
        np.testing.assert_allclose(rigid.log(rigid.exp(twist)), twist, rtol=1e-6, atol=1e-14)


def test_exp_undoes_log_also_of_half_turns():
    for turn in half_turns():
        pose = rigid.exp(np.array([0.3, -2, 1, *turn]))
        np.testing.assert_allclose(rigid.exp(rigid.log(pose)), pose, atol=1e-9)
        assert np.linalg.norm(rigid.log_rotation(pose[:3, :3])) <= np.pi + 1e-12


def test_a_constant_twist_adds_up():
    for twist in twists(5):
        half = rigid.exp(twist / 2)
        np.testing.assert_allclose(half @ half, rigid.exp(twist), atol=1e-12)
        np.testing.assert_allclose(rigid.exp(-twist) @ rigid.exp(twist), np.eye(4), atol=1e-12)


def test_inverse_and_orthonormal():
    poses = np.stack([rigid.exp(twist) for twist in twists(5)])
    np.testing.assert_allclose(rigid.inverse(poses) @ poses, np.tile(np.eye(4), (35, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(rigid.inverse(poses[-1]), np.linalg.inv(poses[-1]), atol=1e-12)
    skewed = poses[-1].copy()
    skewed[:3, :3] *= 1 + 1e-4
    np.testing.assert_allclose(rigid.orthonormal(skewed), poses[-1], atol=1e-12)


def test_rotations_about_an_axis_are_those_of_rotation_vectors():
    axis, angles = np.array([2, -1, 2]) / 3, np.linspace(-3, 3, 7)
    expected = [rigid.exp_rotation(axis * angle) for angle in angles]
    np.testing.assert_allclose(rigid.rotations_about(axis, angles), expected, atol=1e-12)


def test_advance_goes_on_at_constant_velocity():
    for twist in twists(5)[-10:]:
        before, step = rigid.exp(twist), rigid.exp_rotation(twist[3:])
        now = before.copy()
        now[:3, :3], now[:3, 3] = before[:3, :3] @ step, before[:3, 3] + twist[:3]
        np.testing.assert_allclose(rigid.advance(before, now, 0.0), now, atol=1e-12)
        np.testing.assert_allclose(rigid.advance(before, now, -1.0), before, atol=1e-12)
        after = rigid.advance(before, now, 2.0)
        np.testing.assert_allclose(after[:3, 3], before[:3, 3] + 3 * twist[:3], atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_goes_the_short_way_one_by_one_and_in_rows(sign):
    for twist in twists(5):
        angle = np.linalg.norm(twist[3:])
        axis = twist[3:] / angle if angle else np.array([0, 0, 1.0])
        start, share = axangle2quat([0, 1, 0], 0.7), 0.3
        end = sign * np.array(rigid.qmult(start, axangle2quat(axis, angle)))
        expected = quat2mat(start) @ rigid.exp_rotation(share * twist[3:])
        np.testing.assert_allclose(quat2mat(rigid.slerp(start, end, share)), expected, atol=1e-9)
        row = rigid.slerp_rows(start[None], end[None], np.array([[share]]))[0]
        np.testing.assert_allclose(quat2mat(row), expected, atol=1e-9)


def test_a_map_from_position_and_quaternion():
    pose = rigid.from_quaternion(np.array([1, 2, 3.0]), axangle2quat([0, 0, 1], np.pi / 2))
    np.testing.assert_allclose(pose @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)

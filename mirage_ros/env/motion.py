"""How actions move a camera: driving on the floor, and free six-axis motion.

Six-axis motion is a body twist in the camera's optical axes (x right, y down, z forward): three
linear numbers, then the rotation vector. Driving is a unicycle: forward along the floor, turn to
the left (REP 103).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mirage_ros.core.camera import floor_axes


def driven(
    world_from_camera: Float[np.ndarray, "4 4"], forward_m: float, left_rad: float
) -> Float[np.ndarray, "4 4"]:
    """The pose after driving an arc of `forward_m` metres that turns by `left_rad` radians."""
    up, ahead, right = floor_axes(world_from_camera)
    chord_m = forward_m * np.sinc(left_rad / 2 / np.pi)
    middle = left_rad / 2
    pose = np.array(world_from_camera)
    pose[:3, :3] = rotation_of(left_rad * up) @ pose[:3, :3]
    pose[:3, 3] += chord_m * (np.cos(middle) * ahead - np.sin(middle) * right)
    return pose


def flown(
    world_from_camera: Float[np.ndarray, "4 4"], motion: Float[np.ndarray, "6"]
) -> Float[np.ndarray, "4 4"]:
    """The pose after a body motion (metres, radians) at a constant twist."""
    return world_from_camera @ exp_motion(motion)


def exp_motion(motion: Float[np.ndarray, "6"]) -> Float[np.ndarray, "4 4"]:
    """The rigid map of a constant body twist (SE(3) exponential)."""
    shift, turn = np.asarray(motion[:3], float), np.asarray(motion[3:], float)
    pose = np.eye(4)
    pose[:3, :3] = rotation_of(turn)
    pose[:3, 3] = _left_jacobian(turn) @ shift
    return pose


def log_motion(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "6"]:
    """The body twist whose `exp_motion` the rigid map is; turns below 180 degrees."""
    rotation = pose[:3, :3]
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0],
                     rotation[1, 0] - rotation[0, 1]]) / 2  # fmt: skip
    sine, cosine = np.linalg.norm(axis), (np.trace(rotation) - 1) / 2
    turn = axis * (np.arctan2(sine, cosine) / sine if sine > 1e-9 else 1.0)
    return np.concatenate([np.linalg.solve(_left_jacobian(turn), pose[:3, 3]), turn])


def rotation_of(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix of a rotation vector, radians (Rodrigues)."""
    angle = np.linalg.norm(turn)
    cross = _cross(turn)
    return np.eye(3) + np.sinc(angle / np.pi) * cross + _versine(angle) * (cross @ cross)


def orthonormal(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The pose with its rotation made exact again, so that errors do not add up."""
    left, _, right = np.linalg.svd(pose[:3, :3])
    exact = pose.copy()
    exact[:3, :3] = left @ right
    return exact


def _versine(angle: float) -> float:
    """(1 - cos a) / a^2, good at 0."""
    return 0.5 * np.sinc(angle / 2 / np.pi) ** 2


def _left_jacobian(turn: np.ndarray) -> np.ndarray:
    angle, cross = np.linalg.norm(turn), _cross(turn)
    third = (angle - np.sin(angle)) / angle**3 if angle > 1e-4 else 1 / 6
    return np.eye(3) + _versine(angle) * cross + third * (cross @ cross)


def _cross(v: np.ndarray) -> np.ndarray:
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])

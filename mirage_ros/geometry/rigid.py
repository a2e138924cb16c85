"""Rigid maps, SE(3), as (4, 4) matrices `a_from_b`: exponential, logarithm, interpolation, inverse.

A twist is six numbers: metres along x, y and z, then the rotation vector in radians. Quaternions are wxyz.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from transforms3d.axangles import axangle2mat
from transforms3d.quaternions import axangle2quat, mat2quat, qconjugate, qmult, quat2mat

Map = Float[np.ndarray, "4 4"]
SECOND_NS = 1_000_000_000


def from_quaternion(position: Float[np.ndarray, "3"], quaternion: Float[np.ndarray, "4"]) -> Map:
    """The map of a position and a unit quaternion."""
    pose = np.eye(4)
    pose[:3, :3] = quat2mat(quaternion)
    pose[:3, 3] = position
    return pose


def from_rows(rows: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 4 4"]:
    """The maps of x y z qx qy qz qw, quaternions brought to length 1."""
    lengths = np.linalg.norm(rows[:, 3:], axis=1)
    x, y, z, w = (rows[:, 3:] / lengths[:, None]).T
    poses = np.zeros((len(rows), 4, 4))
    right = [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)]
    down = [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)]
    ahead = [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)]
    for column, values in enumerate((right, down, ahead)):
        poses[:, :3, column] = np.stack(values, 1)
    poses[:, :3, 3], poses[:, 3, 3] = rows[:, :3], 1
    return poses


def inverse(a_from_b: Float[np.ndarray, "*batch 4 4"]) -> Float[np.ndarray, "*batch 4 4"]:
    """b_from_a."""
    rotation = np.swapaxes(a_from_b[..., :3, :3], -1, -2)
    result = np.zeros_like(a_from_b)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, a_from_b[..., :3, 3])
    result[..., 3, 3] = 1
    return result


def orthonormal(pose: Map) -> Map:
    """The pose with its rotation made exact again, so that errors do not add up."""
    left, _, right = np.linalg.svd(pose[:3, :3])
    exact = pose.copy()
    exact[:3, :3] = left @ right
    return exact


def exp(twist: Float[np.ndarray, "6"]) -> Map:
    """The map that a constant body twist leads to in one unit of time."""
    shift, turn = np.asarray(twist[:3], float), np.asarray(twist[3:], float)
    pose = np.eye(4)
    pose[:3, :3] = exp_rotation(turn)
    pose[:3, 3] = _left_jacobian(turn) @ shift
    return pose


def log(pose: Map) -> Float[np.ndarray, "6"]:
    """The twist whose `exp` the map is; its rotation is at most 180 degrees."""
    turn = log_rotation(pose[:3, :3])
    return np.concatenate([np.linalg.solve(_left_jacobian(turn), pose[:3, 3]), turn])


def exp_rotation(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix of a rotation vector in radians."""
    angle = float(np.linalg.norm(turn))
    return axangle2mat(np.asarray(turn) / angle, angle, is_normalized=True) if angle else np.eye(3)


def log_rotation(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """The rotation vector of a rotation matrix, at most pi long."""
    return _log_quaternion(mat2quat(rotation))


def rotations_about(
    axis: Float[np.ndarray, "3"], angles_rad: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3 3"]:
    """Rotations by many angles about one unit axis (Rodrigues' formula)."""
    angles, cross = angles_rad[:, None, None], _cross_matrix(axis)
    return np.eye(3) + np.sin(angles) * cross + (1 - np.cos(angles)) * (cross @ cross)


def advance(before: Map, now: Map, share: float) -> Map:
    """`now` moved on by a share of the step from `before`: straight on, and turning about one axis."""
    pose = now.copy()
    pose[:3, 3] += share * (now[:3, 3] - before[:3, 3])
    turn = log_rotation(before[:3, :3].T @ now[:3, :3])
    pose[:3, :3] = now[:3, :3] @ exp_rotation(share * turn)
    return pose


def slerp(
    start: Float[np.ndarray, "4"], end: Float[np.ndarray, "4"], share: float
) -> Float[np.ndarray, "4"]:
    """The unit quaternion a share of the way from one to another, the short way round."""
    turn = _log_quaternion(qmult(qconjugate(start), end))
    angle = float(np.linalg.norm(turn))
    if not angle:
        return np.array(start)
    return qmult(start, axangle2quat(turn / angle, share * angle, is_normalized=True))


def slerp_rows(
    start: Float[np.ndarray, "n 4"], end: Float[np.ndarray, "n 4"], share: Float[np.ndarray, "n 1"]
) -> Float[np.ndarray, "n 4"]:
    """`slerp` of each row."""
    cosine = (start * end).sum(1, keepdims=True)
    angle = np.arccos(np.minimum(np.abs(cosine), 1))
    sine = np.maximum(np.sin(angle), 1e-12)
    close = angle < 1e-6
    first = np.where(close, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(close, share, np.sin(share * angle) / sine)
    return first * start + np.where(cosine < 0, -second, second) * end


def _log_quaternion(quaternion: np.ndarray) -> Float[np.ndarray, "3"]:
    """The rotation vector; unlike transforms3d's, exact for tiny angles as well."""
    vector = quaternion[1:] if quaternion[0] >= 0 else -quaternion[1:]
    sine, cosine = float(np.linalg.norm(vector)), abs(float(quaternion[0]))
    return vector * (2 * np.arctan2(sine, cosine) / sine if sine > 1e-150 else 2.0)


def _left_jacobian(turn: np.ndarray) -> np.ndarray:
    """Maps the shift of a twist to the position that it leads to."""
    angle, cross = np.linalg.norm(turn), _cross_matrix(turn)
    second = 0.5 * np.sinc(angle / 2 / np.pi) ** 2
    third = (angle - np.sin(angle)) / angle**3 if angle > 1e-4 else 1 / 6
    return np.eye(3) + second * cross + third * (cross @ cross)


def _cross_matrix(v: np.ndarray) -> np.ndarray:
    """The matrix that takes the cross product with v from the left."""
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


def twist_between(
    before: Float[np.ndarray, "4 4"], now: Float[np.ndarray, "4 4"], seconds: float
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The constant linear and angular velocity, along the world's axes, that lead from one pose to the other."""
    turn = log_rotation(now[:3, :3] @ before[:3, :3].T)
    return (now[:3, 3] - before[:3, 3]) / seconds, turn / seconds


@dataclass(frozen=True, eq=False)
class Track:
    """Where a body is at rising times; between two of them it goes evenly, before and after all it stands."""

    stamps_ns: tuple[int, ...]
    poses: Float[np.ndarray, "n 4 4"]

    @classmethod
    def at_speed(
        cls, start_ns: int, poses: Float[np.ndarray, "n 4 4"], speed_mps: float, turn_rps: float
    ) -> Track:
        """Through poses at a speed, slower where it would turn faster than `turn_rps`."""
        far = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / speed_mps
        turns = [np.linalg.norm(log_rotation(one[:3, :3].T @ other[:3, :3])) for one, other in zip(poses, poses[1:], strict=False)]
        seconds = np.maximum(far, np.array(turns) / turn_rps)
        steps_ns = np.maximum(1, np.rint(seconds * SECOND_NS)).astype(np.int64)
        return cls((start_ns, *(start_ns + np.cumsum(steps_ns)).tolist()), poses)

    @property
    def end_ns(self) -> int:
        return self.stamps_ns[-1]

    @property
    def fastest_mps(self) -> float:
        """On its fastest stretch."""
        far = np.linalg.norm(np.diff(self.poses[:, :3, 3], axis=0), axis=1)
        return float((far * SECOND_NS / np.diff(self.stamps_ns)).max(initial=0.0))

    def at(self, stamp_ns: int) -> Map:
        index = bisect_left(self.stamps_ns, stamp_ns)
        if index == 0 or index == len(self.stamps_ns) or stamp_ns == self.stamps_ns[index]:
            return self.poses[min(index, len(self.poses) - 1)]
        (begin_ns, end_ns), (one, other) = self.stamps_ns[index - 1 : index + 1], self.poses[index - 1 : index + 1]
        return advance(one, other, (stamp_ns - end_ns) / (end_ns - begin_ns))

    def twist_at(self, stamp_ns: int) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Linear and angular velocity along the world's axes; where one stretch follows another, on that one."""
        index = bisect_right(self.stamps_ns, stamp_ns)
        if index in (0, len(self.stamps_ns)):
            return np.zeros(3), np.zeros(3)
        (begin_ns, end_ns), (one, other) = self.stamps_ns[index - 1 : index + 1], self.poses[index - 1 : index + 1]
        return twist_between(one, other, (end_ns - begin_ns) / SECOND_NS)

    def later(self, by_ns: int) -> Track:
        """The same, so much later."""
        return Track(tuple(stamp_ns + by_ns for stamp_ns in self.stamps_ns), self.poses)

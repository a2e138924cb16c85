"""Pinhole cameras: intrinsics and pose, project, unproject, resize.

Axes are the optical ones of REP 103 (x right, y down, z forward). Pixel centres
are at integer coordinates, as in sensor_msgs/CameraInfo and OpenCV: the centre
of the first pixel is (0, 0). Everything is float64 numpy; a Camera may hold a
batch of poses and intrinsics that share one picture size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mirage_ros.errors import MirageError
from mirage_ros.geometry.rigid import inverse

ORTHONORMAL_TOLERANCE = 1e-3

FARTHEST_M = 1e7
"""From the origin along each axis. Positions in the world are float32, good to a metre at that distance;
much larger numbers overflow where they meet in compiled loops."""

LEAST_SIDES, MOST_SIDES = 1e-3, 1e4
"""Of the picture: so many widths (heights) focal lengths are at least and at most, and principal
points away from its edge at most."""


@dataclass(frozen=True)
class Camera:
    """One pinhole camera, or a batch of them with one size.

    Attributes:
        intrinsics: (*batch, 3, 3), pixels, zero skew.
        world_from_camera: (*batch, 4, 4) rigid map, metres.
        size: (height, width) of the picture in pixels.
    """

    intrinsics: Float[np.ndarray, "... 3 3"]
    world_from_camera: Float[np.ndarray, "*batch 4 4"]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        pose = np.asarray(self.world_from_camera, np.float64)
        intrinsics = np.asarray(self.intrinsics, np.float64)
        if pose.shape[-2:] != (4, 4) or intrinsics.shape[-2:] != (3, 3):
            raise MirageError(
                f"A camera got intrinsics {intrinsics.shape} and pose {pose.shape}; "
                "give (*batch, 3, 3) and (*batch, 4, 4)."
            )
        intrinsics = np.broadcast_to(intrinsics, (*pose.shape[:-2], 3, 3))
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "world_from_camera", pose)
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        _check_intrinsics(intrinsics, self.size)
        check_pose(pose, "A camera")

    @classmethod
    def from_hfov(
        cls,
        hfov_deg: float,
        size: tuple[int, int],
        world_from_camera: Float[np.ndarray, "*batch 4 4"] | None = None,
    ) -> Camera:
        """A centred camera with square pixels from its horizontal field of view in degrees."""
        if not 1.0 <= hfov_deg <= 170.0:
            raise MirageError(
                f"The horizontal field of view is {hfov_deg} deg; give one between 1 and 170."
            )
        height, width = size
        focal = width / 2 / np.tan(np.radians(hfov_deg) / 2)
        centre = ((width - 1) / 2, (height - 1) / 2)
        intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
        pose = np.eye(4) if world_from_camera is None else world_from_camera
        return cls(intrinsics, pose, size)

    @classmethod
    def stack(cls, cameras: Sequence[Camera]) -> Camera:
        """One batch out of several cameras of one size and one batch shape."""
        sizes = {camera.size for camera in cameras}
        if len(sizes) != 1:
            raise MirageError(f"Cameras to stack need one size, got {sorted(sizes)}; resize first.")
        return cls(
            np.stack([camera.intrinsics for camera in cameras]),
            np.stack([camera.world_from_camera for camera in cameras]),
            sizes.pop(),
        )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.world_from_camera.shape[:-2]

    @property
    def camera_from_world(self) -> Float[np.ndarray, "*batch 4 4"]:
        return inverse(self.world_from_camera)

    @property
    def position_world(self) -> Float[np.ndarray, "*batch 3"]:
        return self.world_from_camera[..., :3, 3]

    @property
    def hfov_deg(self) -> float | Float[np.ndarray, "*batch"]:
        """Horizontal field of view between the outer pixel edges (centred cameras)."""
        return np.degrees(2 * np.arctan(self.size[1] / 2 / self.intrinsics[..., 0, 0]))

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("A single camera has no length.")
        return self.batch_shape[0]

    def __getitem__(self, index) -> Camera:
        if not self.batch_shape:
            raise IndexError("A single camera cannot be indexed.")
        return replace(
            self,
            intrinsics=self.intrinsics[index],
            world_from_camera=self.world_from_camera[index],
        )

    def __iter__(self) -> Iterator[Camera]:
        return (self[index] for index in range(len(self)))

    def resized(self, size: tuple[int, int]) -> Camera:
        """The same view sampled at another size; pixel centres stay at integers.

        With a scale s per axis, cx' = s * (cx + 0.5) - 0.5: the half-pixel shift that
        keeps the picture's edges, not its first centres, in place.
        """
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0]])
        intrinsics = self.intrinsics.copy()
        intrinsics[..., 0, 0] *= scale[0]
        intrinsics[..., 1, 1] *= scale[1]
        intrinsics[..., :2, 2] = scale * (self.intrinsics[..., :2, 2] + 0.5) - 0.5
        return Camera(intrinsics, self.world_from_camera, size)

    def cropped(self, top: int, left: int, size: tuple[int, int]) -> Camera:
        """The view through a window of the picture whose first pixel is (left, top)."""
        intrinsics = self.intrinsics.copy()
        intrinsics[..., 0, 2] -= left
        intrinsics[..., 1, 2] -= top
        return Camera(intrinsics, self.world_from_camera, size)

    def turned(self, angle_rad: float | Float[np.ndarray, "*batch"]) -> Camera:
        """Cameras turned in place about the world's up, to the left."""
        turn, pose = np.zeros((*self.batch_shape, 3, 3)), self.world_from_camera.copy()
        turn[..., 0, 0] = turn[..., 1, 1] = np.cos(angle_rad)
        turn[..., 1, 0], turn[..., 0, 1], turn[..., 2, 2] = np.sin(angle_rad), -np.sin(angle_rad), 1
        pose[..., :3, :3] = turn @ pose[..., :3, :3]
        return Camera(self.intrinsics, pose, self.size)

    def project(
        self, points_world: Float[np.ndarray, "*batch n 3"]
    ) -> tuple[Float[np.ndarray, "*batch n 2"], Float[np.ndarray, "*batch n"]]:
        """Pixel coordinates (u, v) and depth along z; depth <= 0 lies behind the camera."""
        camera_from_world = self.camera_from_world
        points = np.einsum("...ij,...nj->...ni", camera_from_world[..., :3, :3], points_world)
        points = points + camera_from_world[..., None, :3, 3]
        depth = points[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = points[..., :2] / depth[..., None]
        focal = self.intrinsics[..., None, (0, 1), (0, 1)]
        return plane * focal + self.intrinsics[..., None, :2, 2], depth

    def unproject(
        self, pixels: Float[np.ndarray, "*batch n 2"], depth_m: Float[np.ndarray, "*batch n"]
    ) -> Float[np.ndarray, "*batch n 3"]:
        """World points of pixel coordinates (u, v) at metric depth along z."""
        focal = self.intrinsics[..., None, (0, 1), (0, 1)]
        plane = (pixels - self.intrinsics[..., None, :2, 2]) / focal
        rays = np.concatenate([plane, np.ones_like(plane[..., :1])], -1)
        points = rays * depth_m[..., None]
        rotated = np.einsum("...ij,...nj->...ni", self.world_from_camera[..., :3, :3], points)
        return rotated + self.world_from_camera[..., None, :3, 3]

    def pixels(self) -> Float[np.ndarray, "h w 2"]:
        """The (u, v) of every pixel centre."""
        height, width = self.size
        u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
        return np.stack([u, v], -1)

    def rays(self) -> Float[np.ndarray, "*batch h w 3"]:
        """Directions in the camera's axes with z = 1, one per pixel."""
        focal = self.intrinsics[..., None, None, (0, 1), (0, 1)]
        plane = (self.pixels() - self.intrinsics[..., None, None, :2, 2]) / focal
        return np.concatenate([plane, np.ones_like(plane[..., :1])], -1)

    def rays_world(self) -> Float[np.ndarray, "*batch h w 3"]:
        """The same in the world's axes: from the camera's position to what lies at a depth of 1."""
        return np.einsum("...ij,...hwj->...hwi", self.world_from_camera[..., :3, :3], self.rays())

    def lift(self, depth_m: Float[np.ndarray, "*batch h w"]) -> Float[np.ndarray, "*batch h w 3"]:
        """World points of a whole depth picture; invalid depth gives invalid points."""
        points = self.rays() * np.asarray(depth_m, np.float64)[..., None]
        rotated = np.einsum("...ij,...hwj->...hwi", self.world_from_camera[..., :3, :3], points)
        return rotated + self.world_from_camera[..., None, None, :3, 3]


def floor_axes(world_from_camera: Float[np.ndarray, "4 4"]) -> tuple[np.ndarray, ...]:
    """Up, ahead and right of a camera on its world's floor.

    Up is the world axis nearest to the camera's own up, so recordings whose world has another
    axis up than z are walked through upright as well.
    """
    rotation = world_from_camera[:3, :3]
    axis = np.abs(rotation[:, 1]).argmax()
    up = np.zeros(3)
    up[axis] = -np.sign(rotation[axis, 1])
    ahead = rotation[:, 2] - up * (rotation[:, 2] @ up)
    ahead /= np.linalg.norm(ahead)
    return up, ahead, np.cross(ahead, up)


def check_place(position: Float[np.ndarray, "*batch 3"], what: str) -> None:
    """Raises MirageError for what lies beyond FARTHEST_M. NaN passes.

    Args:
        what: stands there, for the message.
    """
    far = (np.abs(position) > FARTHEST_M).any(-1)
    if far.any():
        outside = np.asarray(position)[far][0].tolist()
        raise MirageError(
            f"{what} is at {outside} m, a world reaches up to {FARTHEST_M:,.0f} m from its origin; "
            "choose an origin nearby."
        )


def _check_intrinsics(intrinsics: np.ndarray, size: tuple[int, int]) -> None:
    if size[0] < 1 or size[1] < 1:
        raise MirageError(
            f"A camera got the picture size {size}; both sides need at least 1 pixel."
        )
    focal = intrinsics[..., (0, 1), (0, 1)]
    if not np.isfinite(intrinsics).all() or not (focal > 0).all():
        raise MirageError(
            f"A camera got the focal lengths {focal.reshape(-1, 2)[0].tolist()}; both must be "
            "finite and above 0: check K in the CameraInfo."
        )
    sides = np.array([size[1], size[0]])
    longest = np.maximum(focal, np.abs(intrinsics[..., :2, 2])) / sides
    if (focal < LEAST_SIDES * sides).any() or (longest > MOST_SIDES).any():
        raise MirageError(
            f"A camera of {size[1]} x {size[0]} pixels got the focal lengths "
            f"{focal.reshape(-1, 2)[0].tolist()} and the principal point "
            f"{intrinsics[..., :2, 2].reshape(-1, 2)[0].tolist()}, which no lens has; check K in the "
            "CameraInfo."
        )


def check_pose(pose: Float[np.ndarray, "*batch 4 4"], what: str) -> None:
    """Raises MirageError for what is no rigid map, or lies beyond FARTHEST_M.

    Args:
        what: has the pose, for the message.
    """
    if not np.isfinite(pose).all():
        raise MirageError(f"{what}'s pose holds NaN or infinity; give finite poses.")
    check_place(pose[..., :3, 3], what)
    rotation = pose[..., :3, :3]
    product = np.einsum("...ki,...kj->...ij", rotation, rotation)
    if np.abs(product - np.eye(3)).max(initial=0) > ORTHONORMAL_TOLERANCE:
        raise MirageError(f"{what}'s pose has a rotation that is not orthonormal; normalise its quaternion first.")

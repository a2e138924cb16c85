"""What comes in: pictures, bags and other recordings that worlds start from. Here: a walk, which is a posed recording read
frame by frame, whatever its layout; and what readers of all layouts share.

Poses are checked here, found between those of a track, and depth is brought to the colour picture's camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int

from mirage_ros.data.seeds import PosedFrame
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.rigid import from_rows, orthonormal, slerp_rows

MOST_APART_NS = 20_000_000
"""Pictures, depth and poses belong together up to so far apart."""
LONGEST_GAP_NS = 500_000_000
"""Poses are interpolated between two that are no farther apart."""


@dataclass(frozen=True)
class WalkConfig:
    """What a recording does not say itself, or is to be asked for.

    Attributes:
        intrinsics: fx fy cx cy of the colour pictures, in pixels; None as the recording says.
        depth_units_per_m: of integer depth pictures; None as the layout has it.
        every: take each so many-th frame.
        color, depth, color_info, depth_info, poses: topics of a bag; "" finds them by their types.
        world_frame: of a bag's transforms; "" takes the root of the camera's tree.
        depth_of: a depth model's word on a picture and its camera, brought to the depth that is known there (NaN where none is).
    """

    intrinsics: tuple[float, float, float, float] | None = None
    depth_units_per_m: float | None = None
    every: int = 1
    color: str = ""
    depth: str = ""
    color_info: str = ""
    depth_info: str = ""
    poses: str = ""
    world_frame: str = ""
    depth_of: Callable[[np.ndarray, Camera, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Walk:
    """A posed recording.

    Attributes:
        source: where it lies.
        kind: its layout, in words.
        names: of each frame, for messages.
        read: frame i, with depth None where there is none; raises MirageError for a bad one.
        held_out: sentences about frames that the layout holds and that are no frames of the walk.
    """

    source: Path
    kind: str
    names: tuple[str, ...]
    read: Callable[[int], PosedFrame]
    held_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def of(self, numbers: Sequence[int]) -> Walk:
        """The walk of some of its frames."""
        return replace(self, names=tuple(self.names[i] for i in numbers), read=lambda i: self.read(numbers[i]))

    def split(self, each: int) -> tuple[Walk, Walk]:
        """The walk without each so many-th frame, and these."""
        if each < 2 or len(self) < each:
            raise MirageError(f"Each {each}-th of {len(self)} frames was to be held out; give 2 or more, up to their number.")
        held = range(each - 1, len(self), each)
        return self.of([i for i in range(len(self)) if i not in held]), self.of(held)


def pinhole(values: Iterable[float]) -> Float[np.ndarray, "3 3"]:
    """The matrix of fx fy cx cy."""
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def sound_pose(pose: np.ndarray, name: str) -> Float[np.ndarray, "4 4"]:
    """The pose, with its rotation made exact. Raises MirageError, naming the frame, for what is none."""
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise MirageError(f"The pose of {name} holds NaN or infinity; its tracking was lost there.")
    scales = np.linalg.svd(pose[:3, :3], compute_uv=False)
    if np.linalg.det(pose[:3, :3]) < 0:
        raise MirageError(
            f"The pose of {name} is mirrored (determinant below 0); flip one axis of the poses, camera axes are x "
            "right, y down, z forward."
        )
    if np.abs(scales - 1).max() > 1e-2:
        raise MirageError(f"The pose of {name} is no rotation and shift (it scales by {scales.max():.3g}); mend it.")
    return orthonormal(pose.astype(np.float64))


def registered(
    depth_m: Float[np.ndarray, "h w"], depth_camera: Camera, camera: Camera
) -> Float[np.ndarray, "H W"]:
    """Depth as another camera sees it: every pixel's patch is drawn at its place, the nearest wins; NaN elsewhere."""
    height, width = camera.size
    known = np.isfinite(depth_m) & (depth_m > 0)
    pixels, z = camera.project(depth_camera.lift(depth_m)[known])
    side = camera.intrinsics[0, 0] / depth_camera.intrinsics[0, 0] * depth_m[known] / np.maximum(z, 1e-6)
    result = np.full(height * width, np.inf, np.float32)
    reach = int(np.clip(np.ceil(np.nanmax(side, initial=1) / 2), 1, 4))
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            with np.errstate(invalid="ignore"):
                column, row = np.rint(pixels).T + np.array([[right], [down]])
                near = np.maximum(np.abs(column - pixels[:, 0]), np.abs(row - pixels[:, 1])) <= side / 2 + 0.01
                near &= (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            np.minimum.at(result, (row[near] * width + column[near]).astype(np.int64), z[near].astype(np.float32))
    result[np.isinf(result)] = np.nan
    return result.reshape(height, width)


def joined(rgb: np.ndarray, camera: Camera, depth_m: np.ndarray, depth_camera: Camera | None) -> PosedFrame:
    """A frame of one camera: depth of another size or another camera is brought to the colour picture's.

    Where depth is the coarser one the picture is made as small first, so that no pixel is without a depth of its own.
    """
    if depth_camera is None:
        depth_camera = camera.resized(depth_m.shape)
    if depth_camera.size == camera.size and np.array_equal(depth_camera.intrinsics, camera.intrinsics):
        if np.array_equal(depth_camera.world_from_camera, camera.world_from_camera):
            return PosedFrame(rgb, depth_m, camera)
    scale = min(1.0, depth_camera.intrinsics[0, 0] / camera.intrinsics[0, 0])
    size = tuple(max(8, round(side * scale)) for side in camera.size)
    if size != camera.size:
        rgb, camera = cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA), camera.resized(size)
    depth_m = registered(depth_m, depth_camera, camera)
    if np.isnan(depth_m).all():
        raise MirageError("No depth falls into the colour picture; check both cameras' intrinsics and the map between.")
    return PosedFrame(rgb, depth_m, camera)


def nearest(stamps: Int[np.ndarray, "n"], others: Int[np.ndarray, "m"]) -> Int[np.ndarray, "n"]:
    """For each stamp the number of the nearest of the others, which are sorted and at least one."""
    after = np.clip(np.searchsorted(others, stamps), 1, max(1, len(others) - 1))
    before = np.minimum(after - 1, len(others) - 1)
    after = np.minimum(after, len(others) - 1)
    return np.where(np.abs(others[after] - stamps) < np.abs(others[before] - stamps), after, before)


def poses_at(
    stamps: Int[np.ndarray, "n"], track: Int[np.ndarray, "m"], rows: Float[np.ndarray, "m 7"]
) -> Float[np.ndarray, "n 4 4"]:
    """Poses at stamps between those of a track (x y z qx qy qz qw, stamps sorted); NaN where it has none nearby."""
    poses = np.full((len(stamps), 4, 4), np.nan)
    first = np.clip(np.searchsorted(track, stamps, "right") - 1, 0, len(track) - 1)
    second = np.minimum(first + 1, len(track) - 1)
    span = np.maximum(track[second] - track[first], 1)
    share = np.clip((stamps - track[first]) / span, 0, 1)[:, None]
    within = (stamps >= track[0]) & (stamps <= track[-1]) & ((span <= LONGEST_GAP_NS) | (share[:, 0] == 0))
    within |= np.abs(track[nearest(stamps, track)] - stamps) <= MOST_APART_NS
    if within.any():
        turns = rows[:, 3:] / np.linalg.norm(rows[:, 3:], axis=1, keepdims=True)
        turn = slerp_rows(turns[first], turns[second], share)
        exact = share[:, 0] == 0
        turn[exact] = turns[first][exact]
        place = np.where(share == 0, rows[first, :3], (1 - share) * rows[first, :3] + share * rows[second, :3])
        poses[within] = from_rows(np.concatenate([place, turn], 1)[within])
    return poses


def matched(
    stamps: Int[np.ndarray, "n"], depth_stamps: Int[np.ndarray, "m"], poses: Float[np.ndarray, "n 4 4"], what: str
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"], tuple[str, ...]]:
    """Numbers of the pictures that have depth at their time and a pose, of the depth of each, and a sentence about others.

    Raises MirageError where hardly one has both.
    """
    of, posed = nearest(stamps, depth_stamps), np.isfinite(poses).all((1, 2))
    apart = np.abs(depth_stamps[of] - stamps)
    _check_synchronous(apart, posed, what)
    kept = np.nonzero((apart <= MOST_APART_NS) & posed)[0]
    lost, ms = len(stamps) - len(kept), MOST_APART_NS // 10**6
    said = (f"{lost} pictures have no depth within {ms} ms, or no pose, and are left out.",) if lost else ()
    return kept, of[kept], said


def _check_synchronous(apart_ns: np.ndarray, posed: np.ndarray, what: str) -> None:
    """Raises MirageError where hardly a picture has depth at its time, or a pose."""
    if np.mean(apart_ns <= MOST_APART_NS) < 0.05:
        raise MirageError(
            f"Hardly a picture of {what} has a depth picture within {MOST_APART_NS // 10**6} ms, the nearest are "
            f"{np.median(apart_ns) / 1e9:.3g} s apart (median): their clocks are not synchronised; correct the stamps."
        )
    if np.mean(posed) < 0.05:
        raise MirageError(
            f"Hardly a picture of {what} was taken while there were poses: their clocks are not synchronised, or "
            "the poses are another recording's; correct the stamps."
        )


def undistorted(frame: PosedFrame, distortion: Float[np.ndarray, "k"]) -> PosedFrame:
    """The frame as a lens without OpenCV's distortion sees it; depth keeps its own values."""
    if not np.any(distortion):
        return frame
    k, size = frame.camera.intrinsics, frame.camera.size[::-1]
    maps = cv2.initUndistortRectifyMap(k, distortion, None, k, size, cv2.CV_32FC1)
    rgb = cv2.remap(frame.rgb, *maps, cv2.INTER_LINEAR)
    if frame.depth_m is None:
        return replace(frame, rgb=rgb)
    depth = cv2.remap(frame.depth_m, *maps, cv2.INTER_NEAREST, borderValue=np.nan)
    return replace(frame, rgb=rgb, depth_m=depth)

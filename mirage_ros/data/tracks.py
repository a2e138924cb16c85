"""Depth where a recording has none: points triangulated between pictures of known poses, and depth between points.

And the recordings that need it, RealEstate10K's tracks: `NAME.txt` with a camera a line, pictures `NAME/MICROSECONDS.png`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.data import Walk, WalkConfig, pinhole
from mirage_ros.data.seeds import PosedFrame, read_picture
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera

LONGEST_EDGE, AGREEING = 0.2, 0.2
"""Between triangulated points depth is interpolated over triangles whose edges are no longer than this share of the
picture's width, and whose inverse depths differ by no more than that share."""
MOST_POINTS, APART_SHARE, FAINTEST = 3_000, 0.01, 2e-3
"""Corners that are followed in a picture, how far apart at least as a share of its width, and how much fainter than the
strongest one they may be."""
FOLLOWED = 12
"""Pictures to either side that corners are followed through."""
LEAST_PARALLAX_DEG, MOST_OFF_PX = 1.0, 1.0
"""A point counts when its rays meet at this angle at least, and it lies so far from what was followed at most (of pictures 640
wide, root mean square)."""
PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Track:
    """Cameras of a RealEstate10K text file: microseconds, and intrinsics as shares of the size."""

    name: str
    stamps_us: np.ndarray
    intrinsics: Float[np.ndarray, "f 4"]
    world_from_camera: Float[np.ndarray, "f 4 4"]

    def cameras(self, size: tuple[int, int]) -> Camera:
        """The cameras of pictures of a size; edges at 0 and 1 as the data set has them."""
        fx, fy, cx, cy = self.intrinsics.T
        matrix = np.tile(np.eye(3), (len(fx), 1, 1))
        matrix[:, 0, 0], matrix[:, 1, 1] = fx * size[1], fy * size[0]
        matrix[:, 0, 2], matrix[:, 1, 2] = cx * size[1] - 0.5, cy * size[0] - 0.5
        return Camera(matrix, self.world_from_camera, size)


def read_track(path: Path) -> Track:
    """A RealEstate10K camera file: a URL, then rows of a time, 6 numbers and a 3x4 matrix.

    The matrix maps the world to the camera; its rotation is made orthonormal, for the files
    hold rounded numbers. Raises MirageError for anything else.
    """
    try:
        lines = path.read_text().splitlines()[1:]
        rows = np.array([line.split() for line in lines if line.strip()], np.float64)
        if rows.ndim != 2 or rows.shape[1] != 19:
            raise ValueError(f"rows of {rows.shape[-1] if rows.size else 0} numbers, not 19")
        if not np.isfinite(rows).all():
            raise ValueError("it holds NaN or infinity")
    except (OSError, ValueError) as error:
        raise MirageError(
            f"{path} is no RealEstate10K camera file ({error}); give the data set's text files."
        ) from error
    camera_from_world = rows[:, 7:].reshape(-1, 3, 4)
    left, _, right = np.linalg.svd(camera_from_world[:, :, :3])
    rotation = left @ right
    pose = np.tile(np.eye(4), (len(rows), 1, 1))
    pose[:, :3, :3] = rotation.transpose(0, 2, 1)
    pose[:, :3, 3] = -np.einsum("fji,fj->fi", rotation, camera_from_world[:, :, 3])
    return Track(path.stem, rows[:, 0].astype(np.int64), rows[:, 1:5], pose)


def pictures_of(track: Track, folder: Path) -> dict[int, Path]:
    """The pictures of a track's rows, by row, out of `folder`/MICROSECONDS.png; those that were not fetched are left out."""
    found = itertools.chain(*(folder.glob(f"*{ending}") for ending in PICTURES))
    files = {int(path.stem): path for path in found if path.stem.isdigit()}
    return {i: files[int(stamp)] for i, stamp in enumerate(track.stamps_us) if int(stamp) in files}


def tracks_in(folder: Path) -> list[Path]:
    """RealEstate10K camera files in a folder, or in folders of it, that have their pictures."""
    texts = sorted(itertools.chain(folder.glob("*.txt"), folder.glob("*/*.txt")))
    return [path for path in texts if frames_of(path) is not None]


def frames_of(path: Path) -> Path | None:
    """Where the pictures of the track `NAME.txt` are: in NAME or frames/NAME, beside it or beside its folder."""
    beside = (path.parent, path.parent / "frames", path.parent.parent, path.parent.parent / "frames")
    return next((one for place in beside if (one := place / path.stem).is_dir()), None)


def open_track(path: Path, config: WalkConfig) -> Walk:
    """A RealEstate10K track as a walk, with depth of triangulated points; its unit is the track's own, no metre."""
    folder = frames_of(path)
    if folder is None:
        raise MirageError(f"The pictures of the track {path} are missing; put them into {path.stem}/ or frames/{path.stem}/ beside it.")
    track = read_track(path)
    pictures = pictures_of(track, folder)
    if not pictures:
        raise MirageError(f"{folder} has no picture of the track's times, such as {track.stamps_us[0]}.png; fetch them again.")
    rows = list(pictures)
    size = read_picture(pictures[rows[0]]).shape[:2]
    cameras = track.cameras(size)[rows]
    if config.intrinsics is not None:
        cameras = Camera(pinhole(config.intrinsics), cameras.world_from_camera, size)

    def picture(i: int) -> UInt8[np.ndarray, "h w 3"]:
        rgb = read_picture(pictures[rows[i]])
        if rgb.shape[:2] != size:
            raise MirageError(f"{pictures[rows[i]]} is {rgb.shape[1]}x{rgb.shape[0]}, others of its track {size[1]}x{size[0]}; fetch it again.")
        return rgb

    depth = TriangulatedDepth(cameras, picture)
    names = tuple(str(pictures[i].relative_to(path.parent.parent)) for i in rows)
    missing = len(track.stamps_us) - len(rows)
    said = (f"{missing} rows of {path} have no picture and are left out.",) if missing else ()
    return Walk(path, "RealEstate10K track", names, lambda i: PosedFrame(picture(i), depth(i), cameras[i]), said)


class TriangulatedDepth:
    """Depth of the pictures of a walk without any: corners of each are followed through those before and after it.

    Args:
        cameras: of all pictures.
        picture: the i-th, RGB; raises MirageError for one that cannot be read, which is then gone round.
    """

    def __init__(self, cameras: Camera, picture: Callable[[int], np.ndarray]) -> None:
        self._cameras, self._picture = cameras, picture
        self._grey, self._points = lru_cache(2 * FOLLOWED + 4)(self._read), lru_cache(None)(self._triangulated)

    def __call__(self, i: int) -> Float[np.ndarray, "h w"] | None:
        """Of picture i, along z, NaN where nothing is known; None where the camera did not move, or nothing was found."""
        return densified(self._points(i), self._cameras[i])

    def _read(self, i: int) -> UInt8[np.ndarray, "h w"] | None:
        """In one exposure, more or less: what is followed has to stay as bright."""
        try:
            grey = cv2.cvtColor(self._picture(i), cv2.COLOR_RGB2GRAY).astype(np.float32)
        except MirageError:
            return None
        return np.clip((grey - grey.mean()) * (50 / max(float(grey.std()), 1.0)) + 128, 0, 255).astype(np.uint8)

    def _triangulated(self, i: int) -> Float[np.ndarray, "n 3"]:
        first = self._grey(i)
        width = self._cameras.size[1]
        corners = None if first is None else cv2.goodFeaturesToTrack(first, MOST_POINTS, FAINTEST, max(3, APART_SHARE * width))
        if corners is None:
            return np.zeros((0, 3))
        seen = [(i, corners.reshape(-1, 2), np.ones(len(corners), bool))]
        for step in (1, -1):
            grey, places, alive = first, corners, np.ones(len(corners), bool)
            for j in range(i + step, i + step * (FOLLOWED + 1), step):
                if not 0 <= j < len(self._cameras) or not alive.any():
                    break
                if (after := self._grey(j)) is None:
                    continue
                places, kept = followed(grey, after, places)
                alive, grey = alive & kept, after
                seen.append((j, places.reshape(-1, 2), alive))
        return triangulated([self._cameras[j] for j, _, _ in seen], np.stack([one[1] for one in seen]), np.stack([one[2] for one in seen]))


def followed(first: np.ndarray, second: np.ndarray, places: Float[np.ndarray, "n 1 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Where corners of a picture are in the next (Lucas and Kanade, by pyramids), and which of them are found again from there."""
    options = {"winSize": (15, 15), "maxLevel": 4}
    there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, places.astype(np.float32), None, **options)
    back, again, _ = cv2.calcOpticalFlowPyrLK(second, first, there, None, **options)
    off = np.linalg.norm((back - places).reshape(-1, 2), axis=1)
    height, width = second.shape
    column, row = there.reshape(-1, 2).T
    inside = (column >= 0) & (row >= 0) & (column <= width - 1) & (row <= height - 1)
    return there, (found.ravel() > 0) & (again.ravel() > 0) & (off < 0.5) & inside


def triangulated(
    cameras: Sequence[Camera], pixels: Float[np.ndarray, "v n 2"], seen: np.ndarray
) -> Float[np.ndarray, "k 3"]:
    """Points whose rays from the cameras that see them meet well: nearest to all rays, weighed anew by what they miss."""
    rays = np.stack([camera.unproject(one, np.ones(len(one))) - camera.position_world for camera, one in zip(cameras, pixels, strict=True)])
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    eyes, weight = np.stack([camera.position_world for camera in cameras]), seen.astype(float)
    for _ in range(3):
        across = weight[..., None, None] * (np.eye(3) - rays[..., None] * rays[..., None, :])
        points = np.linalg.solve(across.sum(0) + 1e-9 * np.eye(3), np.einsum("vnij,vj->ni", across, eyes)[..., None])[..., 0]
        off, ahead = _missed(cameras, points, pixels)
        weight = seen / np.maximum(1, off)
    turn = np.einsum("ni,vni->vn", rays[0], rays)
    parallax = np.degrees(np.arccos(np.clip(np.where(seen, turn, 1).min(0), -1, 1)))
    mean = np.sqrt((np.square(off) * seen).sum(0) / np.maximum(seen.sum(0), 1))
    limit = MOST_OFF_PX * max(1.0, cameras[0].size[1] / 640)
    return points[(seen.sum(0) >= 3) & (ahead | ~seen).all(0) & (parallax > LEAST_PARALLAX_DEG) & (mean < limit)]


def _missed(cameras: Sequence[Camera], points: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how many pixels each point misses where each camera saw it, (v, n), and whether it lies before the camera."""
    found = [camera.project(points) for camera in cameras]
    off = np.stack([np.linalg.norm(there - one, axis=-1) for (there, _), one in zip(found, pixels, strict=True)])
    return np.nan_to_num(off, nan=1e6, posinf=1e6), np.stack([z > 0 for _, z in found])


def densified(points: Float[np.ndarray, "n 3"], camera: Camera) -> Float[np.ndarray, "h w"] | None:
    """Depth between the triangulated points that a camera sees, where three neighbours agree; None of too few."""
    try:
        from scipy.spatial import Delaunay, QhullError
    except ImportError as error:
        raise MirageError(
            f"Depth between triangulated points needs the package scipy ({error}); pip install 'mirage_ros[build]'."
        ) from error
    height, width = camera.size
    pixels, z = camera.project(points)
    pixels, first = np.unique(np.round(pixels[z > 0], 3), axis=0, return_index=True)
    if len(pixels) < 4:
        return None
    try:
        inverse, mesh = 1 / z[z > 0][first], Delaunay(pixels)
    except QhullError:  # all on one line
        return None
    corners, around = pixels[mesh.simplices], inverse[mesh.simplices]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1)
    flat = (np.ptp(around, axis=1) <= AGREEING * around.max(1)) & (edges.max(1) <= LONGEST_EDGE * width)
    grid = camera.pixels().reshape(-1, 2)
    triangle = mesh.find_simplex(grid)
    where = np.nonzero((triangle >= 0) & flat[triangle])[0]
    if not len(where):
        return None
    affine = mesh.transform[triangle[where]]
    share = np.einsum("nij,nj->ni", affine[:, :2], grid[where] - affine[:, 2])
    weights = np.concatenate([share, 1 - share.sum(1, keepdims=True)], 1)
    depth = np.full(height * width, np.nan, np.float32)
    depth[where] = 1 / (weights * around[triangle[where]]).sum(1)
    return depth.reshape(height, width)

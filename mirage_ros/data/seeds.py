"""Where a world starts from: a picture, its camera and, if there is one, its depth.

A seed is a shipped name, a folder (`color.png`, `depth.png`, `camera.yaml`), one
frame of a posed RGB-D folder (`walk:8`), or any photograph.

A posed RGB-D folder, such as a handheld walk with a depth camera, holds `color/NNN.png` (RGB),
`depth/NNN.png` (uint16 millimetres along z, registered to colour, 0 invalid), `K.txt` (3x3) and
`world_from_camera.txt` (one row-major 4x4 per frame, optical axes, metres).

`plan_tour` is a camera path that leaves a seed's view, looks at what was never seen, and comes back to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, check_file_or_folder, open_file, share_path, user_path
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.geometry.images import check_size, eight_bits
from mirage_ros.geometry.rigid import rotations_about

SHORTEST_FRAMES = 3
UNKNOWN_DEPTH_M = 3.0
LOOK_AROUND_DEG = 75.0
FORWARD_SHARE = 0.35
LOOP_SHARE = 0.10
CLEARANCE_SHARE = 0.6
BODY_M = 0.3
GLANCE_DEG = 7.0
PARALLAX_SHARE = 0.15
APPROACH_SHARE = 0.10


def plan_tour(
    camera: Camera,
    frames: int,
    depth_m: Float[np.ndarray, "h w"] | None = None,
    scene_depth_m: float | None = None,
) -> Camera:
    """The path of `frames` cameras; the first and the last are exactly the given one.

    With measured depth the camera walks into the free space that the depth shows, turns by 75 deg
    to the side with more room, and returns another way. Without it, it moves in an arc to either
    side, a share of the assumed scene depth, so that parallax shows, and turns outward a little.

    Args:
        camera: the seed's, a single one.
        depth_m: the seed's depth picture, or None.
        scene_depth_m: median distance of the scene; measured from `depth_m` when None.

    Raises:
        MirageError: fewer than 3 frames.
    """
    if frames < SHORTEST_FRAMES:
        raise MirageError(f"A tour of {frames} frames was asked for; give at least 3.")
    scale = scene_depth_m or central_depth_m(depth_m)
    progress = np.linspace(0, 1, frames)
    if depth_m is None:
        yaw_rad, right_m, forward_m = _glance(progress, scale)
    else:
        forward_m = min(FORWARD_SHARE * scale, CLEARANCE_SHARE * clearance_m(camera, depth_m))
        yaw_rad, right_m, forward_m = _look_around(progress, forward_m)
        if not _more_room_on_the_right(depth_m):
            yaw_rad, right_m = -yaw_rad, -right_m
    poses = _poses(camera.world_from_camera, yaw_rad, right_m, forward_m)
    poses[-1] = poses[0] = camera.world_from_camera
    return Camera(camera.intrinsics, poses, camera.size)


def central_depth_m(depth_m: Float[np.ndarray, "h w"] | None) -> float:
    """Median depth of the picture's central third, 3 m when unknown."""
    if depth_m is None:
        return UNKNOWN_DEPTH_M
    height, width = depth_m.shape
    middle = depth_m[height // 3 : -(height // 3), width // 3 : -(width // 3)]
    for part in (middle, depth_m):
        if np.isfinite(part).any():
            return float(np.median(part[np.isfinite(part)]))
    return UNKNOWN_DEPTH_M


def clearance_m(camera: Camera, depth_m: Float[np.ndarray, "h w"]) -> float:
    """Free way ahead of a body 0.6 m wide and high around the camera; inf when nothing is seen."""
    up, ahead, right = floor_axes(camera.world_from_camera)
    points = camera.lift(depth_m).reshape(-1, 3) - camera.position_world
    points = points[np.isfinite(points).all(-1)]
    beside = (np.abs(points @ right) < BODY_M) & (np.abs(points @ up) < BODY_M)
    return float(np.percentile(points[beside] @ ahead, 1)) if beside.any() else float("inf")


def _look_around(progress: np.ndarray, reach_m: float) -> tuple[np.ndarray, ...]:
    """Turn right, stay turned for a while, return on the other side of a narrow loop."""
    turned = _smooth(progress / 0.42) - _smooth((progress - 0.58) / 0.42)
    there_and_back = np.sin(np.pi * progress) ** 2
    yaw_rad = np.radians(LOOK_AROUND_DEG) * turned
    loop_m = LOOP_SHARE / FORWARD_SHARE * reach_m
    right_m = loop_m * there_and_back * np.sin(2 * np.pi * progress)
    return yaw_rad, right_m, reach_m * there_and_back


def _glance(progress: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    """To the right and to the left, turning only a little that way, so most stays in view."""
    swing = np.sin(2 * np.pi * progress) * _smooth(progress / 0.1) * _smooth((1 - progress) / 0.1)
    right_m = PARALLAX_SHARE * scale * swing
    forward_m = APPROACH_SHARE * scale * np.sin(np.pi * progress) ** 2
    return np.radians(GLANCE_DEG) * swing, right_m, forward_m


def _smooth(value: np.ndarray) -> np.ndarray:
    """From 0 to 1 with no jump in speed or acceleration."""
    value = np.clip(value, 0, 1)
    return value**3 * (10 - 15 * value + 6 * value**2)


def _more_room_on_the_right(depth_m: np.ndarray) -> bool:
    width = depth_m.shape[1]
    left, right = depth_m[:, : width // 3], depth_m[:, -(width // 3) :]
    sides = [float(np.nanmedian(side)) if not np.isnan(side).all() else 0 for side in (left, right)]
    return sides[1] >= sides[0]


def _poses(start: np.ndarray, yaw_rad, right_m, forward_m) -> Float[np.ndarray, "f 4 4"]:
    """Poses turned clockwise about the world's up by `yaw_rad` and moved along its floor."""
    up, ahead, right = floor_axes(start)
    poses = np.repeat(start[None], len(yaw_rad), 0)
    poses[:, :3, :3] = rotations_about(up, -yaw_rad) @ start[:3, :3]
    poses[:, :3, 3] += right_m[:, None] * right + forward_m[:, None] * ahead
    return poses


@dataclass(frozen=True)
class PosedFrame:
    """One frame: picture, metric depth (NaN invalid, None where there is none) and its camera."""

    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"] | None
    camera: Camera


class PosedRgbd:
    """A folder of posed RGB-D frames, read one at a time by number."""

    def __init__(self, folder: str | Path, units_per_m: float = 1000.0) -> None:
        """Raises MirageError when the folder does not have the layout above, save for other units of depth."""
        self.folder, self.units_per_m = Path(folder), units_per_m
        for name in ("color", "K.txt", "world_from_camera.txt"):
            if not (self.folder / name).exists():
                raise MirageError(
                    f"The folder {self.folder} has no {name}; a posed RGB-D folder holds color/, "
                    "depth/, K.txt and world_from_camera.txt."
                )
        self.intrinsics = read_matrices(self.folder / "K.txt", 3)[0]
        self.world_from_camera = read_matrices(self.folder / "world_from_camera.txt", 4)
        self.names = sorted(path.stem for path in (self.folder / "color").glob("*.png"))
        if len(self.names) != len(self.world_from_camera):
            raise MirageError(
                f"The folder {self.folder} has {len(self.names)} pictures and "
                f"{len(self.world_from_camera)} poses; give one pose per picture."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> PosedFrame:
        """Frame `index`; raises MirageError for a number outside the folder or a bad file."""
        if not 0 <= index < len(self):
            raise MirageError(
                f"Frame {index} of {self.folder} was asked for; it has frames 0 to {len(self) - 1}."
            )
        name = self.names[index]
        rgb = read_picture(self.folder / "color" / f"{name}.png")
        depth_m = read_depth(self.folder / "depth" / f"{name}.png", rgb.shape[:2], self.units_per_m)
        camera = Camera(self.intrinsics, self.world_from_camera[index], rgb.shape[:2])
        return PosedFrame(rgb, depth_m, camera)


def read_picture(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Any picture file as upright 8-bit RGB; EXIF orientation is applied, alpha dropped.

    Pictures of more than 8 bits are scaled by `geometry.images.eight_bits`.

    Raises:
        MirageError: not readable, too small, or of numbers whose white nobody can know.
    """
    try:
        values = _stored(path)
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError, cv2.error) as error:
        # PIL raises a SyntaxError for a PNG with a broken chunk.
        raise MirageError(
            f"The picture {path} cannot be read ({error}); give a PNG or JPEG."
        ) from error
    check_size(values.shape[:2], f"The picture {path}")
    rgb = eight_bits(values, f"The picture {path}")
    return np.array(rgb if rgb.ndim == 3 else np.repeat(rgb[..., None], 3, -1), order="C")


def _stored(path: str | Path) -> np.ndarray:
    """The upright picture, (h, w) or (h, w, 3), in numbers of 8 bits or as they are stored."""
    try:
        with open_file(path) as file, Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                return np.asarray(ImageOps.exif_transpose(picture))
            # PIL would keep the upper half of the numbers, which is black in a picture of 12 bits.
            if not re.search(r";16[BLN]", str([tile[3] for tile in picture.tile])):
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except UnidentifiedImageError:
        pass  # such as floating point in colours
    bgr = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if bgr is None:
        raise OSError("it is no picture in a known format")
    return bgr[..., ::-1]


def _decoded(path: str | Path, flags: int) -> np.ndarray | None:
    """As OpenCV reads it; None for what is no picture."""
    with open_file(path) as file:
        data = file.read()
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


def read_depth(path: str | Path, size: tuple[int, int] | None, units_per_m: float = 1000.0) -> Float[np.ndarray, "h w"]:
    """A uint16 picture as metres: 0 becomes NaN, 65535 becomes +inf. Any size will do where `size` is None.

    Raises:
        MirageError: not readable, not 16 bit, of another size, or nothing valid in it.
    """
    try:
        raw = _decoded(path, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise MirageError(f"The depth picture {path} cannot be read ({error}); give a 16-bit PNG.") from error
    if raw is None:
        raise MirageError(f"The depth picture {path} cannot be read; give a 16-bit PNG.")
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise MirageError(
            f"The depth picture {path} holds {raw.dtype} of shape {raw.shape}; give one channel of "
            "16-bit millimetres."
        )
    if size is not None and raw.shape != tuple(size):
        raise MirageError(
            f"The depth picture {path} is {raw.shape[1]}x{raw.shape[0]} but its colour picture is "
            f"{size[1]}x{size[0]}; register depth to colour first."
        )
    depth_m = raw.astype(np.float32) / np.float32(units_per_m)
    depth_m[raw == 0] = np.nan
    depth_m[raw == 65535] = np.inf
    if np.isnan(depth_m).all():
        raise MirageError(
            f"The depth picture {path} has no valid pixel; leave it out to start without depth."
        )
    return depth_m


def read_matrices(path: Path, side: int) -> Float[np.ndarray, "n side side"]:
    """The square matrices in a file of numbers; raises MirageError for anything else."""
    try:
        with open_file(path) as file:
            values = np.loadtxt(file)
    except (OSError, ValueError) as error:
        raise MirageError(f"The file {path} is not a table of numbers ({error}).") from error
    if not values.size or values.size % side**2:
        raise MirageError(f"The file {path} holds {values.size} numbers, not whole {side}x{side} matrices.")
    return values.reshape(-1, side, side)


DEFAULT_HFOV_DEG = 60.0
EYE_HEIGHT_M = 1.2


class MissingSeed(MirageError):
    """There is no such seed."""


@dataclass(frozen=True)
class Seed:
    """The picture a world grows from.

    Attributes:
        name: for messages and captions.
        rgb: the picture.
        camera: its intrinsics and pose, of the picture's size.
        depth_m: along z; NaN invalid, +inf beyond range; None when unknown.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    camera: Camera
    depth_m: Float[np.ndarray, "h w"] | None = None


def level_camera_pose(height_m: float = EYE_HEIGHT_M) -> Float[np.ndarray, "4 4"]:
    """world_from_camera of a level camera that looks along world +x, z up."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], np.float64)
    pose[2, 3] = height_m
    return pose


def load_seed(name_or_path: str | Path, hfov_deg: float | None = None) -> Seed:
    """Load a seed by shipped name or by path.

    Args:
        name_or_path: a shipped name such as "room"; a seed folder; a posed RGB-D folder
            with a frame number, `folder:8` (frame 0 without one); or a picture file. Paths may
            begin with ~ and be file:// URIs (see `user_path`).
        hfov_deg: horizontal field of view of a picture file, default 60; ignored where
            the seed brings its own intrinsics.

    Raises:
        MirageError: not found, unreadable, empty, or with a depth that does not fit.
    """
    path, frame = find_seed(str(name_or_path))
    if path.is_file():
        return _load_photograph(path, DEFAULT_HFOV_DEG if hfov_deg is None else hfov_deg)
    if (path / "camera.yaml").exists():
        return _load_folder(path)
    walk = PosedRgbd(path)[frame]
    return Seed(f"{path.name}:{frame}", walk.rgb, walk.camera, walk.depth_m)


def shipped_seeds() -> list[str]:
    """Names of the seeds that came with the package, sorted."""
    folder = _shipped_folder()
    if folder is None:
        return []
    return sorted(path.parent.name for path in folder.glob("*/camera.yaml"))


def find_seed(name: str) -> tuple[Path, int]:
    """The existing path that a seed's name stands for, and the frame number behind its colon.

    Raises:
        MissingSeed: there is none; MirageError: it cannot be one.
    """
    head, colon, tail = name.rpartition(":")
    plain, frame = (head, int(tail)) if colon and tail.isdigit() else (name, 0)
    shipped = _shipped_folder()
    candidates = [user_path(text) for text in (name, plain or name)]
    if shipped is not None and "/" not in plain:
        candidates.append(shipped / plain)
    for candidate in candidates:
        if candidate.exists():
            check_file_or_folder(candidate)
            return candidate, frame
    known = ", ".join(shipped_seeds()) or "none found"
    raise MissingSeed(
        f"There is no seed {name!r}; give a picture, a seed folder, or a shipped name ({known})."
    )


def _shipped_folder() -> Path | None:
    try:
        folder = Path(share_path("config/seeds"))
    except (MirageError, FileNotFoundError):
        return None
    return folder if folder.is_dir() else None


def _load_photograph(path: Path, hfov_deg: float) -> Seed:
    rgb = read_picture(path)
    return Seed(path.stem, rgb, Camera.from_hfov(hfov_deg, rgb.shape[:2], level_camera_pose()))


def _load_folder(path: Path) -> Seed:
    rgb = read_picture(path / "color.png")
    camera = _read_camera(path / "camera.yaml")
    if camera.size != rgb.shape[:2]:
        raise MirageError(
            f"The seed {path} has a picture of {rgb.shape[1]}x{rgb.shape[0]} and a camera of "
            f"{camera.size[1]}x{camera.size[0]}; make them one size."
        )
    depth = path / "depth.png"
    return Seed(path.name, rgb, camera, read_depth(depth, camera.size) if depth.exists() else None)


def _read_camera(path: Path) -> Camera:
    try:
        with open_file(path) as file:
            values = yaml.safe_load(file)
        intrinsics = np.array(
            [[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1]],
            np.float64,
        )
        pose = np.array(values["world_from_camera"], np.float64).reshape(4, 4)
        size = (int(values["height"]), int(values["width"]))
    except (OSError, yaml.YAMLError, *UNREADABLE) as error:
        raise MirageError(
            f"The camera file {path} cannot be used ({error!r}); it needs width, height, fx, fy, "
            "cx, cy and world_from_camera, a 4x4 matrix."
        ) from error
    return Camera(intrinsics, pose, size)

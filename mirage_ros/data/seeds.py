"""Where a world starts from: a picture, its camera and, if there is one, its depth.

A seed is a shipped name, a folder (`color.png`, `depth.png`, `camera.yaml`), one
frame of a posed RGB-D folder (`walk:8`), or any photograph.

A posed RGB-D folder, such as a handheld walk with a depth camera, holds `color/NNN.png` (RGB),
`depth/NNN.png` (uint16 millimetres along z, registered to colour, 0 invalid), `K.txt` (3x3) and
`world_from_camera.txt` (one row-major 4x4 per frame, optical axes, metres).
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
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import check_size, eight_bits


@dataclass(frozen=True)
class PosedFrame:
    """One frame: picture, metric depth (NaN invalid) and its camera."""

    rgb: UInt8[np.ndarray, "h w 3"]
    depth_m: Float[np.ndarray, "h w"]
    camera: Camera


class PosedRgbd:
    """A folder of posed RGB-D frames, read one at a time by number."""

    def __init__(self, folder: str | Path) -> None:
        """Raises MirageError when the folder does not have the layout above."""
        self.folder = Path(folder)
        for name in ("color", "K.txt", "world_from_camera.txt"):
            if not (self.folder / name).exists():
                raise MirageError(
                    f"The folder {self.folder} has no {name}; a posed RGB-D folder holds color/, "
                    "depth/, K.txt and world_from_camera.txt."
                )
        self.intrinsics = _numbers(self.folder / "K.txt").reshape(3, 3)
        self.world_from_camera = _numbers(self.folder / "world_from_camera.txt").reshape(-1, 4, 4)
        self._names = sorted(path.stem for path in (self.folder / "color").glob("*.png"))
        if len(self._names) != len(self.world_from_camera):
            raise MirageError(
                f"The folder {self.folder} has {len(self._names)} pictures and "
                f"{len(self.world_from_camera)} poses; give one pose per picture."
            )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> PosedFrame:
        """Frame `index`; raises MirageError for a number outside the folder or a bad file."""
        if not 0 <= index < len(self):
            raise MirageError(
                f"Frame {index} of {self.folder} was asked for; it has frames 0 to {len(self) - 1}."
            )
        name = self._names[index]
        rgb = read_picture(self.folder / "color" / f"{name}.png")
        depth_m = read_depth(self.folder / "depth" / f"{name}.png", rgb.shape[:2])
        camera = Camera(self.intrinsics, self.world_from_camera[index], rgb.shape[:2])
        return PosedFrame(rgb, depth_m, camera)


def read_picture(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Any picture file as upright 8-bit RGB; EXIF orientation is applied, alpha dropped.

    Pictures of more than 8 bits are scaled by `core.pictures.eight_bits`.

    Raises:
        MirageError: not readable, too small, or of numbers whose white nobody can know.
    """
    try:
        values = _stored(path)
    except (OSError, Image.DecompressionBombError, ValueError, cv2.error) as error:
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


def read_depth(path: str | Path, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A uint16 millimetre picture as metres: 0 becomes NaN, 65535 becomes +inf.

    Raises:
        MirageError: not readable, not 16 bit, of another size, or nothing valid in it.
    """
    try:
        raw = _decoded(path, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise MirageError(
            f"The depth picture {path} cannot be read ({error}); give a 16-bit PNG."
        ) from error
    if raw is None:
        raise MirageError(f"The depth picture {path} cannot be read; give a 16-bit PNG.")
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise MirageError(
            f"The depth picture {path} holds {raw.dtype} of shape {raw.shape}; give one channel of "
            "16-bit millimetres."
        )
    if raw.shape != tuple(size):
        raise MirageError(
            f"The depth picture {path} is {raw.shape[1]}x{raw.shape[0]} but its colour picture is "
            f"{size[1]}x{size[0]}; register depth to colour first."
        )
    depth_m = raw.astype(np.float32) / 1000
    depth_m[raw == 0] = np.nan
    depth_m[raw == 65535] = np.inf
    if np.isnan(depth_m).all():
        raise MirageError(
            f"The depth picture {path} has no valid pixel; leave it out to start without depth."
        )
    return depth_m


def _numbers(path: Path) -> np.ndarray:
    try:
        with open_file(path) as file:
            values = np.loadtxt(file)
    except (OSError, ValueError) as error:
        raise MirageError(f"The file {path} is not a table of numbers ({error}).") from error
    if values.size % (9 if path.name == "K.txt" else 16):
        raise MirageError(f"The file {path} holds {values.size} numbers, not whole matrices.")
    return values


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

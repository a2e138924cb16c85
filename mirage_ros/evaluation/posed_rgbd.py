"""Reads folders of posed RGB-D frames, such as a handheld walk with a depth camera.

Layout: `color/NNN.png` (RGB), `depth/NNN.png` (uint16 millimetres along z,
registered to colour, 0 invalid), `K.txt` (3x3), `world_from_camera.txt` (one
row-major 4x4 per frame, optical axes, metres).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import open_file
from mirage_ros.core.pictures import check_size, eight_bits


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

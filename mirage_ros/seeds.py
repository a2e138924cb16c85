"""Where a world starts from: a picture, its camera and, if there is one, its depth.

A seed is a shipped name, a folder (`color.png`, `depth.png`, `camera.yaml`), one
frame of a posed RGB-D folder (`walk:8`), or any photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.files import UNREADABLE, open_file
from mirage_ros.evaluation.posed_rgbd import PosedRgbd, read_depth, read_picture
from mirage_ros.resources import check_file_or_folder, share_path, user_path

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

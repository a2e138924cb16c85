"""Episodes as folders of pictures (posed RGB-D), and the datasets that hold one or many episodes in a folder.

An episode's folder holds `color/NNNNNN.png`, `observed/NNNNNN.png` (white where memory knew), `K.txt`,
`world_from_camera.txt`, `stamps_ns.txt`, `values.jsonl`, and the depth as 16-bit millimetres in
`depth/NNNNNN.png` (0 invalid, 65535 beyond range), which walks and seeds are read from, or as exact float32
metres in `depth/NNNNNN.exr`, channel Z, NaN invalid, infinite beyond range. Floor plans are pictures, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import yaml
from jaxtyping import Float, UInt16

from mirage_ros.errors import MirageError
from mirage_ros.files import atomic_path, write_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import FREE, OCCUPIED, UNKNOWN, FloorPlan, Frame
from mirage_ros.recording import NOTHING, RecordingConfig
from mirage_ros.recording.episodes import Episode, PathLock, disk_errors, remove

LAST_MM = 65534
SHADES = {FREE: 254, OCCUPIED: 0, UNKNOWN: 205}
POSES, STAMPS, VALUES = "world_from_camera.txt", "stamps_ns.txt", "values.jsonl"


class PictureEpisode(Episode):
    """Writes each frame as it comes; its line in the tables comes after its pictures."""

    def __init__(
        self,
        target: Path,
        config: RecordingConfig,
        task: str = "",
        info: Mapping = NOTHING,
        depth: str = "png",
    ) -> None:
        """`depth` is png or exr. Raises MirageError for exr without the OpenEXR package."""
        super().__init__(target, config, task, info)
        self._write_depth: Callable[[Path, np.ndarray], None] = DEPTH_WRITERS[depth]
        self._depth_ending = depth
        self._intrinsics: np.ndarray | None = None

    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        if self._intrinsics is None:
            self._begin(frame)
        if not np.array_equal(frame.camera.intrinsics, self._intrinsics):
            raise MirageError(
                "A posed RGB-D folder has one K.txt and the camera's intrinsics changed; begin "
                "another episode."
            )
        name = f"{self.frames:06d}"
        write_png(self.partial / "color" / f"{name}.png", frame.rgb[..., ::-1])
        write_png(self.partial / "observed" / f"{name}.png", frame.observed.astype(np.uint8) * 255)
        path = self.partial / "depth" / f"{name}.{self._depth_ending}"
        self._write_depth(path, np.asarray(frame.depth_m, np.float32))
        pose = frame.camera.world_from_camera.ravel().tolist()
        self._append(POSES, " ".join(map(repr, pose)))
        self._append(STAMPS, str(frame.stamp_ns))
        if values:
            plain = {key: value.tolist() for key, value in values.items()}
            self._append(VALUES, json.dumps(plain))

    def _begin(self, frame: Frame) -> None:
        self._intrinsics = np.array(frame.camera.intrinsics)
        self.partial.mkdir(parents=True)
        self._hold()
        for folder in ("color", "depth", "observed"):
            (self.partial / folder).mkdir()
        np.savetxt(self.partial / "K.txt", self._intrinsics, fmt="%.17g")
        about = {"task": self.task, "info": self.info, "rate_hz": self.config.rate_hz}
        (self.partial / "episode.json").write_text(json.dumps(about))

    def _append(self, name: str, line: str) -> None:
        with (self.partial / name).open("a") as file:
            file.write(line + "\n")

    def _complete(self) -> None:
        """Every frame is written already."""

    def _abandon(self) -> None:
        """No file is open."""


def trim_pictures(folder: Path) -> int:
    """Drops what belongs to no whole frame of a folder that was cut off; returns its frames."""
    texts = {name: folder / name for name in (POSES, STAMPS, VALUES) if (folder / name).is_file()}
    # What follows the last line break was cut off.
    lines = {name: path.read_text().split("\n")[:-1] for name, path in texts.items()}
    frames = min((len(found) for found in lines.values()), default=0)
    for name, path in texts.items():
        write_file(path, "".join(f"{line}\n" for line in lines[name][:frames]))
    for picture in folder.glob("*/*"):
        if int(picture.stem) >= frames:
            picture.unlink()
    return frames


def write_png(path: Path, pixels: np.ndarray) -> None:
    """8 or 16 bit, blue first where it has colours. Raises OSError where it cannot."""
    sound, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not sound:
        raise MirageError(f"{pixels.dtype} {pixels.shape} is no PNG; give 8 or 16 bit.")
    path.write_bytes(data.tobytes())


def millimetres(depth_m: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """0 is invalid, 65535 beyond range; what is valid lies between them."""
    with np.errstate(invalid="ignore"):
        rounded = np.clip(np.nan_to_num(np.rint(depth_m * 1000), posinf=0), 1, LAST_MM)
        beyond, valid = depth_m > LAST_MM / 1000, depth_m > 0
    return np.where(valid, np.where(beyond, LAST_MM + 1, rounded), 0).astype(np.uint16)


def write_depth_png(path: Path, depth_m: Float[np.ndarray, "h w"]) -> None:
    write_png(path, millimetres(depth_m))


def write_depth_exr(path: Path, depth_m: Float[np.ndarray, "h w"]) -> None:
    """One float32 channel Z, losslessly compressed."""
    try:
        import OpenEXR
    except ImportError as error:
        raise MirageError(
            f"EXR pictures need the OpenEXR package ({error}); pip install 'mirage_ros[record]'."
        ) from error
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": np.ascontiguousarray(depth_m)}).write(str(path))


DEPTH_WRITERS = {"png": write_depth_png, "exr": write_depth_exr}


MakeEpisode = Callable[[Path, RecordingConfig, str, Mapping], Episode]


def episode_path(root: Path, index: int, ending: str) -> Path:
    """`root/episode-000012` with the format's ending."""
    return root / f"episode-{index:06d}{ending}"


class FolderDataset:
    """Every finished episode is whole by itself; adopting one only counts it."""

    def __init__(
        self, root: Path, config: RecordingConfig, make_episode: MakeEpisode, ending: str
    ) -> None:
        """Opens or resumes; episodes that were never finished are removed."""
        self.root, self.config, self._ending = root, config, ending
        self._make_episode = make_episode
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._lock = PathLock(root)
            for path in root.glob(".episode-*.tmp*"):
                remove(path)
        found = self.finished()
        self.episodes = next(index for index in range(len(found) + 1) if index not in found)

    def finished(self) -> set[int]:
        """Indices of all episodes on the disk."""
        paths = self.root.glob(f"episode-*{self._ending}")
        return {int(path.name.removesuffix(self._ending).split("-")[1]) for path in paths}

    def episode(self, index: int, task: str = "", info: Mapping = NOTHING) -> Episode:
        """A writer of episode `index`."""
        path = episode_path(self.root, index, self._ending)
        return self._make_episode(path, self.config, task, info)

    def adopt(self, index: int) -> None:
        """Counts the finished episode `index`, which has to be the next one."""
        if index != self.episodes or index not in self.finished():
            raise MirageError(
                f"Episode {index} was to be adopted by a dataset of {self.episodes}; finish and "
                f"adopt {self.episodes} first."
            )
        self.episodes += 1

    def close(self) -> None:
        """Lets other processes open it."""
        self._lock.release()


class SingleDataset:
    """A path that is one episode itself."""

    def __init__(self, path: Path, config: RecordingConfig, make_episode: MakeEpisode) -> None:
        self.path, self.config, self._make_episode = path, config, make_episode
        self.episodes = 0

    def finished(self) -> set[int]:
        """0, once the episode is there."""
        return {0} if self.path.exists() else set()

    def episode(self, index: int, task: str = "", info: Mapping = NOTHING) -> Episode:
        """The writer of the only episode. Raises MirageError for another one."""
        if index:
            raise MirageError(f"{self.path} holds one episode; give a folder to record more.")
        episode = self._make_episode(self.path, self.config, task, info)
        episode.keep_half = True
        return episode

    def adopt(self, index: int) -> None:
        """Counts it."""
        self.episodes = 1

    def close(self) -> None:
        """Nothing is left to do."""


def write_plan(path: str | os.PathLike, plan: FloorPlan) -> None:
    """Writes PATH.yaml and beside it PATH.pgm, as map_server reads them."""
    path = Path(path).with_suffix(".yaml")
    picture = path.with_suffix(".pgm")
    shades = np.full(plan.cells.shape, SHADES[UNKNOWN], np.uint8)
    for value in (FREE, OCCUPIED):
        shades[plan.cells == value] = SHADES[value]
    height, width = shades.shape
    # The picture's first row is the one of the largest y.
    write_file(picture, b"P5\n%d %d\n255\n" % (width, height) + shades[::-1].tobytes())
    x, y = (float(value) for value in plan.origin_m)
    # Shade 205 stands for 0.19608 occupied, which is neither free nor occupied by these thresholds.
    text = (
        f"image: {picture.name}\nmode: trinary\nresolution: {plan.resolution_m:.9g}\n"
        f"origin: [{x:.9g}, {y:.9g}, 0.0]\nnegate: 0\noccupied_thresh: 0.65\nfree_thresh: 0.196\n"
    )
    write_file(path, text.encode())


def write_seed(folder: Path, rgb: np.ndarray, camera: Camera, depth_m: np.ndarray | None) -> None:
    """A seed folder, as `load_seed` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "color.png") as new:
        write_png(new, rgb[..., ::-1])
    (folder / "depth.png").unlink(missing_ok=True)
    if depth_m is not None:
        with atomic_path(folder / "depth.png") as new:
            write_depth_png(new, depth_m)
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics.tolist()
    height, width = camera.size
    lens = {"width": width, "height": height, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    text = yaml.safe_dump({**lens, "world_from_camera": camera.world_from_camera.tolist()})
    write_file(folder / "camera.yaml", text.encode())

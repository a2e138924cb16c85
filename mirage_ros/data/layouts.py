"""Recordings in the layouts that people have, each opened as a `Walk`.

Known are our own posed RGB-D folders, TUM RGB-D, 7-Scenes, ScanNet's exports, Redwood and Open3D, nerfstudio's
`transforms.json`, COLMAP models, RealEstate10K tracks (tracks.py), bags (bags.py), and a single picture.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mirage_ros.data import (
    Walk,
    WalkConfig,
    joined,
    matched,
    pinhole,
    poses_at,
    sound_pose,
    undistorted,
)
from mirage_ros.data.bags import open_bag
from mirage_ros.data.seeds import PosedFrame, PosedRgbd, load_seed, read_depth, read_matrices, read_picture
from mirage_ros.data.tracks import densified, open_track, tracks_in
from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, read_json
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import SECOND_NS

MOST_FRAMES = 5_000
"""Longer recordings are refused: whoever has one says which of its frames are meant."""
KINECT = (525.0, 525.0, 319.5, 239.5)
"""fx fy cx cy of a PrimeSense or Kinect picture of 640x480, which Open3D and TUM's tools take where none is given."""
TUM_CAMERAS = {"freiburg1": (517.3, 516.5, 318.6, 255.3), "freiburg2": (520.9, 521.0, 325.1, 249.7),
               "freiburg3": (535.4, 539.2, 320.1, 247.6)}  # fmt: skip
SEVEN_SCENES = (585.0, 585.0, 320.0, 240.0)
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def open_walk(source: Path, config: WalkConfig = WalkConfig()) -> Walk:
    """The recording at a path. Nothing but names and poses is read yet.

    Raises:
        MirageError: nothing of a known layout, or one that is not whole.
    """
    source = Path(source)
    if config.every < 1:
        raise MirageError(f"Every {config.every}-th frame was asked for; give 1 or more.")
    if not source.exists():
        raise MirageError(f"There is no recording {source}; give a folder, a bag or a picture that exists.")
    walk = _opened(source, config)
    if not len(walk):
        raise MirageError(f"The {walk.kind} {source} has no frame; give one with pictures, depth and poses.")
    if config.every > 1:
        walk = walk.of(range(0, len(walk), config.every))
    if len(walk) > MOST_FRAMES:
        raise MirageError(
            f"The {walk.kind} {source} has {len(walk):,} frames, {MOST_FRAMES:,} are built at most; "
            f"give --every {-(-len(walk) // MOST_FRAMES) * config.every} or more."
        )
    return walk if config.depth_of is None else replace(walk, read=lambda i: _perceived(walk.read(i), config))


def _perceived(frame: PosedFrame, config: WalkConfig) -> PosedFrame:
    """With a depth model's word where nothing is known."""
    known = np.full(frame.camera.size, np.nan, np.float32) if frame.depth_m is None else frame.depth_m
    guess = config.depth_of(frame.rgb, frame.camera, known)
    return replace(frame, depth_m=np.where(np.isnan(known), guess, known).astype(np.float32))


def _opened(source: Path, config: WalkConfig) -> Walk:
    if source.suffix in (".bag", ".mcap", ".db3") or (source / "metadata.yaml").exists():
        return open_bag(source, config)
    if source.suffix == ".txt" and source.is_file():
        return open_track(source, config)
    if source.is_file() and source.name != "transforms.json":
        return _one_picture(source, config)
    folder = source.parent if source.is_file() else source
    for is_one, opened in LAYOUTS:
        if is_one(folder):
            return opened(folder, config)
    raise MirageError(
        f"{source} is no posed recording of a known layout; give a bag (.mcap, .bag), a COLMAP model, or a folder "
        "with K.txt and world_from_camera.txt, rgb.txt and groundtruth.txt (TUM), frame-*.pose.txt (7-Scenes), "
        "pose/ (ScanNet), a trajectory.log (Redwood), transforms.json (nerfstudio) or a RealEstate10K track (NAME.txt and NAME/)."
    )


def _one_picture(source: Path, config: WalkConfig) -> Walk:
    seed = load_seed(source)
    camera = seed.camera if config.intrinsics is None else replace(seed.camera, intrinsics=pinhole(config.intrinsics))
    return Walk(source, "picture", (seed.name,), lambda _: PosedFrame(seed.rgb, seed.depth_m, camera))


def _ours(folder: Path, config: WalkConfig) -> Walk:
    walk = PosedRgbd(folder, config.depth_units_per_m or 1000.0)
    if config.intrinsics is not None:
        walk.intrinsics = pinhole(config.intrinsics)
    names = tuple(f"color/{name}.png" for name in walk.names)

    def read(i: int) -> PosedFrame:
        sound_pose(walk.world_from_camera[i], names[i])
        return walk[i]

    return Walk(folder, "posed RGB-D folder", names, read)


def _frame(color: Path, depth: Path | None, pose: np.ndarray, k, units: float, depth_k=None) -> PosedFrame:
    """One frame of files; `k` is a matrix of the colour camera, `depth_k` of depth where it is another one."""
    rgb, pose = read_picture(color), sound_pose(pose, color.name)
    camera = Camera(k, pose, rgb.shape[:2])
    if depth is None:
        return PosedFrame(rgb, None, camera)
    depth_m = read_depth(depth, None, units)
    return joined(rgb, camera, depth_m, None if depth_k is None else Camera(depth_k, pose, depth_m.shape))


def _stamped(path: Path) -> tuple[np.ndarray, list[list[str]]]:
    """A TUM table: stamps in nanoseconds, sorted, and the rest of each line's words."""
    lines = [line.replace(",", " ").split() for line in path.read_text().splitlines()]
    rows = [words for words in lines if len(words) > 1 and not words[0].startswith("#")]
    try:
        stamps = np.array([_nanoseconds(words[0]) for words in rows], np.int64)
    except ValueError as error:
        raise MirageError(f"{path} does not begin each line with a time in seconds ({error}); mend it.") from error
    order = np.argsort(stamps, kind="stable")
    return stamps[order], [rows[i][1:] for i in order]


def _nanoseconds(seconds: str) -> int:
    """Exactly: a double has no room for nanoseconds of our century."""
    whole, _, part = seconds.partition(".")
    return int(whole) * SECOND_NS + int((part + "0" * 9)[:9])


def _tum(folder: Path, config: WalkConfig) -> Walk:
    stamps, colors = _stamped(folder / "rgb.txt")
    depth_stamps, depths = _stamped(folder / "depth.txt")
    track, rows = _stamped(folder / "groundtruth.txt")
    if not len(stamps) or not len(depth_stamps) or not len(track):
        raise MirageError(f"{folder} has an empty rgb.txt, depth.txt or groundtruth.txt; give all three.")
    poses = poses_at(stamps, track, np.array([row[:7] for row in rows], np.float64))
    kept, depth_of, said = matched(stamps, depth_stamps, poses, str(folder))
    name = next((name for name in TUM_CAMERAS if name in folder.name), None)
    k = pinhole(config.intrinsics or TUM_CAMERAS.get(name, KINECT))
    units, names = config.depth_units_per_m or 5000.0, tuple(colors[i][0] for i in kept)

    def read(i: int) -> PosedFrame:
        return _frame(folder / names[i], folder / depths[depth_of[i]][0], poses[kept[i]], k, units)

    return Walk(folder, "TUM RGB-D folder", names, read, said)


def _seven_scenes(folder: Path, config: WalkConfig) -> Walk:
    poses = sorted(folder.glob("frame-*.pose.txt")) or sorted(folder.glob("seq-*/frame-*.pose.txt"))
    k, units = pinhole(config.intrinsics or SEVEN_SCENES), config.depth_units_per_m or 1000.0

    def read(i: int) -> PosedFrame:
        stem = str(poses[i]).removesuffix(".pose.txt")
        frame = _frame(Path(f"{stem}.color.png"), Path(f"{stem}.depth.png"), read_matrices(poses[i], 4)[0], k, units)
        # 65535 is invalid there, and not beyond range.
        return replace(frame, depth_m=np.where(np.isinf(frame.depth_m), np.float32(np.nan), frame.depth_m))

    names = tuple(str(path.relative_to(folder)).removesuffix(".pose.txt") for path in poses)
    return Walk(folder, "7-Scenes folder", names, read)


def _scannet(folder: Path, config: WalkConfig) -> Walk:
    names = sorted((path.stem for path in (folder / "pose").glob("*.txt")), key=lambda name: (len(name), name))
    pictures = {path.stem: path for path in (folder / "color").iterdir()}
    k = read_matrices(folder / "intrinsic" / "intrinsic_color.txt", 4)[0][:3, :3]
    depth_k = read_matrices(folder / "intrinsic" / "intrinsic_depth.txt", 4)[0][:3, :3]
    k, units = k if config.intrinsics is None else pinhole(config.intrinsics), config.depth_units_per_m or 1000.0

    def read(i: int) -> PosedFrame:
        name, pose = names[i], read_matrices(folder / "pose" / f"{names[i]}.txt", 4)[0]
        color = pictures.get(name, folder / "color" / f"{name}.jpg")
        return _frame(color, folder / "depth" / f"{name}.png", pose, k, units, depth_k)

    return Walk(folder, "ScanNet folder", tuple(names), read)


def _redwood(folder: Path, config: WalkConfig) -> Walk:
    log = _log_of(folder)
    numbers = np.array(re.sub(r"(?m)^\s*\d+\s+\d+\s+-?\d+\s*$", "", log.read_text()).split(), np.float64)
    if numbers.size % 16:
        raise MirageError(f"{log} holds {numbers.size} numbers, not whole 4x4 poses; give Open3D's trajectory log.")
    poses = numbers.reshape(-1, 4, 4)
    color = next(path for name in ("color", "rgb", "image") if (path := folder / name).is_dir())
    pictures = [sorted(one for one in place.iterdir() if one.suffix in (".png", ".jpg"))
                for place in (color, folder / "depth")]  # fmt: skip
    if {len(one) for one in pictures} != {len(poses)}:
        counts = f"{len(pictures[0])} pictures, {len(pictures[1])} depth pictures and {len(poses)} poses"
        raise MirageError(f"{folder} has {counts}; give one of each per frame.")
    k = pinhole(config.intrinsics or KINECT)
    if config.intrinsics is None and (path := folder / "camera_intrinsic.json").exists():
        k = np.array(read_json(path)["intrinsic_matrix"], np.float64).reshape(3, 3).T
    units = config.depth_units_per_m or 1000.0
    names = tuple(path.name for path in pictures[0])
    return Walk(folder, "Redwood folder", names,
                lambda i: _frame(pictures[0][i], pictures[1][i], poses[i], k, units))  # fmt: skip


def _log_of(folder: Path) -> Path | None:
    logs = sorted(folder.glob("*.log"))
    return logs[0] if logs and (folder / "depth").is_dir() else None


def _nerfstudio(folder: Path, config: WalkConfig) -> Walk:
    path = folder / "transforms.json"
    try:
        data = read_json(path)
        frames = sorted(data["frames"], key=lambda frame: frame["file_path"])
        names = tuple(frame["file_path"] for frame in frames)
        units = config.depth_units_per_m or 1 / float(data.get("depth_unit_scale_factor", 1e-3))
    except (OSError, json.JSONDecodeError, ZeroDivisionError, *UNREADABLE) as error:
        raise MirageError(f"{path} is no transforms.json of nerfstudio ({error!r:.80}); write it again.") from error

    def read(i: int) -> PosedFrame:
        try:
            pose = np.array(frames[i]["transform_matrix"], np.float64).reshape(4, 4) @ OPENCV_FROM_OPENGL
            k, distortion = _lens({**data, **frames[i]}, config)
        except UNREADABLE as error:
            raise MirageError(f"{path} lacks the pose or the lens of {names[i]} ({error!r:.80}); write it again.") from error
        depth = frames[i].get("depth_file_path")
        frame = _frame(folder / names[i], depth and folder / depth, pose, k, units)
        return undistorted(frame, distortion)

    return Walk(folder, "nerfstudio folder", names, read)


def _lens(values: dict, config: WalkConfig) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and OpenCV's k1 k2 p1 p2 of one frame of a transforms.json."""
    names = ("fl_x", "fl_y", "cx", "cy")
    given = [float(values[name]) for name in names] if config.intrinsics is None else list(config.intrinsics)
    # Its pixels' edges stand at integers, ours their centres.
    half = 0.5 if config.intrinsics is None else 0.0
    k = pinhole((given[0], given[1], given[2] - half, given[3] - half))
    return k, np.array([float(values.get(name, 0)) for name in ("k1", "k2", "p1", "p2")])


def _colmap_model(folder: Path) -> Path | None:
    """Where in a folder COLMAP's model is."""
    places = (folder, folder / "sparse" / "0", folder / "sparse", folder / "colmap" / "sparse" / "0")
    return next((one for one in places if any((one / f"images.{kind}").exists() for kind in ("bin", "txt"))), None)


def _colmap(folder: Path, config: WalkConfig) -> Walk:
    try:
        import pycolmap
    except ImportError as error:
        raise MirageError(
            f"COLMAP models need the package pycolmap ({error}); pip install 'mirage_ros[build]'."
        ) from error
    model = _colmap_model(folder)
    try:
        found = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, OSError) as error:
        raise MirageError(f"{model} is no whole COLMAP model ({str(error):.120}); export it again.") from error
    images = sorted((one for one in found.images.values() if one.has_pose), key=lambda one: one.name)
    root = next((path for up in (folder, *folder.parents[:2]) if (path := up / "images").is_dir()), folder)

    def read(i: int) -> PosedFrame:
        image, lens = images[i], found.cameras[images[i].camera_id]
        rgb, pose = read_picture(root / image.name), np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        k, distortion = _colmap_lens(lens)
        camera = Camera(k if config.intrinsics is None else pinhole(config.intrinsics),
                        sound_pose(pose, image.name), (lens.height, lens.width)).resized(rgb.shape[:2])  # fmt: skip
        depth = root.parent / "depth" / Path(image.name).with_suffix(".png")
        if depth.exists():
            frame = joined(rgb, camera, read_depth(depth, None, config.depth_units_per_m or 1000.0), None)
        else:
            seen = [found.points3D[p.point3D_id].xyz for p in image.points2D if p.has_point3D()]
            frame = PosedFrame(rgb, densified(np.array(seen).reshape(-1, 3), camera), camera)
        return undistorted(frame, distortion)

    return Walk(folder, "COLMAP model", tuple(image.name for image in images), read)


def _colmap_lens(lens) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (pixel centres at integers) and OpenCV's distortion of a COLMAP camera."""
    values, half = list(lens.params), np.array([0, 0, 0.5, 0.5])
    model = lens.model.name
    if model.startswith("SIMPLE") or model == "RADIAL":
        values = [values[0], *values]
    known = {"SIMPLE_PINHOLE": 0, "PINHOLE": 0, "SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4}
    if model not in known:
        raise MirageError(f"COLMAP's camera model {model} is not read; undistort with `colmap image_undistorter`.")
    distortion = np.zeros(4)
    distortion[: known[model]] = values[4:]
    return pinhole(np.array(values[:4]) - half), distortion


def _one_track(folder: Path, config: WalkConfig) -> Walk:
    tracks = tracks_in(folder)
    if len(tracks) > 1:
        raise MirageError(f"{folder} holds {len(tracks)} RealEstate10K tracks; give one of them, such as {tracks[0]}.")
    return open_track(tracks[0], config)


LAYOUTS = (
    (lambda folder: (folder / "world_from_camera.txt").exists(), _ours),
    (lambda folder: (folder / "rgb.txt").exists() and (folder / "groundtruth.txt").exists(), _tum),
    (lambda folder: any(folder.glob("frame-*.pose.txt")) or any(folder.glob("seq-*/frame-*.pose.txt")), _seven_scenes),
    (lambda folder: (folder / "pose").is_dir() and (folder / "intrinsic").is_dir(), _scannet),
    (lambda folder: (folder / "transforms.json").exists(), _nerfstudio),
    (lambda folder: _log_of(folder) is not None, _redwood),
    (lambda folder: _colmap_model(folder) is not None, _colmap),
    (lambda folder: bool(tracks_in(folder)), _one_track),
)
"""How a folder of each layout is recognised, and what opens it."""

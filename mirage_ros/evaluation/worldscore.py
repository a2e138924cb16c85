"""What the WorldScore suite judges (Duan et al., WorldScore, ICCV 2025): for each of its pictures and camera paths a folder
of frames with their cameras, in the layout that its `run_evaluate.py` reads.

Paths are those of the suite's own definition: moves and turns of the camera by name, one scene each, between which rotations
are slerped and translations of camera_from_world are linear. Its networks (DROID-SLAM, optical flow, CLIP, detection) judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from mirage_ros.data.seeds import read_picture
from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, read_json, write_file, write_json
from mirage_ros.geometry import rigid
from mirage_ros.geometry.camera import Camera
from mirage_ros.protocol import WorldModel
from mirage_ros.recording.exports import OPENGL_FROM_OPENCV, new_folder
from mirage_ros.recording.pictures import write_png
from mirage_ros.recording.video import VideoWriter
from mirage_ros.world.world import World, WorldConfig

SIDE_PX, FOCAL_PX, FRAMES, RATE_HZ = 512, 500.0, 50, 10
"""Of the suite's pictures and scenes; what its camera metric takes for granted."""
STEP_M, TURN_DEG = 1.0, 30.0
"""How far a path's moves go (the suite's camera_speed, which each model chooses), and its turns."""
FIRST_FROM_OPENCV = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The suite's world: the first camera's axes with x left and y up."""
PERIOD_NS = round(1e9 / RATE_HZ)
NOT_JUDGED = (
    ("camera control, 3D consistency", "DROID-SLAM"),
    ("photometric consistency", "SEA-RAFT's optical flow"),
    ("content alignment, subjective quality", "CLIP and CLIP-IQA+"),
    ("object control", "Grounding DINO and SAM"),
    ("style consistency", "VGG's Gram matrices"),
)
"""Aspects of the suite, and the networks that judge them."""


@dataclass(frozen=True)
class Scene:
    """One of the suite's static scenes: its entry, its picture, and where its folder lies in the output."""

    entry: dict
    picture: Path
    place: Path


def scenes_of(folder: Path) -> list[Scene]:
    """The static scenes of a WorldScore-Dataset folder. Raises MirageError for anything else."""
    root = next((one for one in (folder, folder / "WorldScore-Dataset") if (one / "static" / "static.json").exists()), None)
    if root is None:
        raise MirageError(f"{folder} has no static/static.json; give the folder WorldScore-Dataset as the suite's download.py makes it.")
    path, scenes = root / "static" / "static.json", []
    try:
        for entry in read_json(path):
            image = Path(entry["image"])
            picture = next((one for one in (root / image, root.parent / image) if one.exists()), root / image)
            place = Path(entry["visual_movement"]) / entry["visual_style"] / entry["scene_type"] / image.parts[-2] / image.stem
            if place.is_absolute() or ".." in place.parts or not all(name in MOVES for name in entry["camera_path"]):
                raise ValueError(f"a camera path {entry['camera_path']} or a place {place}")
            scenes.append(Scene(entry, picture, place))
    except (OSError, IndexError, *UNREADABLE) as error:
        raise MirageError(f"{path} is no list of WorldScore's scenes ({error!r:.120}); download it again.") from error
    return scenes


def _moved(right_m: float = 0.0, ahead_m: float = 0.0, left_deg: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """A camera's pose seen from the last one: moved, and turned to the left about its own upright."""
    pose = np.eye(4)
    pose[:3, :3] = rigid.exp_rotation(np.array([0, -np.radians(left_deg), 0]))
    pose[:3, 3] = right_m, 0, ahead_m
    return pose


def _orbited(left_deg: float) -> Float[np.ndarray, "4 4"]:
    """Led round a point STEP_M ahead to the left, looking at it."""
    ahead = _moved(ahead_m=STEP_M)
    return ahead @ _moved(left_deg=-left_deg) @ rigid.inverse(ahead)


MOVES = {
    "push_in": _moved(ahead_m=STEP_M), "pull_out": _moved(ahead_m=-STEP_M),
    "move_left": _moved(right_m=-STEP_M / 2), "move_right": _moved(right_m=STEP_M / 2),
    "orbit_left": _orbited(TURN_DEG), "orbit_right": _orbited(-TURN_DEG),
    "pan_left": _moved(left_deg=TURN_DEG), "pan_right": _moved(left_deg=-TURN_DEG),
}  # fmt: skip
"""The suite's camera moves by name: the next camera's pose in the last one's axes."""


def path_of(names: Sequence[str], frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Poses of a path in the first camera's axes: (names + 1, 4, 4) key ones, and with those between (names (frames - 1) + 1, 4, 4)."""
    keys = [np.eye(4)]
    for name in names:
        keys.append(keys[-1] @ MOVES[name])
    poses = [keys[0]]
    for first, second in zip(keys, keys[1:], strict=False):
        there, then = rigid.inverse(first), rigid.inverse(second)
        shares = np.arange(1, frames) / (frames - 1)
        poses += [rigid.inverse(rigid.advance(there, then, share - 1)) for share in shares]
    return np.stack(keys), np.stack(poses)


def write_scene(scene: Scene, model: WorldModel, out: Path, frames: int = FRAMES, tick: Callable[[int], object] = lambda _: None) -> None:
    """Generates one scene's frames into `out`/its place, all or nothing. Raises MirageError for a bad picture."""
    rgb, (keys, poses) = read_picture(scene.picture), path_of(scene.entry["camera_path"], frames)
    world, middle = World(model, WorldConfig()), min(rgb.shape[:2])
    world.reset(rgb, _seen_as(rgb.shape[:2], middle))
    height, width = model.size
    seen = _seen_as(model.size, height)
    cut = slice((width - height) // 2, (width - height) // 2 + height)
    anchors = list(range(0, len(poses), frames - 1))
    with new_folder(out / scene.place) as folder:
        (folder / "frames").mkdir()
        with VideoWriter(folder / "videos" / "output.mp4", float(RATE_HZ)) as video:
            for start in range(0, len(poses), model.chunk_frames):
                some = Camera(seen.intrinsics, poses[start : start + model.chunk_frames], model.size)
                for i, frame in enumerate(world.step(some, (start + 1 + np.arange(len(some))) * PERIOD_NS).frames, start):
                    picture = cv2.resize(frame.rgb[:, cut], (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
                    write_png(folder / "frames" / f"{i:03d}.png", picture[..., ::-1])
                    video.add(picture)
                tick(len(some))
        cameras = {"focal_length": FOCAL_PX, "scale": STEP_M, "cameras": _suite_poses(keys), "cameras_interp": _suite_poses(poses)}
        write_json(folder / "camera_data.json", cameras)
        facts = {"num_scenes": len(keys) - 1, "total_frames": len(poses), "anchor_frame_idx": anchors}
        write_json(folder / "image_data.json", scene.entry | facts)
        top, left = (rgb.shape[0] - middle) // 2, (rgb.shape[1] - middle) // 2
        square = cv2.resize(rgb[top : top + middle, left : left + middle], (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
        write_png(folder / "input_image.png", square[..., ::-1])


def _seen_as(size: tuple[int, int], middle: int) -> Camera:
    """The camera of a picture whose middle square, so many pixels wide, is the suite's picture."""
    focal, (height, width) = FOCAL_PX * middle / SIDE_PX, size
    return Camera(np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]]), np.eye(4), size)


def _suite_poses(poses: Float[np.ndarray, "n 4 4"]) -> list:
    """World from camera in Blender's camera axes (y up, z back), as camera_data.json holds them."""
    return (FIRST_FROM_OPENCV @ poses @ OPENGL_FROM_OPENCV).tolist()


def write_scenes(folder: Path, model: WorldModel, out: Path, most: int | None = None) -> dict:
    """Generates the scenes that `out`/worldscore_output lacks; what was done, as JSON takes it.

    Args:
        most: so many of the suite's scenes, evenly spread; None is all.
    """
    scenes, target = scenes_of(folder), out / "worldscore_output"
    chosen = [scenes[i] for i in np.unique(np.linspace(0, len(scenes) - 1, min(most or len(scenes), len(scenes))).astype(int))]
    missing, bad = [scene for scene in chosen if not (target / scene.place / "image_data.json").exists()], []
    with tqdm(total=sum(len(scene.entry["camera_path"]) * (FRAMES - 1) + 1 for scene in missing), unit="frame") as bar:
        for scene in missing:
            bar.set_description_str(str(scene.place))
            try:
                write_scene(scene, model, target, FRAMES, bar.update)
            except MirageError as error:
                bad.append(str(error))
    config = {"model": model.name, "runs_root": str(out.resolve()), "resolution": [SIDE_PX, SIDE_PX], "generate_type": "i2v",
              "frames": FRAMES, "fps": RATE_HZ, "camera_speed": STEP_M, "camera_type": "tensor"}  # fmt: skip
    write_file(out / "mirage.yaml", "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items()))
    return {"scenes": len(scenes), "made": len(missing) - len(bad), "there": len(chosen) - len(missing), "left_out": bad,
            "output": str(target), "config": str(out / "mirage.yaml")}  # fmt: skip


def describe(report: dict) -> str:
    """What was written, and what of the suite cannot be run here."""
    lines = [
        f"{report['output']}: {report['made']} scenes made, {report['there']} were there; "
        f"the suite has {report['scenes']} static ones.",
        *report["left_out"],
        f"To judge them, copy {report['config']} to the suite's config/model_configs/, name the model in its modeltype.py under threedgen, and "
        "run its run_evaluate.py.",
        "Not judged here, because the networks are no part of any package: "
        + "; ".join(f"{aspect} ({network})" for aspect, network in NOT_JUDGED) + ".",
        "Not written: dynamic scenes (a world holds still, so it is judged as the suite's 3D scene generators are), and what prompts ask for "
        "(the shipped model reads none).",
    ]  # fmt: skip
    return "\n".join(lines)

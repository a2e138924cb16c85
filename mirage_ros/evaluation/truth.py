"""Worlds whose truth is known: scenes by seed, and folders of posed RGB-D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mirage_ros.core.camera import Camera
from mirage_ros.core.errors import MirageError
from mirage_ros.core.pictures import fit_seed
from mirage_ros.evaluation.posed_rgbd import PosedRgbd

PERIOD_S = 0.2
EXCURSION = 100
"""Frames of one excursion of a long walk: out for half of them, and back."""
FINER = 4
SAME_SURFACE_SHARE = 0.03
RECORDED_SHARE = 0.08
"""Relative gap of depths of one surface: rendered, and recorded with noise and drift."""
LEFT_SHARE, BACK_SHARE = 0.05, 0.15


@dataclass(frozen=True)
class TrueWorld:
    """f frames of a path through a known world; frame 0 is the seed.

    Attributes:
        depth_m: +inf in the sky, NaN where unknown.
        first_shown: an earlier frame of the same camera, or -1.
        returns: frames that look again at what was seen before.
        grounded: pixels whose surface the seed picture shows, by true geometry; what a world
            made from the seed can know.
    """

    name: str
    cameras: Camera
    rgb: UInt8[np.ndarray, "f h w 3"]
    depth_m: Float[np.ndarray, "f h w"]
    moving: Bool[np.ndarray, "f h w"]
    first_shown: Int[np.ndarray, "f"]
    returns: Bool[np.ndarray, "f"]
    grounded: Bool[np.ndarray, "f h w"]

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def vacated(self) -> Bool[np.ndarray, "f h w"]:
        """Where the seed's moving bodies stood, and no body is any more."""
        return vacated_by_bodies(self.cameras, self.depth_m, self.moving)

    @property
    def no_return(self) -> str:
        """Why no frame counts as a return, as a sentence; "" where some do."""
        share = self.grounded.mean((1, 2))
        if self.returns.any():
            return ""
        told = f"{self.name} has no return to judge: "
        if (least := share.min()) >= LEFT_SHARE:
            return told + (
                f"every view shows the seed's surfaces in {least:.0%} of the picture or more, and "
                f"a return counts after a view that shows them in less than {LEFT_SHARE:.0%}."
            )
        gone = int(np.argmax(share < LEFT_SHARE))
        return told + (
            f"after frame {gone} had left the seed's surfaces, no view showed them in more than "
            f"{share[gone:].max():.0%} of the picture ({BACK_SHARE:.0%} is needed)."
        )

    @property
    def stamps_ns(self) -> Int[np.ndarray, "f"]:
        return np.arange(len(self), dtype=np.int64) * int(PERIOD_S * 1e9)


def scene_world(seed: int, frames: int, size: tuple[int, int], kind: str | None = None):
    """A scene walked there and back; long walks are many excursions that each end at the seed.

    Args:
        frames: odd numbers end at the seed's camera; above 100 each 100 frames do.
    """
    from mirage_ros.scenes import Renderer, camera_path, make_scene

    if frames < 3:
        raise MirageError(f"A walk of {frames} frames was asked for; give at least 3.")
    scene = make_scene(seed, kind)
    half = min(frames, EXCURSION) // 2
    length_s = half * PERIOD_S
    fine = FINER * half + 1
    way = camera_path(scene, seed, fine, size=size, period_s=length_s / (fine - 1))
    place, yaw_deg, first_shown = plan_excursions(frames, half)
    cameras = _turned(way[np.rint(place * (fine - 1)).astype(int)], yaw_deg)
    times = np.arange(frames) * PERIOD_S
    with Renderer(scene, size) as renderer:
        clip = renderer.render(cameras, times)
    grounded = shown_by_seed(cameras, clip.depth_m, clip.moving)
    returns = first_shown >= 0
    name = f"{seed} {scene.kind}"
    return TrueWorld(
        name, cameras, clip.rgb, clip.depth_m, clip.moving, first_shown, returns, grounded
    )


def plan_excursions(frames: int, half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place along the way (0..1), extra yaw in degrees and the earlier frame of the same camera.

    The first excursion follows the way and turns no further than it. Later ones go less far and
    turn ever more, to either side, so that the world grows.
    """
    number, step = np.divmod(np.arange(frames), 2 * half)
    out = 1 - np.abs(step / half - 1)
    eased = np.where(number == 0, out, 0.5 - 0.5 * np.cos(np.pi * out))
    reach = np.where(number % 3 == 0, 1.0, np.where(number % 3 == 1, 0.5, 0.75))
    widest = np.minimum(40.0 * ((number + 1) // 2), 180.0) * np.where(number % 2, 1, -1)
    mirrored = number * 2 * half + 2 * half - step
    first = np.where(step > half, mirrored, -1)
    first[(step == 0) & (number > 0)] = 0
    # The seed's camera was first seen in frame 0, not at the start of this excursion.
    first[(first >= 0) & (first % (2 * half) == 0)] = 0
    return eased * reach, eased * widest, first


def folder_world(
    folder: str | Path, seed_frame: int, frames: int | None, size: tuple[int, int]
) -> TrueWorld:
    """A recorded walk from `seed_frame` on, brought to the model's size."""
    walk = PosedRgbd(folder)
    numbers = range(seed_frame, len(walk) if frames is None else seed_frame + frames)
    if len(numbers) < 2 or numbers[-1] >= len(walk):
        raise MirageError(
            f"Frames {seed_frame} to {numbers.stop - 1} of {folder} were asked for; it has frames "
            f"0 to {len(walk) - 1}, and two are needed at least."
        )
    fitted = [
        fit_seed(frame.rgb, frame.camera, frame.depth_m, size)
        for frame in (walk[number] for number in numbers)
    ]
    rgb, cameras = np.stack([f[0] for f in fitted]), Camera.stack([f[1] for f in fitted])
    depth = np.stack([f[2] for f in fitted]).astype(np.float32)
    still = np.zeros(depth.shape, bool)
    grounded = shown_by_seed(cameras, depth, still, RECORDED_SHARE)
    return TrueWorld(
        f"{Path(folder).name} {seed_frame}",
        cameras,
        rgb,
        depth,
        still,
        np.full(len(rgb), -1),
        _back_at_the_seed(grounded),
        grounded,
    )


def shown_by_seed(
    cameras: Camera,
    depth_m: Float[np.ndarray, "f h w"],
    moving: Bool[np.ndarray, "f h w"],
    tolerance: float = SAME_SURFACE_SHARE,
) -> Bool[np.ndarray, "f h w"]:
    """Where each frame's surface lies in frame 0's picture and nothing hides it there.

    Depths of one surface may differ by the share `tolerance`. The seed's are interpolated as
    inverse depth, which is linear on planes however slanted, between pixels of known depth alone.
    """
    seed, (height, width) = cameras[0], cameras.size
    known = np.isfinite(depth_m[0]) & (depth_m[0] > 0) & ~moving[0]
    inverse = np.where(known, 1 / np.where(known, depth_m[0], 1), 0).astype(np.float32)
    # Between a surface and a hole any depth would be found.
    certain, shown = known.astype(np.float32), np.zeros(depth_m.shape, bool)
    for i in range(len(depth_m)):
        known = np.isfinite(depth_m[i]) & ~moving[i]
        points = cameras[i].lift(np.where(known, depth_m[i], 1.0))
        pixels, z = seed.project(points.reshape(-1, 3))
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (np.abs(pixels) < 1e6).all(-1)
        pixels = np.where(inside[:, None], pixels, -9).astype(np.float32)
        inside &= ((pixels > -0.5) & (pixels < (width - 0.5, height - 0.5))).all(-1)
        place = pixels.reshape(height, width, 2)
        there = cv2.remap(inverse, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        sure = cv2.remap(certain, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        same = np.abs(there * np.where(inside, z, 0).reshape(height, width) - 1) <= tolerance
        same &= sure > 0.999
        shown[i] = inside.reshape(height, width) & same & known
    return shown


def vacated_by_bodies(
    cameras: Camera,
    depth_m: Float[np.ndarray, "f h w"],
    moving: Bool[np.ndarray, "f h w"],
) -> Bool[np.ndarray, "f h w"]:
    """Where frame 0's bodies would show, had they stayed, though no body is there now."""
    height, width = cameras.size
    bodies = moving[0] & np.isfinite(depth_m[0])
    points = cameras[0].lift(np.where(bodies, depth_m[0], 1.0))[bodies]
    vacated = np.zeros(moving.shape, bool)
    for i in range(len(moving)):
        pixels, z = cameras[i].project(points)
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (np.abs(pixels) < 1e6).all(-1)
        column, row = np.rint(np.where(inside[:, None], pixels, -9)).astype(int).T
        inside &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row, z = column[inside], row[inside], z[inside]
        bare = z < depth_m[i][row, column] * (1 + SAME_SURFACE_SHARE)
        mask = np.zeros((height, width), np.uint8)
        mask[row[bare], column[bare]] = 1
        closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        vacated[i] = closed.astype(bool) & ~moving[i]
    return vacated


def _turned(cameras: Camera, yaw_deg: np.ndarray) -> Camera:
    """Each camera turned about the world's up."""
    angle = np.radians(yaw_deg)
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 1, 0], turn[:, 0, 1], turn[:, 2, 2] = np.sin(angle), -np.sin(angle), 1
    poses = cameras.world_from_camera.copy()
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    return Camera(cameras.intrinsics, poses, cameras.size)


def _back_at_the_seed(grounded: Bool[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f"]:
    """Frames that see much of the seed's surfaces again after one that saw next to nothing."""
    share = grounded.mean((1, 2))
    left = np.maximum.accumulate(share < LEFT_SHARE)
    return left & (share > BACK_SHARE)

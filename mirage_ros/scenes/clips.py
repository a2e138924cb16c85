"""From a seed to a rendered clip, a contact sheet or a shipped seed picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from mirage_ros.scenes.catalogue import Catalogue
from mirage_ros.scenes.decoys import decoys
from mirage_ros.scenes.paths import best_view, camera_path
from mirage_ros.scenes.render import Clip, Renderer
from mirage_ros.scenes.worlds import make_scene


def make_clip(
    seed: int,
    frames: int,
    size: tuple[int, int],
    kind: str | None = None,
    motion: str | None = None,
    hfov_deg: float | None = None,
    period_s: float = 0.1,
    with_decoys: bool = False,
    furniture: Catalogue | None = None,
) -> Clip:
    """One scene, one camera path, one render; the same for the same arguments.

    Args:
        seed: training uses 0..999999, validation 1000000..1099999, tests and the shipped
            seeds 2000000 and up.
        size: (height, width).
        kind, motion, hfov_deg: None draws them by the seed.
        with_decoys: adds bright things that stand still (decoys.py).
        furniture: a cache of models, for homes (worlds.py).
    """
    add = decoys(np.random.default_rng([seed, 14])) if with_decoys else None
    scene = make_scene(seed, kind, furniture=furniture, add=add)
    cameras = camera_path(
        scene, seed, frames, motion=motion, hfov_deg=hfov_deg, size=size, period_s=period_s
    )
    with Renderer(scene, size) as renderer:
        return renderer.render(cameras, np.arange(frames) * period_s)


def write_preview(
    path: str | os.PathLike,
    seeds: Iterable[int],
    *,
    frames: int = 16,
    size: tuple[int, int] = (128, 160),
    kind: str | None = None,
    furniture: Catalogue | None = None,
) -> None:
    """A contact sheet: a row per seed with first, middle and last frame, depth and masks."""
    rows = []
    for seed in seeds:
        clip = make_clip(seed, frames, size, kind, furniture=furniture)
        shown = [clip.rgb[i] for i in (0, frames // 2, frames - 1)]
        near = np.clip(255 / np.maximum(clip.depth_m[0], 1.0), 0, 255).astype(np.uint8)
        coloured = cv2.applyColorMap(near, cv2.COLORMAP_TURBO)[..., ::-1]
        coloured = np.where(clip.sky[0][..., None], np.uint8(255), coloured)
        shown.append(np.where(clip.moving[0][..., None], np.uint8([255, 0, 255]), coloured))
        rows.append(np.concatenate(shown, 1))
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


def write_seed(folder: str | os.PathLike, seed: int, kind: str) -> None:
    """Renders one start picture at 480 x 640 with its depth and camera into a folder.

    Writes color.png (RGB), depth.png (uint16 millimetres, 0 invalid, 65535 beyond range) and
    camera.yaml (width, height, fx, fy, cx, cy, world_from_camera). The camera stands 0.6 to
    1.2 m above the floor with about 1.5 m of free floor around it.
    """
    folder, size = Path(folder), (480, 640)
    scene = make_scene(seed, kind, moving=False, texture_px=512)
    cameras = best_view(scene, seed, hfov_deg=75.0, size=size)
    with Renderer(scene, size) as renderer:
        clip = renderer.render(cameras)
    millimetres = np.where(clip.sky[0], 65535, np.minimum(clip.depth_m[0] * 1000, 65534).round())
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "color.png"), clip.rgb[0][..., ::-1])
    cv2.imwrite(str(folder / "depth.png"), millimetres.astype(np.uint16))
    (folder / "camera.yaml").write_text(_camera_yaml(cameras[0]))


def _camera_yaml(camera) -> str:
    height, width = camera.size
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics.tolist()
    rows = "".join(
        f"  - [{', '.join(f'{value:.9g}' for value in row)}]\n" for row in camera.world_from_camera
    )
    return (
        "# The camera of color.png: pixel centres at integers, world z up, metres.\n"
        f"width: {width}\nheight: {height}\n"
        f"fx: {fx:.9g}\nfy: {fy:.9g}\ncx: {cx:.9g}\ncy: {cy:.9g}\n"
        f"world_from_camera:\n{rows}"
    )

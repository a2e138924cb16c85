"""Renders scenes: from a seed to a clip, a contact sheet or a shipped seed picture.

A picture is RGB, metric depth, and masks of moving things and sky. It is drawn on a grid of
half-pixel steps, (2h + 1, 2w + 1), whose odd samples are exactly the pixel centres. Colour is a
tent filter over three by three samples, which smooths edges; depth and masks are the centre
sample itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera
from mirage_ros.scenes.catalogue import Catalogue
from mirage_ros.scenes.gl import mujoco, use_drawing_context
from mirage_ros.scenes.paths import best_view, camera_path
from mirage_ros.scenes.worlds import MOVING_GROUP, Scene, decoys, make_scene

NEAR_M, FAR_M = 0.05, 300.0
# MuJoCo's skybox writes depth: a box of half size 0.577 FAR_M, at 100 m along z or more.
# Scenes end at 60 m.
SKY_M = 80.0


@dataclass(frozen=True)
class Clip:
    """f rendered frames.

    Attributes:
        rgb: (f, h, w, 3) uint8.
        depth_m: (f, h, w) float32 along z; +inf where there is only sky.
        moving: (f, h, w) bool, pixels of moving bodies.
        sky: (f, h, w) bool.
        cameras: batch of f.
        times_s: (f,) seconds.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    moving: np.ndarray
    sky: np.ndarray
    cameras: Camera
    times_s: np.ndarray


class Renderer:
    """An off-screen drawing context for one scene at one picture size.

    Use it as a context manager, from the thread that made it.
    Raises:
        MirageError: no drawing context can be made.
    """

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        self.scene = scene
        self.size = (int(size[0]), int(size[1]))
        self._fine = (2 * self.size[0] + 1, 2 * self.size[1] + 1)
        height, width = self._fine
        model = scene.model
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._data = mujoco.MjData(model)
        use_drawing_context()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._geoms = mujoco.MjvScene(model, model.ngeom + 16)
        self._geoms.flags[mujoco.mjtRndFlag.mjRND_HAZE] = 0
        self._geoms.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._update()
        self._rgb = np.empty((*self._fine, 3), np.uint8)
        self._depth = np.empty(self._fine, np.float32)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Gives the context back; the renderer cannot be used afterwards."""
        if self._context is not None:
            use_drawing_context()
            self._context.free()
            self._context = None

    def render(self, cameras: Camera, times_s: np.ndarray | None = None) -> Clip:
        """Frames of a batch of cameras at the renderer's size.

        Args:
            times_s: (f,) where the moving bodies are; None is zeros.
        Raises:
            MirageError: cameras of another size or not a batch.
        """
        if cameras.size != self.size or len(cameras.batch_shape) != 1:
            raise MirageError(
                f"The renderer draws batches of cameras of size {self.size} and got size "
                f"{cameras.size} with batch shape {cameras.batch_shape}; resize or index them."
            )
        count = len(cameras)
        times_s = np.zeros(count) if times_s is None else np.asarray(times_s, float)
        rgb = np.empty((count, *self.size, 3), np.uint8)
        depth = np.empty((count, *self.size), np.float32)
        moving = np.zeros((count, *self.size), bool)
        use_drawing_context()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        for index, camera in enumerate(cameras):
            if self.scene.movers:
                self._move(float(times_s[index]))
            self._aim(camera)
            rgb[index], depth[index] = self._draw()
            if self.scene.movers:
                moving[index] = self._draw_moving()
        return Clip(rgb, depth, moving, np.isinf(depth), cameras, times_s)

    def _move(self, time_s: float) -> None:
        for index, mover in enumerate(self.scene.movers):
            self._data.mocap_pos[index] = mover.position(time_s)
            self._data.mocap_quat[index] = mover.quat(time_s)
        self._update()

    def _update(self) -> None:
        model, data = self.scene.model, self._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, None, self._view, everything, self._geoms)

    def _aim(self, camera: Camera) -> None:
        """Sets the frustum whose fine samples fall on the pixel centres and half-way between."""
        height, width = self.size
        (fx, _, cx), (_, fy, cy), _ = camera.intrinsics
        left, right = (-0.75 - cx) / fx, (width - 0.25 - cx) / fx
        top, bottom = (cy + 0.75) / fy, (cy - height + 0.25) / fy
        rotation = camera.world_from_camera[:3, :3]
        for eye in self._geoms.camera:
            eye.pos = camera.position_world
            eye.forward, eye.up = rotation[:, 2], -rotation[:, 1]
            eye.frustum_near, eye.frustum_far = NEAR_M, FAR_M
            eye.frustum_center = NEAR_M * (left + right) / 2
            eye.frustum_width = NEAR_M * (right - left) / 2
            eye.frustum_top, eye.frustum_bottom = NEAR_M * top, NEAR_M * bottom

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        viewport = mujoco.MjrRect(0, 0, self._fine[1], self._fine[0])
        mujoco.mjr_render(viewport, self._geoms, self._context)
        mujoco.mjr_readPixels(self._rgb, self._depth, viewport, self._context)
        smooth = cv2.GaussianBlur(self._rgb, (3, 3), 0)  # 1 2 1 both ways
        buffer = self._depth[::-1][1::2, 1::2].astype(np.float64)
        depth = NEAR_M * FAR_M / (FAR_M - buffer * (FAR_M - NEAR_M))
        depth[depth > SKY_M] = np.inf
        return smooth[::-1][1::2, 1::2], depth.astype(np.float32)

    def _draw_moving(self) -> np.ndarray:
        flags = self._geoms.flags
        flag = mujoco.mjtRndFlag
        before = np.array(flags)
        flags[flag.mjRND_SEGMENT] = flags[flag.mjRND_IDCOLOR] = 1
        flags[flag.mjRND_SHADOW] = 0
        viewport = mujoco.MjrRect(0, 0, self._fine[1], self._fine[0])
        mujoco.mjr_render(viewport, self._geoms, self._context)
        mujoco.mjr_readPixels(self._rgb, None, viewport, self._context)
        flags[:] = before
        codes = self._rgb[::-1][1::2, 1::2].astype(np.int64) @ [1, 256, 65536]
        moves = np.zeros(self._geoms.ngeom + 2, bool)
        for geom in self._geoms.geoms[: self._geoms.ngeom]:
            is_geom = geom.objtype == mujoco.mjtObj.mjOBJ_GEOM
            if is_geom and self.scene.model.geom_group[geom.objid] == MOVING_GROUP:
                moves[geom.segid + 1] = True
        return moves[np.minimum(codes, len(moves) - 1)]


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
        with_decoys: adds bright things that stand still (worlds.py).
        furniture: a cache of models, for homes (catalogue.py).
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

"""Keyframes and the path along them: set where the camera is or drawn by clicking, played, saved and loaded.

A click falls on what memory holds there, or on the floor where it holds nothing; the keyframe stands above, at the height
at which one walks.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import viser
from jaxtyping import Float
from transforms3d.quaternions import mat2quat

from mirage_ros.apps.studio import View
from mirage_ros.apps.studio.browsers import Host, checked_name, on_click, seen
from mirage_ros.apps.studio.see import floor_m
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.data.seeds import plan_tour
from mirage_ros.errors import MirageError
from mirage_ros.files import UNREADABLE, read_json, write_json
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.geometry.rigid import advance, exp_rotation, log_rotation

STEP_M, STEP_DEG = 0.15, 6.0
TOUR_FRAMES = 36
HIT_DEG, HIT_M = 1.5, 0.04
"""A click falls on points of memory that lie so close to its line of sight, seen from the eye or in space."""
FARTHEST_M = 50.0
ABREAST_M, BODY_M = 0.35, 0.5
"""What rises so high above the floor is not stood on but stood before, so far away."""
GREEN = (80, 220, 120)
NONE_YET = "No keyframes. *Play* without any walks a tour."


def between(poses: list[Float[np.ndarray, "4 4"]]) -> Float[np.ndarray, "n 4 4"]:
    """Poses straight along keyframes, `STEP_M` or `STEP_DEG` apart, from the first to the last."""
    path = [poses[0]]
    for start, end in zip(poses, poses[1:], strict=False):
        way, turn = end[:3, 3] - start[:3, 3], log_rotation(start[:3, :3].T @ end[:3, :3])
        count = max(1, math.ceil(max(np.linalg.norm(way) / STEP_M, np.degrees(np.linalg.norm(turn)) / STEP_DEG)))
        path += [advance(start, end, k / count - 1) for k in range(1, count)] + [end]
    return np.stack(path)


def clicked(
    xyz: Float[np.ndarray, "n 3"], camera: Camera, origin: Float[np.ndarray, "3"], ray: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """Where somebody who walks is to stand after a click along a ray, on the floor.

    Raises:
        MirageError: the ray meets neither memory nor the floor nearby.
    """
    up, floor = floor_axes(camera.world_from_camera)[0], floor_m(xyz, camera)
    ray = ray / np.linalg.norm(ray)
    away = xyz.astype(np.float64) - origin
    along = away @ ray
    aside = np.linalg.norm(away - along[:, None] * ray, axis=1)
    hit = (along > 0.1) & (aside < np.maximum(HIT_M, np.radians(HIT_DEG) * along))
    drop = float(ray @ up)
    to_floor = (floor - float(origin @ up)) / drop if drop else np.inf
    reach = float(along[hit].min(initial=np.inf))
    if 0 < to_floor < reach:
        reach = to_floor
    if not reach < FARTHEST_M:
        raise MirageError("The click met neither what is remembered nor the floor nearby; click on either.")
    place = origin + reach * ray
    if place @ up > floor + ABREAST_M:
        flat = ray - drop * up
        place = place - BODY_M * flat / max(float(np.linalg.norm(flat)), 1e-6)
    return place + (floor - place @ up) * up


class PathPanel:
    """The folder of the walk's tab that draws paths.

    Args:
        folder: paths are saved below it.
    """

    def __init__(self, server: viser.ViserServer, walk: Walk, folder: Path, page: Host) -> None:
        self._server, self._walk, self._folder, self._page = server, walk, folder, page
        self.keyframes: list[np.ndarray] = []
        self._clicked: set[int] = set()
        self._drawn: list[viser.SceneNodeHandle] = []

    def build(self) -> None:
        gui = self._server.gui
        with gui.add_folder("Path", expand_by_default=False):
            self._summary = gui.add_markdown(NONE_YET)
            self._by_click = gui.add_checkbox("Draw by clicking", False,
                                              hint="Click on the floor in the 3D view: each click is one more keyframe.")  # fmt: skip
            self._by_click.on_update(self._listen)
            self._on(gui.add_button("Add a keyframe here", icon=viser.Icon.PLUS), self._add_here)
            self._on(gui.add_button("Play", icon=viser.Icon.PLAYER_PLAY), self._play)
            self._edit = gui.add_button_group("Keyframes", ("Drop the last", "Clear"))
            self._on(self._edit, self._edited)
            self._name = gui.add_text("Name", "path")
            self._file = gui.add_button_group("File", ("Save", "Load"))
            self._on(self._file, self._saved_or_loaded)

    def _on(self, handle: viser.GuiButtonHandle | viser.GuiButtonGroupHandle, do) -> None:
        on_click(handle, self._page, do)

    def _add_here(self, _: viser.GuiEvent) -> None:
        self._draw([*self.keyframes, seen(self._page).frame.camera.world_from_camera])

    # By clicking.

    async def _listen(self, event: viser.GuiEvent) -> None:
        scene = self._server.scene
        scene.remove_click_callback(self._on_click)
        if self._by_click.value:
            scene.on_click()(self._on_click)
            if event.client_id is not None:
                self._page.show_scene(event.client_id, whole=True)

    async def _on_click(self, event: viser.SceneClickEvent) -> None:
        view = self._page.view
        if view is None or event.client_id != self._page.driver:
            return
        try:
            self._add_clicked(view, np.array(event.ray_origin), np.array(event.ray_direction))
        except MirageError as error:
            self._page.notify(str(error), good=False)

    def _add_clicked(self, view: View, origin: np.ndarray, ray: np.ndarray) -> None:
        """One more keyframe there. The path begins where the camera is, and each keyframe looks to the next one."""
        camera = view.frame.camera
        xyz = view.state.memory.positions_m
        place = clicked(xyz, camera, origin, ray)
        up = floor_axes(camera.world_from_camera)[0]
        place += (self._page.height_m - float(place @ up)) * up
        keyframes = self.keyframes or [camera.world_from_camera]
        pose = facing(keyframes[-1], place)
        if len(keyframes) - 1 in self._clicked:
            turned = pose.copy()
            turned[:3, 3] = keyframes[-1][:3, 3]
            keyframes = [*keyframes[:-1], turned]
        self._clicked.add(len(keyframes))
        self._draw([*keyframes, pose])

    # What there is of it.

    def _edited(self, _: viser.GuiEvent) -> None:
        self._draw([] if self._edit.value == "Clear" else self.keyframes[:-1])

    def _draw(self, keyframes: list[np.ndarray]) -> None:
        self.keyframes, count = keyframes, len(keyframes)
        self._clicked = {number for number in self._clicked if number < count}
        self._summary.content = f"{count} keyframes." if count else NONE_YET
        for handle in self._drawn:
            handle.remove()
        scene = self._server.scene
        self._drawn = [
            scene.add_camera_frustum(f"/space/path/{index}", 0.8, 1.3, scale=0.12, color=GREEN, thickness=2.0, thickness_units="screen",
                                     wxyz=mat2quat(pose[:3, :3]), position=pose[:3, 3])  # fmt: skip
            for index, pose in enumerate(keyframes)
        ]
        if count > 1:
            places = between(keyframes)[:, :3, 3]
            segments = np.stack([places[:-1], places[1:]], 1)
            line = scene.add_line_segments("/seen/path/line", segments, GREEN, thickness=3.0, thickness_units="screen")
            self._drawn.append(line)

    def _play(self, _: viser.GuiEvent) -> None:
        frame = seen(self._page).frame
        if len(self.keyframes) > 1:
            cameras = Camera(frame.camera.intrinsics, between(self.keyframes), frame.camera.size)
        else:
            cameras = plan_tour(frame.camera, TOUR_FRAMES, frame.depth_m)
        self._walk.ask("Walking the path", lambda: self._walk.play(cameras))

    def _saved_or_loaded(self, _: viser.GuiEvent) -> None:
        path = self._folder / "paths" / f"{checked_name(self._name.value)}.json"
        if self._file.value == "Save":
            write_json(path, {"world_from_camera": [pose.tolist() for pose in self.keyframes]})
            self._page.notify(f"Saved as {path}, {len(self.keyframes)} keyframes.", good=True)
            return
        try:
            poses = np.array(read_json(path)["world_from_camera"], np.float64).reshape(-1, 4, 4)
        except (OSError, *UNREADABLE) as error:
            raise MirageError(f"{path} holds no path ({error!s:.100}); save one under that name first.") from error
        self._clicked = set()
        self._draw(list(poses))


def facing(before: Float[np.ndarray, "4 4"], place: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """A pose at a place that looks away from where one comes, as high or low as before; as before where both are one place."""
    up, ahead, right = floor_axes(before)
    way = place - before[:3, 3]
    turn = math.atan2(-float(way @ right), float(way @ ahead)) if np.hypot(way @ right, way @ ahead) > 1e-3 else 0.0
    pose = before.copy()
    pose[:3, :3], pose[:3, 3] = exp_rotation(turn * up) @ before[:3, :3], place
    return pose

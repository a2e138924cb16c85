"""Entities in the studio: spawned on the floor ahead, moved by a gizmo or by physics, deleted, and shown in the 3D view.

Everybody sees them, in the picture and in space; the gizmo is in the browser of who drives alone. A drag is a change of the
newest place: places that came while a picture was drawn are left out.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import trimesh
import viser
from jaxtyping import Float
from transforms3d.quaternions import mat2quat

from mirage_ros.apps.studio import View
from mirage_ros.apps.studio.browsers import NOT_DRIVING, Host, on_click, seen
from mirage_ros.apps.studio.see import floor_m
from mirage_ros.apps.studio.walk import MUJOCO, OFF, PHYSICS, QUIET, Walk
from mirage_ros.data.meshes import MESHES, Spawnables
from mirage_ros.data.seeds import clearance_m
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import floor_axes
from mirage_ros.geometry.rigid import from_quaternion
from mirage_ros.protocol import Delete, Move
from mirage_ros.world.entities import Body, Mesh

NEAR_M, AWAY_M, ROOM_M = 0.8, 5.0, 0.5
"""How far ahead a body is put at least and at most, and how far from what stands there."""
STANDS_AT = 0.8, 0.88
"""Between these shares of the picture's height the floor is seen on which it stands."""
NOBODY = "none"
SHAPES = {
    "box": "shape://box?size=0.4,0.4,0.4&color=c8503c",
    "sphere": "shape://sphere?radius=0.2&color=3c78c8",
    "cylinder": "shape://cylinder?radius=0.15&length=0.5&color=50a064",
    "capsule": "shape://capsule?radius=0.15&length=0.5&color=c8a03c",
}


def spawnables(folder: Path) -> dict[str, str]:
    """The URIs of what can be spawned, by name: the shipped models, those in a folder, shapes."""
    found = Spawnables(folder if folder.is_dir() else None).files(MESHES)
    return {path.stem: path.absolute().as_uri() for path in found} | SHAPES


def place_ahead(view: View) -> Float[np.ndarray, "4 4"]:
    """world_from_body on the floor that is seen ahead of the camera, before what stands there, looking at it."""
    camera, depth_m, labels = view.frame.camera, view.frame.depth_m, view.frame.labels
    up, ahead, _ = floor_axes(camera.world_from_camera)
    height, width = camera.size
    rows = slice(*(int(share * height) for share in STANDS_AT))
    columns = slice(int(0.45 * width), int(0.55 * width) + 1)
    bare = np.isfinite(depth_m) if labels is None else np.isfinite(depth_m) & (labels == 0)
    seen = (camera.lift(depth_m) - camera.position_world)[rows, columns][bare[rows, columns]]
    if len(seen):
        away_m, above_m = float(np.median(seen @ ahead)), -float(np.median(seen @ up))
    else:
        away_m, above_m = AWAY_M, float(camera.position_world @ up) - floor_m(view.state.memory.positions_m, camera)
    away_m = float(np.clip(min(away_m, clearance_m(camera, depth_m) - ROOM_M), NEAR_M, AWAY_M))
    pose = np.eye(4)
    pose[:3, :3] = np.stack([-ahead, np.cross(up, -ahead), up], 1)
    pose[:3, 3] = camera.position_world + away_m * ahead - above_m * up
    return pose


def drawable(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices_m, mesh.faces, face_colors=mesh.colours, process=False)


class Bodies3D:
    """The entities as meshes in a scene."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._drawn: dict[str, tuple[Mesh, viser.GlbHandle]] = {}

    def draw(self, bodies: dict[str, Body], stamp_ns: int) -> None:
        """Sends what has changed."""
        for name in [name for name, (mesh, _) in self._drawn.items() if name not in bodies or bodies[name].mesh is not mesh]:
            self._drawn.pop(name)[1].remove()
        for name, body in bodies.items():
            pose = body.state.pose_at(stamp_ns)
            place = {"wxyz": mat2quat(pose[:3, :3]), "position": pose[:3, 3]}
            if name not in self._drawn:
                handle = self._scene.add_mesh_trimesh(f"/space/bodies/{name.replace('/', '.')}", drawable(body.mesh), **place)
                self._drawn[name] = body.mesh, handle
            handle = self._drawn[name][1]
            if not np.allclose(handle.position, place["position"]) or not np.allclose(handle.wxyz, place["wxyz"]):
                handle.wxyz, handle.position = place["wxyz"], place["position"]


class BodiesPanel:
    """The folder of the tab that makes things which spawns, moves and deletes entities.

    Args:
        folder: models of the user's own.

    Attributes:
        chosen: which entity the gizmo holds, None for none.
    """

    def __init__(self, server: viser.ViserServer, walk: Walk, folder: Path, page: Host) -> None:
        self._server, self._walk, self._folder, self._page = server, walk, folder, page
        self.chosen: str | None = None
        self._bodies3d = Bodies3D(server.scene)
        self._gizmo: tuple[int, str, viser.TransformControlsHandle] | None = None
        self._lock = threading.RLock()
        self._dragging = self._ended = False
        self._wanted: dict[str, np.ndarray] = {}
        self._kind = OFF

    def build(self) -> None:
        gui = self._server.gui
        with gui.add_folder("Entities", expand_by_default=False):
            self._uris = spawnables(self._folder)
            self._model = gui.add_dropdown("Model", tuple(self._uris), hint=f"More of them: OBJ, GLB, STL in {self._folder}.")
            on_click(gui.add_button("Spawn ahead", icon=viser.Icon.PLUS, color="teal"), self._page, self._spawn)
            self._entity = gui.add_dropdown("Entity", (NOBODY,), hint="Its arrows and rings in the view move and turn it.")
            self._entity.on_update(self._choose)
            on_click(gui.add_button("Delete", icon=viser.Icon.TRASH), self._page, self._delete)
            self._physics = gui.add_dropdown("Physics", PHYSICS, hint="contact: walls and entities stop you. mujoco: entities fall, too, "
                                             "roll, and you push them.")  # fmt: skip
            self._physics.on_update(self._choose_physics)
            on_click(gui.add_button("A ball to push", icon=viser.Icon.BALL_FOOTBALL), self._page, self._throw)

    def _spawn(self, _: viser.GuiEvent) -> None:
        name, place = self._model.value, place_ahead(seen(self._page))
        self._walk.ask("Spawning", lambda: self._spawned(name, place))

    def _spawned(self, model: str, place: np.ndarray) -> str:
        name = self._walk.spawn(model, self._uris[model], place)
        self._take(name)
        return f"Spawned {name}; drag its arrows and rings."

    def _throw(self, _: viser.GuiEvent) -> None:
        place = place_ahead(seen(self._page))

        def thrown() -> str:
            self._set_physics(MUJOCO)
            self._walk.spawn("ball", SHAPES["sphere"], place)
            return "A ball lies ahead; walk into it."

        self._walk.ask("A ball", thrown)

    async def _choose_physics(self, event: viser.GuiEvent) -> None:
        if event.client_id is None:  # set by this panel
            return
        kind = self._physics.value
        if event.client_id != self._page.driver:
            self._physics.value = self._kind
            self._page.notify(NOT_DRIVING, good=False, only=event.client_id)
        else:
            self._walk.ask("Physics", lambda: self._set_physics(kind))

    def _set_physics(self, kind: str) -> str:
        """Chooses it here, too; what there was stays where it cannot be had."""
        try:
            sentence = self._walk.set_physics(kind)
            self._kind = kind
        finally:
            self._physics.value = self._kind
        return sentence

    def _delete(self, _: viser.GuiEvent) -> None:
        if (name := self.chosen) is None:
            raise MirageError("No entity is chosen; choose one that is there first.")
        self._walk.ask("Deleting", lambda: self._deleted(name))

    def _deleted(self, name: str) -> str:
        self._walk.change_entities((Delete(name),))
        return f"Deleted {name}."

    async def _choose(self, event: viser.GuiEvent) -> None:
        if event.client_id is not None:  # not set by this panel
            self._take(None if self._entity.value == NOBODY else self._entity.value)

    # What there is of it.

    def saw(self, view: View) -> None:
        """There is a new picture, maybe of another world with other entities."""
        bodies = {body.state.name: body for body in view.state.entities}
        self._bodies3d.draw(bodies, view.frame.stamp_ns)
        if self._entity.options != (options := (NOBODY, *bodies)):
            self._entity.options = options
        if self.chosen not in (None, *bodies):
            self._take(None)
        self.place_gizmo()

    def _take(self, name: str | None) -> None:
        self.chosen = name
        if name is None or name in self._entity.options:
            self._entity.value = name or NOBODY
        self.place_gizmo()

    def place_gizmo(self) -> None:
        """The gizmo where the chosen entity is, in the browser of who drives; who drags it is not interrupted."""
        with self._lock:
            self._put_gizmo()

    def _put_gizmo(self) -> None:
        driver, view = self._page.driver, self._page.view
        body = None if view is None else next((body for body in view.state.entities if body.state.name == self.chosen), None)
        client = None if driver is None or body is None else self._page.client(driver)
        if self._gizmo is not None and (client is None or self._gizmo[:2] != (driver, self.chosen)):
            self._gizmo[2].remove()
            self._gizmo, self._dragging = None, False
        if client is None or self._dragging:
            return
        pose = body.state.pose_at(view.frame.stamp_ns)
        wxyz, position = mat2quat(pose[:3, :3]), pose[:3, 3]
        if self._gizmo is None:
            scale = float(np.clip(np.ptp(body.state.bounds_m, axis=0).max(), 0.3, 1.5))
            gizmo = client.scene.add_transform_controls("/gizmo", scale, depth_test=False, wxyz=wxyz, position=position)
            gizmo.on_update(self._dragged)
            self._gizmo = driver, self.chosen, gizmo
        elif not np.allclose(self._gizmo[2].position, position) or not np.allclose(self._gizmo[2].wxyz, wxyz):
            self._gizmo[2].wxyz, self._gizmo[2].position = wxyz, position

    async def _dragged(self, event: viser.TransformControlsEvent) -> None:
        if self._gizmo is None or event.target is not self._gizmo[2] or event.client_id != self._page.driver:
            return
        with self._lock:
            self._dragging, self._ended = True, event.phase == "end"
            waiting, name = bool(self._wanted), self._gizmo[1]
            self._wanted[name] = from_quaternion(np.array(event.target.position), np.array(event.target.wxyz))
        if not waiting:
            self._walk.ask(QUIET, self._move)

    def _move(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        try:
            self._walk.change_entities(tuple(Move(name, pose) for name, pose in wanted.items()))
        finally:
            with self._lock:
                self._dragging = not self._ended or bool(self._wanted)
            self.place_gizmo()

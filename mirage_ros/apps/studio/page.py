"""The page: a viser server, who looks on, and the picture that they see. Its panels are in see.py, make.py, paths.py and bodies.py.

viser's own camera is what walks: its keys, drags and touches move it in the browser, it tells where it is, and the
picture from there lies behind all that is drawn in space, where the browser need not draw it anew for each frame. One browser drives; the cameras of the others follow.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import viser
from jaxtyping import Float, UInt8

from mirage_ros.apps.studio import Elsewhere, View, survived
from mirage_ros.apps.studio.bodies import BodiesPanel
from mirage_ros.apps.studio.browsers import (
    LOOK_M,
    MODES,
    OVER,
    SPACE,
    WALK,
    Visitor,
    aspect_of,
    picture_url,
    pose_of,
    run_in_page,
    wake_pages_safely,
)
from mirage_ros.apps.studio.gate import guard, hidden_loopback
from mirage_ros.apps.studio.make import MakePanel
from mirage_ros.apps.studio.paths import PathPanel
from mirage_ros.apps.studio.see import Gauges, SeePanel
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.world.world import World

NOTICE_S, SETTLED_S = 6.0, 0.15
BRAND = (60, 130, 200)
KEYS = (
    "Click on the picture, then **W A S D** walk, **arrows** or a **drag** look around, the **wheel** goes ahead and back, "
    "**Q E** down and up (off the ground). A touch screen has four buttons, a gamepad its sticks."
)
CONTROLS = Path(__file__).with_name("controls.js").read_text()


@dataclass
class Page:
    """A walk and the page that shows it; a `Listener` of the walk.

    Attributes:
        world: that is walked in.
        folder: all that is saved goes below it, and nothing else is read or written.
        walk, server: made with it.
        driver: id of the browser that drives, None without any.
        view: what was seen last, None before the first picture.
        height_m: of the camera along the world's up where the world began.
        viewers: each called with every view; may not wait.

    Raises:
        MirageError: a viser that this was not made for.
    """

    world: World | Elsewhere
    folder: Path
    dark: bool = True
    viewers: tuple[Callable[[View], None], ...] = ()

    def __post_init__(self) -> None:
        self.driver: int | None = None
        self._visitors: dict[int, Visitor] = {}
        self.view: View | None = None
        self._shown_world, self._up, self.height_m = 0, np.array([0.0, 0.0, 1.0]), 0.0
        self._said: dict[str, float] = {}
        self._changed, self._closing, self._jumped = threading.Condition(), False, False
        self._due: tuple[np.ndarray, Camera] | None = None
        wake_pages_safely()
        with redirect_stdout(io.StringIO()):  # it would print the address that nobody is to know
            self.server = viser.ViserServer(hidden_loopback(), 0, verbose=False)
        self.walk = Walk(self.world, self, self.folder / "models")
        self._build()
        self.server.on_client_connect(self._came)
        self.server.on_client_disconnect(self._left)
        self._painter = threading.Thread(target=self._paint, name="paint", daemon=True)
        self._painter.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where the page's server listens, for the gate alone."""
        return self.server.get_host(), self.server.get_port()

    def close(self) -> None:
        """Ends the walk, its recording and the server."""
        self.walk.close()
        self.see.close()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._painter.join()
        with redirect_stdout(io.StringIO()):
            self.server.stop()

    # The listener's part: called by the walk's thread.

    def saw(self, view: View, jumped: bool) -> None:
        for visitor in list(self._visitors.values()) if jumped else ():
            visitor.expect(view.frame.camera.world_from_camera)
        if view.world != self._shown_world:
            self._settle_world(view)
        self.view = view
        self._paint_next(view.frame.rgb, view.frame.camera, jumped)
        for saw in (self.see.saw, self.bodies.saw, *self.viewers):
            saw(view)

    def glimpsed(self, rgb: UInt8[np.ndarray, "h w 3"], camera: Camera) -> None:
        self._paint_next(rgb, camera)

    def notify(self, sentence: str, good: bool, only: int | None = None) -> None:
        """Says it in every browser, or in one alone, but not the same again and again."""
        if not self._visitors:
            print(sentence, flush=True)
        now = time.monotonic()
        if now - self._said.get(sentence, -NOTICE_S) < NOTICE_S:
            return
        self._said = {said: when for said, when in self._said.items() if now - when < NOTICE_S} | {sentence: now}
        for visitor in [one for number, one in list(self._visitors.items()) if only in (None, number)]:
            visitor.client.add_notification(
                "Done" if good else "Not done", sentence, auto_close_seconds=NOTICE_S if good else 2 * NOTICE_S,
                color="teal" if good else "red",
            )  # fmt: skip
        self.make.refresh()

    def working(self, what: str | None, share: float) -> None:
        self._bar.visible = self._stop.visible = self._doing.visible = what is not None
        if what is not None:
            self._bar.value, self._doing.content = 100 * share, what

    # The page.

    def _build(self) -> None:
        server, gui = self.server, self.server.gui
        guard(server)
        self._colour(self.dark)
        gui.set_panel_label("mirage studio")
        gui.main_panel.dock_right()
        self._doing = gui.add_markdown("", visible=False)
        self._bar = gui.add_progress_bar(0.0, animated=True, visible=False)
        self._stop = gui.add_button("Stop", color="red", visible=False)
        self._stop.on_click(self._stopped)
        self.see = SeePanel(server, self._watched)
        self.make = MakePanel(server, self.walk, self.folder, self)
        self.paths = PathPanel(server, self.walk, self.folder, self)
        self.bodies = BodiesPanel(server, self.walk, self.folder / "models", self)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Walk", viser.Icon.WALK):
            self._build_walk()
        with tabs.add_tab("See", viser.Icon.EYE):
            self.see.build()
        with tabs.add_tab("Make", viser.Icon.WAND):
            self.make.build()
            self.bodies.build()

    def _colour(self, dark: bool) -> None:
        self.server.gui.configure_theme(dark_mode=dark, show_logo=False, show_share_button=False, brand_color=BRAND)

    def _build_walk(self) -> None:
        gui = self.server.gui
        self._ground = gui.add_checkbox("Stay on the ground", True, hint="At the height where the world began.")
        self._take = gui.add_button("Drive from this browser", icon=viser.Icon.STEERING_WHEEL,
                                    hint="One browser drives, the others look on.")  # fmt: skip
        self._take.on_click(self._taken)
        gui.add_markdown(KEYS)
        self.see.gauges = Gauges(gui)
        self.paths.build()
        self._is_dark = gui.add_checkbox("Dark", self.dark)
        self._is_dark.on_update(self._recoloured)

    def show_scene(self, client_id: int, whole: bool = False) -> None:
        """Has a browser that only sees the picture show the scene over it, or the `whole` scene alone."""
        visitor = self._visitors.get(client_id)
        if visitor is not None and visitor.mode in ((WALK, OVER) if whole else (WALK,)):
            self._switch(visitor, SPACE if whole else OVER)

    def client(self, client_id: int) -> viser.ClientHandle | None:
        visitor = self._visitors.get(client_id)
        return None if visitor is None else visitor.client

    def _watched(self) -> bool:
        return any(visitor.mode != WALK for visitor in list(self._visitors.values()))

    # Callbacks run in the server's loop and wait for nothing, so that a flood of events fills no queue.

    async def _stopped(self, _: object) -> None:
        self.walk.stop()

    async def _recoloured(self, _: object) -> None:
        self.dark = self._is_dark.value
        self._colour(self.dark)

    async def _taken(self, event: viser.GuiEvent) -> None:
        self.driver = event.client_id
        self._tell_who_drives()

    async def _came(self, client: viser.ClientHandle) -> None:
        visitor = Visitor(client)
        self._visitors[client.client_id] = visitor
        if self.driver is None:
            self.driver = client.client_id
        run_in_page(client, CONTROLS)
        mode = client.gui.add_dropdown("View", MODES, order=-2.0)
        visitor.status = client.gui.add_markdown("", order=-1.0)

        @mode.on_update
        async def _(_: object) -> None:
            self._switch(visitor, mode.value)

        visitor.chooser = mode
        visitor.parts = tuple(client.scene.add_frame(f"/{part}", show_axes=False, visible=False) for part in ("seen", "space"))
        client.camera.on_update(self._moved)
        if self.view is not None:
            visitor.place(self.view.frame.camera)
            self._repaint()
        self._tell_who_drives()

    async def _left(self, client: viser.ClientHandle) -> None:
        visitor = self._visitors.pop(client.client_id, None)
        if visitor is not None and visitor.settle is not None:
            visitor.settle.cancel()
        if self.driver == client.client_id:
            self.driver = min(self._visitors, default=None)
        self._tell_who_drives()

    async def _moved(self, camera: viser.CameraHandle) -> None:
        visitor = self._visitors.get(camera.client.client_id)
        if visitor is None or visitor.mode == SPACE:
            return
        self._settle(visitor)
        if visitor.aspect and abs(aspect_of(camera) / visitor.aspect - 1) > 0.01:
            self._repaint()
        pose = pose_of(camera)
        if self.view is not None and visitor.hears(pose) and camera.client.client_id == self.driver:
            self.walk.look(self._allowed(pose))

    def _settle(self, visitor: Visitor) -> None:
        if visitor.settle is not None:
            visitor.settle.cancel()
        visitor.settle = asyncio.get_running_loop().call_later(SETTLED_S, self._settled, visitor)

    def _settled(self, visitor: Visitor) -> None:
        """Puts right what a browser's camera may not do: orbit about a far point, leave the ground, go where nobody drives."""
        camera, view = visitor.client.camera, self.view
        if view is None:
            return
        if visitor.client.client_id != self.driver:
            visitor.place(view.frame.camera)
            return
        pose = pose_of(camera)
        allowed = self._allowed(pose)
        if not visitor.hears(pose):
            self._settle(visitor)  # asked again
            return
        self.walk.look(allowed)
        away = float(np.linalg.norm(camera.look_at - camera.position))
        if not 0.5 * LOOK_M < away < 2 * LOOK_M or np.abs(allowed[:3, 3] - pose[:3, 3]).max() > 1e-3:
            with visitor.client.atomic():
                camera.position = allowed[:3, 3]
                camera.look_at = allowed[:3, 3] + LOOK_M * allowed[:3, 2]

    def _allowed(self, pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        if self._ground.value and self._shown_world:
            pose = pose.copy()
            pose[:3, 3] += (self.height_m - pose[:3, 3] @ self._up) * self._up
        return pose

    def _tell_who_drives(self) -> None:
        visitors = list(self._visitors.values())
        for visitor in visitors:
            mine = visitor.client.client_id == self.driver
            others = len(visitors) - 1
            seen = "" if not others else f" {others} other browser{'s' * (others > 1)} here."
            visitor.status.content = ("You drive." if mine else "You look on, somebody else drives.") + seen
        self._take.visible = len(visitors) > 1
        self.bodies.place_gizmo()

    def _switch(self, visitor: Visitor, mode: str) -> None:
        visitor.mode = mode
        visitor.chooser.value = mode
        for part, visible in zip(visitor.parts, (mode != WALK, mode == SPACE), strict=True):
            part.visible = visible
        if self.view is None:
            return
        if mode == SPACE:
            visitor.show_space(self.view.frame.camera)
        else:
            visitor.place(self.view.frame.camera)
            self._repaint()
        self.see.saw(self.view)

    # The picture.

    def _repaint(self) -> None:
        """Has the picture given out again, to browsers that do not show it."""
        if self.view is not None:
            self._paint_next(self.view.frame.rgb, self.view.frame.camera)

    def _paint_next(self, rgb: UInt8[np.ndarray, "h w 3"], camera: Camera, jumped: bool = False) -> None:
        """In place of what waits to be painted."""
        with self._changed:
            self._due = rgb, camera
            self._jumped |= jumped
            self._changed.notify()

    def _paint(self) -> None:
        """Gives every browser the newest picture; one that is slow gets fewer."""
        painted, url = np.empty(0), ""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._due is not None)
                if self._closing:
                    return
                (rgb, camera), self._due = self._due, None
                jumped, self._jumped = self._jumped, False
            with survived():
                if not np.array_equal(rgb, painted):
                    painted, url = rgb, picture_url(rgb)
                for visitor in list(self._visitors.values()):
                    with survived():  # one browser that fails keeps the picture from no other
                        self._give(visitor, url, camera, jumped)

    def _give(self, visitor: Visitor, url: str, camera: Camera, jumped: bool) -> None:
        if visitor.mode == SPACE:
            return
        visitor.show(url, camera)
        if jumped or visitor.client.client_id != self.driver:
            visitor.place(camera)

    def _settle_world(self, view: View) -> None:
        """Where up and the ground are in a new world, for browsers that are here and for those that come."""
        camera = view.frame.camera
        self._shown_world, self._up = view.world, floor_axes(camera.world_from_camera)[0]
        self.height_m = float(camera.position_world @ self._up)
        self.server.scene.set_up_direction(self._up)
        start = self.server.initial_camera
        start.position = camera.position_world
        start.look_at = camera.position_world + LOOK_M * camera.world_from_camera[:3, 2]

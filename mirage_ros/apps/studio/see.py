"""What the studio shows beside the picture: memory as points, where the camera was, what it measures, how fast it goes.

Memory is sent in changes: tokens that came are one more cloud of points, and only a cloud that lost tokens goes. A thread
of its own draws at most `DRAWN_HZ` times a second, so the picture waits for none of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import viser
from jaxtyping import Float, Int, UInt8, UInt64
from transforms3d.quaternions import mat2quat
from viser import uplot

from mirage_ros.apps.studio import View, survived
from mirage_ros.data.seeds import EYE_HEIGHT_M
from mirage_ros.geometry.camera import Camera, floor_axes
from mirage_ros.protocol import (
    FREE,
    OCCUPIED,
    SECOND_NS,
    STAGES,
    UNKNOWN,
    FloorPlan,
    Surfaces,
)
from mirage_ros.recording.drawing import (
    colour_depth,
    colour_observed,
    depth_range_m,
    enlarge,
)
from mirage_ros.world.drawing import Solid
from mirage_ros.world.sensors import MapConfig, ScanConfig, floor_plan, scan

DRAWN_HZ = 2.0
MOST_CLOUDS = 32
"""When there are more, all points are sent as one."""
COLOURINGS = ("picture", "seen or imagined", "age")
SEEN, IMAGINED, TRACK, HIT = (60, 160, 255), (255, 140, 40), (255, 200, 60), (220, 50, 50)
TRAIL_KEPT = 400
FRUSTUM_M = 0.35
PLOTTED = 120
PANEL_PX = 288
MEASURED = "Map and scan"
COLOURS = ("#8ab4f8", "#f28b82", "#fdd663", "#81c995", "#c58af9")


@dataclass
class CloudChanges:
    """Which points a viewer has, in clouds by number.

    Attributes:
        clouds: the keys of each cloud's points, in their order.
    """

    clouds: dict[int, UInt64[np.ndarray, "n"]] = field(default_factory=dict)
    _next: int = 0

    def update(self, xyz: Float[np.ndarray, "n 3"]) -> tuple[list[int], tuple[int, Int[np.ndarray, "m"]] | None]:
        """What has changed: numbers of clouds to remove, and the number and rows of a cloud to add."""
        keys = point_keys(xyz)
        ordered = np.append(np.sort(keys), np.uint64(0))  # what lies beyond all of them meets the last
        gone = [number for number, held in self.clouds.items() if (ordered[np.searchsorted(ordered[:-1], held)] != held).any()]
        if len(self.clouds) - len(gone) >= MOST_CLOUDS:
            gone = list(self.clouds)
        for number in gone:
            del self.clouds[number]
        known = np.concatenate([*self.clouds.values(), np.empty(0, np.uint64)])
        rows = np.flatnonzero(~np.isin(keys, known))
        if not len(rows):
            return gone, None
        number, self._next = self._next, self._next + 1
        self.clouds[number] = keys[rows]
        return gone, (number, rows)

    def rows(self, xyz: Float[np.ndarray, "n 3"]) -> dict[int, Int[np.ndarray, "m"]]:
        """Of each cloud, where its points are among those that were last given."""
        keys = point_keys(xyz)
        order = np.argsort(keys)
        return {number: order[np.searchsorted(keys, held, sorter=order)] for number, held in self.clouds.items()}


def point_keys(xyz: Float[np.ndarray, "n 3"]) -> UInt64[np.ndarray, "n"]:
    """A number for each place, to the last bit; two places share one about never."""
    words = np.ascontiguousarray(xyz, np.float32).view(np.uint32).astype(np.uint64)
    primes = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    mixed = words * primes
    return (mixed ^ (mixed >> np.uint64(29))) @ np.array([1, 0x2545F4914F6CDD1D, 0x9FB21C651E98DF25], np.uint64)


def coloured(memory: Any, now_ns: int, colouring: str) -> UInt8[np.ndarray, "n 3"]:
    """Colours of a memory's points by one of COLOURINGS; old is dark blue, new is yellow. One that does not tell what was
    seen (`from_real` is None) has the pictures' colours instead."""
    points = memory.to_points()
    if colouring == "picture" or (colouring != "age" and memory.from_real is None):
        return points.rgb
    if colouring == "age":
        oldest = int(points.written_ns.min(initial=now_ns))
        share = (points.written_ns - oldest) / max(now_ns - oldest, 1)
        shades = np.rint(255 * share).astype(np.uint8)[:, None]
        return cv2.applyColorMap(shades, cv2.COLORMAP_CIVIDIS)[:, 0, ::-1]
    return np.where(memory.from_real[:, None], np.uint8(SEEN), np.uint8(IMAGINED))


class Memory3D:
    """The memory as clouds of points in a scene."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._changes = CloudChanges()
        self._handles: dict[int, viser.PointCloudHandle] = {}
        self._coloured_by = ""

    def draw(self, view: View, colouring: str, point_m: float) -> int:
        """Sends what has changed; returns how many points were sent."""
        memory = view.state.memory
        xyz = memory.positions_m
        colours = coloured(memory, view.frame.stamp_ns, colouring)
        gone, come = self._changes.update(xyz)
        for number in gone:
            self._handles.pop(number).remove()
        if come is not None:
            number, rows = come
            self._handles[number] = self._scene.add_point_cloud(
                f"/seen/memory/{number}", xyz[rows], colours[rows], point_size=point_m, point_shape="rounded",
                precision="float32", point_shading="flat",
            )  # fmt: skip
        if colouring != self._coloured_by or colouring == "age":
            for number, rows in self._changes.rows(xyz).items():
                self._handles[number].colors = colours[rows]
        for handle in self._handles.values():
            if handle.point_size != point_m:
                handle.point_size = point_m
        self._coloured_by = colouring
        return 0 if come is None else len(come[1])


class Track3D:
    """Where the camera is and was, in a scene."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._trail: tuple[np.ndarray, ...] = ()
        self._frustum: viser.CameraFrustumHandle | None = None
        self._line: viser.LineSegmentsHandle | None = None

    def been(self, camera: Camera, anew: bool = False) -> None:
        """Notes where the camera is, drawn or not; `anew` forgets where it was before."""
        trail, here = () if anew else self._trail, camera.position_world.copy()
        if not trail or np.linalg.norm(here - trail[-1]) > 0.02:
            self._trail = (*trail, here)[-TRAIL_KEPT:]  # at once: another thread draws it

    def draw(self, view: View) -> None:
        camera, rgb = view.frame.camera, view.frame.rgb
        vfov = 2 * np.arctan(camera.size[0] / 2 / camera.intrinsics[1, 1])
        pose = {"wxyz": mat2quat(camera.world_from_camera[:3, :3]), "position": camera.position_world}
        if self._frustum is None:
            self._frustum = self._scene.add_camera_frustum(
                "/space/camera", vfov, camera.size[1] / camera.size[0], scale=FRUSTUM_M, thickness=2.0, thickness_units="screen",
                color=TRACK, image=rgb, **pose,
            )  # fmt: skip
        self._frustum.fov, self._frustum.aspect = float(vfov), camera.size[1] / camera.size[0]
        self._frustum.image, self._frustum.wxyz, self._frustum.position = rgb, pose["wxyz"], pose["position"]
        trail = self._trail
        points = np.stack([*trail, trail[-1]])
        segments = np.stack([points[:-1], points[1:]], 1)
        if self._line is None:
            self._line = self._scene.add_line_segments("/seen/trail", segments, TRACK, thickness=2.0, thickness_units="screen")
        else:
            self._line.points = segments


def floor_m(xyz: Float[np.ndarray, "n 3"], camera: Camera) -> float:
    """How high the floor is along the camera's up: the lowest layer of many points below it, as some are always wrong; an
    eye's height below it where there is none."""
    up = floor_axes(camera.world_from_camera)[0]
    below = (camera.position_world - xyz) @ up
    counts, edges = np.histogram(below, np.arange(0.3, 5.1, 0.1))
    lowest = edges[:-1][2 * counts >= max(counts.max(), 1)][-1:]
    down = below[np.abs(below - lowest - 0.05) < 0.1]
    return float(camera.position_world @ up - (np.median(down) if len(down) else EYE_HEIGHT_M))


@dataclass(frozen=True)
class Measured:
    """What is measured from where the camera is: the floor plan around it, and where a laser scan ends."""

    plan: FloorPlan
    ends_m: Float[np.ndarray, "n 3"]

    @classmethod
    def of(cls, view: View) -> Measured | None:
        """None for a world elsewhere, which is measured there."""
        camera, state, stamp_ns = view.frame.camera, view.state, view.frame.stamp_ns
        if not isinstance(state.memory, Surfaces):
            return None
        plan = floor_plan(state.memory, state.free_space, camera.position_world, MapConfig(size_m=10.0))
        solid = Solid(state.memory, state.entities, stamp_ns)
        scanned = scan(solid, state.free_space, camera.world_from_camera, ScanConfig())
        angles = scanned.angle_min_rad + scanned.angle_step_rad * np.arange(len(scanned.ranges_m))
        hits = np.isfinite(scanned.ranges_m)
        flat = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], -1)[hits] * scanned.ranges_m[hits, None]
        return cls(plan, flat @ scanned.world_from_scan[:3, :3].T + scanned.world_from_scan[:3, 3])

    def shades(self) -> UInt8[np.ndarray, "h w 3"]:
        shades = np.full((*self.plan.cells.shape, 3), 70, np.uint8)
        shades[self.plan.cells == FREE], shades[self.plan.cells == OCCUPIED] = 235, (30, 30, 40)
        return shades

    def picture(self, camera: Camera, side_px: int = PANEL_PX) -> UInt8[np.ndarray, "h w 3"]:
        """From above: north (y) is up."""
        plan, shades = self.plan, self.shades()
        scale = side_px / max(shades.shape[:2])
        picture = cv2.resize(shades, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)

        def pixel(place: np.ndarray) -> tuple[int, int]:
            column, row = (place[:2] - plan.origin_m) / plan.resolution_m * scale
            return round(float(column)), round(float(row))

        for end in self.ends_m:
            cv2.circle(picture, pixel(end), 2, HIT, -1)
        here = camera.position_world
        cv2.arrowedLine(picture, pixel(here), pixel(here + 0.6 * camera.world_from_camera[:3, 2]), (30, 110, 230), 2, tipLength=0.4)
        return np.ascontiguousarray(picture[::-1])


class Measured3D:
    """The floor plan on the floor and the scan at its height, in a scene."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._handles: list[viser.SceneNodeHandle] = []

    def draw(self, measured: Measured | None) -> None:
        """In place of what was drawn; None takes it away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if measured is None:
            return
        plan, shades = measured.plan, measured.shades()
        alpha = np.where(plan.cells == UNKNOWN, 0, 210).astype(np.uint8)
        high, wide = np.array(plan.cells.shape) * plan.resolution_m
        middle = (*(plan.origin_m + np.array([wide, high]) / 2), MapConfig.floor_m + 0.01)
        # viser's pictures stand in the plane of x and y with y down: half a turn about x lays this one with y up.
        self._handles.append(self._scene.add_image("/space/map", np.dstack([shades, alpha])[::-1], float(wide), float(high), format="png",
                                                   wxyz=(0.0, 1.0, 0.0, 0.0), position=middle))  # fmt: skip
        if len(measured.ends_m):
            self._handles.append(self._scene.add_point_cloud("/seen/scan", measured.ends_m.astype(np.float32), HIT, point_size=0.04,
                                                             point_shape="circle", precision="float32"))  # fmt: skip


class SeePanel:
    """The tab that says what is shown, and the thread that shows it.

    Args:
        watched: whether anybody looks at the scene; what nobody looks at is not sent.

    Attributes: gauges, given once their tab is there.
    """

    gauges: Gauges

    def __init__(self, server: viser.ViserServer, watched: Callable[[], bool]) -> None:
        self._server, self._watched = server, watched
        self.memory, self.track, self._measured = Memory3D(server.scene), Track3D(server.scene), Measured3D(server.scene)
        self._newest: View | None = None
        self._changed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="see", daemon=True)

    def build(self) -> None:
        """Fills the tab that is open."""
        gui = self._server.gui
        self._colouring = gui.add_dropdown("Points by", COLOURINGS, hint="Blue was seen, orange was imagined.")
        self._point = gui.add_slider("Point size", 0.005, 0.1, 0.005, 0.03, hint="Metres.")
        blank = np.full((128, 160, 3), 40, np.uint8)
        self._pictures: dict[str, tuple[viser.GuiCheckboxHandle, viser.GuiImageHandle]] = {}
        for name, hint in (("Depth", "Near is warm, far is cool."), ("From memory", "Teal was remembered, amber imagined."),
                           (MEASURED, "White is free, dark is occupied, grey unknown; red is a laser scan. In the 3D view, too.")):  # fmt: skip
            box = gui.add_checkbox(name, name == "Depth", hint=hint)
            self._pictures[name] = box, gui.add_image(blank, visible=name == "Depth")
            box.on_update(self._again)
        for handle in (self._colouring, self._point):
            handle.on_update(self._again)
        self._thread.start()

    async def _again(self, _: object) -> None:
        self._changed.set()

    def saw(self, view: View) -> None:
        """There is a new picture; never waits."""
        self.track.been(view.frame.camera, anew=self._newest is None or view.world != self._newest.world)
        self.gauges.saw(view)
        self._newest = view
        self._changed.set()

    def close(self) -> None:
        self._closing.set()
        self._changed.set()
        self._thread.join()

    def _run(self) -> None:
        while self._changed.wait():
            if self._closing.wait(1 / DRAWN_HZ):  # first, so that the picture of a key is drawn before what lies beside it
                return
            self._changed.clear()
            if (view := self._newest) is not None:
                with survived():
                    self._draw(view)

    def _draw(self, view: View) -> None:
        self.gauges.draw()
        if watched := self._watched():
            self.memory.draw(view, self._colouring.value, self._point.value)
            self.track.draw(view)
        measured = Measured.of(view) if self._pictures[MEASURED][0].value else None
        if watched:
            self._measured.draw(measured)
        for name, (box, handle) in self._pictures.items():
            handle.visible = box.value
            if box.value:
                handle.image = _panel_picture(name, view, measured)


def _panel_picture(name: str, view: View, measured: Measured | None) -> UInt8[np.ndarray, "h w 3"]:
    frame = view.frame
    factor = PANEL_PX / frame.rgb.shape[1]
    if name == "Depth":
        return enlarge(colour_depth(frame.depth_m, depth_range_m([frame.depth_m])), factor)
    if name == "From memory":
        return enlarge(colour_observed(frame.rgb, frame.observed), factor)
    return np.full((8, 8, 3), 70, np.uint8) if measured is None else measured.picture(frame.camera)


class Gauges:
    """How fast it goes and how much is remembered: a sentence, and small graphs of the last pictures."""

    def __init__(self, gui: viser.GuiApi) -> None:
        self._rows: deque[tuple[float, ...]] = deque(maxlen=PLOTTED)
        self._speed = "Walk, and see how fast it goes."
        self._sentence = "No picture yet; the first one takes a minute or two where this was just installed."
        self._words = gui.add_markdown(self._sentence)
        axis = {"stroke": "#888", "grid": {"stroke": "#8883", "width": 1}, "size": 42, "font": "10px sans-serif"}
        axes = (uplot.Axis(**{**axis, "show": False}), uplot.Axis(**axis))
        scales, none = {"x": uplot.Scale(time=False)}, (np.zeros(2),)
        rate = (uplot.Series(label="picture"), uplot.Series(label="pictures/s", stroke=COLOURS[0], width=2))
        self._rate = gui.add_uplot(2 * none, rate, title="pictures/s", visible=False, height=120, padding=(10, 14, 8, 0), scales=scales, axes=axes,
                                   legend=uplot.Legend(show=False))  # fmt: skip
        right = uplot.Axis(**{**axis, "scale": "kB", "side": 1, "stroke": COLOURS[4], "grid": {"show": False}})
        held = (uplot.Series(label="picture"), uplot.Series(label="tokens", stroke=COLOURS[3], width=2),
                uplot.Series(label="kB", scale="kB", stroke=COLOURS[4], width=2, dash=(5, 4)))  # fmt: skip
        self._held = gui.add_uplot(3 * none, held, title="tokens, kB of memory (dashed)", visible=False, height=120, padding=(10, 4, 8, 0),
                                   scales={**scales, "kB": uplot.Scale()}, axes=(*axes, right), legend=uplot.Legend(show=False))  # fmt: skip
        stages = [uplot.Series(label=name, stroke=colour, width=1.5) for name, colour in zip(STAGES, COLOURS, strict=True)]
        self._stages = gui.add_uplot((len(STAGES) + 1) * none, (uplot.Series(label="picture"), *stages), scales=scales,
                                     title="seconds by stage", visible=False, height=190, axes=axes, padding=(10, 14, 8, 0))  # fmt: skip

    def saw(self, view: View) -> None:
        """Counts a picture; never waits."""
        memory, seconds = view.state.memory, view.frame.stamp_ns / SECOND_NS
        if view.seconds:  # else nobody walked here, which says nothing of how fast that goes
            self._speed = (f"**{view.rate_hz:.1f}** pictures/s, **{view.waited_s:.2f} s** from pose to picture, "
                           f"{view.observed_fraction:.0%} of it from memory")  # fmt: skip
            number = self._rows[-1][0] + 1 if self._rows else 0.0
            stages = (view.seconds.get(stage, 0.0) for stage in STAGES)
            self._rows.append((number, view.rate_hz, memory.tokens, memory.nbytes / 1e3, *stages))
        known = f"Remembered: {memory.tokens:,} tokens, {memory.nbytes / 1e3:,.0f} kB. World time: {seconds:.1f} s"
        self._sentence = f"{self._speed}  \n{known}"

    def draw(self) -> None:
        """Shows what was counted."""
        self._words.content = self._sentence
        if self._rows:
            number, rate, tokens, kilobytes, *stages = np.array(self._rows).T
            for graph in (self._rate, self._held, self._stages):
                graph.visible = True
            self._rate.data, self._held.data, self._stages.data = (number, rate), (number, tokens, kilobytes), (number, *stages)

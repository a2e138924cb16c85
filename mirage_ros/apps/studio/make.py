"""What can be made in the studio: worlds, moments to come back to, recordings, pictures.

Everything is saved below one folder. Names are checked before they become paths, and what is uploaded
passed the gate.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import cv2
import numpy as np
import viser
from jaxtyping import Float, UInt8

from mirage_ros.apps.studio import View
from mirage_ros.apps.studio.browsers import NOT_DRIVING, Host, checked_name, on_click, seen
from mirage_ros.apps.studio.gate import UploadGuard, decoded, decoded_depth, forget_upload
from mirage_ros.apps.studio.walk import Walk
from mirage_ros.data import joined
from mirage_ros.data.seeds import (
    DEFAULT_HFOV_DEG,
    Seed,
    central_depth_m,
    find_seed,
    load_seed,
    read_depth,
    read_picture,
    shipped_seeds,
)
from mirage_ros.errors import MirageError
from mirage_ros.files import WORLD, write_file
from mirage_ros.geometry.camera import Camera
from mirage_ros.geometry.images import seed_warnings
from mirage_ros.recording.drawing import write_ply

THUMB_PX, TALLEST_PX = 81, 2048
RECORDINGS = ("mp4", "mcap", "lerobot")
NONE_YET = "none yet"
SAME_SHAPE = 0.02
"""Share by which a photograph and its depth may differ in their width for their height."""


def thumbnail(rgb: UInt8[np.ndarray, "h w 3"], caption: str) -> str:
    """HTML of a small picture with words below."""
    height = round(rgb.shape[0] * THUMB_PX / rgb.shape[1])
    small = cv2.resize(rgb, (THUMB_PX, min(max(1, height), TALLEST_PX)), interpolation=cv2.INTER_AREA)
    data = base64.b64encode(cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]).decode()
    return (
        f'<figure style="margin:0;width:{THUMB_PX}px"><img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}" '
        'style="width:100%;height:64px;object-fit:cover;border-radius:4px;display:block">'
        f'<figcaption style="font-size:11px;opacity:.75;overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
        f"{escape(caption)}</figcaption></figure>"
    )


def strip(thumbnails: list[str], empty: str) -> str:
    """HTML of small pictures side by side, line after line."""
    inside = "".join(thumbnails) or f'<span style="opacity:.6;font-size:12px">{escape(empty)}</span>'
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px;padding:2px 10px 8px">{inside}</div>'


def looked_at(view: View) -> Float[np.ndarray, "3"]:
    """The point in the middle of the picture, on the surface that is seen there."""
    camera, depth_m = view.frame.camera, view.frame.depth_m
    middle = depth_m[depth_m.shape[0] // 2, depth_m.shape[1] // 2]
    away = float(middle) if np.isfinite(middle) else central_depth_m(depth_m)
    return camera.position_world + away * camera.world_from_camera[:3, 2]


@dataclass(frozen=True)
class Lens:
    """What a photograph and its depth were taken with.

    Attributes:
        hfov_deg: horizontal field of view, which counts where `pixels` is empty.
        pixels: fx fy cx cy, in pixels of the photograph.
        units_per_m: of the depth picture.
    """

    hfov_deg: float
    pixels: str = ""
    units_per_m: float = 1000.0

    def camera(self, seed: Seed) -> Camera:
        """The camera of a seed that was loaded with the field of view. Raises MirageError for pixels that are no lens of it."""
        if not self.pixels.strip():
            return seed.camera
        height, width = seed.camera.size
        try:
            fx, fy, cx, cy = (float(number) for number in self.pixels.replace(",", " ").split())
            if not (0 < cx < width and 0 < cy < height and all(width / 20 < focal < 20 * width for focal in (fx, fy))):
                raise ValueError
        except ValueError as error:
            raise MirageError(
                f"The lens is {self.pixels[:60]!r}; give fx fy cx cy in pixels of {seed.name}, which is {width}x{height}, or nothing."
            ) from error
        return Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), seed.camera.world_from_camera, seed.camera.size)


class MakePanel:
    """The tab that makes things.

    Args:
        folder: all that is saved goes below it.
    """

    def __init__(self, server: viser.ViserServer, walk: Walk, folder: Path, page: Host) -> None:
        self._server, self._walk, self._folder, self._page = server, walk, folder, page
        self._box: viser.TransformControlsHandle | None = None
        self._inside: viser.BoxHandle | None = None
        self._thumbnails: dict[tuple, str] = {}
        self._waiting: viser.GuiEvent | None = None
        self.uploads = UploadGuard(server, self._refused)

    # What stands in the panel.

    def build(self) -> None:
        """Fills the tab that is open."""
        gui = self._server.gui
        self._beginnings = gui.add_folder("Begin a world")
        with self._beginnings:
            self._gallery = gui.add_html("")
            self._seed = gui.add_dropdown("From", tuple(self._seeds()))
            self._hfov = gui.add_slider("Field of view", 20.0, 120.0, 0.1, DEFAULT_HFOV_DEG,
                                        hint="Of a photograph, horizontal, in degrees; read from EXIF where that tells.")  # fmt: skip
            self._on(gui.add_button("Begin here", color="teal"), self._begin)
            with gui.add_folder("Lens and depth", expand_by_default=False):
                self._pixels = gui.add_text("Lens", "", hint="fx fy cx cy in pixels of the photograph (up to 2048 wide); empty: by its view.")
                self._units = gui.add_number("Depth units", 1000.0, min=1.0, max=1e6, hint="Of the depth picture, in a metre: 1000 for millimetres.")
            self._add_uploads()
        with gui.add_folder("Moments"):
            self._timeline = gui.add_html("")
            self._on(gui.add_button("Keep this moment", icon=viser.Icon.BOOKMARK), self._keep)
            self._moment = gui.add_dropdown("Moment", (NONE_YET,))
            self._on(gui.add_button("Go back to it", icon=viser.Icon.ARROW_BACK_UP), self._restore)
            self._on(gui.add_button("Dream again", icon=viser.Icon.SPARKLES,
                                    hint="What was seen stays, what was imagined is imagined anew."), self._dream)  # fmt: skip
        self._build_record()
        with gui.add_folder("Saved worlds", expand_by_default=False):
            self._name = gui.add_text("Name", "my world")
            self._on(gui.add_button("Save", icon=viser.Icon.DEVICE_FLOPPY), self._save)
            self._saved = gui.add_dropdown("World", self._worlds())
            self._on(gui.add_button("Load", icon=viser.Icon.FOLDER_OPEN), self._load)
        with gui.add_folder("Erase a box", expand_by_default=False):
            self._shows_box = gui.add_checkbox("Show the box", False, hint="Drag its arrows to where it shall be.")
            self._size = gui.add_vector3("Size", (0.8, 0.8, 0.8), min=(0.05, 0.05, 0.05), max=(20.0, 20.0, 20.0), step=0.05)
            self._on(gui.add_button("Erase what is inside", color="red"), self._erase)
        self._shows_box.on_update(self._show_box)
        self._size.on_update(self._resize_box)
        self.refresh()

    def _build_record(self) -> None:
        gui = self._server.gui
        with gui.add_folder("Record"):
            self._format = gui.add_dropdown("As", RECORDINGS)
            self._recorded = gui.add_button("Record", icon=viser.Icon.PLAYER_RECORD, color="red")
            self._on(self._recorded, self._record)
            self._on(gui.add_button("Screenshot", icon=viser.Icon.CAMERA), self._screenshot, all_may=True)
            self._on(gui.add_button("Export points (PLY)", icon=viser.Icon.DOWNLOAD), self._export, all_may=True)

    def _on(self, handle: viser.GuiButtonHandle, do: Callable, all_may: bool = False) -> None:
        on_click(handle, self._page, do, all_may)

    def _add_uploads(self) -> None:
        """The buttons, or new ones in their place: viser's stay blocked after an upload that was refused."""
        gui = self._server.gui
        photograph = gui.add_upload_button(
            "A photograph of yours", mime_type="image/jpeg,image/png,image/webp", icon=viser.Icon.PHOTO_UP,
            hint="Or drop one on the page, alone or with its depth.",
        )  # fmt: skip
        depth = gui.add_upload_button(
            "Its depth", mime_type="image/png", icon=viser.Icon.STACK_2,
            hint="A PNG of 16 bits, in millimetres, that shows what the photograph shows. Its size may be another one.",
        )  # fmt: skip
        self._uploads = photograph, depth
        photograph.on_upload(self._take_photograph)
        depth.on_upload(self._take_depth)

    async def _take_photograph(self, event: viser.GuiEvent) -> None:
        self._take(event, self._begin_photograph)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.client_id == event.client_id:
            self._take(waiting, self._begin_with_depth)

    async def _take_depth(self, event: viser.GuiEvent) -> None:
        self.uploads.done()
        if self.uploads.coming(event.client_id):  # dropped with its photograph, and the smaller of the two
            self._waiting = event
        else:
            self._take(event, self._begin_with_depth)

    def _take(self, event: viser.GuiEvent, begin: Callable) -> None:
        file, lens = event.target.value, self._lens()
        self.uploads.done()
        if event.client_id == self._page.driver:
            name = Path(file.name).name[:80] or "The file"
            self._walk.ask("Reading the picture", lambda: begin(name, file.content, lens))
        else:
            self._page.notify(NOT_DRIVING, good=False, only=event.client_id)

    def _refused(self, client_id: int, upload: str, sentence: str) -> None:
        client = self._page.client(client_id)
        self._waiting = None
        self._page.notify(sentence, good=False, only=client_id)
        if client is not None:
            forget_upload(client, upload)
        for button in self._uploads:
            button.remove()
        with self._beginnings:
            self._add_uploads()

    def refresh(self) -> None:
        """Brings lists and small pictures up to date; called after each job, by the walk's thread."""
        seeds, worlds, moments = self._seeds(), self._worlds(), self._walk.moments
        self._gallery.content = strip(list(seeds.values()), "")
        names = tuple(moment.name for moment in moments) or (NONE_YET,)
        for dropdown, options in ((self._seed, tuple(seeds)), (self._saved, worlds), (self._moment, names)):
            if tuple(dropdown.options) != options:
                dropdown.options = options
                if dropdown is self._moment:
                    dropdown.value = options[-1]
        self._timeline.content = strip([thumbnail(one.frame.rgb, f"moment {one.name}") for one in moments], "None kept yet.")
        self._recorded.label = "Record" if self._walk.recording is None else "End the recording"

    def _seed_thumbnail(self, name: str) -> str:
        path = self._seed_path(name)
        path = path / "color.png" if path.is_dir() else path
        caption = f"{name} + depth" if self._depth_path(name).is_file() else name
        key = caption, path.stat().st_mtime_ns
        if key not in self._thumbnails:
            self._thumbnails[key] = thumbnail(read_picture(path), caption)
        return self._thumbnails[key]

    # Worlds.

    def _seeds(self) -> dict[str, str]:
        """The small pictures by name; without what is put into the folder and is no name or, perhaps not yet, no picture."""
        found = {}
        for name in (*shipped_seeds(), *sorted(path.stem for path in self._folder.glob("photographs/*.png"))):
            with suppress(MirageError, OSError):
                found[name] = self._seed_thumbnail(name)
        return found

    def _seed_path(self, name: str) -> Path:
        own = self._photograph(name)
        return own if own.is_file() else find_seed(name)[0]

    def _begin(self, _: viser.GuiEvent) -> None:
        self.begin(self._own_seed(self._seed.value, self._lens()))

    def _lens(self) -> Lens:
        return Lens(float(self._hfov.value), self._pixels.value, float(self._units.value))

    def begin(self, seed: Seed) -> None:
        """Has a world begun around a seed."""
        self._walk.ask("Beginning a world", lambda: self._begun(seed))

    def _begun(self, seed: Seed) -> str:
        with seed_warnings() as notes:
            sentence = " ".join([self._walk.begin(seed), *notes])
        if seed.name in self._seed.options:
            self._seed.value = seed.name
        return sentence

    def _begin_photograph(self, name: str, data: bytes, lens: Lens) -> str:
        rgb, exif_deg = decoded(name, data)
        stem = re.sub(r"[^\w .-]", "_", Path(name).stem)[:50].strip(" ._-") or "photograph"
        path = self._folder / "photographs" / f"{stem}.png"
        write_file(path, cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
        self._depth_path(stem).unlink(missing_ok=True)  # of another photograph of that name
        if exif_deg is not None:
            self._hfov.value = float(np.clip(round(exif_deg, 1), 20, 120))
            lens = replace(lens, hfov_deg=self._hfov.value)
        sentence = self._begun(self._own_seed(stem, lens))
        self.refresh()
        self._seed.value = stem
        return sentence

    def _begin_with_depth(self, name: str, data: bytes, lens: Lens) -> str:
        """Gives depth to the photograph that is chosen."""
        depth_mm, stem = decoded_depth(name, data), self._seed.value
        if not self._photograph(stem).is_file():
            raise MirageError(f"{stem} is no photograph of yours; upload that first, then its depth {name}.")
        height, width = read_picture(self._photograph(stem)).shape[:2]
        if abs(depth_mm.shape[1] / depth_mm.shape[0] * height / width - 1) > SAME_SHAPE:
            raise MirageError(
                f"{name} is {depth_mm.shape[1]}x{depth_mm.shape[0]} and {stem} {width}x{height}, which cannot show the same; "
                "give depth of the same view, as wide for its height."
            )
        write_file(self._depth_path(stem), data)
        seed = self._own_seed(stem, lens)
        near_m, far_m = np.nanquantile(np.where(np.isfinite(seed.depth_m), seed.depth_m, np.nan), (0.02, 0.98))
        return f"{self._begun(seed)} Its depth goes from {near_m:.2f} to {far_m:.2f} m."

    def _photograph(self, name: str) -> Path:
        return self._folder / "photographs" / f"{checked_name(name)}.png"

    def _depth_path(self, name: str) -> Path:
        return self._folder / "depths" / f"{checked_name(name)}.png"

    def _own_seed(self, name: str, lens: Lens) -> Seed:
        """A shipped seed, or a photograph with its depth where it has been given."""
        seed, depth = load_seed(self._seed_path(name), lens.hfov_deg), self._depth_path(name)
        if not self._photograph(name).is_file():
            return seed
        camera = lens.camera(seed)
        if not depth.is_file():
            return replace(seed, camera=camera)
        frame = joined(seed.rgb, camera, read_depth(depth, None, lens.units_per_m), None)
        return Seed(name, frame.rgb, frame.camera, frame.depth_m)

    def _worlds(self) -> tuple[str, ...]:
        return tuple(sorted(path.parent.name for path in self._folder.glob(f"worlds/*/{WORLD}"))) or (NONE_YET,)

    def _save(self, _: viser.GuiEvent) -> None:
        folder = self._folder / "worlds" / checked_name(self._name.value)
        self._walk.ask("Saving the world", lambda: self._walk.save(folder))

    def _load(self, _: viser.GuiEvent) -> None:
        folder = self._folder / "worlds" / checked_name(self._saved.value)
        self._walk.ask("Loading the world", lambda: self._walk.load(folder))

    def _keep(self, _: viser.GuiEvent) -> None:
        self._walk.ask("Keeping the moment", self._walk.keep)

    def _restore(self, _: viser.GuiEvent) -> None:
        name = self._moment.value
        self._walk.ask("Going back", lambda: self._walk.restore(name))

    def _dream(self, _: viser.GuiEvent) -> None:
        self._walk.ask("Dreaming again", self._walk.dream_again)

    # A box to erase.

    async def _show_box(self, event: viser.GuiEvent) -> None:
        view = self._page.view
        if self._box is None and view is not None:
            place = looked_at(view)
            scene = self._server.scene
            self._box = scene.add_transform_controls("/box", 0.5, disable_rotations=True, depth_test=False, position=place)
            self._inside = scene.add_box("/box/inside", (255, 60, 60), self._size.value, wireframe=True)
        if self._box is not None:
            self._box.visible = self._inside.visible = self._shows_box.value
        if self._shows_box.value and event.client_id is not None:
            self._page.show_scene(event.client_id)

    async def _resize_box(self, _: object) -> None:
        if self._inside is not None:
            self._inside.dimensions = self._size.value

    def _erase(self, _: viser.GuiEvent) -> None:
        if self._box is None:
            raise MirageError("There is no box yet; show it and drag it to what shall go.")
        middle, half = np.array(self._box.position), np.array(self._size.value) / 2
        self._walk.ask("Erasing", lambda: self._walk.erase(middle - half, middle + half))

    # Records.

    def _fresh(self, kind: str, ending: str) -> Path:
        """A path that nothing has, named by the time."""
        stem, count = time.strftime("%Y-%m-%d %H.%M.%S"), 1
        path = self._folder / kind / f"{stem}.{ending}"
        while path.exists():
            path, count = self._folder / kind / f"{stem} {count}.{ending}", count + 1
        return path

    def _record(self, _: viser.GuiEvent) -> None:
        if self._walk.recording is not None:
            self._walk.ask("Ending the recording", self._walk.end_recording)
            return
        path = self._fresh("recordings", self._format.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._walk.ask("Recording", lambda: self._walk.record(path))

    def _screenshot(self, event: viser.GuiEvent) -> None:
        view, path = seen(self._page), self._fresh("pictures", "png")
        data = cv2.imencode(".png", view.frame.rgb[..., ::-1])[1].tobytes()
        write_file(path, data)
        if event.client is not None:
            event.client.send_file_download(path.name, data)
        self._page.notify(f"Saved as {path}.", good=True)

    def _export(self, _: viser.GuiEvent) -> None:
        view, path = seen(self._page), self._fresh("exports", "ply")
        points = view.state.memory.to_points()
        write_ply(path, points)
        self._page.notify(f"Saved as {path}, {len(points.xyz):,} points.", good=True)

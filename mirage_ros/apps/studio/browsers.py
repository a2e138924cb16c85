"""Browsers that look on: where the camera of each is and what lies behind its view; and what panels need to answer them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import viser
from jaxtyping import Float, UInt8
from transforms3d.quaternions import quat2mat
from viser import _messages as messages
from viser.infra import _async_message_buffer, _infra

from mirage_ros.apps.studio import View
from mirage_ros.errors import MirageError
from mirage_ros.geometry.camera import Camera, floor_axes

LOOK_M = 0.05
"""A drag turns the camera about a point so far ahead: nearly in place."""
JUMP_S, NEAR = 1.5, 0.05
"""After its camera was placed a browser is not believed until it says that it is there (metres, rotation), or for so long."""
MODES = WALK, OVER, SPACE = "Walk", "Points over the picture", "Memory in 3D"
PICTURE = "mirage-picture"
ENLARGED, QUALITY = 4, 88
NAME = re.compile(r"\w[\w .-]{0,59}")
NOT_DRIVING = "Somebody else drives; press 'Drive from this browser' first."


@dataclass
class Visitor:
    """A browser.

    Attributes:
        mode: one of MODES.
        aspect: width over height of the view that the camera's field of view was set for.
        shown: the picture that it was given last, None for none.
        placed: where its camera was put, and it has not said yet that it is there.
        left: where the camera was then: a slow browser may say so for long after.
        deaf_until_s: whatever else it says counts from then on (monotonic clock).
        settle: looks after its camera once it has come to rest.
        parts: of the scene: what may lie over the picture, and what only the 3D view shows, as it would hide the picture.
    """

    client: viser.ClientHandle
    mode: str = WALK
    aspect: float = 0.0
    shown: str | None = None
    placed: np.ndarray | None = None
    left: np.ndarray | None = None
    deaf_until_s: float = 0.0
    settle: asyncio.TimerHandle | None = None
    chooser: viser.GuiDropdownHandle | None = None
    status: viser.GuiMarkdownHandle | None = None
    parts: tuple[viser.FrameHandle, ...] = ()

    def expect(self, pose: Float[np.ndarray, "4 4"]) -> None:
        """The camera is put here; nothing is waited for where it was put already."""
        here = pose_of(self.client.camera)
        if not np.allclose(here, pose, 0, NEAR):
            self.left = here if self.placed is None else self.left
            self.placed, self.deaf_until_s = pose, time.monotonic() + JUMP_S

    def hears(self, pose: Float[np.ndarray, "4 4"]) -> bool:
        """Whether this is where somebody walked to, not where the camera was before it was placed."""
        if self.placed is not None:
            elsewhere = time.monotonic() >= self.deaf_until_s and not np.allclose(pose, self.left, 0, NEAR)
            if elsewhere or np.allclose(pose, self.placed, 0, NEAR):
                self.placed = None
        return self.placed is None

    def show(self, url: str, camera: Camera) -> None:
        """Gives it a picture and the field of view with which points lie where that shows them."""
        if self.shown is not url:
            self.shown = url
            run_in_page(self.client, f"mirageStudio.show('{url}')", PICTURE)
        handle = self.client.camera
        self.aspect = aspect_of(handle)
        handle.fov = view_vfov(camera, self.aspect)
        self.client.flush()

    def show_space(self, camera: Camera) -> None:
        """In place of the picture: from behind and above the camera that walks, to look at the memory as a whole."""
        self.shown = None
        run_in_page(self.client, "mirageStudio.hide()", PICTURE)
        up, ahead, right = floor_axes(camera.world_from_camera)
        handle = self.client.camera
        with self.client.atomic():
            handle.up_direction, handle.position = up, camera.position_world - 2.5 * ahead + 2.5 * up + 0.8 * right
            handle.look_at = camera.position_world + 1.5 * ahead
            handle.fov = math.radians(60)

    def place(self, camera: Camera) -> None:
        """Moves its camera to a pose."""
        pose, handle = camera.world_from_camera, self.client.camera
        self.expect(pose)
        with self.client.atomic():
            handle.up_direction, handle.position = floor_axes(pose)[0], pose[:3, 3]
            handle.look_at = pose[:3, 3] + LOOK_M * pose[:3, 2]


def pose_of(camera: viser.CameraHandle) -> Float[np.ndarray, "4 4"]:
    """world_from_camera, optical axes."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = quat2mat(camera.wxyz), camera.position
    return pose


def aspect_of(camera: viser.CameraHandle) -> float:
    """Width over height of a browser's view; a view that is hidden counts for a square."""
    return camera.image_width / camera.image_height if camera.image_width and camera.image_height else 1.0


def picture_url(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    """The picture enlarged, as what a page's picture is read from."""
    large = cv2.resize(rgb, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_LANCZOS4)
    data = cv2.imencode(".jpg", large[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def view_vfov(camera: Camera, aspect: float) -> float:
    """The vertical field of view, radians, of a view of an aspect (width over height) that shows a camera's picture whole:
    with it points lie where the picture shows them."""
    height, width = camera.size
    return 2 * math.atan(max(height, width / aspect) / 2 / camera.intrinsics[1, 1])


def run_in_page(client: viser.ClientHandle, source: str, key: str = "") -> None:
    """Runs JavaScript in a browser; with a key in place of what has not been sent of that key yet.

    viser has no public call for it; see gate.py, which has the other private parts of it.
    """
    message = messages.RunJavascriptMessage(source)
    if key:
        message.redundancy_key = lambda: key
    client.gui._websock_interface.queue_message(message)


class LoopEvent(asyncio.Event):
    """Set in its loop's thread alone."""

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # of a thread without a loop
            asyncio.get_running_loop()
            super().set()


@dataclass
class WokenBuffer(_async_message_buffer.AsyncMessageBuffer):
    """What is to be sent. viser 1.1 sets its event in whatever thread writes, and then has the loop set it: the first may come
    while the loop begins to wait, so that the second finds it set, wakes nobody, and the page stands still for good."""

    message_event: asyncio.Event = field(default_factory=LoopEvent)


def wake_pages_safely() -> None:
    """Before a server is made."""
    _infra.AsyncMessageBuffer = WokenBuffer


# What panels need.


@runtime_checkable
class Host(Protocol):
    """What a panel needs of its page."""

    view: View | None
    driver: int | None
    height_m: float

    def show_scene(self, client_id: int, whole: bool = False) -> None: ...

    def client(self, client_id: int) -> viser.ClientHandle | None: ...

    def notify(self, sentence: str, good: bool, only: int | None = None) -> None: ...


def on_click(handle: viser.GuiButtonHandle | viser.GuiButtonGroupHandle, page: Host, do: Callable, all_may: bool = False) -> None:
    """What a click does; a refusal is shown to who clicked. Who looks on may change nothing, unless `all_may`."""

    async def clicked(event: viser.GuiEvent) -> None:
        try:
            if event.client_id not in (None, page.driver) and not all_may:
                raise MirageError(NOT_DRIVING)
            do(event)
        except MirageError as error:
            page.notify(str(error), good=False, only=event.client_id)

    handle.on_click(clicked)


def seen(page: Host) -> View:
    """The last picture. Raises MirageError before there is one."""
    if page.view is None:
        raise MirageError("There is no picture yet; begin a world first.")
    return page.view


def checked_name(text: str) -> str:
    """A name that is a plain file name. Raises MirageError for any other."""
    name = text.strip()
    if not NAME.fullmatch(name):
        raise MirageError(
            f"The name is {text[:60]!r}; give up to 60 letters, digits, spaces, dots, hyphens or underscores, "
            "beginning with a letter or digit."
        )
    return name

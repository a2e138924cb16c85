"""The gate before the page: whom it lets in, and which files.

The page's own server listens on this machine alone, at a loopback address and port that nobody is told. The gate passes
on what comes from its own pages and, where other machines can reach it, from browsers that once brought the token. It
reads the head of each request and hands everything after it through. Uploads are bounded before they are kept, and
looked at before they are decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import ipaddress
import math
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import viser
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps, UnidentifiedImageError
from viser import _messages as messages

from mirage_ros.errors import MirageError
from mirage_ros.geometry.images import check_size

COOKIE = "mirage_studio"
LONGEST_HEAD, PIECE_BYTES = 16 * 2**10, 64 * 2**10
HEAD_S, MOST_CONNECTIONS = 10.0, 128
MOST_BYTES = 32 * 2**20
"""Of an upload; all that are under way together have at most twice that."""
MOST_UPLOADS = 8
MOST_PIXELS = 64_000_000
KINDS, KEPT_PX = ("JPEG", "PNG", "WEBP"), 2048
FILM_MM = 36.0
FOCAL_35MM, EXIF_IFD = 0xA405, 0x8769
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Request:
    """The head of a request. Names of headers are in lower case; of one that comes twice the last counts."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def upgrades(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"


@dataclass(frozen=True)
class Refusal:
    """What is answered in place of the page."""

    status: str
    sentence: str
    headers: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. Raises MirageError for what is no address of this machine's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise MirageError(f"The host {host!r} is unknown ({error}); give an address of this machine.") from error
    return all(ipaddress.ip_address(entry[4][0].partition("%")[0]).is_loopback for entry in found)


def hidden_loopback() -> str:
    """A loopback address that no other page can guess."""
    first, second, third = (secrets.randbelow(254) + 1 for _ in range(3))
    return f"127.{first}.{second}.{third}"


def judged(request: Request, token: str | None) -> Refusal | None:
    """None for who may come in."""
    host = request.headers.get("host", "")
    if request.method != "GET":
        return Refusal("405 Method Not Allowed", "Only GET is answered here.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return Refusal("403 Forbidden", f"A page of {origin} may not look in here; open the studio's own page.")
    if token is None:
        if (urlsplit(f"//{host}").hostname or "") not in LOCAL_NAMES:
            return Refusal("403 Forbidden", f"The studio answers to localhost and not to {host}; use that address.")
        return None
    given = parse_qs(urlsplit(request.target).query).get("token", [""])[0]
    if given and hmac.compare_digest(given.encode(), token.encode()):
        cookie = f"Set-Cookie: {COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
        return Refusal("303 See Other", "Come in.", ("Location: /", cookie))
    if hmac.compare_digest(_cookie(request).encode(), token.encode()):
        return None
    return Refusal("403 Forbidden", "The studio needs its token; open the address that it printed when it started.")


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def parsed(head: bytes) -> Request:
    """Raises ValueError for what is no HTTP/1.1."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    pairs = (line.split(":", 1) for line in lines)
    return Request(method, target, {name.strip().lower(): value.strip() for name, value in pairs})


class Gate:
    """Listens in a thread of its own until it is closed.

    Attributes:
        url: for the browser; with the token where one is needed.

    Args:
        inner: address and port of the page's server.
        token: None lets in whoever is on this machine.

    Raises:
        MirageError: the port is taken, or the host is none of this machine's.
    """

    def __init__(self, host: str, port: int, inner: tuple[str, int], token: str | None) -> None:
        self._inner, self._token = inner, token
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        try:
            start = asyncio.start_server(self._meet, host, port, limit=LONGEST_HEAD)
            self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        except (OSError, OverflowError) as error:
            self._end_loop()
            text = f"The studio cannot listen on {host}, port {port} ({error}); give another --port or --host."
            raise MirageError(text) from error
        self.port = self._server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/" + (f"?token={token}" if token else "")

    @property
    def connections(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            if len(self._tasks) > MOST_CONNECTIONS:
                await _answer(writer, Refusal("503 Service Unavailable", "Too many browsers look on; close some."))
            else:
                await self._let_in(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # who has gone, or never said what it wants, is owed nothing
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
            request = parsed(head)
        except (asyncio.LimitOverrunError, ValueError):
            await _answer(writer, Refusal("400 Bad Request", "This is no request that a browser makes."))
            return
        if (refusal := judged(request, self._token)) is not None:
            await _answer(writer, refusal)
            return
        far_reader, far_writer = await asyncio.open_connection(*self._inner)
        try:
            far_writer.write(head if request.upgrades else _closing(request))
            await far_writer.drain()
            ways = [_hand_on(far_reader, writer)]
            # What follows a plain request on its connection would come in unjudged, so it is not handed on.
            ways += [_hand_on(reader, far_writer)] if request.upgrades else []
            await _until_one_ends(ways)
        finally:
            far_writer.close()


@contextlib.contextmanager
def opened(host: str, port: int, inner: tuple[str, int]) -> Iterator[Gate]:
    """A gate that asks for a token, made for the occasion, where other machines can reach it."""
    gate = Gate(host, port, inner, None if is_loopback(host) else secrets.token_urlsafe(24))
    try:
        yield gate
    finally:
        gate.close()


def _closing(request: Request) -> bytes:
    """The head of a plain request whose connection ends with the answer."""
    headers = {**request.headers, "connection": "close"}
    lines = [f"{request.method} {request.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _until_one_ends(ways: list) -> None:
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes as they come, no faster than they are taken."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()


async def _answer(writer: asyncio.StreamWriter, refusal: Refusal) -> None:
    body = f"{refusal.sentence}\n".encode()
    lines = [f"HTTP/1.1 {refusal.status}", *refusal.headers, "Content-Type: text/plain; charset=utf-8",
             f"Content-Length: {len(body)}", "Cache-Control: no-store", "Connection: close", "", ""]  # fmt: skip
    writer.write("\r\n".join(lines).encode("latin-1") + body)
    await writer.drain()


def decoded(name: str, data: bytes) -> tuple[UInt8[np.ndarray, "h w 3"], float | None]:
    """The upright picture of an uploaded file, and its horizontal field of view in degrees where its EXIF tells.

    Raises MirageError for what is too large, or no JPEG, PNG or WebP, before anything of it is decoded.
    """
    with _opened(name, data, KINDS, "JPEG, PNG or WebP") as picture:
        focal_mm = picture.getexif().get_ifd(EXIF_IFD).get(FOCAL_35MM)
        picture.draft("RGB", (KEPT_PX, KEPT_PX))
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        upright.thumbnail((KEPT_PX, KEPT_PX), Image.Resampling.LANCZOS)
    check_size((upright.height, upright.width), f"The picture {name}")
    hfov = None
    if focal_mm and math.isfinite(focal_mm) and 5 < focal_mm < 500:
        focal_px = float(focal_mm) / FILM_MM * max(upright.size)
        hfov = math.degrees(2 * math.atan(upright.width / 2 / focal_px))
    return np.asarray(upright), hfov


def decoded_depth(name: str, data: bytes) -> UInt16[np.ndarray, "h w"]:
    """Millimetres along z of an uploaded depth picture, 0 where there are none. Raises MirageError as `decoded` does."""
    with _opened(name, data, ("PNG",), "16-bit PNG") as picture:
        if picture.mode[0] != "I":
            kind = "8 bits a pixel" if picture.mode in ("L", "1") else "colours"
            raise MirageError(f"{name} has {kind}, which is no depth; give a PNG of one channel of 16 bits, in millimetres.")
        depth_mm = np.asarray(picture).astype(np.uint16)
    check_size(depth_mm.shape, f"The depth picture {name}")
    if not (depth_mm % 65535).any():
        raise MirageError(f"{name} has no depth in any pixel; give millimetres above 0, or a photograph alone.")
    return depth_mm


@contextlib.contextmanager
def _opened(name: str, data: bytes, kinds: tuple[str, ...], wanted: str) -> Iterator[Image.Image]:
    """A picture of which only the head has been read, and is sound. Raises MirageError for any other."""
    if len(data) > MOST_BYTES:
        raise MirageError(too_large(name, len(data)))
    try:
        with Image.open(io.BytesIO(data), formats=kinds) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise MirageError(f"{name} has {picture.width}x{picture.height} pixels; give a picture of at most {MOST_PIXELS // 10**6} million.")
            yield picture
    except UnidentifiedImageError as error:
        raise MirageError(f"{name} is no picture that can be read here; give a {wanted}.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MirageError(f"{name} is damaged ({error!s:.100}); give a whole {wanted}.") from error


def too_large(name: str, size: int) -> str:
    return f"{name} has {size / 2**20:,.0f} MiB; give a picture of at most {MOST_BYTES // 2**20} MiB."


# What follows uses private parts of viser, as browsers.py does to wake it: it has no public call to refuse an upload before it is kept whole, to
# take back the note of one, or to switch sharing off for good. The tests try each in a
# browser, and a viser that keeps them elsewhere is refused at the start.


def forget_upload(client: viser.ClientHandle, upload: str) -> None:
    """Takes back the note that an upload is under way."""
    client.gui._websock_interface.queue_message(messages.RemoveNotificationMessage(f"upload-{upload}"))


def guard(server: viser.ViserServer) -> None:
    """No browser may have this machine ask viser's makers for a public address.

    Raises:
        MirageError: this viser keeps that elsewhere.
    """
    try:
        for kind in (messages.ShareUrlRequest, messages.ShareUrlDisconnect):
            server._websock_server.unregister_handler(kind)
    except (AttributeError, AssertionError) as error:
        raise unknown_viser() from error


def unknown_viser() -> MirageError:
    return MirageError(f"viser {viser.__version__} is not one that the studio knows; pip install 'viser==1.1.*'.")


class UploadGuard:
    """viser keeps all parts of an upload until they are whole. This drops what is too large before it is kept.

    Args:
        refused: told the browser, the button, the upload and the sentence.

    Raises:
        MirageError: this viser takes uploads elsewhere.
    """

    def __init__(self, server: viser.ViserServer, refused: Callable[[int, str, str], None]) -> None:
        self._gui, self._refused = server.gui, refused
        self._held: dict[str, tuple[int, int]] = {}
        try:
            link = self._gui._websock_interface
            self._begin, self._go_on = self._gui._handle_file_transfer_start, self._gui._handle_file_transfer_part
            for kind, old, new in ((messages.FileTransferStartUpload, self._begin, self._started),
                                   (messages.FileTransferPart, self._go_on, self._came)):  # fmt: skip
                link.unregister_handler(kind, old)
                link.register_handler(kind, new)
        except (AttributeError, AssertionError, ValueError) as error:
            raise unknown_viser() from error

    @property
    def held_bytes(self) -> int:
        return sum(size for _, size in self._held.values())

    def coming(self, client_id: int) -> bool:
        return any(held[0] == client_id for held in self._held.values())

    def left(self, client_id: int) -> None:
        """A browser has gone, or sends something else: what it was sending goes."""
        for key in [key for key, held in self._held.items() if held[0] == client_id]:
            self._gui._current_file_upload_states.pop(key, None)
        self._held = {key: held for key, held in self._held.items() if held[0] != client_id}

    def done(self) -> None:
        """What was whole has been taken; nothing of it is held here."""
        whole = self._held.keys() - self._gui._current_file_upload_states.keys()
        self._held = {key: held for key, held in self._held.items() if key not in whole}

    def _started(self, client_id: int, message: messages.FileTransferStartUpload) -> None:
        name = Path(message.filename).name[:80] or "The file"
        if sum(held[0] == client_id for held in self._held.values()) > 1:  # a picture and its depth come together
            self.left(client_id)
        if not 0 <= message.size_bytes <= MOST_BYTES:
            self._refused(client_id, message.transfer_uuid, too_large(name, message.size_bytes))
        elif len(self._held) >= MOST_UPLOADS:
            self._refused(client_id, message.transfer_uuid, f"Other uploads are under way; send {name} again later.")
        else:
            self._held[message.transfer_uuid] = client_id, 0
            self._begin(client_id, message)
            self.done()

    def _came(self, client_id: int, message: messages.FileTransferPart) -> None:
        if message.transfer_uuid not in self._held:
            return
        size = self._held[message.transfer_uuid][1] + len(message.content)
        self._held[message.transfer_uuid] = client_id, size
        if size > MOST_BYTES or self.held_bytes > 2 * MOST_BYTES:
            self._gui._current_file_upload_states.pop(message.transfer_uuid, None)
            self._refused(client_id, message.transfer_uuid, too_large("The file", size))
        else:
            self._go_on(client_id, message)
        self.done()

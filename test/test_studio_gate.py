"""Whom the studio's gate lets in, over real sockets, and which files."""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from studio_helpers import seed, studio  # noqa: F401, fixtures too

from mirage_ros.apps.studio.browsers import WokenBuffer
from mirage_ros.apps.studio.gate import (
    MOST_BYTES,
    Gate,
    decoded,
    decoded_depth,
    hidden_loopback,
    is_loopback,
)
from mirage_ros.errors import MirageError


def photograph(kind="JPEG", size=(320, 240), focal_mm=None, orientation=None):
    picture, exif = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)), Image.Exif()
    if focal_mm:
        exif.get_ifd(0x8769)[0xA405] = focal_mm
    if orientation:
        exif[0x0112] = orientation
    out = io.BytesIO()
    picture.save(out, kind, exif=exif)
    return out.getvalue()


def test_photographs_tell_their_field_of_view():
    rgb, hfov = decoded("a.jpg", photograph(focal_mm=28))
    assert rgb.shape == (240, 320, 3) and hfov == pytest.approx(65.5, abs=0.2)
    rgb, upright = decoded("a.jpg", photograph(focal_mm=28, orientation=6))
    assert rgb.shape == (320, 240, 3) and upright == pytest.approx(51.5, abs=0.2)
    assert decoded("a.webp", photograph("WEBP"))[1] is None


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.jpg", b"only words", "no picture"),
        ("cut.jpg", photograph()[:5000], "damaged"),
        ("old.gif", photograph("GIF"), "no picture"),
        ("large.png", b"\x89PNG" + bytes(MOST_BYTES), "at most 32 MiB"),
        ("dot.png", photograph("PNG", (4, 4)), "at least 8 pixels"),
    ],
)  # fmt: skip
def test_what_is_no_photograph_is_refused(name, data, words):
    with pytest.raises(MirageError, match=words) as caught:
        decoded(name, data)
    assert name in str(caught.value) and str(caught.value).count(".") <= 3


def depth_png(size=(120, 96), value=2000, kind=np.uint16):
    return cv2.imencode(".png", np.full(size[::-1], value, kind))[1].tobytes()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("grey.png", depth_png(kind=np.uint8, value=9), "grey.png has 8 bits a pixel"),
        ("rgb.png", photograph("PNG"), "rgb.png has colours"),
        ("photo.jpg", photograph(), "no picture that can be read here; give a 16-bit PNG"),
        ("none.png", depth_png(value=0), "no depth in any pixel"),
        ("empty.png", b"", "no picture"),
        ("cut.png", depth_png(size=(640, 480), value=[[k] for k in range(480)])[:900], "damaged"),
        ("large.png", b"\x89PNG" + bytes(MOST_BYTES), "at most 32 MiB"),
        ("dot.png", depth_png((4, 4)), "at least 8 pixels"),
    ],
)  # fmt: skip
def test_what_is_no_depth_is_refused(name, data, words):
    with pytest.raises(MirageError, match=words) as caught:
        decoded_depth(name, data)
    assert name in str(caught.value)


@pytest.mark.parametrize(("side", "words"), [(9_000, "at most 64 million"), (30_000, "900000000 pixels")])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(side, words):
    header = bytearray(photograph("PNG", (16, 16)))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(MirageError, match=words):
        decoded("bomb.png", bytes(header))


# The gate.


class Echo:
    """A server that answers each request with its head and closes."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.heads = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            self.heads.append(link.recv(65536))
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nroom")
            link.close()


@pytest.fixture
def gate():
    opened, echo = [], Echo()

    def open_gate(token=None):
        opened.append(Gate("127.0.0.1", 0, echo.socket.getsockname(), token))
        return opened[-1], echo

    yield open_gate
    for one in opened:
        one.close()
    echo.socket.close()


def asked(gate, path="/", method="GET", **headers):
    link = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)
    link.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = link.getresponse()
    return answer, answer.read().decode()


def test_the_gate_lets_in_its_own_pages_alone(gate):
    one, _ = gate()
    here = f"127.0.0.1:{one.port}"
    assert asked(one)[1] == "room"
    assert asked(one, Origin=f"http://{here}")[1] == "room"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}):
        answer, words = asked(one, **headers)
        assert answer.status == 403 and words.count("\n") == 1, headers
    assert asked(one, method="POST")[0].status == 405


def test_the_gate_asks_for_its_token(gate):
    one, echo = gate("secret-token")
    assert asked(one)[0].status == 403 and asked(one, "/?token=wrong")[0].status == 403
    assert asked(one, Cookie="mirage_studio=wrong")[0].status == 403
    assert not echo.heads  # nothing of these came through
    answer, _ = asked(one, "/?token=secret-token")
    cookie = answer.getheader("Set-Cookie")
    assert answer.status == 303 and answer.getheader("Location") == "/" and "HttpOnly" in cookie
    assert asked(one, Cookie=cookie.split(";")[0])[1] == "room"
    assert one.url.endswith("/?token=secret-token")


def test_nothing_comes_in_unjudged_behind_a_request(gate):
    one, echo = gate()
    with socket.create_connection(("127.0.0.1", one.port)) as link:
        head = f"GET / HTTP/1.1\r\nHost: localhost:{one.port}\r\n\r\n".encode()
        link.sendall(head + b"GET /second HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        while link.recv(4096):
            pass
    assert len(echo.heads) == 1 and b"second" not in echo.heads[0]
    with socket.create_connection(("127.0.0.1", one.port)) as link:
        link.sendall(b"x" * 40_000 + b"\r\n\r\n")
        assert b"400" in link.recv(4096)


def test_the_gate_says_what_is_wrong_with_its_place(gate):
    one, _ = gate()
    with pytest.raises(MirageError, match="cannot listen on 127.0.0.1"):
        Gate("127.0.0.1", one.port, ("127.0.0.1", 1), None)
    with pytest.raises(MirageError, match="unknown"):
        is_loopback("no.such.host.invalid")
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("0.0.0.0")
    assert is_loopback(hidden_loopback()) and hidden_loopback() != hidden_loopback()


def test_browsers_that_come_and_leave_leave_nothing(studio):
    """Fifty that speak viser's protocol as far as being there."""
    import viser
    from websockets.sync.client import connect

    page, gate = studio
    here, kind = f"127.0.0.1:{gate.port}", f"viser-v{viser.__version__}"
    threads = threading.active_count()
    for _ in range(5):
        links = [connect(f"ws://{here}", origin=f"http://{here}", subprotocols=[kind]) for _ in range(10)]
        for link in links:
            assert link.recv()
        assert gate.connections == 10
        for link in links:
            link.close()
        deadline = time.monotonic() + 20
        while gate.connections and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gate.connections == 0 and not page.server.get_clients() and page.driver is None
    assert threading.active_count() <= threads + 2


def test_what_is_written_while_a_page_begins_to_wait_is_sent(studio):
    """A thread writes between the loop's look at the buffer and its sleep."""
    from viser import _messages as messages

    page, _ = studio
    assert isinstance(page.server._websock_server.get_message_buffer(), WokenBuffer)

    async def sent():
        buffer = WokenBuffer(asyncio.get_running_loop(), persistent_messages=False)
        event, message = buffer.message_event, messages.RemoveNotificationMessage("one")
        get_loop = event._get_loop

        def falling_asleep():
            event._get_loop = get_loop
            writer = threading.Thread(target=buffer.push, args=(message,))
            writer.start()
            writer.join()
            return get_loop()

        event._get_loop = falling_asleep
        async for window in buffer.window_generator(0):
            return window == [message] and event._get_loop == get_loop

    assert asyncio.run(asyncio.wait_for(sent(), 10))

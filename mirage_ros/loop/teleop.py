"""A terminal to drive by: keys and a gamepad in, velocities out; pictures drawn with half blocks. No ROS.

Terminals tell that a key is pressed, again and again while it is held, and never that it is let go. So a key
counts for `HELD_S` after it came last, longer than keyboards wait before they repeat the first time.
"""

from __future__ import annotations

import os
import select
import shutil
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mirage_ros.errors import MirageError

HELD_S = 0.6
# A lone Esc is one after which nothing comes for so long; arrows begin with it, too.
ESCAPE_S = 0.05
ARROWS = {"A": "w", "B": "s", "C": "d", "D": "a"}
# key -> (axis of the twist vx vy vz wx wy wz, sign)
AXES = {"w": (0, 1), "s": (0, -1), "q": (1, 1), "e": (1, -1), "r": (2, 1), "f": (2, -1), "a": (5, 1), "d": (5, -1)}
FASTER, SLOWER, STOP, ESC, CTRL_C = "+=", "-_", " ", "\x1b", "\x03"
FACTOR = 1.25
SLOWEST, FASTEST = 0.05, 20.0
HELP = "WASD or arrows drive, Q/E sideways, R/F up and down, +/- speed, space stop, Esc end"


class Keys:
    """What the bytes of a terminal ask for.

    Attributes:
        ended: Esc or Ctrl-C came.
        scale: of the speeds, by + and -.
    """

    def __init__(self) -> None:
        self.ended = False
        self.scale = 1.0
        self._axes: dict[int, tuple[int, float]] = {}
        self._pending = ""
        self._pending_since_s = 0.0

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes in what came, in pieces of any length, and what has not come: a lone Esc ends."""
        text = self._pending + data.decode("ascii", "ignore")
        if data:
            self._pending_since_s = now_s
        self._pending = ""
        while text:
            if text[0] != ESC:
                self._press(text[0], now_s)
                text = text[1:]
                continue
            length = _escape_length(text)
            if not length:
                self._wait(text, now_s)
                return
            if length == 1:
                self.ended = True
            elif length == 3 and text[2] in ARROWS:
                self._press(ARROWS[text[2]], now_s)
            text = text[length:]

    def held(self, now_s: float) -> Float[np.ndarray, "6"]:
        """Of each axis of the twist: 1, -1 or 0, by the keys that count now."""
        axes = np.zeros(6)
        for axis, (sign, until_s) in self._axes.items():
            axes[axis] = sign if now_s < until_s else 0
        return axes

    def _wait(self, text: str, now_s: float) -> None:
        """For the rest of a sequence; a lone Esc that nothing followed is the key."""
        if text == ESC and now_s - self._pending_since_s >= ESCAPE_S:
            self.ended = True
        else:
            self._pending = text

    def _press(self, key: str, now_s: float) -> None:
        key = key.lower()
        if key in AXES:
            axis, sign = AXES[key]
            self._axes[axis] = sign, now_s + HELD_S
        elif key in FASTER:
            self.scale = min(self.scale * FACTOR, FASTEST)
        elif key in SLOWER:
            self.scale = max(self.scale / FACTOR, SLOWEST)
        elif key == STOP:
            self._axes.clear()
        elif key == CTRL_C:
            self.ended = True


def _escape_length(text: str) -> int:
    """How many characters the escape sequence at the start has; 1 for the key Esc, 0 while it is not whole."""
    if len(text) < 2:
        return 0
    if text[1] not in "[O":
        return 1
    for index, letter in enumerate(text[2:], 3):
        if "@" <= letter <= "~":
            return index
    return 0


EVENT = struct.Struct("IhBB")
"""Of /dev/input/js*: time in ms, value, type and number (linux/joystick.h)."""
AXIS_EVENT, FULL = 2, 32767
DEAD_ZONE = 0.1
# axis of the gamepad -> (axis of the twist, sign): left stick ahead and turn, right stick sideways and up.
STICKS = {1: (0, -1), 0: (5, -1), 3: (1, -1), 4: (2, -1)}


class Gamepad:
    """The sticks of the first /dev/input/js*, or of a device by its path; still without one."""

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        """MirageError for a path that cannot be opened; without a path a missing gamepad is no error."""
        found = [path] if path else sorted(Path("/dev/input").glob("js*"))[:1]
        self._axes = np.zeros(6)
        self._rest = b""
        self._device: int | None = None
        try:
            self._device = os.open(found[0], os.O_RDONLY | os.O_NONBLOCK) if found else None
        except OSError as error:
            if path:
                raise MirageError(
                    f"The gamepad {path} cannot be opened ({error.strerror}); give a device such as /dev/input/js0."
                ) from error

    def held(self) -> Float[np.ndarray, "6"]:
        """Of each axis of the twist, -1 to 1, by the sticks as they are now."""
        data = self._rest + self._read()
        whole = len(data) // EVENT.size * EVENT.size
        self._rest = data[whole:]
        for _, value, kind, number in EVENT.iter_unpack(data[:whole]):
            # The topmost bit says that it is the state at the start.
            if kind & 0x7F == AXIS_EVENT and number in STICKS:
                axis, sign = STICKS[number]
                share = float(np.clip(value / FULL, -1, 1))
                self._axes[axis] = sign * share if abs(share) > DEAD_ZONE else 0.0
        return self._axes

    def close(self) -> None:
        """Also what is done when it is unplugged: it stands still then."""
        if self._device is not None:
            os.close(self._device)
        self._device, self._rest, self._axes = None, b"", np.zeros(6)

    def _read(self) -> bytes:
        if self._device is None:
            return b""
        try:
            return os.read(self._device, 64 * EVENT.size)
        except BlockingIOError:
            return b""
        except OSError:
            self.close()
            return b""


ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[2J", "\x1b[0m\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Most terminals then show what comes between at once; the others do not mind.
UPDATE, UPDATED = "\x1b[?2026h", "\x1b[?2026l"
LINES_BELOW = 2
# For a picture that is being written when all ends.
LAST_S = 1.0


class Terminal:
    """Context manager: a terminal that gives each key at once and is as it was afterwards.

    A thread draws, the newest alone: a terminal behind a slow line delays no key.

    Args:
        screen: draw on the alternate screen, pictures above and the status below; otherwise the status
            is one line that is written anew in place.

    Raises:
        MirageError: there is no terminal to read from and write to.
    """

    def __init__(self, screen: bool) -> None:
        check_terminal()
        self._screen = screen
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._size = (0, 0)
        self._drawn: np.ndarray | None = None
        self._next: tuple[np.ndarray | None, str] | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._artist = threading.Thread(target=self._draw_newest, daemon=True)
        self.ended = False

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in)
        mode = termios.tcgetattr(self._in)
        # Ctrl-C is a key here, so that it ends everything in order; Ctrl-Z would leave a robot under way.
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(self._in, termios.TCSANOW, mode)
        self._write(HIDE_CURSOR + (ENTER_SCREEN if self._screen else ""))
        self._artist.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._artist.join(LAST_S)
        try:
            self._write((LEAVE_SCREEN if self._screen else "\r\n") + SHOW_CURSOR)
        finally:
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines)"""
        try:
            return tuple(os.get_terminal_size(self._out))
        except OSError:
            return tuple(shutil.get_terminal_size())

    def read(self) -> bytes:
        """What was typed since; never waits. `ended` once the terminal is gone."""
        if not select.select([self._in], [], [], 0)[0]:
            return b""
        try:
            data = os.read(self._in, 1024)
        except OSError:
            data = b""
        self.ended |= not data
        return data

    def draw(self, rgb: UInt8[np.ndarray, "h w 3"] | None, status: str) -> None:
        """Has the picture drawn as large as it fits, and the status; in place of what is not drawn yet."""
        with self._changed:
            self._next = rgb, status
            self._changed.notify()

    def _draw_newest(self) -> None:
        while not self.ended:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closing)
                if self._closing:
                    return
                (rgb, status), self._next = self._next, None
            self._write(self._text_of(rgb, status))

    def _text_of(self, rgb: np.ndarray | None, status: str) -> str:
        """The picture only where it is another one; on a terminal of another size, all anew."""
        columns, lines = self.size
        if not self._screen:
            return f"\r{status[: columns - 1]}\x1b[K"
        text = ""
        if (columns, lines) != self._size:
            text, self._size, self._drawn = "\x1b[2J", (columns, lines), None
        if rgb is not None and rgb is not self._drawn and lines > LINES_BELOW:
            text += half_blocks(rgb, columns, lines - LINES_BELOW)
            self._drawn = rgb
        below = (status, HELP)[: min(LINES_BELOW, lines)]
        for row, words in enumerate(below, max(1, lines - LINES_BELOW + 1)):
            text += f"\x1b[{row};1H{words[: columns - 1]}\x1b[K"
        return UPDATE + text + UPDATED

    def _write(self, text: str) -> None:
        """All of it; a terminal that is gone is no error but the end."""
        data = text.encode()
        while data and not self.ended:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                select.select([], [self._out], [], LAST_S)
            except OSError:
                self.ended = True


def check_terminal() -> None:
    """Raises MirageError where standard input or output is no terminal."""
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        raise MirageError(
            "There is no terminal to read keys from and draw on; run this in one, or publish on cmd_vel yourself."
        )


def _is_terminal(stream) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def half_blocks(rgb: UInt8[np.ndarray, "h w 3"], columns: int, lines: int) -> str:
    """The picture in the upper left of a terminal, centred: each cell shows two pixels, one above the other."""
    height, width = rgb.shape[:2]
    factor = min(columns / width, 2 * lines / height)
    size = max(1, int(width * factor)), max(2, int(height * factor) // 2 * 2)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(rgb, size, interpolation=how)
    left = (columns - size[0]) // 2 + 1
    pairs = np.concatenate([pixels[0::2], pixels[1::2]], -1)
    return "".join(f"\x1b[{row};{left}H{''.join(_cells(line))}" for row, line in enumerate(pairs.tolist(), 1)) + "\x1b[0m"


def _cells(line: list[list[int]]) -> Iterator[str]:
    """One line of cells; a colour is written only where it changes."""
    last_above = last_below = None
    for red, green, blue, *below in line:
        if (red, green, blue) != last_above:
            last_above = red, green, blue
            yield f"\x1b[38;2;{red};{green};{blue}m"
        if below != last_below:
            last_below = below
            yield f"\x1b[48;2;{below[0]};{below[1]};{below[2]}m"
        yield "▀"

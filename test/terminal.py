"""A terminal for programs under test: a pty, and what would be seen on it, as text and as a picture.

python terminal.py OUT.png SECONDS KEYS MIRAGE_ARGUMENTS writes what a `mirage` command shows, with keys held down.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PART = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([^\x1b])", re.DOTALL)
CUT_OFF = re.compile(r"\x1b(\[[?\d;]*)?$")
SIZE, SETTLE_S = (120, 50), 3.0
INK, PAPER = (220, 220, 220), (0, 0, 0)
CELL_PX = (8, 16)


class Screen:
    """The cells of a terminal that knows what teleop writes: cursor, colours in 24 bits, erasing.

    Attributes:
        letters: one string a line.
        above, below: (lines, columns, 3) colours of ink and paper.
        alternate, cursor: whether the alternate screen, and the cursor, are shown.
        updating: what is seen is not whole yet.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.letters = [[" "] * columns for _ in range(lines)]
        self.above = np.full((lines, columns, 3), INK, np.uint8)
        self.below = np.full((lines, columns, 3), PAPER, np.uint8)
        self.alternate, self.cursor, self.updating = False, True, False
        self._row = self._column = 0
        self._ink, self._paper = INK, PAPER

    def feed(self, text: str) -> None:
        for arguments, command, letter in PART.findall(text):
            if letter:
                self._put(letter)
            elif command == "m":
                self._colour([int(word) for word in arguments.split(";") if word])
            elif command == "H":
                self._row, self._column = (int(word) - 1 for word in arguments.split(";"))
            elif command == "K":
                self._erase(slice(self._row, self._row + 1), self._column)
            elif command == "J":
                self._erase(slice(None), 0)
            elif arguments == "?1049":
                self.alternate = command == "h"
            elif arguments == "?2026":
                self.updating = command == "h"
            elif arguments == "?25":
                self.cursor = command == "h"

    def line(self, row: int) -> str:
        return "".join(self.letters[row]).rstrip()

    def picture(self) -> np.ndarray:
        """(2 lines, columns, 3): the colours of half blocks, elsewhere of the paper."""
        half = np.array([[letter == "▀" for letter in line] for line in self.letters])
        upper = np.where(half[..., None], self.above, self.below)
        return np.stack([upper, self.below], 1).reshape(-1, self.below.shape[1], 3)

    def image(self) -> Image.Image:
        """As it looks, but for the typeface."""
        width, height = CELL_PX
        rows = self.picture().repeat(height // 2, 0).repeat(width, 1)
        image = Image.fromarray(rows)
        draw = ImageDraw.Draw(image)
        for row, line in enumerate(self.letters):
            for column, letter in enumerate(line):
                if letter not in " ▀":
                    ink = tuple(int(value) for value in self.above[row, column])
                    draw.text((column * width, row * height + 1), letter, ink, font_size=12)
        return image

    def _put(self, letter: str) -> None:
        lines, columns = self.below.shape[:2]
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._row = min(self._row + 1, lines - 1)
        elif self._row < lines and self._column < columns:
            self.letters[self._row][self._column] = letter
            self.above[self._row, self._column] = self._ink
            self.below[self._row, self._column] = self._paper
            self._column += 1

    def _colour(self, values: list[int]) -> None:
        if values[:2] == [38, 2]:
            self._ink = tuple(values[2:])
        elif values[:2] == [48, 2]:
            self._paper = tuple(values[2:])
        else:
            self._ink, self._paper = INK, PAPER

    def _erase(self, rows: slice, column: int) -> None:
        for line in self.letters[rows]:
            line[column:] = [" "] * (len(line) - column)
        self.below[rows, column:] = PAPER


class Pty:
    """A program in a terminal of its own. A thread takes in what it writes; it is only drawn when somebody looks."""

    def __init__(self, command: list[str], environment: dict, columns: int = 80, lines: int = 24) -> None:
        self.domain = int(environment["ROS_DOMAIN_ID"])
        self.environment = environment
        self._screen = Screen(columns, lines)
        self._text, self._shown = "", 0
        self._outer, self._inner = pty.openpty()
        fcntl.ioctl(self._inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self._inner)
        self.process = subprocess.Popen(
            command, stdin=self._inner, stdout=self._inner, stderr=self._inner, env=environment,
            start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder, pending = codecs.getincrementaldecoder("utf-8")("replace"), ""
        while True:
            try:
                pending += decoder.decode(os.read(self._outer, 1 << 16))
            except OSError:
                return
            cut = CUT_OFF.search(pending)
            whole = cut.start() if cut else len(pending)
            self._text += pending[:whole]
            pending = pending[whole:]

    @property
    def screen(self) -> Screen:
        """What is seen now."""
        text = self._text
        self._screen.feed(text[self._shown :])
        self._shown = len(text)
        return self._screen

    def type(self, keys: str) -> None:
        os.write(self._outer, keys.encode())

    def text(self) -> str:
        """All that it wrote."""
        return self._text

    def mode(self) -> list:
        """The terminal's settings, see `before`."""
        return termios.tcgetattr(self._inner)

    def wait_for(self, until, patience_s: float = 120.0) -> None:
        deadline = time.monotonic() + patience_s
        while not until():
            assert self.process.poll() is None, self._text[-2000:]
            assert time.monotonic() < deadline, self._text[-2000:]
            time.sleep(0.02)

    def end(self, patience_s: float = 60.0) -> int:
        """The exit code, when it has ended."""
        code = self.process.wait(patience_s)
        time.sleep(0.2)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for end in (self._outer, self._inner):
            os.close(end)


def main(out: str, seconds: str, keys: str, *arguments: str) -> None:
    environment = {"ROS_DOMAIN_ID": "77", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **os.environ}
    program = Pty([sys.executable, "-m", "mirage_ros.cli", *arguments], environment, *SIZE)
    program.wait_for(lambda: "▀" in program.text(), 300.0)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        program.type(keys)
        time.sleep(0.2)
    time.sleep(SETTLE_S)
    program.wait_for(lambda: not program.screen.updating)
    program.screen.image().save(Path(out))
    program.type("\x1b")
    print(program.end())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A gate before the model: chunks are made when the test lets them, however fast the machine is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# More chunks than any test makes, and as many bytes as a pipe always holds.
MANY = 4096


class Gate:
    """A FIFO. The model of gated_node.py takes a byte out of it for each chunk that it makes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        os.mkfifo(self.path)
        # Open at both ends, so that neither side ever waits for the other to open it.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.open()

    def let(self, chunks: int) -> None:
        """So many chunks more."""
        os.write(self._descriptor, b"." * chunks)

    def open(self) -> None:
        """As many as are asked for."""
        self.shut()
        self.let(MANY)

    def shut(self) -> None:
        """None: the next one stays at work until it is let."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, MANY):
                pass

    def close(self) -> None:
        os.close(self._descriptor)

"""Video files whose frame k is shown at exactly k / rate, and their joining without re-encoding.

Encoders run on one thread and write no dates: the same pictures give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Shaped

from mirage_ros.core.errors import MirageError

# SVT-AV1 talks on its own; let it tell errors only.
os.environ.setdefault("SVT_LOG", "1")
KEYFRAME_EVERY = 2
"""Frames between key frames, as LeRobot has it: policies read frames in random order."""


@dataclass(frozen=True)
class Encoder:
    """A codec and how it is run.

    Attributes:
        name: ffmpeg's name of the encoder.
        pixels: pixel format in the file.
        source: pixel format of the arrays given.
        options: of the encoder.
    """

    name: str
    pixels: str
    source: str = "rgb24"
    options: dict[str, str] = field(default_factory=dict)


# Tuned for no latency, a frame leaves the encoder before the next one comes, in the order of times:
# a kill loses none that is inside, and joining files is adding an offset. It also turns off x264's
# macroblock tree, whose AVX-512 code reads beyond its rows, so that bits follow what the heap held.
ENCODERS = {
    "h264": Encoder(
        "libx264", "yuv420p", options={"crf": "20", "preset": "veryfast", "tune": "zerolatency"}
    ),
    "av1": Encoder(
        "libsvtav1",
        "yuv420p",
        options={"crf": "35", "preset": "12", "svtav1-params": "lp=1:pred-struct=1"},
    ),
    "depth": Encoder(
        "libx265",
        "gray12le",
        "gray12le",
        {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "x265-params": "lossless=1:pools=none:log-level=error",
        },
    ),
}
# Every second of frames lies in the file as a whole, for `cut_to_whole` to find.
FRAGMENTED = {
    "fflags": "+bitexact",
    "movflags": "+empty_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}


class StreamWriter:
    """One fragmented mp4 file of equal-sized pictures at a whole number of frames per second."""

    def __init__(self, path: Path, encoder: Encoder, rate_hz: int, size: tuple[int, int]) -> None:
        if size[0] % 2 or size[1] % 2:
            raise MirageError(
                f"Video needs even sides, the pictures are {size[1]}x{size[0]}; resize them."
            )
        self.frames = 0
        self._encoder, self._period = encoder, Fraction(1, rate_hz)
        self._file = av.open(str(path), "w", format="mp4", options=FRAGMENTED)
        options = {"g": str(KEYFRAME_EVERY), **encoder.options}
        self._stream = self._file.add_stream(encoder.name, rate=rate_hz, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = encoder.pixels
        self._stream.time_base = self._period
        self._stream.codec_context.thread_count = 1

    def add(self, pixels: Shaped[np.ndarray, "h w *c"]) -> None:
        """Appends one picture."""
        frame = av.VideoFrame.from_ndarray(pixels, format=self._encoder.source)
        frame.pts, frame.time_base = self.frames, self._period
        self._file.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds and the index."""
        try:
            self._file.mux(self._stream.encode())
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Lets go of the file without making it whole."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._file.close()


def read_stream(path: Path, pixels: str) -> Iterator[tuple[float, np.ndarray]]:
    """Times in seconds and pictures of a video, in order."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in file.decode(stream):
            yield float(frame.pts * stream.time_base), frame.to_ndarray(format=pixels)


def count_frames(path: Path) -> int:
    """Of a video, without decoding them."""
    with av.open(str(path)) as file:
        return sum(packet.size > 0 for packet in file.demux(video=0))


def cut_to_whole(path: Path) -> None:
    """Cuts off what a killed writer left of a fragment; without a whole one nothing stays."""
    whole = 0
    with path.open("r+b") as file:
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            end = file.seek(length - 8, os.SEEK_CUR)
            if length < 8 or end > path.stat().st_size:
                break
            if kind == b"mdat":
                whole = end
        file.truncate(whole)


def join_streams(parts: list[tuple[Path, int]], rate_hz: int, target: Path) -> None:
    """Writes the first so many frames of each file into `target`, one after the other, indexed.

    Args:
        parts: a file and the number of its frames to take; frame k of a file lies at k / rate.
    """
    with (
        av.open(str(target), "w", format="mp4", options={"fflags": "+bitexact"}) as joined,
        # The header notes this one's bit rate: the first one's would tell what was cut off it.
        av.open(str(parts[-1][0])) as last,
    ):
        stream = joined.add_stream_from_template(last.streams.video[0], opaque=True)
        before = 0
        for path, frames in parts:
            with av.open(str(path)) as file:
                source = file.streams.video[0]
                ticks = Fraction(1, rate_hz) / source.time_base
                for packet in file.demux(source):
                    if packet.dts is None or packet.pts >= frames * ticks:
                        continue
                    packet.pts += int(before * ticks)
                    packet.dts += int(before * ticks)
                    packet.stream = stream
                    joined.mux(packet)
            before += frames

"""Video files: streams of exact frame times, their joining without re-encoding, and episodes for people.

Frame k of a stream is shown at exactly k / rate. Its encoders (PyAV) run on one thread and write no
dates: the same pictures give the same bytes. What people look at (`VideoWriter`) goes through the ffmpeg
program that imageio-ffmpeg brings along, because it encodes in a process of its own: beside the cycle it
waits for no Python, and when the recorder is killed it still ends its file. An episode shows colour, depth
and what memory knew, side by side.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import Shaped, UInt8

from mirage_ros.errors import MirageError
from mirage_ros.protocol import Frame
from mirage_ros.recording import NOTHING, RecordingConfig
from mirage_ros.recording.drawing import compose_frame, depth_range_m
from mirage_ros.recording.episodes import Episode, remove

# SVT-AV1 talks on its own; let it print errors only.
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


@contextlib.contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """Threads that start in the block are scheduled as the caller's, and so is this one afterwards.

    Where a process is root's, as in containers, SVT-AV1 makes the thread that opens it and its own real-time ones of the
    highest priority. All that this thread starts later would be, too, and whatever of it does not rest stops the machine.
    """
    policy, priority, before = os.sched_getscheduler(0), os.sched_getparam(0), set(os.listdir("/proc/self/task"))
    try:
        yield
    finally:
        for thread in [0, *(int(name) for name in os.listdir("/proc/self/task") if name not in before)]:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, policy, priority)


class StreamWriter:
    """One fragmented mp4 file of equal-sized pictures at a whole number of frames per second."""

    def __init__(self, path: Path, encoder: Encoder, rate_hz: int, size: tuple[int, int]) -> None:
        if size[0] % 2 or size[1] % 2:
            raise MirageError(
                f"Video needs even sides, the pictures are {size[1]}x{size[0]}; resize them."
            )
        import av

        self.frames, self._av = 0, av
        self._encoder, self._period = encoder, Fraction(1, rate_hz)
        self._file = av.open(str(path), "w", format="mp4", options=FRAGMENTED)
        options = {"g": str(KEYFRAME_EVERY), **encoder.options}
        self._stream = self._file.add_stream(encoder.name, rate=rate_hz, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = encoder.pixels
        self._stream.time_base = self._period
        self._stream.codec_context.thread_count = 1
        with _scheduled_as_before():
            self._stream.codec_context.open()

    def add(self, pixels: Shaped[np.ndarray, "h w *c"]) -> None:
        """Appends one picture."""
        frame = self._av.VideoFrame.from_ndarray(pixels, format=self._encoder.source)
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
        with contextlib.suppress(self._av.FFmpegError, OSError):
            self._file.close()


def read_stream(path: Path, pixels: str) -> Iterator[tuple[float, np.ndarray]]:
    """Times in seconds and pictures of a video, in order."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in file.decode(stream):
            yield float(frame.pts * stream.time_base), frame.to_ndarray(format=pixels)


def count_frames(path: Path) -> int:
    """Of a video, without decoding them."""
    import av

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
    import av

    with (
        av.open(str(target), "w", format="mp4", options={"fflags": "+bitexact"}) as joined,
        # The header notes this one's bit rate: the first one's would show what was cut off it.
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


QUALITY_CRF = 17
FRAGMENTS = ("-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-flush_packets", "1")


class VideoWriter:
    """Context-managed writer of equal-sized RGB pictures at a constant rate.

    The file grows under a temporary name and takes its own when the block ends.
    Sides are padded to even numbers, which yuv420p needs.
    """

    def __init__(
        self,
        path: str | Path,
        frames_per_s: float,
        partial: Path | None = None,
        fragmented: bool = False,
    ) -> None:
        """Opens nothing yet.

        Args:
            partial: the temporary name, if not a hidden one beside the video's own.
            fragmented: write an index with every second, so that a file that is cut off shows
                what it has; `index_once` makes an ordinary video of it.
        """
        self._fragmented = fragmented
        if not frames_per_s > 0:
            raise MirageError(f"A video got the rate {frames_per_s}; give frames/s above 0.")
        self.path = Path(path)
        self.frames_per_s = frames_per_s
        self.frames = 0
        hidden = f".{self.path.stem}.tmp{self.path.suffix or '.mp4'}"
        self._partial = partial or self.path.with_name(hidden)
        self._size: tuple[int, int] | None = None
        self._sink = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append one picture. Raises MirageError when its size differs from the first one's."""
        if self._sink is None:
            self._open(rgb.shape[:2])
        if rgb.shape[:2] != self._size:
            raise MirageError(
                f"The video {self.path} holds {self._size} pictures and got one of "
                f"{rgb.shape[:2]}; give one size."
            )
        height, width = rgb.shape[:2]
        padded = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._sink.send(np.ascontiguousarray(padded))
        self.frames += 1

    def close(self) -> None:
        """Finish the file; without a picture there is none."""
        if self._sink is None:
            return
        self._sink.close()
        self._sink = None
        self._partial.replace(self.path)

    def _open(self, size: tuple[int, int]) -> None:
        self._size = size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = imageio_ffmpeg.write_frames(
            str(self._partial),
            (size[1] + size[1] % 2, size[0] + size[0] % 2),
            fps=self.frames_per_s,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            macro_block_size=2,
            output_params=[
                "-crf",
                str(QUALITY_CRF),
                "-preset",
                # Beside the cycle every core counts; the demo's film is made afterwards.
                "ultrafast" if self._fragmented else "medium",
                *(FRAGMENTS if self._fragmented else ("-movflags", "+faststart")),
                *(("-g", str(max(1, round(self.frames_per_s)))) if self._fragmented else ()),
            ],
            ffmpeg_log_level="error",
        )
        self._sink.send(None)


def index_once(fragmented: Path, target: Path) -> None:
    """Copies a fragmented video's pictures into an ordinary one, as far as it goes.

    Raises:
        MirageError: not a single picture can be read.
    """
    # Whoever opens the dataset removes what ends in .tmp and something; it is no recording.
    partial = target.with_name(f".{target.stem}.tmp.indexed{target.suffix}")
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-i", str(fragmented)]
    words += ["-c", "copy", "-movflags", "+faststart", str(partial)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not partial.is_file():
        partial.unlink(missing_ok=True)
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise MirageError(
            f"No picture of the video {fragmented} can be read; remove it and record again."
        )
    partial.replace(target)


WIDE_PX = 900
MARGIN = 1.5


class VideoEpisode(Episode):
    """Depth is coloured over the range of the first frame, widened by half."""

    def __init__(
        self, target: Path, config: RecordingConfig, task: str = "", info: Mapping = NOTHING
    ) -> None:
        super().__init__(target, config, task, info)
        self._video = VideoWriter(self.partial, config.rate_hz, self.partial, fragmented=True)
        self._range_m: tuple[float, float] | None = None
        self._first_ns = 0

    def _write(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        if self._range_m is None:
            # ffmpeg fills this very file.
            self.partial.touch()
            self._hold()
            near, far = depth_range_m([frame.depth_m])
            self._range_m, self._first_ns = (near / MARGIN, far * MARGIN), frame.stamp_ns
        time_s = (frame.stamp_ns - self._first_ns) / 1e9
        factor = max(1.0, WIDE_PX / 3 / frame.rgb.shape[1])
        depth_m = np.asarray(frame.depth_m)
        self._video.add(
            compose_frame(frame.rgb, depth_m, frame.observed, self._range_m, time_s, factor)
        )

    def _complete(self) -> None:
        self._video.close()

    def _rename(self) -> None:
        # The lock is on the fragmented file: until the video has its name, that one stays.
        index_once(self.partial, self.target)
        remove(self.partial)

    def _abandon(self) -> None:
        # ffmpeg may have died of the same full disk.
        with contextlib.suppress(OSError):
            self._video.close()

"""Writes H.264 video through the ffmpeg that imageio-ffmpeg brings along."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from mirage_ros.core.errors import MirageError

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

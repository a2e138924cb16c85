"""One episode as a video for people: colour, depth and what memory knew, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mirage_ros.core.frames import Frame
from mirage_ros.recording.episodes import Episode, remove
from mirage_ros.recording.panels import compose_frame, depth_range_m
from mirage_ros.recording.recorder import NOTHING, RecordingConfig
from mirage_ros.recording.video import VideoWriter, index_once

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

"""What every recording format offers: episodes of frames, written whole or not at all.

Three small faces, from plain to distributed:

- `Recorder` is what most callers use: start an episode, add frames, end it.
- `EpisodeWriter` writes one episode by itself, in any process.
- `Dataset` holds finished episodes in order. Only one process may hold it open.

`mirage_ros.recording.formats` opens them by the name of a format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mirage_ros.core.errors import MirageError
from mirage_ros.core.frames import Frame

NOTHING: Mapping[str, np.ndarray] = {}
DTYPES = ("float32", "float64", "int64", "bool")
VIDEO_CODECS = ("h264", "av1")


@dataclass(frozen=True)
class Feature:
    """Numbers that come with every frame, such as an action or a reward.

    Attributes:
        shape: (n,); a single number is (1,).
        dtype: float32, float64, int64 or bool.
        names: what each element is called, with its unit where it has one; empty for none.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise MirageError(f"A feature got the shape {self.shape}; give (n,) with n above 0.")
        if self.dtype not in DTYPES:
            raise MirageError(f"A feature got the type {self.dtype!r}; give one of {DTYPES}.")
        if self.names and len(self.names) != self.shape[0]:
            raise MirageError(
                f"A feature of {self.shape[0]} numbers got {len(self.names)} names; give one each."
            )


@dataclass(frozen=True)
class RecordingConfig:
    """What is recorded, and how.

    Attributes:
        rate_hz: frames per second of the planned stamps. LeRobot needs a whole number.
        features: what `add` is given beside the frame, by name. LeRobot's own names are
            `action`, `observation.state`, `next.reward`, `next.done` and `next.success`.
        video_codec: h264 or av1, of the colour video.
        depth_max_m: beyond it, the depth video says "beyond range".
        namespace: of the topics in MCAP.
        world_frame, camera_frame: names of the frames in MCAP.
        robot_type: what LeRobot notes as the robot.
        queue_frames: frames that may wait for the disk before `add` blocks.
        episode_frames: a stream without episodes is cut into episodes of at most so many
            frames, and where its stamps jump; None leaves episodes to the caller.
    """

    rate_hz: float
    features: Mapping[str, Feature] = field(default_factory=dict)
    video_codec: str = "h264"
    depth_max_m: float = 40.0
    namespace: str = ""
    world_frame: str = "world"
    camera_frame: str = "mirage_camera_optical_frame"
    robot_type: str = "mirage_ros"
    queue_frames: int = 64
    episode_frames: int | None = None

    def __post_init__(self) -> None:
        if not self.rate_hz > 0:
            raise MirageError(f"A recording got the rate {self.rate_hz}; give frames/s above 0.")
        if self.video_codec not in VIDEO_CODECS:
            raise MirageError(
                f"The video codec is {self.video_codec!r}; give one of {', '.join(VIDEO_CODECS)}."
            )


class EpisodeWriter(Protocol):
    """One episode on its way to the disk.

    `with` finishes it, or discards it when the block ends by an exception. Every error is a
    MirageError; after one, only `discard` and `leave` may be called.
    """

    def add(self, frame: Frame, values: Mapping[str, np.ndarray] = NOTHING) -> None:
        """Appends a frame and the values of the config's features."""
        ...

    def finish(self) -> None:
        """Makes the episode durable; until then nobody sees it."""
        ...

    def discard(self) -> None:
        """Leaves nothing behind."""
        ...

    def leave(self) -> None:
        """After an error: lets go of the files; a recording of its own stays to be mended."""
        ...

    def __enter__(self) -> EpisodeWriter: ...

    def __exit__(self, *exception: object) -> None: ...


class Dataset(Protocol):
    """Finished episodes under one path.

    Attributes:
        episodes: how many are part of the dataset: indices 0 to episodes - 1.
    """

    episodes: int

    def finished(self) -> set[int]:
        """Indices of all episodes on the disk, also of those that were not adopted yet."""
        ...

    def episode(
        self, index: int, task: str = "", info: Mapping[str, object] = NOTHING
    ) -> EpisodeWriter:
        """Begins an episode; one with the same index that was never finished is replaced."""
        ...

    def adopt(self, index: int) -> None:
        """Makes the finished episode `index` part of the dataset; call in rising order."""
        ...

    def close(self) -> None:
        """Leaves a dataset that its readers accept; a second call does nothing."""
        ...


class Recorder(Protocol):
    """A stream of episodes; `add` blocks when the disk is slower, nothing is ever dropped.

    Attributes:
        frames: given to `add` so far.
        episodes: that are finished.
    """

    frames: int
    episodes: int

    def start_episode(self, task: str = "", info: Mapping[str, object] = NOTHING) -> None:
        """Begins the next episode, ending the one in progress."""
        ...

    def add(self, frame: Frame, values: Mapping[str, np.ndarray] = NOTHING) -> None:
        """Appends a frame, blocking while too many wait; the first call may start an episode."""
        ...

    def wait(self) -> None:
        """Returns when every frame that was added is written."""
        ...

    def end_episode(self) -> None:
        """Waits until the episode is on the disk; without one it does nothing."""
        ...

    def discard_episode(self) -> None:
        """Forgets the episode in progress."""
        ...

    def close(self) -> None:
        """Ends the episode in progress and finishes the dataset."""
        ...

    def __enter__(self) -> Recorder: ...

    def __exit__(self, *exception: object) -> None: ...

"""Recording, without ROS: what every format offers, episodes of frames written whole or not at all.

Three interfaces, from plain to distributed:

- `Recorder` is what most callers use: start an episode, add frames, end it. In `QueuedRecorder`, which
  all formats share, a thread writes, and callers wait when it falls behind.
- `EpisodeWriter` writes one episode by itself, in any process.
- `Dataset` holds finished episodes in order. Only one process may hold it open.

`formats.py` opens them by the name of a format.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mirage_ros.errors import MirageError

if TYPE_CHECKING:  # `mirage --help` names the formats, and has to be quick
    import numpy as np

    from mirage_ros.protocol import Frame

FORMATS = ("lerobot", "mcap", "video", "png", "exr")
"""What can be recorded, by name; formats.py says how."""
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


@runtime_checkable
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


@runtime_checkable
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


@runtime_checkable
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


POLL_S = 0.2


class Background:
    """Jobs done in order by a thread; who hands them over waits while too many are waiting.

    After a job's error all others are dropped, and every call raises it.
    """

    def __init__(self, waiting: int) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(waiting)
        self.error: BaseException | None = None
        self.raised = False
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], object]) -> None:
        """Hands a job over; blocks while the queue is full."""
        while True:
            self._raise()
            try:
                self._queue.put(job, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def wait(self) -> None:
        """Returns when every job is done."""
        done = threading.Event()
        self.put(done.set)
        # Not Queue.join: its count is wrong for good when Ctrl-C comes within a put.
        while not done.wait(POLL_S):
            self._raise()
        self._raise()

    def stop(self) -> None:
        """Ends the thread after the jobs that wait; raises nothing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self.error is not None:
            self.raised = True
            raise self.error

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self.error is None:
                    job()
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                self.error = error


class QueuedRecorder:
    """Frames wait in a bounded queue: `add` is quick until it is full, then as slow as the disk.

    An error of the writing thread is raised once, by the next call. Episodes that were ended
    before it are kept, the one in progress is lost.
    """

    def __init__(self, dataset: Dataset, config: RecordingConfig, keep_half: bool = False) -> None:
        """`keep_half` keeps the episode in progress when the block is left by an exception."""
        self.frames = 0
        self._dataset, self._config, self._keep_half = dataset, config, keep_half
        self._background = Background(config.queue_frames)
        self._begin: tuple[str, Mapping] = ("", NOTHING)
        self._episode: EpisodeWriter | None = None
        self._in_episode, self._first_ns = 0, 0
        self._closed = False

    @property
    def episodes(self) -> int:
        """That are finished."""
        return self._dataset.episodes

    def start_episode(self, task: str = "", info: Mapping[str, object] = NOTHING) -> None:
        """Begins the next episode, ending the one in progress."""
        self._put(lambda: self._start(task, dict(info)))

    def add(self, frame: Frame, values: Mapping[str, np.ndarray] = NOTHING) -> None:
        """Appends a frame; blocks while the queue is full."""
        import numpy as np

        kept = {name: np.array(value) for name, value in values.items()}
        self._put(lambda: self._add(frame, kept))
        self.frames += 1

    def wait(self) -> None:
        """Returns when every frame that was added is written."""
        self._background.wait()

    def end_episode(self) -> None:
        """Returns when the episode is on the disk."""
        self._put(self._end)
        self._background.wait()

    def discard_episode(self) -> None:
        """Forgets the episode in progress."""
        self._put(self._discard)
        self._background.wait()

    def close(self) -> None:
        """Ends the episode in progress and finishes the dataset; a second call does nothing."""
        if self._closed:
            return
        try:
            if not self._background.raised:
                self._put(self._end)
                self._put(self._dataset.close)
                self._background.wait()
        finally:
            self._stop()

    def __enter__(self) -> QueuedRecorder:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is not None and not self._keep_half and not self._background.raised:
                self.discard_episode()
            self.close()
        except MirageError:
            if kind is None:
                raise

    def _put(self, job: Callable[[], None]) -> None:
        if self._closed:
            raise MirageError("The recording was closed; open another one.")
        try:
            self._background.put(job)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        """Lets go of everything; what went wrong was raised already."""
        self._closed = True
        self._background.stop()
        with suppress(MirageError):
            if self._episode is not None:
                self._episode.leave()
            self._dataset.close()

    def _start(self, task: str, info: Mapping) -> None:
        self._end()
        self._begin = (task, info)
        self._episode = self._dataset.episode(self._dataset.episodes, task, info)

    def _add(self, frame: Frame, values: Mapping[str, np.ndarray]) -> None:
        if self._episode is not None and self._is_cut(frame):
            self._end()
        if self._episode is None:
            self._start(*self._begin)
        if not self._in_episode:
            self._first_ns = frame.stamp_ns
        self._episode.add(frame, values)
        self._in_episode += 1

    def _is_cut(self, frame: Frame) -> bool:
        """Whether a stream is cut before this frame: after enough frames, and at gaps."""
        longest = self._config.episode_frames
        if longest is None or not self._in_episode:
            return False
        expected_ns = self._first_ns + self._in_episode / self._config.rate_hz * 1e9
        return self._in_episode >= longest or abs(frame.stamp_ns - expected_ns) > 1e5

    def _end(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None and self._in_episode:
            self._in_episode = 0
            episode.finish()
            self._dataset.adopt(self._dataset.episodes)
        elif episode is not None:
            episode.discard()

    def _discard(self) -> None:
        episode, self._episode, self._in_episode = self._episode, None, 0
        if episode is not None:
            episode.discard()
